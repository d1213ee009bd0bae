//! Normalization form C as the reference composes it (Unicode Standard Annex 15).
//!
//! The reference's tables are of Unicode 9, so that newer characters neither reorder nor compose;
//! ours are read off it. Most text is in NFC and most of its characters are inert: they keep their
//! form whatever stands around them. Only what lies from one inert character, which may compose
//! with what follows it, to the next is looked at, and rewritten where the quick check of the annex
//! leaves a doubt.

use std::borrow::Cow;

use super::nfc_tables::{BLOCKS, COMPOSITIONS, DECOMPOSITIONS, INDEX};

/// Bits of a character's property with the rank of its combining class, 0 if it has none.
const RANK: u8 = 0x3F;
/// In a property: the character may compose with one before it.
const MAY_COMPOSE: u8 = 0x40;
/// The property of a character that NFC always replaces.
const CHANGES: u8 = 0x80;

/// `text` in NFC; borrowed where nothing changes.
#[must_use]
pub fn nfc(text: &str) -> Cow<'_, str> {
    let mut changed = String::new();
    let mut segment = Segment::default();
    let (mut copied, mut at) = (0, 0);
    while let Some(active) = first_active(text, at) {
        let begin = text[at..active].char_indices().next_back().map_or(active, |(i, _)| at + i);
        at = end_of_active(text, active);
        let before = &text[begin..at];
        if !is_surely_composed(before) {
            let after = segment.compose(before);
            if after != before {
                changed.push_str(&text[copied..begin]);
                changed.push_str(after);
                copied = at;
            }
        }
    }
    if copied == 0 {
        return Cow::Borrowed(text);
    }
    changed.push_str(&text[copied..]);
    Cow::Owned(changed)
}

/// What NFC needs to know of a character; 0 if it is inert.
#[must_use]
#[inline]
pub fn property(character: char) -> u8 {
    let code = character as usize;
    BLOCKS[usize::from(INDEX[code >> 8]) << 8 | code & 0xFF]
}

/// The first character from `at` on that is not inert.
fn first_active(text: &str, mut at: usize) -> Option<usize> {
    const CHUNK: usize = 32;
    // the first byte of U+0300, before which all characters are inert
    const FIRST: u8 = 0xCC;
    loop {
        let is_inert = |bytes: &[u8; CHUNK]| bytes.iter().fold(0, |most, &b| most.max(b)) < FIRST;
        while text.as_bytes()[at..].first_chunk().is_some_and(is_inert) {
            at += CHUNK;
        }
        // a chunk may end within a character of two bytes, which is inert
        while !text.is_char_boundary(at) {
            at += 1;
        }
        let some = text[at..].char_indices().take_while(|&(i, _)| i < CHUNK);
        let mut end = at;
        for (i, character) in some {
            if property(character) != 0 {
                return Some(at + i);
            }
            end = at + i + character.len_utf8();
        }
        if end == text.len() {
            return None;
        }
        at = end;
    }
}

/// The end of the characters from `at` on that are not inert.
fn end_of_active(text: &str, at: usize) -> usize {
    let inert = text[at..].char_indices().find(|&(_, character)| property(character) == 0);
    inert.map_or(text.len(), |(i, _)| at + i)
}

/// The quick check: every character keeps its form, and marks stand in order.
fn is_surely_composed(segment: &str) -> bool {
    let mut last = 0;
    segment.chars().all(|character| {
        let found = property(character);
        let in_order = found == 0 || found >= last;
        last = found;
        in_order && found & (MAY_COMPOSE | CHANGES) == 0
    })
}

/// Room to compose a segment in.
#[derive(Default)]
struct Segment {
    /// Characters in full decomposition, with the ranks of their combining classes.
    characters: Vec<(char, u8)>,
    text: String,
}

impl Segment {
    /// `text` in NFC.
    fn compose(&mut self, text: &str) -> &str {
        self.characters.clear();
        for character in text.chars() {
            decompose(character, |part| self.characters.push((part, property(part) & RANK)));
        }
        for marks in self.characters.split_mut(|&(_, rank)| rank == 0) {
            marks.sort_by_key(|&(_, rank)| rank); // stable: equal classes keep their order
        }
        compose_in_place(&mut self.characters);
        self.text.clear();
        self.text.extend(self.characters.iter().map(|&(character, _)| character));
        &self.text
    }
}

/// Composes decomposed, ordered characters (the annex's, section 1.3, and definition D117).
fn compose_in_place(characters: &mut Vec<(char, u8)>) {
    // the last starter, and the rank of what stands last behind it
    let (mut starter, mut last): (Option<usize>, Option<u8>) = (None, None);
    let mut kept = 0;
    for read in 0..characters.len() {
        let (character, rank) = characters[read];
        let is_blocked = last.is_some_and(|last| last >= rank);
        let first = starter.filter(|_| !is_blocked);
        if let Some((first, composed)) =
            first.and_then(|first| Some((first, composition(characters[first].0, character)?)))
        {
            characters[first].0 = composed;
            continue;
        }
        (starter, last) = if rank == 0 { (Some(kept), None) } else { (starter, Some(rank)) };
        characters[kept] = (character, rank);
        kept += 1;
    }
    characters.truncate(kept);
}

// Hangul (the Unicode standard, section 3.12): syllables of a lead, a vowel and perhaps a tail.
const SYLLABLES: u32 = 0xAC00;
const LEADS: u32 = 0x1100;
const VOWELS: u32 = 0x1161;
const TAILS: u32 = 0x11A7; // one before the first tail, for "no tail"
const LEAD_COUNT: u32 = 19;
const VOWEL_COUNT: u32 = 21;
const TAIL_COUNT: u32 = 28;
const SYLLABLE_COUNT: u32 = LEAD_COUNT * VOWEL_COUNT * TAIL_COUNT;

/// Gives the full canonical decomposition of a character to `push`, in order.
fn decompose(character: char, mut push: impl FnMut(char)) {
    let syllable = (character as u32).wrapping_sub(SYLLABLES);
    if syllable < SYLLABLE_COUNT {
        let (lead, rest) =
            (syllable / (VOWEL_COUNT * TAIL_COUNT), syllable % (VOWEL_COUNT * TAIL_COUNT));
        let (vowel, tail) = (rest / TAIL_COUNT, rest % TAIL_COUNT);
        let letters = [LEADS + lead, VOWELS + vowel, TAILS + tail];
        letters[..if tail == 0 { 2 } else { 3 }]
            .iter()
            .filter_map(|&c| char::from_u32(c))
            .for_each(push);
    } else if let Ok(found) = DECOMPOSITIONS.binary_search_by_key(&character, |entry| entry.0) {
        DECOMPOSITIONS[found].1.chars().for_each(push);
    } else {
        push(character);
    }
}

/// What two characters compose to.
fn composition(first: char, second: char) -> Option<char> {
    hangul(first as u32, second as u32).or_else(|| {
        let found =
            COMPOSITIONS.binary_search_by_key(&(first, second), |&(a, b, _)| (a, b)).ok()?;
        Some(COMPOSITIONS[found].2)
    })
}

/// Lead and vowel, or lead and vowel with a tail.
fn hangul(first: u32, second: u32) -> Option<char> {
    let (lead, vowel) = (first.wrapping_sub(LEADS), second.wrapping_sub(VOWELS));
    let (syllable, tail) = (first.wrapping_sub(SYLLABLES), second.wrapping_sub(TAILS));
    if lead < LEAD_COUNT && vowel < VOWEL_COUNT {
        char::from_u32(SYLLABLES + (lead * VOWEL_COUNT + vowel) * TAIL_COUNT)
    } else if syllable < SYLLABLE_COUNT
        && syllable % TAIL_COUNT == 0
        && (1..TAIL_COUNT).contains(&tail)
    {
        char::from_u32(first + tail)
    } else {
        None
    }
}
