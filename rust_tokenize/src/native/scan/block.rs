//! Expressions on 64 bytes at a time, for ASCII without a branch a byte.
//!
//! The bytes become one mask of 64 bits a class, and what an alternative says of neighbours becomes
//! shifts and logic on these masks. Characters that are not ASCII are looked up one by one and have
//! all their bytes in the mask of their class. A block begins where a pretoken does, so nothing is
//! carried from block to block; what cannot be known without the next bytes is left to the next one.

use super::Expression;
use crate::native::classes::classes;
use rust_simd::masks::masks;

/// What a character that is not ASCII is in a block.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A letter; no capital one, where that matters.
    Letter,
    /// A capital letter.
    Capital,
    /// A digit.
    Digit,
    /// A symbol.
    Symbol,
    /// Of the characters that stand apart from all others.
    Apart,
    /// Something masks cannot say: it ends the block.
    Other,
}

/// One of U+5000-8FFF, whose UTF-8 begins with E5 to E8: Chinese, and all of the same classes.
const IDEOGRAPH: char = '\u{5000}';

/// Up to 64 bytes at a position where a pretoken begins. Bit `i` of a mask is byte `i`; bits
/// outside `valid` mean nothing.
#[derive(Clone, Copy)]
pub struct Block<'a> {
    /// The whole text.
    pub(super) text: &'a str,
    /// Where in `text` the block begins.
    pub(super) at: usize,
    /// The bytes that belong to the block: a prefix of it.
    pub(super) valid: u64,
    /// Whether the text ends with the block.
    pub(super) is_last: bool,
    /// Letters, of either case.
    pub(super) letter: u64,
    /// Capital letters.
    pub(super) upper: u64,
    /// Digits.
    pub(super) digit: u64,
    /// The character U+0020.
    pub(super) blank: u64,
    /// White space but for the blank and the ends of lines.
    pub(super) tab: u64,
    /// `\r` and `\n`.
    pub(super) line_end: u64,
    /// Apostrophes.
    pub(super) quote: u64,
    /// Slashes.
    pub(super) slash: u64,
    /// Controls that are no white space.
    pub(super) control: u64,
    /// Of characters that are not ASCII: all bytes.
    pub(super) wide: u64,
    /// Of these, all bytes but the first.
    inner: u64,
    /// Those of [`Kind::Apart`].
    pub(super) apart: u64,
}

/// [`Scanner::scan`](super::Scanner::scan) by blocks, and one by one where they know no end.
pub(super) fn scan<E: Expression>(
    expression: E,
    text: &str,
    start: usize,
    ends: &mut [usize],
) -> usize {
    let (mut at, mut count) = (start, 0);
    while at < text.len() && count < ends.len() {
        let before = count;
        if is_worth_a_block::<E>(text, at) {
            let block = Block::new::<E>(text, at);
            for (end, position) in ends[count..].iter_mut().zip(bits(expression.ends(&block))) {
                *end = at + position;
                count += 1;
            }
        }
        if count == before {
            ends[count] = expression.next_end(text, at);
            count += 1;
        }
        at = ends[count - 1];
    }
    count
}

/// Whether a block has at least the next character.
#[inline]
fn is_worth_a_block<E: Expression>(text: &str, at: usize) -> bool {
    let next = text[at..].chars().next();
    next.is_some_and(|char| char.is_ascii() || E::kind(classes(char)) != Kind::Other)
}

/// Where runs of a class begin.
pub(super) fn runs(class: u64) -> u64 {
    class & !(class << 1)
}

/// The bits of `class` from those of `starts`, at most one a run, to the ends of their runs.
pub(super) fn flood(class: u64, starts: u64) -> u64 {
    class & (class ^ class.wrapping_add(starts & class))
}

/// The mask of one byte; none where it is behind the block.
pub(super) fn bit(position: usize) -> u64 {
    if position < 64 { 1 << position } else { 0 }
}

/// The bits of a mask, lowest first.
pub(super) fn bits(mut mask: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let position = (mask != 0).then_some(mask.trailing_zeros() as usize)?;
        mask &= mask - 1;
        Some(position)
    })
}

impl<'a> Block<'a> {
    /// The block at `at`, which is short of the end of `text`.
    #[inline]
    fn new<E: Expression>(text: &'a str, at: usize) -> Self {
        match text.as_bytes()[at..].first_chunk() {
            Some(bytes) => Self::of::<E>(bytes, text, at, u64::MAX),
            None => Self::tail::<E>(text, at),
        }
    }

    /// The block of the fewer than 64 bytes that are left.
    fn tail<E: Expression>(text: &'a str, at: usize) -> Self {
        let rest = &text.as_bytes()[at..];
        let mut bytes = [0; 64];
        bytes[..rest.len()].copy_from_slice(rest);
        Self::of::<E>(&bytes, text, at, (1 << rest.len()) - 1)
    }

    #[inline]
    fn of<E: Expression>(bytes: &[u8; 64], text: &'a str, at: usize, present: u64) -> Self {
        let found = masks(bytes);
        let block = Self {
            text,
            at,
            valid: present,
            is_last: present != u64::MAX,
            letter: found.letter,
            upper: found.upper,
            digit: found.digit,
            blank: found.blank,
            tab: found.tab,
            line_end: found.line_end,
            quote: found.quote,
            slash: found.slash,
            control: found.control,
            wide: found.wide,
            inner: found.inner,
            apart: 0,
        };
        if block.wide == 0 { block } else { block.with_wide::<E>(found.ideograph) }
    }

    /// The block with its characters that are not ASCII, short of the first it cannot have;
    /// `ideographs` are the first bytes of those that need no look-up.
    fn with_wide<E: Expression>(mut self, ideographs: u64) -> Self {
        let mut left = self.wide & !self.inner;
        let kind = E::kind(classes(IDEOGRAPH));
        if kind != Kind::Other {
            let whole = ideographs & u64::MAX >> 2;
            self.add(kind, self.first(whole));
            left &= !whole;
        }
        while left != 0 {
            let position = left.trailing_zeros() as usize;
            let next = self.text.get(self.at + position..).and_then(|rest| rest.chars().next());
            let Some(character) = next.filter(|char| position + char.len_utf8() <= 64) else {
                return self.before(bit(position));
            };
            let kind = E::kind(classes(character));
            if kind == Kind::Other {
                return self.before(bit(position));
            }
            self.add(kind, ((1 << character.len_utf8()) - 1) << position);
            left &= left - 1;
        }
        self
    }

    #[inline]
    fn add(&mut self, kind: Kind, bytes: u64) {
        match kind {
            Kind::Letter => self.letter |= bytes,
            Kind::Capital => (self.letter, self.upper) = (self.letter | bytes, self.upper | bytes),
            Kind::Digit => self.digit |= bytes,
            Kind::Apart => self.apart |= bytes,
            Kind::Symbol | Kind::Other => {}
        }
    }

    /// The block short of the first of the bytes `barred`.
    #[inline]
    pub(super) fn before(&self, barred: u64) -> Self {
        let barred = barred & self.valid;
        if barred == 0 {
            return *self;
        }
        Self { valid: (barred & barred.wrapping_neg()) - 1, is_last: false, ..*self }
    }

    /// White space.
    #[inline]
    pub(super) fn white(&self) -> u64 {
        self.blank | self.tab | self.line_end
    }

    /// `[^\s\p{L}\p{N}]`.
    #[inline]
    pub(super) fn symbol(&self) -> u64 {
        self.valid & !(self.white() | self.letter | self.digit | self.apart)
    }

    /// The first characters, all their bytes, of what begins at `starts`.
    #[inline]
    pub(super) fn first(&self, starts: u64) -> u64 {
        starts | flood(self.inner, starts << 1)
    }

    /// The ends of pretokens, given where they begin; only those that no byte behind the block
    /// could change, when a start depends on its own byte, on what is before and, if it is white
    /// space, on the next.
    #[inline]
    pub(super) fn ends(&self, starts: u64) -> u64 {
        if self.is_last {
            // a block that is full is never the last: there is a bit for the end of the text
            starts & self.valid & !1 | (self.valid + 1)
        } else {
            starts & self.valid >> 1 & !1
        }
    }

    /// The same when a start within white space depends on all of its run.
    #[inline]
    pub(super) fn ends_by_lines(&self, starts: u64) -> u64 {
        let solid = self.valid & !self.white();
        let behind_last = u64::MAX >> solid.leading_zeros().saturating_sub(1);
        self.ends(if self.is_last { starts } else { starts & behind_last })
    }

    /// Where white space begins pretokens by `\s*[\r\n]+|\s+(?!\S)|\s+`, when the symbols
    /// (`symbol`) before it take the ends of lines that follow them, and when `next` may take the
    /// last of the white space before it, or leave it alone.
    #[inline]
    pub(super) fn white_by_lines(&self, symbol: u64, next: u64) -> u64 {
        let space = self.blank | self.tab;
        let taken = flood(self.line_end, symbol << 1);
        let left = self.white() & !taken;
        // blanks behind an end of line: the last of its run, unless one more follows the blanks
        let mut behind = (self.line_end & !taken) << 1 & space;
        for end in bits(space.wrapping_add(behind) & !space & self.line_end) {
            behind ^= 1 << (behind & ((1 << end) - 1)).ilog2();
        }
        runs(left) | behind | space & next >> 1
    }

    /// Where digits begin pretokens of at most three.
    #[inline]
    pub(super) fn threes(&self) -> u64 {
        let (mut starts, digit) = (runs(self.digit), self.digit);
        let fourth = digit & digit << 1 & digit << 2 & digit << 3;
        let mut more = starts << 3 & fourth;
        while more != 0 {
            starts |= more;
            more = more << 3 & fourth;
        }
        starts
    }
}
