//! The expressions of o200k and Tekken, which cut words where their case changes.

use super::Expression;
use super::cursor::Cursor;
use crate::native::classes::{LETTER, LOWER, NUMBER, SPACE, UPPER};

/// With `U` for `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]`, `L` for `[\p{Ll}\p{Lm}\p{Lo}\p{M}]` and `C` for
/// `(?i:'s|'t|'re|'ve|'m|'ll|'d)?` where `CONTRACTIONS` holds, else for nothing:
///
/// `[^\r\n\p{L}\p{N}]?U*L+C|[^\r\n\p{L}\p{N}]?U+L*C|\p{N}{1,DIGITS}|`
/// ` ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+`.
#[derive(Clone, Copy)]
pub struct O200k<const DIGITS: usize, const CONTRACTIONS: bool>;

impl<const DIGITS: usize, const CONTRACTIONS: bool> Expression for O200k<DIGITS, CONTRACTIONS> {
    fn next_end(self, text: &str, at: usize) -> usize {
        let cursor = Cursor::whole(text);
        if let Some(end) = word(cursor, at) {
            return cursor.contraction(end, true).filter(|_| CONTRACTIONS).unwrap_or(end);
        }
        cursor
            .numbers(at, DIGITS)
            .or_else(|| symbols(cursor, at))
            .unwrap_or_else(|| cursor.space(at, true))
    }
}

/// The two alternatives for words, each tried with the prefix first.
fn word(cursor: Cursor<'_>, at: usize) -> Option<usize> {
    let bodies = || cursor.prefix(at).into_iter().chain([at]);
    let lower = bodies().find_map(|body| ends_lower(cursor, body));
    lower.or_else(|| bodies().find_map(|body| starts_upper(cursor, body)))
}

/// `U*L+`: where no `L` follows the longest `U*`, it gives back as far as its last `L`.
fn ends_lower(cursor: Cursor<'_>, at: usize) -> Option<usize> {
    let (mut end, mut last_lower) = (at, None);
    while let Some((found, length)) = cursor.class(end).filter(|(found, _)| found & UPPER != 0) {
        end += length;
        if found & LOWER != 0 {
            last_lower = Some(end);
        }
    }
    cursor.some(end, |found| found & LOWER != 0).or(last_lower)
}

/// `U+L*`.
fn starts_upper(cursor: Cursor<'_>, at: usize) -> Option<usize> {
    let upper = cursor.some(at, |found| found & UPPER != 0)?;
    Some(cursor.run(upper, |found| found & LOWER != 0))
}

/// ` ?[^\s\p{L}\p{N}]+[\r\n/]*`.
fn symbols(cursor: Cursor<'_>, at: usize) -> Option<usize> {
    let is_symbol = |found| found & (SPACE | LETTER | NUMBER) == 0;
    let end = cursor.some(cursor.behind_blank(at), is_symbol)?;
    Some(cursor.bytes(end, b"\r\n/"))
}
