//! What the atoms of the regular expressions match at a position of a text.
//!
//! A position is a byte offset on a boundary of characters. Where pretokenizers follow each other,
//! the later ones see only the section the earlier ones cut: a cursor ends where its section does,
//! so that `(?!\S)` holds there as it does at the end of the text.

use crate::native::classes::{LETTER, NUMBER, SPACE, classes};

/// One section of a text, from any position of it to its end.
#[derive(Clone, Copy)]
pub(super) struct Cursor<'a> {
    text: &'a str,
    /// The classes that part sections: characters alike in these lie in one.
    parting: u8,
    /// What the characters of this section have of `parting`.
    section: u8,
}

impl<'a> Cursor<'a> {
    /// The whole text as one section.
    pub(super) fn whole(text: &'a str) -> Self {
        Self { text, parting: 0, section: 0 }
    }

    /// The section around `at`: the characters that have the same of the classes `parting`.
    pub(super) fn section(text: &'a str, at: usize, parting: u8) -> Self {
        let found = Self::whole(text).class(at).map_or(0, |(found, _)| found);
        Self { text, parting, section: found & parting }
    }

    /// Classes and length of the character at `at`; none at the end of the section.
    #[inline]
    pub(super) fn class(self, at: usize) -> Option<(u8, usize)> {
        let character = self.text[at..].chars().next()?;
        let found = classes(character);
        (found & self.parting == self.section).then_some((found, character.len_utf8()))
    }

    /// Whether a byte of `bytes`, all of them ASCII, is at `at`.
    #[inline]
    pub(super) fn is_at(self, at: usize, bytes: &[u8]) -> bool {
        self.class(at).is_some() && bytes.contains(&self.text.as_bytes()[at])
    }

    /// The end of the characters from `at` on for whose classes `is_member` holds.
    #[inline]
    pub(super) fn run(self, at: usize, is_member: impl Fn(u8) -> bool) -> usize {
        let mut end = at;
        while let Some((_, length)) = self.class(end).filter(|&(found, _)| is_member(found)) {
            end += length;
        }
        end
    }

    /// The end of the bytes `[bytes]*`, all of them ASCII, from `at` on.
    pub(super) fn bytes(self, at: usize, bytes: &[u8]) -> usize {
        let mut end = at;
        while self.is_at(end, bytes) {
            end += 1;
        }
        end
    }

    /// The end of a run of at least one character from `at` on.
    #[inline]
    pub(super) fn some(self, at: usize, is_member: impl Fn(u8) -> bool) -> Option<usize> {
        let end = self.run(at, is_member);
        (end > at).then_some(end)
    }

    /// `\p{N}{1,most}`.
    pub(super) fn numbers(self, at: usize, most: usize) -> Option<usize> {
        let mut end = at;
        for _ in 0..most {
            let Some((_, length)) = self.class(end).filter(|(found, _)| found & NUMBER != 0) else {
                break;
            };
            end += length;
        }
        (end > at).then_some(end)
    }

    /// `[^\r\n\p{L}\p{N}]`.
    #[inline]
    pub(super) fn prefix(self, at: usize) -> Option<usize> {
        let (found, length) = self.class(at)?;
        (found & (LETTER | NUMBER) == 0 && !self.is_at(at, b"\r\n")).then_some(at + length)
    }

    /// ` ?`.
    #[inline]
    pub(super) fn behind_blank(self, at: usize) -> usize {
        at + usize::from(self.is_at(at, b" "))
    }

    /// `'s|'t|'re|'ve|'m|'ll|'d`; with `fold` in either case and with U+017F for `s`.
    #[inline]
    pub(super) fn contraction(self, at: usize, fold: bool) -> Option<usize> {
        contraction(self.text.as_bytes(), at, fold)
    }

    /// `\s*[\r\n]+|\s+(?!\S)|\s+`, the first only with `by_lines`; white space is at `at`.
    pub(super) fn space(self, at: usize, by_lines: bool) -> usize {
        let (mut end, mut last, mut line_end) = (at, at, None);
        while let Some((_, length)) = self.class(end).filter(|(found, _)| found & SPACE != 0) {
            last = end;
            end += length;
            if matches!(self.text.as_bytes()[last], b'\r' | b'\n') {
                line_end = Some(end);
            }
        }
        match line_end {
            Some(line_end) if by_lines => line_end,
            _ if self.class(end).is_none() || last == at => end,
            _ => last,
        }
    }
}

/// The end of a contraction at `at`; see [`Cursor::contraction`].
#[inline]
pub(super) fn contraction(text: &[u8], at: usize, fold: bool) -> Option<usize> {
    let rest = text[at..].strip_prefix(b"'")?;
    let cased = |byte: &u8| if fold { byte.to_ascii_lowercase() } else { *byte };
    match (cased(rest.first()?), rest.get(1).map(cased)) {
        (b's' | b't' | b'm' | b'd', _) => Some(at + 2),
        (b'r' | b'v', Some(b'e')) | (b'l', Some(b'l')) => Some(at + 3),
        _ if fold && rest.starts_with("\u{17f}".as_bytes()) => Some(at + 3),
        _ => None,
    }
}
