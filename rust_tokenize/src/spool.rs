//! The spool on disk: token ids of every entry, and an index of 32 bytes an entry.
//!
//! In: a folder a [`crate::spool_writer::SpoolWriter`] finished. Out: the index in memory, ids read
//! when asked for. An entry is one thing to score: context ids, then target ids (response and end
//! of turn). `data.bin` is read with `pread`, not mapped: a file that shrinks must raise an error,
//! not kill the process. Every number that steers a read is checked when the spool is opened, every
//! id when it is read.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

pub(crate) const DATA_NAME: &str = "data.bin";
pub(crate) const INDEX_NAME: &str = "index.bin";
/// Bytes an entry takes in the index.
pub const ENTRY_BYTES: usize = 32;
/// Bytes before the first entry of the index.
pub const HEADER_BYTES: usize = 40;
const MAGIC: [u8; 8] = *b"FAMSPOOL";
const VERSION: u32 = 1;
/// Bytes of neighbouring entries asked from the system at a time.
const READ_BYTES: u64 = 1 << 18;

/// One line of the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Where its ids begin in the data file, in bytes.
    pub offset: u64,
    /// [`hash_ids`] of the context ids.
    pub context_hash: u64,
    /// Number of context ids, at least 1.
    pub context_len: u32,
    /// Number of target ids.
    pub target_len: u32,
    /// The record it belongs to.
    pub record: u32,
    /// How many of the target ids, from the end, are the end of turn.
    pub num_eot: u8,
    /// Which of a record's forms this is; the caller gives it meaning.
    pub variant: u8,
    /// Sixteen bits of the target ids' hash.
    pub target_check: u16,
}

impl Entry {
    /// Bytes its ids take in the data file.
    #[must_use]
    pub fn num_bytes(&self) -> u64 {
        4 * (u64::from(self.context_len) + u64::from(self.target_len))
    }

    /// Tokens of its response segment: the last target is predicted, never fed.
    #[must_use]
    pub fn response_tokens(&self) -> usize {
        self.target_len.saturating_sub(1) as usize
    }

    pub(crate) fn to_bytes(self) -> [u8; ENTRY_BYTES] {
        let mut bytes = [0; ENTRY_BYTES];
        bytes[0..8].copy_from_slice(&self.offset.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.context_hash.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.context_len.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.target_len.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.record.to_le_bytes());
        bytes[28] = self.num_eot;
        bytes[29] = self.variant;
        bytes[30..32].copy_from_slice(&self.target_check.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8; ENTRY_BYTES]) -> Self {
        Self {
            offset: u64_at(bytes, 0),
            context_hash: u64_at(bytes, 8),
            context_len: u32_at(bytes, 16),
            target_len: u32_at(bytes, 20),
            record: u32_at(bytes, 24),
            num_eot: bytes[28],
            variant: bytes[29],
            target_check: u16::from_le_bytes([bytes[30], bytes[31]]),
        }
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

/// Mixes 32-bit words into 64 bits; the same on every machine, for it is written to disk.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mixer(u64);

impl Mixer {
    pub(crate) fn new() -> Self {
        Self(0x9E37_79B9_7F4A_7C15)
    }

    pub(crate) fn add(&mut self, word: u32) {
        let mixed = (self.0 ^ u64::from(word)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
        self.0 = mixed ^ (mixed >> 32);
    }

    pub(crate) fn add_bytes(&mut self, bytes: &[u8; ENTRY_BYTES]) {
        for at in (0..ENTRY_BYTES).step_by(4) {
            self.add(u32_at(bytes, at));
        }
    }

    pub(crate) fn value(self) -> u64 {
        self.0
    }
}

/// The hash by which entries with the same context find one another.
#[must_use]
pub fn hash_ids(ids: &[i32]) -> u64 {
    let mut mixer = Mixer::new();
    for id in ids {
        mixer.add(id.cast_unsigned());
    }
    mixer.value()
}

/// [`hash_ids`] of an entry's context ids, and sixteen bits of that of its target ids, which tell
/// damaged ones from sound ones. Both at once: each mixing waits for the one before, so two chains
/// take the time of one.
#[allow(clippy::cast_possible_truncation)] // that is the purpose
pub(crate) fn hash_entry(context: &[i32], target: &[i32]) -> (u64, u16) {
    let (mut contexts, mut targets) = (Mixer::new(), Mixer::new());
    let shared = context.len().min(target.len());
    for (context, target) in context.iter().zip(target) {
        contexts.add(context.cast_unsigned());
        targets.add(target.cast_unsigned());
    }
    context[shared..].iter().for_each(|id| contexts.add(id.cast_unsigned()));
    target[shared..].iter().for_each(|id| targets.add(id.cast_unsigned()));
    (contexts.value(), (targets.value() >> 48) as u16)
}

/// The index's first bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Header {
    pub(crate) num_entries: u64,
    pub(crate) data_bytes: u64,
    pub(crate) checksum: u64,
}

impl Header {
    #[allow(clippy::cast_possible_truncation)] // ENTRY_BYTES is 32
    pub(crate) fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&(ENTRY_BYTES as u32).to_le_bytes());
        bytes[16..24].copy_from_slice(&self.num_entries.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.data_bytes.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.checksum.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> std::result::Result<Self, String> {
        if bytes.len() < HEADER_BYTES || bytes[0..8] != MAGIC {
            return Err("is not the index of a spool".to_owned());
        }
        let (version, entry_bytes) = (u32_at(bytes, 8), u32_at(bytes, 12));
        if version != VERSION || entry_bytes as usize != ENTRY_BYTES {
            return Err(format!(
                "is of version {version} ({entry_bytes} bytes an entry), expected version {VERSION}"
            ));
        }
        Ok(Self {
            num_entries: u64_at(bytes, 16),
            data_bytes: u64_at(bytes, 24),
            checksum: u64_at(bytes, 32),
        })
    }
}

/// A finished spool, open for reading from any thread.
#[derive(Debug)]
pub struct Spool {
    path: PathBuf,
    data: File,
    entries: Vec<Entry>,
}

impl Spool {
    /// Opens and checks the spool in `folder`.
    pub fn open(folder: &Path) -> Result<Self> {
        let index_path = folder.join(INDEX_NAME);
        let bytes = fs::read(&index_path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                Error::Spool(format!("`{}` holds no finished spool", folder.display()))
            }
            _ => Error::io(&index_path)(error),
        })?;
        let damaged = |what: String| Error::Spool(format!("`{}` {what}", index_path.display()));
        let header = Header::from_bytes(&bytes).map_err(damaged)?;
        let entries = read_entries(&bytes[HEADER_BYTES..], header).map_err(damaged)?;
        let path = folder.join(DATA_NAME);
        let data = File::open(&path).map_err(Error::io(&path))?;
        let found = data.metadata().map_err(Error::io(&path))?.len();
        if found != header.data_bytes {
            let what =
                format!("`{}` has {found} bytes, expected {}", path.display(), header.data_bytes);
            return Err(Error::Spool(what));
        }
        Ok(Self { path, data, entries })
    }

    /// The whole index, in the order the entries were written.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// One line of the index.
    pub fn entry(&self, number: usize) -> Result<&Entry> {
        self.entries.get(number).ok_or_else(|| {
            let count = self.entries.len();
            Error::Argument(format!(
                "entry {number} was asked for, expected a number below {count}"
            ))
        })
    }

    /// The context ids of an entry, checked against its hash.
    pub fn context(&self, number: usize) -> Result<Vec<i32>> {
        let entry = self.entry(number)?;
        let ids = self.read_ids(number, entry, entry.context_len as usize)?;
        self.check_context(number, entry, &ids)?;
        Ok(ids)
    }

    /// Context ids and target ids of an entry, both checked.
    pub fn read(&self, number: usize) -> Result<(Vec<i32>, Vec<i32>)> {
        let entry = self.entry(number)?;
        let mut ids = self.read_ids(number, entry, (entry.num_bytes() / 4) as usize)?;
        self.check(number, entry, &ids)?;
        let targets = ids.split_off(entry.context_len as usize);
        Ok((ids, targets))
    }

    /// Writes the ids of each of `entries`, context and targets, to `ids` from its member of
    /// `places` on. The data file is read from front to back, so entries that are neighbours there
    /// come in one read, in whatever order they are wanted.
    pub fn read_to(&self, entries: &[usize], places: &[usize], ids: &mut [i32]) -> Result<()> {
        let mut wanted: Vec<(usize, usize)> =
            entries.iter().copied().zip(places.iter().copied()).collect();
        wanted.sort_unstable();
        let (mut bytes, mut rest) = (Vec::new(), wanted.as_slice());
        while let Some(&(first, _)) = rest.first() {
            let start = self.entry(first)?.offset;
            let (run, others) = rest.split_at(self.count_neighbours(rest, start)?);
            self.read_run(run, start, &mut bytes)?;
            for &(number, place) in run {
                let entry = self.entry(number)?;
                let within = &bytes[bytes_between(start, entry.offset)..];
                let own = &mut ids[place..place + (entry.num_bytes() / 4) as usize];
                for (id, word) in own.iter_mut().zip(within.as_chunks::<4>().0) {
                    *id = i32::from_le_bytes(*word);
                }
                self.check(number, entry, own)?;
            }
            rest = others;
        }
        Ok(())
    }

    /// How many of `wanted` lie side by side from byte `start` on and are read together, at least 1.
    fn count_neighbours(&self, wanted: &[(usize, usize)], start: u64) -> Result<usize> {
        let mut count = 1;
        for pair in wanted.windows(2) {
            let (before, number) = (pair[0].0, pair[1].0);
            let entry = self.entry(number)?;
            if number > before + 1 || entry.offset + entry.num_bytes() - start > READ_BYTES {
                break;
            }
            count += 1;
        }
        Ok(count)
    }

    /// Fills `bytes` with the bytes of neighbours, the first of which are at `start`.
    fn read_run(&self, run: &[(usize, usize)], start: u64, bytes: &mut Vec<u8>) -> Result<()> {
        let Some(&(last, _)) = run.last() else { return Ok(()) };
        let entry = self.entry(last)?;
        bytes.resize(bytes_between(start, entry.offset + entry.num_bytes()), 0);
        if self.data.read_exact_at(bytes, start).is_err() {
            // One by one, to name the entry that cannot be read.
            for &(number, _) in run {
                self.read(number)?;
            }
            return Err(self.damaged(last, "ids"));
        }
        Ok(())
    }

    fn check_context(&self, number: usize, entry: &Entry, ids: &[i32]) -> Result<()> {
        if hash_ids(ids) == entry.context_hash {
            return Ok(());
        }
        Err(self.damaged(number, "context ids"))
    }

    /// `ids`: all of an entry.
    fn check(&self, number: usize, entry: &Entry, ids: &[i32]) -> Result<()> {
        let (context, targets) = ids.split_at(entry.context_len as usize);
        let (context_hash, target_check) = hash_entry(context, targets);
        if context_hash != entry.context_hash {
            return Err(self.damaged(number, "context ids"));
        }
        if target_check != entry.target_check {
            return Err(self.damaged(number, "target ids"));
        }
        Ok(())
    }

    fn damaged(&self, number: usize, what: &str) -> Error {
        let path = self.path.display();
        Error::Spool(format!(
            "`{path}` is damaged: the {what} of entry {number} do not match their checksum"
        ))
    }

    fn read_ids(&self, number: usize, entry: &Entry, count: usize) -> Result<Vec<i32>> {
        let mut bytes = vec![0; 4 * count];
        self.data.read_exact_at(&mut bytes, entry.offset).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                let path = self.path.display();
                Error::Spool(format!("`{path}` was cut short: it ends inside entry {number}"))
            }
            _ => Error::io(&self.path)(error),
        })?;
        Ok(bytes.chunks_exact(4).map(|word| u32_at(word, 0).cast_signed()).collect())
    }
}

/// Bytes from one place to another of entries read together.
#[allow(clippy::cast_possible_truncation)] // an entry has at most 2^33 ids; machines here have 64 bits
fn bytes_between(start: u64, end: u64) -> usize {
    (end - start) as usize
}

/// Entries lie in the data file one after the other without a gap; anything else is damage.
fn read_entries(bytes: &[u8], header: Header) -> std::result::Result<Vec<Entry>, String> {
    let (lines, rest) = bytes.as_chunks::<ENTRY_BYTES>();
    if lines.len() as u64 != header.num_entries || !rest.is_empty() {
        let expected = header.num_entries;
        return Err(format!(
            "is damaged: it has {} bytes of entries, expected {expected} entries",
            bytes.len()
        ));
    }
    let mut mixer = Mixer::new();
    for line in lines {
        mixer.add_bytes(line);
    }
    if mixer.value() != header.checksum {
        return Err("is damaged: its entries do not match their checksum".to_owned());
    }
    let entries: Vec<Entry> = lines.iter().map(Entry::from_bytes).collect();
    let mut position = 0_u64;
    for (number, entry) in entries.iter().enumerate() {
        if entry.offset != position || entry.context_len == 0 {
            return Err(format!("is damaged: entry {number} is not where it should be"));
        }
        position = position.saturating_add(entry.num_bytes());
    }
    if position != header.data_bytes {
        return Err(format!(
            "is damaged: its entries end at byte {position}, the data at {}",
            header.data_bytes
        ));
    }
    Ok(entries)
}
