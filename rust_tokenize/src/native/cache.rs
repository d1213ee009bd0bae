//! Pieces of text and their ids, remembered: one worker's cache.
//!
//! Most pieces of a text have been seen before (98 % in English), and their ids depend on nothing
//! else. Pieces of at most 15 bytes, nearly all, have slots of half a cache line: the bytes and
//! the length are the key, so that a comparison is two words, and up to three ids lie beside it.
//! Longer ones have a second table. Both begin small and double while they fill, because a fresh
//! worker's first texts would otherwise wait for pages that most never need. Both are bounded, and a
//! full one forgets: the ids come from [`crate::native::model`] alone, so that forgetting costs time
//! and nothing else.

use crate::native::hash::{hash_bytes, mix};

/// Longest piece the short table takes.
pub const MAX_SHORT: usize = 15;
/// Longest piece that is remembered at all.
const MAX_LONG: usize = 512;
/// Slots that are looked at for a short piece; the first is replaced if all are taken.
const NUM_PROBES: usize = 4;
/// Slots a table begins with: 128 KB of short pieces.
const FIRST_SLOTS: usize = 1 << 12;
/// Slots of the short table for each piece before it grows: more, and fewer pieces are in their
/// first slot; fewer, and more memory is touched.
const SPACING: usize = 4;
/// Ids that fit into a slot.
const MAX_INLINE: usize = 3;
/// Ids elsewhere come in blocks of so many, because copying a number known before is no call: most
/// pieces there, blanks that indent code with GPT-2's, have one.
pub const BLOCK: usize = 8;
/// In place of the number of ids: there are more, elsewhere.
const SPILLED: i32 = -1;

/// A piece of at most [`MAX_SHORT`] bytes: the bytes, zeros, and the length on top. Never 0.
pub type ShortKey = u128;

const fn masks() -> [u128; MAX_SHORT + 1] {
    let mut masks = [0; MAX_SHORT + 1];
    let mut length = 0;
    while length <= MAX_SHORT {
        masks[length] = (1 << (8 * length)) - 1;
        length += 1;
    }
    masks
}
const MASKS: [u128; MAX_SHORT + 1] = masks();

/// In the key of a part of a piece: `ignore_merges` is for pieces alone, so that the same text may
/// have other ids as a part.
pub const PART: ShortKey = 1 << 127;

/// The key of `bytes[start..end]`, 1 to [`MAX_SHORT`] bytes.
#[inline]
#[must_use]
pub fn short_key(bytes: &[u8], start: usize, end: usize) -> ShortKey {
    let length = end - start;
    let word = if let Some(word) = bytes.get(start..).and_then(|rest| rest.first_chunk::<16>()) {
        u128::from_le_bytes(*word)
    } else if let Some(word) = bytes[..end].last_chunk::<16>() {
        u128::from_le_bytes(*word) >> (8 * (16 - length))
    } else {
        let mut word = [0; 16];
        word[..length].copy_from_slice(&bytes[start..end]);
        u128::from_le_bytes(word)
    };
    (word & MASKS[length]) | (length as u128) << 120
}

#[derive(Debug, Clone, Copy)]
#[repr(align(32))]
struct ShortSlot {
    /// 0 in an empty slot.
    key: [u64; 2],
    /// Up to three ids, or where they start in `spilled` and how many they are.
    ids: [i32; MAX_INLINE],
    /// How many ids, or `SPILLED`.
    count: i32,
}

const EMPTY: ShortSlot = ShortSlot { key: [0; 2], ids: [0; MAX_INLINE], count: 0 };

/// What the short table has of a piece: the first so many of these ids.
pub enum Found<'a> {
    /// Up to three.
    Inline(&'a [i32; MAX_INLINE], usize),
    /// More of them, in at least one block.
    Spilled(&'a [[i32; BLOCK]], usize),
}

impl<'a> Found<'a> {
    /// The ids.
    #[must_use]
    pub fn ids(&self) -> &'a [i32] {
        match *self {
            Self::Inline(ids, count) => &ids[..count],
            Self::Spilled(blocks, count) => &blocks.as_flattened()[..count],
        }
    }
}

/// The cache of one worker.
#[derive(Debug)]
pub struct Cache {
    short: Vec<ShortSlot>,
    num_taken: usize,
    max_slots: usize,
    shift: u32,
    spilled: Vec<[i32; BLOCK]>,
    long: LongTable,
}

impl Cache {
    /// A cache of at most `max_slots` short pieces (a power of two of at least 4, or 0 for no cache
    /// at all). It takes at most about 130 bytes a slot: 34 MB of the default 2^18.
    #[must_use]
    pub fn new(max_slots: usize) -> Self {
        let num_slots = max_slots.min(FIRST_SLOTS);
        Self {
            short: vec![EMPTY; num_slots],
            num_taken: 0,
            max_slots,
            shift: shift(num_slots),
            spilled: Vec::new(),
            // With a single slot there would be no empty one to end a search.
            long: LongTable::new(if max_slots < 4 { 0 } else { max_slots / 2 }),
        }
    }

    /// Whether it remembers anything.
    #[must_use]
    pub fn is_on(&self) -> bool {
        !self.short.is_empty()
    }

    /// The first slot of a key, in a cache that is on.
    #[inline]
    #[must_use]
    #[allow(clippy::cast_possible_truncation)] // the halves of the key; the width of the table
    pub fn home(&self, key: ShortKey) -> usize {
        (mix(key as u64, (key >> 64) as u64) >> self.shift) as usize
    }

    /// Fetches a slot from memory, and waits for nothing.
    #[inline]
    pub fn prefetch(&self, slot: usize) {
        rust_simd::prefetch(&self.short[slot]);
    }

    /// What a slot has, if it is that of a key; no slot is that of 0.
    #[inline]
    #[must_use]
    pub fn find_home(&self, key: ShortKey, slot: usize) -> Option<Found<'_>> {
        let (slot, key) = (&self.short[slot], halves(key));
        let differ = (slot.key[0] ^ key[0]) | (slot.key[1] ^ key[1]);
        (differ == 0 && key[1] != 0).then(|| self.found(slot))
    }

    /// Ids of a short piece, if it is remembered.
    #[must_use]
    pub fn find_short(&self, key: ShortKey) -> Option<Found<'_>> {
        let (home, key) = (self.home(key), halves(key));
        let mask = self.short.len() - 1;
        let slots = (0..NUM_PROBES).map(|probe| &self.short[(home + probe) & mask]);
        let mut taken = slots.take_while(|slot| slot.key[1] != 0);
        taken.find(|slot| slot.key == key).map(|slot| self.found(slot))
    }

    #[inline]
    fn found<'a>(&'a self, slot: &'a ShortSlot) -> Found<'a> {
        if let Ok(count) = usize::try_from(slot.count) {
            Found::Inline(&slot.ids, count)
        } else {
            let (start, count) = (index(slot.ids[0]), index(slot.ids[1]));
            Found::Spilled(&self.spilled[start..start + count.div_ceil(BLOCK)], count)
        }
    }

    /// Remembers the ids of a short piece. It may move all others.
    pub fn insert_short(&mut self, key: ShortKey, ids: &[i32]) {
        if SPACING * self.num_taken >= self.short.len() && self.short.len() < self.max_slots {
            self.grow();
        }
        let mut slot = ShortSlot { key: halves(key), ..EMPTY };
        if ids.len() <= MAX_INLINE {
            for (place, id) in slot.ids.iter_mut().zip(ids) {
                *place = *id;
            }
            slot.count = count(ids.len());
        } else {
            if self.spilled.len() + ids.len().div_ceil(BLOCK) > self.max_slots / 2 {
                self.short.fill(EMPTY);
                self.num_taken = 0;
                self.spilled.clear();
            }
            slot.ids = [count(self.spilled.len()), count(ids.len()), 0];
            slot.count = SPILLED;
            for part in ids.chunks(BLOCK) {
                let mut block = [0; BLOCK];
                block[..part.len()].copy_from_slice(part);
                self.spilled.push(block);
            }
        }
        self.place(key, slot);
    }

    /// Puts a slot where [`Cache::find_short`] looks for its key.
    fn place(&mut self, key: ShortKey, slot: ShortSlot) {
        let (home, mask) = (self.home(key), self.short.len() - 1);
        let free = (0..NUM_PROBES).find(|probe| self.short[(home + probe) & mask].key[1] == 0);
        self.num_taken += usize::from(free.is_some());
        self.short[(home + free.unwrap_or(0)) & mask] = slot;
    }

    /// Doubles the short table. Homes are the high bits of a hash, so pieces that came first, the
    /// frequent ones, stay in theirs.
    #[cold]
    fn grow(&mut self) {
        let num_slots = 2 * self.short.len();
        let slots = std::mem::replace(&mut self.short, vec![EMPTY; num_slots]);
        self.shift = shift(num_slots);
        self.num_taken = 0;
        for slot in slots.into_iter().filter(|slot| slot.key[1] != 0) {
            self.place(u128::from(slot.key[1]) << 64 | u128::from(slot.key[0]), slot);
        }
    }

    /// Ids of a longer piece, if it is remembered.
    #[must_use]
    pub fn find_long(&self, piece: &[u8]) -> Option<&[i32]> {
        self.long.find(piece)
    }

    /// Remembers the ids of a longer piece.
    pub fn insert_long(&mut self, piece: &[u8], ids: &[i32]) {
        self.long.insert(piece, ids);
    }
}

/// What leaves the bits of a hash that number the slots.
fn shift(num_slots: usize) -> u32 {
    64 - num_slots.max(2).trailing_zeros()
}

/// Positions and counts in bounded tables: far below 2^31.
fn index(value: i32) -> usize {
    usize::try_from(value).unwrap_or_default()
}

fn count(value: usize) -> i32 {
    i32::try_from(value).unwrap_or_default()
}

#[inline]
#[allow(clippy::cast_possible_truncation)] // the halves
fn halves(key: ShortKey) -> [u64; 2] {
    [key as u64, (key >> 64) as u64]
}

#[derive(Debug, Clone, Copy, Default)]
struct LongSlot {
    hash: u64,
    key_start: u32,
    /// 0 in an empty slot.
    key_len: u32,
    ids_start: u32,
    ids_len: u32,
}

/// Pieces of more than 15 bytes: open addressing, at most half full.
#[derive(Debug)]
struct LongTable {
    slots: Vec<LongSlot>,
    num_taken: usize,
    max_slots: usize,
    keys: Vec<u8>,
    ids: Vec<i32>,
}

impl LongTable {
    fn new(max_slots: usize) -> Self {
        let slots = vec![LongSlot::default(); max_slots.min(FIRST_SLOTS)];
        Self { slots, num_taken: 0, max_slots, keys: Vec::new(), ids: Vec::new() }
    }

    /// The slot of `piece`, or the empty one where it would go.
    #[allow(clippy::cast_possible_truncation)] // the mask cuts it anyway
    fn locate(&self, piece: &[u8], hash: u64) -> usize {
        let mask = self.slots.len() - 1;
        let mut at = hash as usize & mask;
        loop {
            let slot = &self.slots[at];
            if slot.key_len == 0 || (slot.hash == hash && self.key(slot) == piece) {
                return at;
            }
            at = (at + 1) & mask;
        }
    }

    fn key(&self, slot: &LongSlot) -> &[u8] {
        let start = slot.key_start as usize;
        &self.keys[start..start + slot.key_len as usize]
    }

    fn find(&self, piece: &[u8]) -> Option<&[i32]> {
        if self.slots.is_empty() || piece.len() > MAX_LONG {
            return None;
        }
        let slot = &self.slots[self.locate(piece, hash_bytes(piece))];
        let start = slot.ids_start as usize;
        (slot.key_len > 0).then(|| &self.ids[start..start + slot.ids_len as usize])
    }

    fn insert(&mut self, piece: &[u8], ids: &[i32]) {
        if self.slots.is_empty() || piece.len() > MAX_LONG {
            return;
        }
        if 2 * (self.num_taken + 1) > self.slots.len() && self.slots.len() < self.max_slots {
            self.grow();
        }
        let full = 2 * (self.num_taken + 1) > self.slots.len()
            || self.keys.len() + piece.len() > 64 * self.max_slots
            || self.ids.len() + ids.len() > 16 * self.max_slots;
        if full {
            self.slots.fill(LongSlot::default());
            self.num_taken = 0;
            self.keys.clear();
            self.ids.clear();
        }
        let hash = hash_bytes(piece);
        let at = self.locate(piece, hash);
        let fits = |value| u32::try_from(value).unwrap_or_default(); // tables are far below 2^32
        self.slots[at] = LongSlot {
            hash,
            key_start: fits(self.keys.len()),
            key_len: fits(piece.len()),
            ids_start: fits(self.ids.len()),
            ids_len: fits(ids.len()),
        };
        self.num_taken += 1;
        self.keys.extend_from_slice(piece);
        self.ids.extend_from_slice(ids);
    }

    #[cold]
    #[allow(clippy::cast_possible_truncation)] // the mask cuts it anyway
    fn grow(&mut self) {
        let num_slots = 2 * self.slots.len();
        let slots = std::mem::replace(&mut self.slots, vec![LongSlot::default(); num_slots]);
        for slot in slots.into_iter().filter(|slot| slot.key_len > 0) {
            let mut at = slot.hash as usize & (num_slots - 1);
            while self.slots[at].key_len > 0 {
                at = (at + 1) & (num_slots - 1);
            }
            self.slots[at] = slot;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_still_known_when_the_tables_have_grown() {
        let mut cache = Cache::new(1 << 16);
        let text = |number: i32| (format!("{number}"), format!("a longer piece, number {number}"));
        let ids = |number: i32| vec![number; usize::try_from(number % 20).unwrap() + 1];
        for number in 0..10_000 {
            let (short, long) = text(number);
            cache.insert_short(short_key(short.as_bytes(), 0, short.len()), &ids(number));
            cache.insert_long(long.as_bytes(), &ids(number));
        }
        assert_eq!((cache.short.len(), cache.long.slots.len()), (1 << 16, 1 << 15));
        let mut num_known = 0;
        for number in 0..10_000 {
            let (short, long) = text(number);
            let key = short_key(short.as_bytes(), 0, short.len());
            let known = cache.find_short(key).map(|found| found.ids().to_vec());
            assert!(known.is_none() || known == Some(ids(number)), "{number}");
            num_known += usize::from(known.is_some());
            assert_eq!(cache.find_long(long.as_bytes()), Some(&*ids(number)));
            assert!(cache.find_short(key | PART).is_none());
        }
        assert!(num_known > 9_900, "{num_known}");
    }
}
