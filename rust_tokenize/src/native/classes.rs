//! The classes of characters that the regular expressions of pretokenizers name.
//!
//! A class is a bit; a character has the bits of all its classes. They are those of the reference's
//! engine (Oniguruma, Unicode 16), not of this toolchain: the difference is thousands of letters.
//! `UPPER` and `LOWER` are the two overlapping sets of the o200k expression, so `\p{M}` is
//! "`UPPER` and `LOWER`, not `LETTER`" and `[\p{L}\p{M}]` is "`UPPER` or `LOWER`".

use super::class_tables::{BLOCKS, INDEX};

/// `\p{L}`.
pub const LETTER: u8 = 1 << 0;
/// `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]`.
pub const UPPER: u8 = 1 << 1;
/// `[\p{Ll}\p{Lm}\p{Lo}\p{M}]`.
pub const LOWER: u8 = 1 << 2;
/// `\p{N}`.
pub const NUMBER: u8 = 1 << 3;
/// `\s`: 25 characters, U+0085 among them.
pub const SPACE: u8 = 1 << 4;
/// `[\p{P}\p{S}]`.
pub const SYMBOL: u8 = 1 << 5;
/// The Chinese and Japanese that `DeepSeek` parts from the rest: U+4E00-9FA5, U+3040-30FF.
pub const CJK: u8 = 1 << 6;
/// A digit of the pretokenizer `Digits`: `char::is_numeric` of the Rust that built the reference,
/// which has a newer Unicode than `NUMBER`.
pub const NUMERIC: u8 = 1 << 7;

/// The classes of a character.
#[must_use]
#[inline]
pub fn classes(character: char) -> u8 {
    let code = character as usize;
    BLOCKS[usize::from(INDEX[code >> 8]) << 8 | code & 0xFF]
}
