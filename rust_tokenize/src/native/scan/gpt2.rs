//! The expression of GPT-2, which `ByteLevel` has built in, alone and behind `Digits`.

use super::Expression;
use super::block::{Block, Kind, bit, bits, runs};
use super::cursor::{Cursor, contraction};
use crate::native::classes::{LETTER, NUMBER, NUMERIC, SPACE};

/// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`; with `DIGITS` on
/// what `Digits` leaves when it has cut out each digit.
#[derive(Clone, Copy)]
pub struct Gpt2<const DIGITS: bool>;

impl<const DIGITS: bool> Expression for Gpt2<DIGITS> {
    fn next_end(self, text: &str, at: usize) -> usize {
        let cursor = Cursor::section(text, at, if DIGITS { NUMERIC } else { 0 });
        match cursor.class(at) {
            Some((found, length)) if DIGITS && found & NUMERIC != 0 => at + length,
            _ => end_in(cursor, at),
        }
    }

    #[inline]
    fn kind(classes: u8) -> Kind {
        if classes & SPACE != 0 || DIGITS && classes & NUMERIC != 0 {
            Kind::Other
        } else if classes & LETTER != 0 {
            Kind::Letter
        } else if classes & NUMBER != 0 {
            if DIGITS { Kind::Other } else { Kind::Digit }
        } else {
            Kind::Symbol
        }
    }

    fn ends(self, block: &Block<'_>) -> u64 {
        let (symbol, white) = (block.symbol(), block.white());
        let begin = |class| runs(class) & !(block.blank << 1);
        let digits = if DIGITS { block.digit } else { begin(block.digit) };
        // white space before a digit that `Digits` has cut out ends its section
        let next = block.valid & !white & if DIGITS { !block.digit } else { u64::MAX };
        let mut starts =
            begin(block.letter) | digits | begin(symbol) | runs(white) | white & next >> 1;
        for quote in bits(block.quote & begin(symbol) & block.letter >> 1) {
            if let Some(end) = contraction(block.text.as_bytes(), block.at + quote, false) {
                starts = starts & !(2 << quote) | bit(end - block.at);
            }
        }
        block.ends(starts)
    }
}

fn end_in(cursor: Cursor<'_>, at: usize) -> usize {
    if let Some(end) = cursor.contraction(at, false) {
        return end;
    }
    let body = cursor.behind_blank(at);
    let kind = |found: u8| found & (LETTER | NUMBER | SPACE);
    match cursor.class(body) {
        Some((found, _)) if found & SPACE == 0 => {
            cursor.run(body, |other| kind(other) == kind(found))
        }
        _ => cursor.space(at, false),
    }
}
