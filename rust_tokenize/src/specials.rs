//! Where special tokens are written in a text.
//!
//! In: the special tokens of a tokenizer, a text. Out: the leftmost of them, and of several that
//! begin there the longest: what Python's `re` finds with the names in alternation, longest first.

use std::ops::Range;

use memchr::{memchr, memchr2, memchr3};

use crate::encoder::{AddedToken, EncodeOptions, Encoder};
use crate::error::Result;

/// A tokenizer's special tokens, ready to be looked for.
#[derive(Debug, Clone)]
pub struct Specials {
    /// By first byte, the longest first.
    starting: Vec<Vec<(String, i32)>>,
    first_bytes: Vec<u8>,
}

impl Specials {
    /// Those of `added` that are special.
    #[must_use]
    pub fn new(added: &[AddedToken]) -> Self {
        let mut starting = vec![Vec::new(); 256];
        for token in added.iter().filter(|token| token.special) {
            if let Some(&first) = token.content.as_bytes().first() {
                starting[usize::from(first)].push((token.content.clone(), token.id));
            }
        }
        for names in &mut starting {
            names.sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
        }
        let first_bytes = (0..=u8::MAX).filter(|&byte| !starting[usize::from(byte)].is_empty());
        Self { first_bytes: first_bytes.collect(), starting }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.first_bytes.is_empty()
    }

    /// All of them.
    pub fn names(&self) -> impl Iterator<Item = &(String, i32)> {
        self.starting.iter().flatten()
    }

    /// The first one in `text` from byte `start` on, and its id.
    #[must_use]
    pub fn find(&self, text: &str, start: usize) -> Option<(Range<usize>, i32)> {
        let bytes = text.as_bytes();
        let mut at = start;
        loop {
            at += self.candidate(bytes.get(at..)?)?;
            for (name, id) in &self.starting[usize::from(bytes[at])] {
                if bytes[at..].starts_with(name.as_bytes()) {
                    return Some((at..at + name.len(), *id));
                }
            }
            at += 1;
        }
    }

    fn candidate(&self, bytes: &[u8]) -> Option<usize> {
        match *self.first_bytes.as_slice() {
            [] => None,
            [a] => memchr(a, bytes),
            [a, b] => memchr2(a, b, bytes),
            [a, b, c] => memchr3(a, b, c, bytes),
            _ => bytes.iter().position(|&byte| !self.starting[usize::from(byte)].is_empty()),
        }
    }

    /// Whether text after a special token is encoded as a continuation, without a blank put in front.
    pub fn text_after_continues(&self, encoder: &dyn Encoder) -> Result<bool> {
        let Some((name, _)) = self.names().min_by_key(|(_, id)| *id) else {
            return Ok(true);
        };
        let options =
            EncodeOptions { add_special_tokens: false, parse_special: true, continuation: false };
        let (mut both, mut alone) = (Vec::new(), Vec::new());
        encoder.encode(&format!("{name}a"), options, &mut both)?;
        encoder.encode("a", options, &mut alone)?;
        Ok(both.get(1..) != Some(alone.as_slice()))
    }

    /// Appends the ids of a text, section by section: cut at the special tokens outside `plain` (none
    /// if they are not to be parsed), each section read with special tokens as text. `continues` is
    /// [`Self::text_after_continues`]. What a special token does to its neighbours, such as to strip
    /// blanks, it does not do here.
    pub fn encode_around(
        &self,
        encoder: &dyn Encoder,
        continues: bool,
        (text, plain): (&str, &[Range<usize>]),
        options: EncodeOptions,
        ids: &mut Vec<i32>,
    ) -> Result<()> {
        let cuts = if options.parse_special { self.find_around(text, plain) } else { Vec::new() };
        let mut section = EncodeOptions { parse_special: false, ..options };
        let mut start = 0;
        for (place, id) in cuts {
            encoder.encode(&text[start..place.start], section, ids)?;
            ids.push(id);
            start = place.end;
            section.continuation = continues;
        }
        encoder.encode(&text[start..], section, ids)
    }

    /// Those in `text` that touch none of the ranges `plain` (rising, disjoint), in order.
    #[must_use]
    pub fn find_around(&self, text: &str, plain: &[Range<usize>]) -> Vec<(Range<usize>, i32)> {
        let mut found = Vec::new();
        let mut start = 0;
        let last = std::iter::once(text.len()..text.len());
        for range in plain.iter().filter(|range| !range.is_empty()).cloned().chain(last) {
            // The text between two ranges, as if it stood alone.
            if let Some(gap) = text.get(start..range.start) {
                let mut at = 0;
                while let Some((place, id)) = self.find(gap, at) {
                    at = place.end;
                    found.push((start + place.start..start + place.end, id));
                }
            }
            start = range.end;
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn specials(names: &[&str]) -> Specials {
        let tokens = names.iter().zip(7..);
        let added: Vec<_> = tokens
            .map(|(name, id)| AddedToken { content: (*name).to_owned(), id, special: *name != "b" })
            .collect();
        Specials::new(&added)
    }

    #[test]
    fn the_leftmost_and_there_the_longest_is_found() {
        for others in [vec![], vec!["x"], vec!["x", "y"], vec!["x", "y", "z"]] {
            let found = specials(&[&["<a", "<a>", "b"], others.as_slice()].concat());
            assert_eq!(found.find("b <<a>", 0), Some((3..6, 8)));
            assert_eq!(found.find("b <<a>", 4), None);
            assert_eq!(found.find("<a", 0), Some((0..2, 7)));
        }
        assert!(specials(&["b"]).is_empty());
        assert_eq!(specials(&["b"]).find("b", 0), None);
    }

    #[test]
    fn those_that_touch_a_plain_range_are_none() {
        let found = specials(&["<a>"]);
        let places = |plain: &[(usize, usize)]| -> Vec<usize> {
            let plain: Vec<_> = plain.iter().map(|&(start, end)| start..end).collect();
            found.find_around("<a><a><a>", &plain).into_iter().map(|(at, _)| at.start).collect()
        };
        assert_eq!(places(&[]), [0, 3, 6]);
        assert_eq!(places(&[(3, 6)]), [0, 6]);
        assert_eq!(places(&[(2, 4)]), [6]);
        assert_eq!(places(&[(0, 1), (8, 9)]), [3]);
        assert_eq!(places(&[(3, 3)]), [0, 3, 6]);
    }
}
