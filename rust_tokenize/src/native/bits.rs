//! A set of small numbers, one bit each.

/// Which of the first numbers are in a set. The words are 32 bits wide because that is how
/// [`crate::native::binary`] keeps numbers.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Bits(Vec<u32>);

impl Bits {
    /// An empty set of numbers below `len`, rounded up to 32.
    #[must_use]
    pub fn new(len: usize) -> Self {
        Self(vec![0; len.div_ceil(32)])
    }

    /// The set that [`Bits::words`] were of; None unless it is one of numbers below `len`.
    #[must_use]
    pub fn from_words(words: Vec<u32>, len: usize) -> Option<Self> {
        (words.len() == len.div_ceil(32)).then_some(Self(words))
    }

    /// Number `32 * i + j` is bit `j` of word `i`.
    #[must_use]
    pub fn words(&self) -> &[u32] {
        &self.0
    }

    /// Puts a number in.
    #[inline]
    pub fn insert(&mut self, number: usize) {
        self.0[number / 32] |= 1 << (number % 32);
    }

    /// Whether a number is in.
    #[inline]
    #[must_use]
    pub fn contains(&self, number: usize) -> bool {
        self.0[number / 32] >> (number % 32) & 1 == 1
    }
}
