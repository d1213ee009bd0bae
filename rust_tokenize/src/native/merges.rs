//! Byte pair encoding: the ranked list of pairs, and merging by it.
//!
//! In: the first symbols of a piece of text, as token ids. Out: the ids that remain when no pair of
//! neighbours is in the list. The pair of lowest rank is merged first, the leftmost where it occurs
//! several times, one at a time (Sennrich et al., 2016, as Hugging Face reads it: the list is of
//! *pairs*, and several pairs may make the same token). Short pieces are scanned for the lowest
//! rank; long ones use a heap over a linked list, so that time is n log n and memory linear.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::native::bits::Bits;
use crate::native::hash::mix;

/// Up to this many symbols a scan beats the heap (measured on English and on Chinese text).
const MAX_SCANNED: usize = 48;
/// No token has this id, and no merge this rank and token.
const NO_ID: u32 = u32::MAX;
const NONE: u64 = u64::MAX;
const NO_LINK: u32 = u32::MAX;

/// A pair of the list: what merges, and into what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Merge {
    /// Id of the left token.
    pub left: u32,
    /// Id of the right token.
    pub right: u32,
    /// Id of the token they make.
    pub merged: u32,
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    left: u32,
    right: u32,
    /// Rank in the high half, id of the merged token in the low one: the smallest merges first.
    found: u64,
}

const EMPTY: Slot = Slot { left: NO_ID, right: NO_ID, found: NONE };

#[inline]
fn hash(left: u32, right: u32) -> u64 {
    mix(u64::from(left), u64::from(right))
}

/// The ranked list of pairs: open addressing, at most two thirds full.
#[derive(Debug, Clone)]
pub struct Merges {
    slots: Vec<Slot>,
    shift: u32,
    /// A bit for each of eight times as many hashes as there are pairs. Nine in ten pairs of
    /// neighbours are not in the list, and this says so from memory that stays near the processor.
    filter: Bits,
    filter_shift: u32,
}

impl Merges {
    /// Makes the table of a list in order of rank. Of a pair that occurs twice the last rank counts,
    /// as in the reference.
    #[must_use]
    pub fn new(list: &[Merge]) -> Self {
        let num_slots = (list.len() * 3 / 2).next_power_of_two().max(2);
        let num_bits = (list.len() * 8).next_power_of_two().max(64);
        let mut merges = Self {
            slots: vec![EMPTY; num_slots],
            shift: 64 - num_slots.trailing_zeros(),
            filter: Bits::new(num_bits),
            filter_shift: 64 - num_bits.trailing_zeros(),
        };
        for (rank, merge) in (0_u64..).zip(list) {
            let hash = hash(merge.left, merge.right);
            merges.filter.insert(merges.bit(hash));
            let at = merges.locate(merge.left, merge.right, hash);
            let found = rank << 32 | u64::from(merge.merged);
            merges.slots[at] = Slot { left: merge.left, right: merge.right, found };
        }
        merges
    }

    /// The bit of a hash in the filter.
    #[inline]
    #[allow(clippy::cast_possible_truncation)] // shifted to the width of the filter
    fn bit(&self, hash: u64) -> usize {
        (hash >> self.filter_shift) as usize
    }

    #[inline]
    fn locate(&self, left: u32, right: u32, hash: u64) -> usize {
        let mask = self.slots.len() - 1;
        #[allow(clippy::cast_possible_truncation)] // shifted to the width of the table
        let mut at = (hash >> self.shift) as usize;
        loop {
            let slot = self.slots[at];
            if (slot.left == left && slot.right == right) || slot.left == NO_ID {
                return at;
            }
            at = (at + 1) & mask;
        }
    }

    /// Rank and merged id of a pair, or [`NONE`].
    #[inline]
    fn find(&self, left: u32, right: u32) -> u64 {
        let hash = hash(left, right);
        if !self.filter.contains(self.bit(hash)) {
            return NONE;
        }
        self.slots[self.locate(left, right, hash)].found
    }

    /// Merges `symbols` until nothing merges.
    pub fn apply(&self, symbols: &mut Vec<u32>, scratch: &mut Scratch) {
        if symbols.len() <= MAX_SCANNED {
            self.apply_scanning(symbols, &mut scratch.found);
        } else {
            self.apply_with_heap(symbols, scratch);
        }
    }

    fn apply_scanning(&self, symbols: &mut Vec<u32>, found: &mut Vec<u64>) {
        found.clear();
        found.extend(symbols.windows(2).map(|pair| self.find(pair[0], pair[1])));
        while let Some((at, best)) = lowest(found) {
            symbols[at] = merged_id(best);
            symbols.remove(at + 1);
            found.remove(at);
            if at < found.len() {
                found[at] = self.find(symbols[at], symbols[at + 1]);
            }
            if at > 0 {
                found[at - 1] = self.find(symbols[at - 1], symbols[at]);
            }
        }
    }

    fn apply_with_heap(&self, symbols: &mut Vec<u32>, scratch: &mut Scratch) {
        scratch.start(self, symbols);
        while let Some(Reverse(entry)) = scratch.heap.pop() {
            let (rank, at) = (entry >> 32, low(entry));
            // Whatever was at `at` when the entry was made may have merged since.
            let found = scratch.found[at as usize];
            if found == NONE || found >> 32 != rank {
                continue;
            }
            symbols[at as usize] = merged_id(found);
            let removed = scratch.next[at as usize];
            let after = scratch.next[removed as usize];
            symbols[removed as usize] = NO_ID;
            scratch.found[removed as usize] = NONE;
            scratch.next[at as usize] = after;
            if after != NO_LINK {
                scratch.prev[after as usize] = at;
            }
            scratch.renew(self, symbols, at, after);
            let before = scratch.prev[at as usize];
            if before != NO_LINK {
                scratch.renew(self, symbols, before, at);
            }
        }
        symbols.retain(|&id| id != NO_ID);
    }
}

/// The leftmost of the lowest, if any merges.
fn lowest(found: &[u64]) -> Option<(usize, u64)> {
    let mut best = (0, NONE);
    for (at, &value) in found.iter().enumerate() {
        if value < best.1 {
            best = (at, value);
        }
    }
    (best.1 != NONE).then_some(best)
}

#[allow(clippy::cast_possible_truncation)] // the low half
fn low(value: u64) -> u32 {
    value as u32
}

fn merged_id(found: u64) -> u32 {
    low(found)
}

/// Memory that merging uses again and again; empty between pieces but for its capacity.
#[derive(Debug, Default)]
pub struct Scratch {
    /// What each symbol and the one after it make.
    found: Vec<u64>,
    prev: Vec<u32>,
    next: Vec<u32>,
    /// Rank in the high half, position in the low one: lowest rank first, then leftmost.
    heap: BinaryHeap<Reverse<u64>>,
}

impl Scratch {
    /// Links `symbols`, of which there are fewer than 2^32 - 1.
    #[allow(clippy::cast_possible_truncation)] // see above
    fn start(&mut self, merges: &Merges, symbols: &[u32]) {
        let len = symbols.len();
        self.found.clear();
        self.found.extend(symbols.windows(2).map(|pair| merges.find(pair[0], pair[1])));
        self.found.push(NONE);
        self.prev.clear();
        self.prev.extend((0..len).map(|at| if at == 0 { NO_LINK } else { at as u32 - 1 }));
        self.next.clear();
        self.next.extend((0..len).map(|at| if at + 1 == len { NO_LINK } else { at as u32 + 1 }));
        let mut entries = std::mem::take(&mut self.heap).into_vec();
        entries.clear();
        let all = self.found.iter().enumerate().filter(|&(_, &found)| found != NONE);
        entries.extend(all.map(|(at, &found)| Reverse(found >> 32 << 32 | at as u64)));
        self.heap = BinaryHeap::from(entries);
    }

    /// Looks up the pair at `left`, whose right neighbour is `right`.
    fn renew(&mut self, merges: &Merges, symbols: &[u32], left: u32, right: u32) {
        let found = if right == NO_LINK {
            NONE
        } else {
            merges.find(symbols[left as usize], symbols[right as usize])
        };
        self.found[left as usize] = found;
        if found != NONE {
            self.heap.push(Reverse(found >> 32 << 32 | u64::from(left)));
        }
    }

    /// Gives back what a very long piece took, so that a worker's memory stays bounded.
    pub fn shrink(&mut self, max_symbols: usize) {
        if self.found.capacity() > max_symbols {
            *self = Self::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, word for word.
    fn plainly(list: &[Merge], symbols: &[u32]) -> Vec<u32> {
        let mut symbols = symbols.to_vec();
        let ranks: Vec<_> = list.iter().map(|merge| (merge.left, merge.right)).collect();
        let rank = |pair: &[u32]| ranks.iter().rposition(|&known| known == (pair[0], pair[1]));
        while let Some((rank, at)) = symbols
            .windows(2)
            .enumerate()
            .filter_map(|(at, pair)| rank(pair).map(|rank| (rank, at)))
            .min()
        {
            symbols[at] = list[rank].merged;
            symbols.remove(at + 1);
        }
        symbols
    }

    #[test]
    fn scanning_and_heap_give_what_the_definition_gives() {
        let mut state = 7_u64;
        let mut random = move |below: u32| {
            state = mix(state, 11);
            low(state >> 33) % below
        };
        for _ in 0..300 {
            let num_ids = 2 + random(9);
            let list: Vec<_> = (0..random(30))
                .map(|_| {
                    let (left, right) = (random(num_ids), random(num_ids));
                    Merge { left, right, merged: random(num_ids) }
                })
                .collect();
            let merges = Merges::new(&list);
            let symbols: Vec<_> = (0..random(60)).map(|_| random(num_ids)).collect();
            let expected = plainly(&list, &symbols);
            let mut scratch = Scratch::default();
            let mut scanned = symbols.clone();
            merges.apply_scanning(&mut scanned, &mut scratch.found);
            assert_eq!(scanned, expected);
            let mut heaped = symbols.clone();
            merges.apply_with_heap(&mut heaped, &mut scratch);
            assert_eq!(heaped, expected);
        }
    }
}
