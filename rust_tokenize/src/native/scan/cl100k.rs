//! The expression of cl100k, with digits by threes or one by one.

use super::Scanner;
use super::cursor::Cursor;
use crate::native::classes::{LETTER, NUMBER, SPACE};

/// `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,DIGITS}|`
/// ` ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`.
#[derive(Clone, Copy)]
pub struct Cl100k<const DIGITS: usize>;

impl<const DIGITS: usize> Scanner for Cl100k<DIGITS> {
    fn scan(self, text: &str, start: usize, ends: &mut [usize]) -> usize {
        super::scan_one_by_one(text, start, ends, next_end::<DIGITS>)
    }
}

/// The end of the pretoken at `at`, short of the end of `text`.
fn next_end<const DIGITS: usize>(text: &str, at: usize) -> usize {
    let cursor = Cursor::whole(text);
    cursor
        .contraction(at, true)
        .or_else(|| word(cursor, at))
        .or_else(|| cursor.numbers(at, DIGITS))
        .or_else(|| symbols(cursor, at))
        .unwrap_or_else(|| cursor.space(at, true))
}

/// `[^\r\n\p{L}\p{N}]?\p{L}+`.
fn word(cursor: Cursor<'_>, at: usize) -> Option<usize> {
    let (found, length) = cursor.class(at)?;
    let is_prefix =
        found & (LETTER | NUMBER) == 0 && !matches!(cursor.byte(at), Some(b'\r' | b'\n'));
    let body = if is_prefix { at + length } else { at };
    let end = cursor.run(body, |found| found & LETTER != 0);
    (end > body).then_some(end)
}

/// ` ?[^\s\p{L}\p{N}]+[\r\n]*`.
fn symbols(cursor: Cursor<'_>, at: usize) -> Option<usize> {
    let body = at + usize::from(cursor.byte(at) == Some(b' '));
    let end = cursor.run(body, |found| found & (SPACE | LETTER | NUMBER) == 0);
    (end > body).then(|| cursor.line_ends(end))
}
