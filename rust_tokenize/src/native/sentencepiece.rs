//! Cutting text for SentencePiece-style BPE, whose model sees a whole text as one piece.
//!
//! No merge of the usual vocabularies joins a token that does not end with a blank to one that
//! begins with a blank. Where that holds (`cuts_are_exact` checks every merge at load), no token
//! can span the place before a run of blanks, and merging the words one by one gives the ids that
//! merging the whole text gives. Words repeat, so the cache of pieces works as for byte-level
//! models. Here a blank in the text and the character that stands for it are the same.

use crate::native::merges::Merge;
use crate::native::model::{BLANK, CharAlphabet};
use crate::native::scan::Scanner;
use crate::native::vocabulary::Vocabulary;

/// [`BLANK`] in UTF-8.
const BLANK_BYTES: [u8; 3] = [0xe2, 0x96, 0x81];

/// The whole text is one piece.
#[derive(Debug, Clone, Copy)]
pub struct Whole;

/// Cuts before each run of blanks.
#[derive(Debug, Clone, Copy)]
pub struct BeforeRuns;

/// Cuts before each blank.
#[derive(Debug, Clone, Copy)]
pub struct BeforeEach;

impl Scanner for Whole {
    fn scan(self, text: &str, start: usize, ends: &mut [usize]) -> usize {
        match ends.first_mut() {
            Some(end) if start < text.len() => {
                *end = text.len();
                1
            }
            _ => 0,
        }
    }
}

impl Scanner for BeforeRuns {
    fn scan(self, text: &str, start: usize, ends: &mut [usize]) -> usize {
        scan(text.as_bytes(), start, ends, true)
    }
}

impl Scanner for BeforeEach {
    fn scan(self, text: &str, start: usize, ends: &mut [usize]) -> usize {
        scan(text.as_bytes(), start, ends, false)
    }
}

#[inline]
fn scan(text: &[u8], mut start: usize, ends: &mut [usize], runs: bool) -> usize {
    let mut found = 0;
    while start < text.len() && found < ends.len() {
        start = end_of_piece(text, start, runs);
        ends[found] = start;
        found += 1;
    }
    found
}

#[inline]
fn end_of_piece(text: &[u8], start: usize, runs: bool) -> usize {
    let mut at = start + blank_at(text, start);
    while runs && blank_at(text, at) > 0 {
        at += blank_at(text, at);
    }
    next_blank(text, at)
}

/// The first blank from a position on, or the end: eight bytes at a time.
#[inline]
fn next_blank(text: &[u8], mut at: usize) -> usize {
    while let Some(word) = text.get(at..).and_then(|rest| rest.first_chunk::<8>()) {
        let word = u64::from_le_bytes(*word);
        let found = zero_bytes(word ^ (u64::from(b' ') * ONES)) | zero_bytes(word ^ (0xe2 * ONES));
        if found == 0 {
            at += 8;
            continue;
        }
        at += found.trailing_zeros() as usize / 8;
        if blank_at(text, at) > 0 {
            return at;
        }
        at += 1;
    }
    while at < text.len() && blank_at(text, at) == 0 {
        at += 1;
    }
    at
}

const ONES: u64 = 0x0101_0101_0101_0101;

/// The high bit of the first byte that is 0, and perhaps of later ones (Mycroft, 1987).
#[inline]
fn zero_bytes(word: u64) -> u64 {
    word.wrapping_sub(ONES) & !word & (0x80 * ONES)
}

/// Bytes of the blank at a position, 0 if there is none.
#[inline]
fn blank_at(text: &[u8], at: usize) -> usize {
    match text.get(at) {
        Some(b' ') => 1,
        Some(&byte) if byte == BLANK_BYTES[0] && text[at..].starts_with(&BLANK_BYTES) => 3,
        _ => 0,
    }
}

/// Whether [`BeforeRuns`] changes no ids: the blank is a token and the unknown token has none in it,
/// no character vanishes (its neighbours would meet across the cut), and no merge spans a cut.
#[must_use]
pub fn cuts_are_exact(
    alphabet: &CharAlphabet,
    unk_token: Option<&str>,
    vocabulary: &Vocabulary,
    merges: &[Merge],
) -> bool {
    let spans_a_cut = |merge: &Merge| {
        let begins = |id| vocabulary.token_of(id).is_some_and(|token| token.starts_with(BLANK));
        let ends = |id| vocabulary.token_of(id).is_some_and(|token| token.ends_with(BLANK));
        begins(merge.right) && !ends(merge.left)
    };
    alphabet.get(BLANK).is_some()
        && alphabet.keeps_all()
        && !unk_token.is_some_and(|token| token.contains(BLANK))
        && !merges.iter().any(spans_a_cut)
}
