//! The three expressions of `DeepSeek` V3 to V4, each on the sections that the last one cut.

use super::Expression;
use super::block::{Block, Kind, runs};
use super::cursor::Cursor;
use crate::native::classes::{CJK, LOWER, NUMBER, SPACE, SYMBOL, UPPER};

/// `\p{N}{1,3}`, then U+4E00-9FA5 and U+3040-30FF in runs, then, with `A` for ASCII punctuation,
///
/// `A[A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|`
/// `\s*[\r\n]+|\s+(?!\S)|\s+`.
///
/// The last has no place for some characters (controls, formats, private and unassigned ones):
/// what lies between two matches is a pretoken too.
#[derive(Clone, Copy)]
pub struct DeepSeek;

impl Expression for DeepSeek {
    fn next_end(self, text: &str, at: usize) -> usize {
        let cursor = Cursor::section(text, at, NUMBER | CJK);
        cursor
            .numbers(at, 3)
            .or_else(|| ascii_word(text.as_bytes(), at))
            .or_else(|| word(cursor, at))
            .or_else(|| symbols(cursor, at))
            .or_else(|| cursor.some(at, is_space).map(|_| cursor.space(at, true)))
            .unwrap_or_else(|| unmatched(cursor, at))
    }

    #[inline]
    fn kind(classes: u8) -> Kind {
        match classes & CJK != 0 {
            true if is_word(classes) => Kind::Apart,
            false if is_word(classes) => Kind::Letter,
            false if is_symbol(classes) => Kind::Symbol,
            _ => Kind::Other,
        }
    }

    fn ends(self, block: &Block<'_>) -> u64 {
        let narrow = block.letter & !block.wide;
        // `A[A-Za-z]+` may have begun a word, and then ends before the first other letter
        let block = block.before(block.control | block.letter & block.wide & narrow << 1);
        let (symbol, space) = (block.symbol(), block.blank | block.tab);
        let symbols = runs(symbol) & !(block.blank << 1);
        // only ASCII goes before a word, and only before an ASCII one
        let prefixed = (symbols & !block.wide) << 1 & narrow;
        let words = runs(block.letter) & !(space << 1 | prefixed);
        // digits and what stands apart end the section of the white space before them
        let next = block.valid & !(block.white() | block.digit | block.apart);
        let white = block.white_by_lines(symbol, next);
        block.ends_by_lines(words | symbols | block.threes() | white | runs(block.apart))
    }
}

fn is_word(found: u8) -> bool {
    found & (UPPER | LOWER) != 0
}

fn is_space(found: u8) -> bool {
    found & SPACE != 0
}

fn is_symbol(found: u8) -> bool {
    found & SYMBOL != 0
}

/// `A[A-Za-z]+`; letters are never parted from what stands before them.
fn ascii_word(text: &[u8], at: usize) -> Option<usize> {
    let (first, rest) = text[at..].split_first()?;
    let letters = rest.iter().take_while(|byte| byte.is_ascii_alphabetic()).count();
    (first.is_ascii_punctuation() && letters > 0).then_some(at + 1 + letters)
}

/// `[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+`.
fn word(cursor: Cursor<'_>, at: usize) -> Option<usize> {
    let prefix = cursor.prefix(at).filter(|_| cursor.some(at, is_symbol).is_none());
    prefix.and_then(|body| cursor.some(body, is_word)).or_else(|| cursor.some(at, is_word))
}

/// ` ?[\p{P}\p{S}]+[\r\n]*`.
fn symbols(cursor: Cursor<'_>, at: usize) -> Option<usize> {
    let end = cursor.some(cursor.behind_blank(at), is_symbol)?;
    Some(cursor.bytes(end, b"\r\n"))
}

/// What no alternative matches, up to where one does: before a letter, the last one is its prefix.
fn unmatched(cursor: Cursor<'_>, at: usize) -> usize {
    let (mut end, mut last) = (at, at);
    while let Some((found, length)) = cursor.class(end) {
        if is_word(found) {
            return last;
        }
        if is_space(found) || is_symbol(found) {
            break;
        }
        last = end;
        end += length;
    }
    end
}
