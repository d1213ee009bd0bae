//! Cuts a text into pretokens, as the regular expression of each family of tokenizers does.
//!
//! The expressions are few and published, so each has a scanner written by hand. A scanner gives
//! the ends of many pretokens at a time.

mod cl100k;
mod cursor;
mod gpt2;

pub use cl100k::Cl100k;
pub use gpt2::Gpt2;

/// The pretokenizers there are scanners for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `ByteLevel` with its own expression.
    Gpt2,
    /// Llama 3: cl100k, digits by three.
    Cl100k,
    /// Qwen 2 to 3: cl100k, digits one by one.
    Qwen2,
}

/// Finds the ends of pretokens.
pub trait Scanner: Copy + Send + Sync {
    /// Writes the ends (byte positions in `text`, rising, on boundaries of characters) of the
    /// pretokens that begin at `start`, until `ends` is full or the text is over; returns how many.
    ///
    /// `start` is 0 or an end that an earlier call gave for the same text.
    fn scan(self, text: &str, start: usize, ends: &mut [usize]) -> usize;
}

/// [`Scanner::scan`] by a function that finds one end: the plain way, and the reference of others.
fn scan_one_by_one(
    text: &str,
    start: usize,
    ends: &mut [usize],
    next_end: impl Fn(&str, usize) -> usize,
) -> usize {
    let mut at = start;
    for (count, end) in ends.iter_mut().enumerate() {
        if at == text.len() {
            return count;
        }
        at = next_end(text, at);
        *end = at;
    }
    ends.len()
}
