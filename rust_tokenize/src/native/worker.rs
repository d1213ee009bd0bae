//! What one thread needs to encode: its cache and its scratch memory.
//!
//! In: a text, and the ends of its pieces from a scanner, a batch at a time. Out: ids. A batch goes
//! through two loops, first the keys of all pieces, then their slots, so that the processor waits
//! for several slots at once.

use crate::native::cache::{BLOCK, Cache, Found, MAX_SHORT, PART, ShortKey, short_key};
use crate::native::joins::Joins;
use crate::native::model::{Model, PieceScratch};
use crate::native::scan::Scanner;

/// Pieces a scanner finds at a time.
const BATCH: usize = 128;
/// Beyond this many ids the memory a piece took is given back.
const MAX_KEPT: usize = 1 << 16;
/// Ids a piece is given room for before its ids are known.
const ROOM: usize = 4;

#[derive(Debug, Clone, Copy, Default)]
struct Probe {
    /// 0 for a piece that is not short.
    key: ShortKey,
    start: u32,
    end: u32,
    /// First slot of the key, when the batch began: the table may have grown since.
    home: u32,
}

/// One thread's cache and scratch memory.
#[derive(Debug)]
pub struct Worker {
    cache: Cache,
    scratch: PieceScratch,
    /// Ids of the piece that is learnt.
    found: Vec<i32>,
    probes: Vec<Probe>,
    ends: Vec<usize>,
    /// A text or piece with a blank in front.
    prefixed: String,
}

impl Worker {
    /// A worker whose cache has this many slots; see [`Cache::new`].
    #[must_use]
    pub fn new(num_slots: usize) -> Self {
        Self {
            cache: Cache::new(num_slots),
            scratch: PieceScratch::default(),
            found: Vec::new(),
            probes: vec![Probe::default(); BATCH],
            ends: vec![0; BATCH],
            prefixed: String::new(),
        }
    }

    /// Appends the ids of `text`, cut by `scanner`.
    pub fn encode<S: Scanner>(
        &mut self,
        model: &Model,
        scanner: S,
        text: &str,
        ids: &mut Vec<i32>,
    ) {
        self.encode_from(model, scanner, text, 0, ids);
    }

    /// The same as if `text` had a blank in front that its scanner sees.
    pub fn encode_with_blank<S: Scanner>(
        &mut self,
        model: &Model,
        scanner: S,
        text: &str,
        ids: &mut Vec<i32>,
    ) {
        let prefixed = self.prefix(text);
        self.encode(model, scanner, &prefixed, ids);
        self.prefixed = prefixed;
    }

    /// The same as if the first piece of `text` had a blank in front.
    pub fn encode_with_blank_on_first<S: Scanner>(
        &mut self,
        model: &Model,
        scanner: S,
        text: &str,
        ids: &mut Vec<i32>,
    ) {
        let mut first = [0];
        if scanner.scan(text, 0, &mut first) == 0 {
            return;
        }
        let prefixed = self.prefix(&text[..first[0]]);
        self.ends[0] = prefixed.len();
        self.encode_batch(model, &prefixed, 0, 1, ids);
        self.prefixed = prefixed;
        self.encode_from(model, scanner, text, first[0], ids);
    }

    fn prefix(&mut self, text: &str) -> String {
        let mut prefixed = std::mem::take(&mut self.prefixed);
        prefixed.clear();
        prefixed.push(' ');
        prefixed.push_str(text);
        prefixed
    }

    fn encode_from<S: Scanner>(
        &mut self,
        model: &Model,
        scanner: S,
        text: &str,
        mut start: usize,
        ids: &mut Vec<i32>,
    ) {
        while start < text.len() {
            let num_pieces = scanner.scan(text, start, &mut self.ends);
            let Some(last) = num_pieces.checked_sub(1) else { return };
            self.encode_batch(model, text, start, num_pieces, ids);
            start = self.ends[last];
        }
    }

    /// Encodes the pieces whose ends are the first `num_pieces` of `self.ends`.
    fn encode_batch(
        &mut self,
        model: &Model,
        text: &str,
        start: usize,
        num_pieces: usize,
        ids: &mut Vec<i32>,
    ) {
        if !self.cache.is_on() {
            return self.encode_uncached(model, text, start, num_pieces, ids);
        }
        self.make_probes(text.as_bytes(), start, num_pieces);
        let mut at = ids.len();
        ids.resize(at + num_pieces * ROOM, 0);
        for number in 0..num_pieces {
            let probe = self.probes[number];
            let rest = (num_pieces - 1 - number) * ROOM;
            match self.cache.find_home(probe.key, probe.home as usize) {
                Some(Found::Inline(found, count)) => {
                    ids[at..at + found.len()].copy_from_slice(found);
                    at += count;
                }
                Some(Found::Spilled(found, count)) => {
                    make_room(ids, at, found.len() * BLOCK, rest);
                    ids[at..at + BLOCK].copy_from_slice(&found[0]);
                    if found.len() > 1 {
                        let more = found[1..].as_flattened();
                        ids[at + BLOCK..][..more.len()].copy_from_slice(more);
                    }
                    at += count;
                }
                None => at = self.encode_rare(model, text, &probe, ids, at, rest),
            }
        }
        ids.truncate(at);
    }

    /// Pieces are within a normalized text of less than 4 GiB, and slots fewer than 2^32.
    #[inline]
    #[allow(clippy::cast_possible_truncation)]
    fn make_probes(&mut self, bytes: &[u8], mut start: usize, num_pieces: usize) {
        let ends = &self.ends[..num_pieces];
        for (probe, &end) in self.probes.iter_mut().zip(ends) {
            let is_short = end - start <= MAX_SHORT;
            let key = if is_short { short_key(bytes, start, end) } else { 0 };
            let home = self.cache.home(key);
            self.cache.prefetch(home);
            *probe = Probe { key, start: start as u32, end: end as u32, home: home as u32 };
            start = end;
        }
    }

    /// A piece that is not in its first slot with few ids. Its ids go to `ids[at..]`, and `rest`
    /// more places follow them; gives where they start.
    #[cold]
    #[inline(never)]
    fn encode_rare(
        &mut self,
        model: &Model,
        text: &str,
        probe: &Probe,
        ids: &mut Vec<i32>,
        at: usize,
        rest: usize,
    ) -> usize {
        let piece = &text[probe.start as usize..probe.end as usize];
        let remembered = if probe.key == 0 {
            self.cache.find_long(piece.as_bytes())
        } else {
            self.cache.find_short(probe.key).map(|found| found.ids())
        };
        if let Some(found) = remembered {
            let end = make_room(ids, at, found.len(), rest);
            ids[at..end].copy_from_slice(found);
            return end;
        }
        self.learn(model, piece, probe.key);
        let end = make_room(ids, at, self.found.len(), rest);
        ids[at..end].copy_from_slice(&self.found);
        end
    }

    /// Puts the ids of a new piece into `self.found`, and remembers them.
    fn learn(&mut self, model: &Model, piece: &str, key: ShortKey) {
        if self.found.capacity() > MAX_KEPT {
            self.found = Vec::new();
        }
        self.found.clear();
        if key != 0 {
            extend(&mut self.found, model.encode(piece, &mut self.scratch));
            return self.cache.insert_short(key, &self.found);
        }
        match model.joins.as_ref().map(|joins| (joins, joins.part_end(piece, 0))) {
            Some((joins, end)) if end < piece.len() => self.learn_parts(model, joins, piece, end),
            _ => extend(&mut self.found, model.encode(piece, &mut self.scratch)),
        }
        self.cache.insert_long(piece.as_bytes(), &self.found);
    }

    /// Appends the ids of a piece that is cut, at `end` first, to `self.found`.
    fn learn_parts(&mut self, model: &Model, joins: &Joins, piece: &str, mut end: usize) {
        let mut start = 0;
        while start < piece.len() {
            if end - start > MAX_SHORT {
                extend(&mut self.found, model.merge(&piece[start..end], &mut self.scratch));
            } else {
                let key = short_key(piece.as_bytes(), start, end) | PART;
                if let Some(found) = self.cache.find_short(key) {
                    self.found.extend_from_slice(found.ids());
                } else {
                    let before = self.found.len();
                    let part = &piece[start..end];
                    extend(&mut self.found, model.merge(part, &mut self.scratch));
                    self.cache.insert_short(key, &self.found[before..]);
                }
            }
            start = end;
            end = joins.part_end(piece, start);
        }
    }

    fn encode_uncached(
        &mut self,
        model: &Model,
        text: &str,
        mut start: usize,
        num_pieces: usize,
        ids: &mut Vec<i32>,
    ) {
        for &end in &self.ends[..num_pieces] {
            extend(ids, model.encode(&text[start..end], &mut self.scratch));
            start = end;
        }
    }
}

fn extend(ids: &mut Vec<i32>, found: &[u32]) {
    ids.extend(found.iter().map(|id| id.cast_signed()));
}

/// Makes `ids` at least `count` and `rest` longer than `at`; gives `at + count`.
fn make_room(ids: &mut Vec<i32>, at: usize, count: usize, rest: usize) -> usize {
    let needed = at + count + rest;
    if ids.len() < needed {
        ids.resize(needed, 0);
    }
    at + count
}
