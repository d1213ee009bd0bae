//! Many strings in one, and an index from a string to its number.
//!
//! A vocabulary has 100,000 strings of six bytes: one allocation for each, and a general hash map
//! over them, would cost most of the time it takes to load a tokenizer.

use crate::native::hash::hash_bytes;

/// Strings, numbered in the order they were pushed.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Strings {
    text: String,
    ends: Vec<u32>,
}

impl Strings {
    /// Puts strings back together from what [`Strings::parts`] gave; None if they do not fit.
    #[must_use]
    pub fn from_parts(text: Vec<u8>, ends: Vec<u32>) -> Option<Self> {
        let text = String::from_utf8(text).ok()?;
        let rising = ends.windows(2).all(|pair| pair[0] <= pair[1]);
        let whole = ends.iter().all(|&end| text.is_char_boundary(end as usize));
        let last = ends.last().map_or(0, |&end| end as usize);
        (rising && whole && last == text.len()).then_some(Self { text, ends })
    }

    /// All text, and where each string ends in it.
    #[must_use]
    pub fn parts(&self) -> (&str, &[u32]) {
        (&self.text, &self.ends)
    }

    /// Appends a string; false (and nothing is appended) if 32 bits cannot count all bytes.
    pub fn push(&mut self, string: &str) -> bool {
        let Ok(end) = u32::try_from(self.text.len() + string.len()) else { return false };
        self.text.push_str(string);
        self.ends.push(end);
        true
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// String number `number`, which must be one of these.
    #[must_use]
    pub fn get(&self, number: usize) -> &str {
        let start = if number == 0 { 0 } else { self.ends[number - 1] as usize };
        &self.text[start..self.ends[number] as usize]
    }

    /// The strings, in order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        (0..self.len()).map(|number| self.get(number))
    }
}

/// Finds the number of a string: open addressing, at most half full.
#[derive(Debug, Clone)]
pub struct Index {
    /// Number of the string + 1, or 0.
    slots: Vec<u32>,
}

impl Index {
    /// Indexes `strings`; None if a string occurs twice.
    #[must_use]
    pub fn build(strings: &Strings) -> Option<Self> {
        let num_slots = (strings.len() * 2).next_power_of_two().max(2);
        let mut index = Self { slots: vec![0; num_slots] };
        for (number, string) in strings.iter().enumerate() {
            let (slot, found) = index.locate(strings, string.as_bytes());
            if found.is_some() {
                return None;
            }
            index.slots[slot] = u32::try_from(number + 1).ok()?;
        }
        Some(index)
    }

    /// The number `string` has in the `strings` this index was built from.
    #[must_use]
    pub fn find(&self, strings: &Strings, string: &[u8]) -> Option<usize> {
        self.locate(strings, string).1
    }

    /// The slot of `string`, or the empty one where it would go.
    fn locate(&self, strings: &Strings, string: &[u8]) -> (usize, Option<usize>) {
        let mask = self.slots.len() - 1;
        #[allow(clippy::cast_possible_truncation)] // the mask cuts it anyway
        let mut slot = hash_bytes(string) as usize & mask;
        while self.slots[slot] != 0 {
            let number = self.slots[slot] as usize - 1;
            if strings.get(number).as_bytes() == string {
                return (slot, Some(number));
            }
            slot = (slot + 1) & mask;
        }
        (slot, None)
    }
}
