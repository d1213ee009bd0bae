//! The expression of GPT-2, which `ByteLevel` has built in, alone and behind `Digits`.

use super::Expression;
use super::cursor::Cursor;
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
