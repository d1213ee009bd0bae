//! Best-fit-decreasing bin packing in time linear in items plus capacity.
//!
//! In: lengths and a capacity. Out: a bin for every item. Items are taken longest first (counting
//! sort, ties in input order), each goes into the fullest bin that still has room, and an item
//! longer than the capacity gets a bin of its own. Open bins wait in one list per remaining
//! capacity; a tree of 64-bit words finds the smallest one that is large enough. A segment tree
//! does the same with a log factor; first-fit fills worse. The outcome depends on the input alone.

use crate::error::{Error, Result};

/// Largest capacity: the lists take four bytes per unit of it.
pub const MAX_CAPACITY: usize = 1 << 26;

const NONE: u32 = u32::MAX;

/// Gives each item its bin; bins are numbered in the order they were opened.
pub fn pack(lengths: &[usize], capacity: usize) -> Result<Vec<u32>> {
    if capacity == 0 {
        return Err(Error::Argument("the capacity is 0, expected at least 1".to_owned()));
    }
    if lengths.len() >= NONE as usize {
        return Err(Error::Argument(format!(
            "found {} items, expected fewer than {NONE}",
            lengths.len()
        )));
    }
    // More room than all the items need makes no difference, but would cost memory.
    let total = lengths.iter().fold(0_usize, |sum, &length| sum.saturating_add(length));
    let capacity = capacity.min(total.max(1));
    if capacity > MAX_CAPACITY {
        return Err(Error::Argument(format!(
            "the capacity is {capacity}, expected at most {MAX_CAPACITY}"
        )));
    }
    let mut open = OpenBins::new(capacity);
    let mut bins = vec![0; lengths.len()];
    for item in longest_first(lengths, capacity) {
        bins[item] = open.place(lengths[item]);
    }
    Ok(bins)
}

/// Items in the order they are placed: those above the capacity, then by falling length; ties in
/// input order.
fn longest_first(lengths: &[usize], capacity: usize) -> Vec<usize> {
    // bucket 0: above the capacity; bucket 1: as long as the capacity; ...
    let bucket = |length: usize| capacity.checked_sub(length).map_or(0, |room| room + 1);
    let mut starts = vec![0_usize; capacity + 3];
    for &length in lengths {
        starts[bucket(length) + 1] += 1;
    }
    for index in 1..starts.len() {
        starts[index] += starts[index - 1];
    }
    let mut order = vec![0; lengths.len()];
    for (item, &length) in lengths.iter().enumerate() {
        let next = &mut starts[bucket(length)];
        order[*next] = item;
        *next += 1;
    }
    order
}

/// The bins, listed by what still fits into them.
struct OpenBins {
    capacity: usize,
    /// `heads[room]`: the last bin that came to have `room` left, or `NONE`.
    heads: Vec<u32>,
    /// `next[bin]`: the bin below it in the same list.
    next: Vec<u32>,
    rooms: BitTree,
}

impl OpenBins {
    fn new(capacity: usize) -> Self {
        Self {
            capacity,
            heads: vec![NONE; capacity + 1],
            next: Vec::new(),
            rooms: BitTree::new(capacity + 1),
        }
    }

    fn place(&mut self, length: usize) -> u32 {
        let (bin, room) = match self.rooms.first_from(length) {
            Some(room) => (self.take(room), room),
            None => (self.open(), self.capacity),
        };
        if let Some(left) = room.checked_sub(length) {
            self.put(bin, left);
        }
        bin
    }

    #[allow(clippy::cast_possible_truncation)] // `pack` refuses more items than u32 can count
    fn open(&mut self) -> u32 {
        self.next.push(NONE);
        (self.next.len() - 1) as u32
    }

    fn take(&mut self, room: usize) -> u32 {
        let bin = self.heads[room];
        self.heads[room] = self.next[bin as usize];
        if self.heads[room] == NONE {
            self.rooms.clear(room);
        }
        bin
    }

    fn put(&mut self, bin: u32, room: usize) {
        if self.heads[room] == NONE {
            self.rooms.set(room);
        }
        self.next[bin as usize] = self.heads[room];
        self.heads[room] = bin;
    }
}

/// A set of small integers: one bit each, and above every 64 words a word that says which of them
/// are not empty.
struct BitTree {
    levels: Vec<Vec<u64>>,
}

impl BitTree {
    fn new(size: usize) -> Self {
        let mut levels = vec![vec![0; size.div_ceil(64)]];
        while let Some(words) = levels.last().map(Vec::len).filter(|&words| words > 1) {
            levels.push(vec![0; words.div_ceil(64)]);
        }
        Self { levels }
    }

    fn set(&mut self, mut index: usize) {
        for level in &mut self.levels {
            level[index / 64] |= 1 << (index % 64);
            index /= 64;
        }
    }

    fn clear(&mut self, mut index: usize) {
        for level in &mut self.levels {
            level[index / 64] &= !(1 << (index % 64));
            if level[index / 64] != 0 {
                return;
            }
            index /= 64;
        }
    }

    /// The smallest member that is at least `from`.
    fn first_from(&self, from: usize) -> Option<usize> {
        let mut index = from;
        for (height, level) in self.levels.iter().enumerate() {
            let word = level.get(index / 64)? >> (index % 64);
            if word != 0 {
                return Some(self.descend(height, index + word.trailing_zeros() as usize));
            }
            // Nothing is left in this word: the level above knows the next one that is not empty.
            index = index / 64 + 1;
        }
        None
    }

    fn descend(&self, height: usize, mut index: usize) -> usize {
        for level in self.levels[..height].iter().rev() {
            index = index * 64 + level[index].trailing_zeros() as usize;
        }
        index
    }
}
