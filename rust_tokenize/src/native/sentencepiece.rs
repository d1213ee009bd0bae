//! Cutting text for SentencePiece-style BPE, whose model sees a whole text as one piece.
//!
//! No merge of the usual vocabularies joins a token that does not end with a blank to one that
//! begins with a blank. Where that holds ([`Cuts::new`] checks every merge at load), no token can
//! span the place before a run of blanks, and merging the words one by one gives the ids that
//! merging the whole text gives. The same goes for any two characters that no merge joins: mostly
//! digits, line ends and signs, which would else make a word of every line of code. Words repeat, so
//! the cache of pieces works as for byte-level models. Here a blank in the text and the character
//! that stands for it are the same.

use crate::native::merges::Merge;
use crate::native::model::{BLANK, CharAlphabet};
use crate::native::scan::Scanner;
use crate::native::vocabulary::Vocabulary;

/// [`BLANK`] in UTF-8.
const BLANK_BYTES: [u8; 3] = [0xe2, 0x96, 0x81];

/// The whole text is one piece.
#[derive(Debug, Clone, Copy)]
pub struct Whole;

/// Cuts before each run of blanks, and between characters that never merge.
#[derive(Debug, Clone, Copy)]
pub struct Words<'a>(pub &'a Cuts);

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

impl Scanner for Words<'_> {
    fn scan(self, text: &str, start: usize, ends: &mut [usize]) -> usize {
        self.0.scan(text.as_bytes(), start, ends)
    }
}

impl Scanner for BeforeEach {
    fn scan(self, text: &str, mut start: usize, ends: &mut [usize]) -> usize {
        let text = text.as_bytes();
        let mut found = 0;
        while start < text.len() && found < ends.len() {
            start = next_blank(text, start + blank_at(text, start));
            ends[found] = start;
            found += 1;
        }
        found
    }
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

/// Where text may be cut.
#[derive(Debug, Clone)]
pub struct Cuts {
    /// `before[256 * a + b]`: 1 where text is cut before byte `b` that follows byte `a`. The blank's
    /// own character counts as a blank, other bytes beyond ASCII as one that joins everything but it.
    before: Box<[u8; 1 << 16]>,
}

impl Cuts {
    /// None if cutting before runs of blanks could change ids: unless the blank is a token and the
    /// unknown token has none in it, no character vanishes (its neighbours would meet across the
    /// cut), and no merge spans a cut.
    #[must_use]
    pub fn new(
        alphabet: &CharAlphabet,
        unk_token: Option<&str>,
        vocabulary: &Vocabulary,
        merges: &[Merge],
    ) -> Option<Self> {
        let has_blank = unk_token.is_some_and(|token| token.contains(BLANK));
        if alphabet.get(BLANK).is_none() || !alphabet.keeps_all() || has_blank {
            return None;
        }
        // Bytes that stand for a character do not end the wait of an unknown token, and do not look
        // like their character: pairs are only told apart where neither matters.
        let is_byte = |merge: &Merge| alphabet.is_byte(merge.left) || alphabet.is_byte(merge.right);
        let only_blanks = !alphabet.has_all_bytes() || merges.iter().any(is_byte);
        let mut before: Box<[u8; 1 << 16]> = vec![0; 1 << 16].try_into().ok()?;
        for (left, right) in (0..=255).flat_map(|left| (0..=255).map(move |right| (left, right))) {
            let word_ends = left != b' ' && right == b' ';
            let apart = !only_blanks && left.is_ascii() && right.is_ascii();
            before[pair(left, right)] = u8::from(word_ends || apart);
        }
        let tokens = vocabulary.tokens().iter().map(str::chars);
        let borders: Vec<_> = tokens.map(|mut it| (it.clone().next(), it.next_back())).collect();
        for merge in merges {
            let (_, last) = borders[vocabulary.number_of(merge.left)?];
            let (first, _) = borders[vocabulary.number_of(merge.right)?];
            let (last, first) = (last?, first?);
            if first == BLANK && last != BLANK {
                return None;
            }
            if let (Some(last), Some(first)) = (to_byte(last), to_byte(first)) {
                before[pair(last, first)] = 0;
            }
        }
        Some(Self { before })
    }

    #[inline]
    fn scan(&self, text: &[u8], start: usize, ends: &mut [usize]) -> usize {
        let Some(&first) = text.get(start) else { return 0 };
        let (mut last, mut at) = match blank_at(text, start) {
            0 => (first, start + 1),
            length => (b' ', start + length),
        };
        let mut found = 0;
        while found < ends.len() {
            let Some(&byte) = text.get(at) else {
                ends[found] = text.len();
                return found + 1;
            };
            let is_blank = byte == BLANK_BYTES[0] && blank_at(text, at) > 0;
            let (here, length) = if is_blank { (b' ', BLANK_BYTES.len()) } else { (byte, 1) };
            ends[found] = at;
            found += usize::from(self.before[pair(last, here)]);
            last = here;
            at += length;
        }
        found
    }
}

#[inline]
fn pair(left: u8, right: u8) -> usize {
    usize::from(left) << 8 | usize::from(right)
}

/// The ASCII byte of a character of the vocabulary.
fn to_byte(character: char) -> Option<u8> {
    match character {
        BLANK => Some(b' '),
        ' ' => None, // no text has it: blanks are replaced
        _ => u8::try_from(character).ok().filter(u8::is_ascii),
    }
}
