//! Where a long piece of a byte-level model may be cut.
//!
//! In: the tokens. Out: [`Joins`], which pairs of neighbouring characters some token has in it. Between
//! two characters that no token joins nothing can merge, so what lies on either side is merged on its
//! own. Chinese and Japanese sentences are pieces of 25 bytes, new each time; cut this way, they are
//! words of a few characters, which repeat.
//!
//! Pairs are kept as bits by their hash, so that now and then a pair seems joined which is not: that
//! costs a cut, never an id. Tokens that hold part of a character at the place are rare (hundreds),
//! and count for all characters with those bytes.

use crate::native::bits::Bits;
use crate::native::hash::mix;
use crate::native::model::{byte_level_bytes, byte_level_table};
use crate::native::vocabulary::Vocabulary;

/// Bits for each pair: one in 32 to 64 of the others seems joined.
const SPACING: usize = 32;

/// Pairs of neighbours that a token has in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joins {
    /// `256 * a + b`: byte `a` before byte `b`, of ASCII characters or of parts of others.
    bytes: Bits,
    /// Hashes of two characters that are not both ASCII.
    chars: Bits,
    shift: u32,
}

impl Joins {
    /// Collects the pairs of all tokens that stand for bytes.
    #[must_use]
    pub fn new(vocabulary: &Vocabulary) -> Self {
        let table = byte_level_table();
        let (mut bytes, mut hashes, mut raw) = (Bits::new(1 << 16), Vec::new(), Vec::new());
        for (token, _) in vocabulary.iter() {
            raw.clear();
            if !byte_level_bytes(&table, token, &mut raw) {
                continue;
            }
            for at in 1..raw.len() {
                match whole_chars(&raw, at) {
                    _ if is_inside(raw[at]) => {}
                    Some((left, right)) if !(left.is_ascii() && right.is_ascii()) => {
                        hashes.push(hash(left, right));
                    }
                    _ => bytes.insert(pair(raw[at - 1], raw[at])),
                }
            }
        }
        hashes.sort_unstable();
        hashes.dedup();
        let num_bits = (hashes.len() * SPACING).next_power_of_two().max(32);
        let mut joins = Self { bytes, chars: Bits::new(num_bits), shift: shift(num_bits) };
        for hash in hashes {
            joins.chars.insert(joins.bit(hash));
        }
        joins
    }

    /// Puts it back together from [`Joins::parts`]; None if they do not fit.
    #[must_use]
    pub fn from_parts(bytes: Vec<u32>, chars: Vec<u32>) -> Option<Self> {
        let num_bits = chars.len() * 32;
        let bytes = Bits::from_words(bytes, 1 << 16)?;
        let chars = Bits::from_words(chars, num_bits).filter(|_| num_bits.is_power_of_two())?;
        Some(Self { bytes, chars, shift: shift(num_bits) })
    }

    /// The two sets, as words.
    #[must_use]
    pub fn parts(&self) -> (&[u32], &[u32]) {
        (self.bytes.words(), self.chars.words())
    }

    /// Where the part of `piece` that begins at `start` ends.
    #[must_use]
    pub fn part_end(&self, piece: &str, start: usize) -> usize {
        let mut characters = piece[start..].char_indices();
        let Some((_, mut left)) = characters.next() else { return start };
        for (at, right) in characters {
            let at = start + at;
            let both = pair(piece.as_bytes()[at - 1], piece.as_bytes()[at]);
            let joined = self.bytes.contains(both)
                || (!(left.is_ascii() && right.is_ascii())
                    && self.chars.contains(self.bit(hash(left, right))));
            if !joined {
                return at;
            }
            left = right;
        }
        piece.len()
    }

    #[allow(clippy::cast_possible_truncation)] // shifted to the number of bits
    fn bit(&self, hash: u64) -> usize {
        (hash >> self.shift) as usize
    }
}

fn shift(num_bits: usize) -> u32 {
    64 - num_bits.trailing_zeros()
}

fn hash(left: char, right: char) -> u64 {
    mix(u64::from(left), u64::from(right))
}

fn pair(left: u8, right: u8) -> usize {
    usize::from(left) << 8 | usize::from(right)
}

/// Whether a byte is one inside a character: no text is cut before it.
fn is_inside(byte: u8) -> bool {
    byte & 0xc0 == 0x80
}

/// The characters before and from `at`; None if one of them is not there as a whole.
fn whole_chars(bytes: &[u8], at: usize) -> Option<(char, char)> {
    let start = (0..at).rev().find(|&start| !is_inside(bytes[start]))?;
    let rest = bytes[at + 1..].iter().take_while(|&&byte| is_inside(byte)).count();
    let left = std::str::from_utf8(&bytes[start..at]).ok()?.chars().next()?;
    let right = std::str::from_utf8(&bytes[at..=at + rest]).ok()?.chars().next()?;
    Some((left, right))
}
