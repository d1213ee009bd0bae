//! Cuts a text into pretokens, as the regular expression of each family of tokenizers does.
//!
//! The expressions are few and published, so each is written by hand, twice: character by character,
//! for every text, and on masks of 64 bytes ([`Block`]), which is fast and leaves some texts over.

mod block;
mod cl100k;
mod cursor;
mod deepseek;
mod family;
mod gpt2;
mod o200k;

pub use block::{Block, Kind};
pub use cl100k::Cl100k;
pub use deepseek::DeepSeek;
pub use family::Family;
pub use gpt2::Gpt2;
pub use o200k::O200k;

/// Finds the ends of pretokens.
pub trait Scanner: Copy + Send + Sync {
    /// Writes the ends (byte positions in `text`, rising, on boundaries of characters) of the
    /// pretokens that begin at `start`, until `ends` is full or the text is over; returns how many.
    ///
    /// `start` is 0 or an end that an earlier call gave for the same text.
    fn scan(self, text: &str, start: usize, ends: &mut [usize]) -> usize;
}

/// A regular expression (or several in sequence) that cuts a text, written out as code.
pub trait Expression: Copy + Send + Sync {
    /// The end of the pretoken at `at`, which is short of the end of `text`.
    fn next_end(self, text: &str, at: usize) -> usize;

    /// What a character that is not ASCII is in a block, by its classes.
    fn kind(classes: u8) -> Kind;

    /// Where pretokens end in a block, as far as that can be known from the block alone: bit `i` is
    /// the boundary before byte `i`.
    fn ends(self, block: &Block<'_>) -> u64;
}

impl<E: Expression> Scanner for E {
    fn scan(self, text: &str, start: usize, ends: &mut [usize]) -> usize {
        block::scan(self, text, start, ends)
    }
}

/// The plain scanner of an expression, to compare the fast one with.
#[derive(Clone, Copy)]
pub struct OneByOne<E>(pub E);

impl<E: Expression> Scanner for OneByOne<E> {
    fn scan(self, text: &str, start: usize, ends: &mut [usize]) -> usize {
        let mut at = start;
        for (count, end) in ends.iter_mut().enumerate() {
            if at == text.len() {
                return count;
            }
            at = self.0.next_end(text, at);
            *end = at;
        }
        ends.len()
    }
}
