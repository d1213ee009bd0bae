//! The expression of cl100k as Llama 3 and Qwen have it.

use super::Expression;
use super::block::{Block, Kind, bit, bits, runs};
use super::cursor::{Cursor, contraction};
use crate::native::classes::{LETTER, LOWER, NUMBER, SPACE, UPPER};

/// With `L` for `[\p{L}\p{M}]` where `MARKS` holds, else for `\p{L}`:
///
/// `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?L+|\p{N}{1,DIGITS}|`
/// ` ?[^\sL\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`.
#[derive(Clone, Copy)]
pub struct Cl100k<const DIGITS: usize, const MARKS: bool>;

impl<const DIGITS: usize, const MARKS: bool> Cl100k<DIGITS, MARKS> {
    /// The classes of which a letter has one.
    const WORD: u8 = if MARKS { UPPER | LOWER } else { LETTER };

    fn word(cursor: Cursor<'_>, at: usize) -> Option<usize> {
        let letters = |body| cursor.some(body, |found| found & Self::WORD != 0);
        cursor.prefix(at).and_then(letters).or_else(|| letters(at))
    }

    fn symbols(cursor: Cursor<'_>, at: usize) -> Option<usize> {
        let is_symbol = |found| found & (SPACE | NUMBER | Self::WORD) == 0;
        let end = cursor.some(cursor.behind_blank(at), is_symbol)?;
        Some(cursor.bytes(end, b"\r\n"))
    }
}

impl<const DIGITS: usize, const MARKS: bool> Expression for Cl100k<DIGITS, MARKS> {
    fn next_end(self, text: &str, at: usize) -> usize {
        let cursor = Cursor::whole(text);
        cursor
            .contraction(at, true)
            .or_else(|| Self::word(cursor, at))
            .or_else(|| cursor.numbers(at, DIGITS))
            .or_else(|| Self::symbols(cursor, at))
            .unwrap_or_else(|| cursor.space(at, true))
    }

    #[inline]
    fn kind(classes: u8) -> Kind {
        if classes & Self::WORD != 0 {
            Kind::Letter
        } else if classes & (SPACE | NUMBER) == 0 {
            Kind::Symbol
        } else {
            Kind::Other
        }
    }

    fn ends(self, block: &Block<'_>) -> u64 {
        let (symbol, space) = (block.symbol(), block.blank | block.tab);
        let symbols = runs(symbol) & !(block.blank << 1);
        // one symbol is a letter's prefix; of more, none is
        let words = runs(block.letter) & !((space | block.first(symbols)) << 1);
        let digits = if DIGITS == 1 { block.digit } else { block.threes() };
        let white = block.white_by_lines(symbol, block.valid & !block.white());
        let mut starts = words | symbols | digits | white;
        for quote in bits(block.quote & symbols & block.letter >> 1) {
            if let Some(end) = contraction(block.text.as_bytes(), block.at + quote, true) {
                starts |= bit(end - block.at);
            }
        }
        block.ends_by_lines(starts)
    }
}
