//! The expression of GPT-2, built into `ByteLevel`.

use super::Scanner;
use super::cursor::Cursor;
use crate::native::classes::{LETTER, NUMBER, SPACE};

/// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`.
#[derive(Clone, Copy)]
pub struct Gpt2;

impl Scanner for Gpt2 {
    fn scan(self, text: &str, start: usize, ends: &mut [usize]) -> usize {
        super::scan_one_by_one(text, start, ends, next_end)
    }
}

/// The end of the pretoken at `at`, short of the end of `text`.
fn next_end(text: &str, at: usize) -> usize {
    end_in(Cursor::whole(text), at)
}

fn end_in(cursor: Cursor<'_>, at: usize) -> usize {
    if let Some(end) = cursor.contraction(at, false) {
        return end;
    }
    let body = at + usize::from(cursor.byte(at) == Some(b' '));
    let kind = |found: u8| found & (LETTER | NUMBER | SPACE);
    match cursor.class(body) {
        Some((found, _)) if found & SPACE == 0 => {
            cursor.run(body, |other| kind(other) == kind(found))
        }
        _ => cursor.space(at, false),
    }
}
