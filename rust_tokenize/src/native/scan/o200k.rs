//! The expressions of o200k and Tekken, which cut words where their case changes.

use super::Expression;
use super::block::{Block, Kind, bit, bits, runs};
use super::cursor::{Cursor, contraction};
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

    #[inline]
    fn kind(classes: u8) -> Kind {
        match classes & (LETTER | UPPER | LOWER) {
            0 if classes & (SPACE | NUMBER) == 0 => Kind::Symbol,
            found if found == LETTER | UPPER => Kind::Capital,
            found if found == LETTER | LOWER => Kind::Letter,
            // without case, or a mark: it may end one word or begin the next
            _ => Kind::Other,
        }
    }

    fn ends(self, block: &Block<'_>) -> u64 {
        // whether a slash behind an end of line belongs to what is before hangs on all of it
        let block = block.before(block.line_end << 1 & block.slash);
        let (symbol, space) = (block.symbol(), block.blank | block.tab);
        let symbols = runs(symbol) & !(block.blank << 1);
        let words = runs(block.letter) & !((space | block.first(symbols)) << 1);
        let humps = block.upper & (block.letter & !block.upper) << 1;
        let digits = if DIGITS == 1 { block.digit } else { block.threes() };
        let white = block.white_by_lines(symbol, block.valid & !block.white());
        let mut starts = words | humps | symbols | digits | white;
        if CONTRACTIONS {
            starts = with_contractions(&block, starts);
        }
        block.ends_by_lines(starts)
    }
}

/// Moves starts from the apostrophes of contractions to their ends.
fn with_contractions(block: &Block<'_>, mut starts: u64) -> u64 {
    let mut last_end = 0;
    for quote in bits(block.quote & block.letter << 1 & block.letter >> 1) {
        if let Some(end) = contraction(block.text.as_bytes(), block.at + quote, true) {
            // what a contraction ends has no second one
            if last_end != block.at + quote {
                starts =
                    starts & !(bit(quote) | bit(quote + 1) | bit(quote + 2)) | bit(end - block.at);
                last_end = end;
            }
        }
    }
    starts
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
