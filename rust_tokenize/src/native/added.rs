//! Added tokens: found in a text by the rules of the reference.
//!
//! In: a text. Out: its sections, some of them tokens, the others text between tokens. Where several
//! tokens could match, the leftmost does, and of those the longest; the search goes on after a
//! match even if the match is then passed over, because it is a special token that is to be read
//! as text or part of a longer word. A token may swallow the white space beside it
//! (`added_vocabulary.rs` of the `tokenizers` crate, 0.23).
//!
//! Nearly all text has no added token, so a search first looks for two bytes one could begin with.

use std::ops::Range;

use regex_syntax::try_is_word_character;

/// How a token is found.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools)] // the fields of the file
pub struct Pattern {
    /// What is searched for; not empty.
    pub text: String,
    /// The id it stands for.
    pub id: u32,
    /// Whether it may be read as text instead.
    pub special: bool,
    /// Whether it must not touch another word.
    pub single_word: bool,
    /// Whether it swallows white space on its left.
    pub lstrip: bool,
    /// Whether it swallows white space on its right.
    pub rstrip: bool,
}

/// A node of the trie of patterns: its children are a list linked by `sibling`.
#[derive(Debug, Clone, Copy)]
struct Node {
    byte: u8,
    /// Number of a pattern + 1, or 0.
    pattern: u32,
    child: u32,
    sibling: u32,
}

const ROOT: Node = Node { byte: 0, pattern: 0, child: 0, sibling: 0 };

/// Patterns that are searched for together.
#[derive(Debug, Clone)]
pub struct PatternSet {
    patterns: Vec<Pattern>,
    nodes: Vec<Node>,
    /// The bytes a pattern can begin with.
    firsts: Vec<u8>,
    /// Bit `b0 * 256 + b1`: a pattern can begin with these two bytes.
    pairs: Vec<u64>,
}

/// A section of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Section {
    /// Text without tokens; never empty.
    Text(Range<usize>),
    /// A token.
    Token(u32),
}

impl PatternSet {
    /// Builds the set; None if a pattern is empty or occurs twice, or there are too many.
    #[must_use]
    pub fn new(patterns: Vec<Pattern>) -> Option<Self> {
        let mut set =
            Self { patterns, nodes: vec![ROOT], firsts: Vec::new(), pairs: vec![0; 1 << 10] };
        for number in 0..set.patterns.len() {
            let text = set.patterns[number].text.clone().into_bytes();
            set.note_beginning(*text.first()?, text.get(1).copied());
            let node = text.iter().try_fold(0, |node, &byte| set.child_or_new(node, byte))?;
            let node = &mut set.nodes[node as usize];
            if node.pattern != 0 {
                return None;
            }
            node.pattern = u32::try_from(number + 1).ok()?;
        }
        Some(set)
    }

    /// What is searched for.
    #[must_use]
    pub fn patterns(&self) -> &[Pattern] {
        &self.patterns
    }

    /// Whether there is nothing to find.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    fn note_beginning(&mut self, first: u8, second: Option<u8>) {
        if !self.firsts.contains(&first) {
            self.firsts.push(first);
        }
        let row = usize::from(first) * 4;
        match second {
            Some(byte) => self.pairs[row + usize::from(byte >> 6)] |= 1 << (byte & 63),
            None => self.pairs[row..row + 4].fill(u64::MAX),
        }
    }

    fn child(&self, node: u32, byte: u8) -> Option<u32> {
        let mut at = self.nodes[node as usize].child;
        while at != 0 && self.nodes[at as usize].byte != byte {
            at = self.nodes[at as usize].sibling;
        }
        (at != 0).then_some(at)
    }

    fn child_or_new(&mut self, node: u32, byte: u8) -> Option<u32> {
        if let Some(child) = self.child(node, byte) {
            return Some(child);
        }
        let new = u32::try_from(self.nodes.len()).ok()?;
        let sibling = self.nodes[node as usize].child;
        self.nodes.push(Node { byte, sibling, ..ROOT });
        self.nodes[node as usize].child = new;
        Some(new)
    }

    /// Cuts `text` at its tokens, special ones among them if `parse_special`.
    #[must_use]
    pub fn split<'a>(&'a self, text: &'a str, parse_special: bool) -> Splits<'a> {
        Splits { set: self, text, parse_special, from: 0, done: 0, next: None, over: false }
    }

    /// The longest pattern at a position.
    fn longest_at(&self, text: &[u8]) -> Option<&Pattern> {
        let (mut node, mut longest) = (0, 0);
        for &byte in text {
            let Some(child) = self.child(node, byte) else { break };
            node = child;
            let pattern = self.nodes[node as usize].pattern;
            longest = if pattern == 0 { longest } else { pattern };
        }
        longest.checked_sub(1).map(|number| &self.patterns[number as usize])
    }

    /// The first match from `from` on: where it starts, and what matched.
    fn find(&self, text: &[u8], mut from: usize) -> Option<(usize, &Pattern)> {
        loop {
            from += self.first_candidate(text.get(from..)?)?;
            let is_candidate = match text.get(from + 1) {
                Some(&second) => {
                    let row = usize::from(text[from]) * 4 + usize::from(second >> 6);
                    self.pairs[row] >> (second & 63) & 1 == 1
                }
                None => true,
            };
            if is_candidate && let Some(pattern) = self.longest_at(&text[from..]) {
                return Some((from, pattern));
            }
            from += 1;
        }
    }

    #[allow(clippy::needless_bitwise_bool)] // lazy operators would be branches, and no vectors
    fn first_candidate(&self, text: &[u8]) -> Option<usize> {
        match *self.firsts.as_slice() {
            [] => None,
            [a] => position(text, |byte| byte == a),
            [a, b] => position(text, |byte| (byte == a) | (byte == b)),
            [a, b, c] => position(text, |byte| (byte == a) | (byte == b) | (byte == c)),
            _ => text.iter().position(|&byte| {
                let row = usize::from(byte) * 4;
                self.pairs[row..row + 4] != [0; 4]
            }),
        }
    }
}

/// The first byte that `is_wanted`; chunks without one are passed over with vector instructions.
#[inline]
fn position(text: &[u8], is_wanted: impl Fn(u8) -> bool) -> Option<usize> {
    let (chunks, rest) = text.as_chunks::<64>();
    for (number, chunk) in chunks.iter().enumerate() {
        // a byte and not a bool, which would be widened on the way
        if chunk.iter().fold(0, |any, &byte| any | u8::from(is_wanted(byte))) != 0 {
            let within = chunk.iter().position(|&byte| is_wanted(byte))?;
            return Some(number * 64 + within);
        }
    }
    let within = rest.iter().position(|&byte| is_wanted(byte))?;
    Some(chunks.len() * 64 + within)
}

/// The sections of a text, in order.
#[derive(Debug)]
pub struct Splits<'a> {
    set: &'a PatternSet,
    text: &'a str,
    parse_special: bool,
    /// Where the search goes on.
    from: usize,
    /// Up to here the text has been given out.
    done: usize,
    /// The token that follows the text just given out.
    next: Option<u32>,
    over: bool,
}

impl Iterator for Splits<'_> {
    type Item = Section;

    fn next(&mut self) -> Option<Section> {
        if let Some(id) = self.next.take() {
            return Some(Section::Token(id));
        }
        if self.over {
            return None;
        }
        while let Some((found, pattern)) = self.set.find(self.text.as_bytes(), self.from) {
            self.from = found + pattern.text.len();
            let is_text = pattern.special && !self.parse_special;
            if is_text || (pattern.single_word && self.touches_word(found, self.from)) {
                continue;
            }
            return Some(self.take(found, pattern));
        }
        self.over = true;
        let rest = self.done..self.text.len();
        (!rest.is_empty()).then_some(Section::Text(rest))
    }
}

impl Splits<'_> {
    fn touches_word(&self, start: usize, end: usize) -> bool {
        let is_word = |char| try_is_word_character(char).unwrap_or(false);
        let (before, after) = (&self.text[..start], &self.text[end..]);
        before.chars().next_back().is_some_and(is_word) || after.chars().next().is_some_and(is_word)
    }

    /// The text before a match if there is any, else the token.
    fn take(&mut self, found: usize, pattern: &Pattern) -> Section {
        let (mut start, mut end) = (found, found + pattern.text.len());
        if pattern.lstrip {
            // Blanks that a token before has swallowed are gone.
            start = self.text[..start].trim_end().len().max(self.done);
        }
        if pattern.rstrip {
            end += self.text[end..].len() - self.text[end..].trim_start().len();
        }
        let before = self.done..start;
        // Not always further on: a token of white space may lie in what another has swallowed.
        self.done = end;
        if before.is_empty() {
            Section::Token(pattern.id)
        } else {
            self.next = Some(pattern.id);
            Section::Text(before)
        }
    }
}
