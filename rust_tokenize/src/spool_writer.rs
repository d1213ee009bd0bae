//! Writing a spool: ids straight to disk, a finished index only at the end.
//!
//! In: columns of entries, a batch at a time. Out: `data.bin` and `index.bin` in a folder. The
//! index grows in `index.tmp`, so memory stays flat, and takes its name by rename after both files
//! are on the disk: a spool without `index.bin` is unfinished, whatever interrupted it.

use std::fs::{self, File};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::records::Records;
use crate::spool::{DATA_NAME, Entry, HEADER_BYTES, Header, INDEX_NAME, Mixer, hash_entry};

const INDEX_TEMPORARY: &str = "index.tmp";
const BUFFER_BYTES: usize = 1 << 20;

/// A batch of n entries as columns; ids are flat, offsets have n + 1 members.
#[derive(Debug, Clone, Copy)]
pub struct Columns<'a> {
    /// Context ids of all entries.
    pub context_ids: &'a [i32],
    /// Where each entry's context begins; the last is the end.
    pub context_offsets: &'a [i64],
    /// Target ids of all entries.
    pub target_ids: &'a [i32],
    /// Where each entry's targets begin; the last is the end.
    pub target_offsets: &'a [i64],
    /// End-of-turn ids at the end of each entry's targets.
    pub num_eot: &'a [u8],
    /// The caller's name for the form of the record.
    pub variant: &'a [u8],
    /// The record each entry belongs to.
    pub record: &'a [u32],
}

/// One entry to be written.
#[derive(Debug, Clone, Copy)]
pub struct NewEntry<'a> {
    /// Context ids, at least one.
    pub context: &'a [i32],
    /// Target ids, what ends the turn last.
    pub target: &'a [i32],
    /// End-of-turn ids at the end of the targets.
    pub num_eot: u8,
    /// The caller's name for the form of the record.
    pub variant: u8,
    /// The record it belongs to.
    pub record: u32,
}

/// A spool being written. After an error it takes no more entries.
pub struct SpoolWriter {
    folder: PathBuf,
    files: Option<Files>,
}

struct Files {
    data: BufWriter<File>,
    index: BufWriter<File>,
    num_entries: u64,
    data_bytes: u64,
    checksum: Mixer,
    durable: bool,
    /// Room for the bytes of some ids.
    bytes: Vec<u8>,
}

impl SpoolWriter {
    /// Starts a spool in `folder`, made if need be; a spool that was there is gone.
    pub fn create(folder: &Path) -> Result<Self> {
        Self::start(folder, true)
    }

    /// The same for a folder that need not outlive the process: nothing is forced to the disk,
    /// which is most of what a small spool takes (40 ms of 44 on a disk others use too).
    pub fn create_scratch(folder: &Path) -> Result<Self> {
        Self::start(folder, false)
    }

    fn start(folder: &Path, durable: bool) -> Result<Self> {
        let files = Files::create(folder, durable).map_err(Error::io(folder))?;
        Ok(Self { folder: folder.to_path_buf(), files: Some(files) })
    }

    /// Adds entries; either all of them are taken or none.
    pub fn append(&mut self, columns: &Columns<'_>) -> Result<()> {
        let contexts = split("context", columns.context_ids, columns.context_offsets)?;
        let targets = split("target", columns.target_ids, columns.target_offsets)?;
        check_columns(columns, &contexts, &targets)?;
        self.write((0..contexts.len()).map(|number| NewEntry {
            context: contexts[number],
            target: targets[number],
            num_eot: columns.num_eot[number],
            variant: columns.variant[number],
            record: columns.record[number],
        }))
    }

    /// Adds records from number `range.start` on, which are to be entries of the records from
    /// `record` on.
    pub fn append_records(
        &mut self,
        records: &Records,
        range: Range<usize>,
        record: u32,
        variant: u8,
    ) -> Result<()> {
        let Some(entries) = records.entries(range, record, variant) else {
            let count = records.len();
            return Err(Error::Argument(format!(
                "found a range outside 0 to {count}, the records"
            )));
        };
        self.write(entries)
    }

    fn write<'a>(&mut self, entries: impl Iterator<Item = NewEntry<'a>>) -> Result<()> {
        let mut files = self.files.take().ok_or_else(closed)?;
        for new in entries {
            let (context_hash, target_check) = hash_entry(new.context, new.target);
            let entry = Entry {
                offset: files.data_bytes,
                context_hash,
                context_len: length(new.context)?,
                target_len: length(new.target)?,
                record: new.record,
                num_eot: new.num_eot,
                variant: new.variant,
                target_check,
            };
            files.write(entry, new.context, new.target).map_err(Error::io(&self.folder))?;
        }
        self.files = Some(files); // only now: after a failed write the files are of no use
        Ok(())
    }

    /// Makes the spool durable, unless it is a scratch one, and visible.
    pub fn finish(&mut self) -> Result<()> {
        let files = self.files.take().ok_or_else(closed)?;
        files.finish(&self.folder).map_err(Error::io(&self.folder))
    }
}

fn closed() -> Error {
    Error::Spool("the spool takes no more entries: it is finished, or a write failed".to_owned())
}

fn length(ids: &[i32]) -> Result<u32> {
    u32::try_from(ids.len()).map_err(|_| {
        Error::Argument(format!("found an entry of {} ids, expected 32 bits", ids.len()))
    })
}

/// Cuts flat ids at their offsets.
fn split<'a>(name: &str, ids: &'a [i32], offsets: &[i64]) -> Result<Vec<&'a [i32]>> {
    let wrong = |what: String| Error::Argument(format!("`{name}_offsets` {what}"));
    let ends = (offsets.first().copied(), offsets.last().map(|&end| usize::try_from(end)));
    if ends != (Some(0), Some(Ok(ids.len()))) {
        return Err(wrong(format!(
            "must begin with 0 and end with {}, the number of ids",
            ids.len()
        )));
    }
    let cut = |pair: &[i64]| {
        let bounds = usize::try_from(pair[0]).ok().zip(usize::try_from(pair[1]).ok());
        bounds.and_then(|(start, end)| ids.get(start..end))
    };
    let pieces: Option<Vec<_>> = offsets.windows(2).map(cut).collect();
    pieces.ok_or_else(|| wrong("must never fall".to_owned()))
}

fn check_columns(columns: &Columns<'_>, contexts: &[&[i32]], targets: &[&[i32]]) -> Result<()> {
    let count = contexts.len();
    let lengths =
        [targets.len(), columns.num_eot.len(), columns.variant.len(), columns.record.len()];
    if lengths.iter().any(|&length| length != count) {
        return Err(Error::Argument(format!(
            "columns have {count} contexts but {lengths:?} targets, num_eot, variant, record"
        )));
    }
    if let Some(id) = columns.context_ids.iter().chain(columns.target_ids).find(|&&id| id < 0) {
        return Err(Error::Argument(format!("found the token id {id}, expected none below 0")));
    }
    for number in 0..count {
        if contexts[number].is_empty() {
            return Err(Error::Argument(format!(
                "entry {number} of the batch has no context ids, expected at least 1"
            )));
        }
        if usize::from(columns.num_eot[number]) > targets[number].len() {
            let (found, most) = (columns.num_eot[number], targets[number].len());
            return Err(Error::Argument(format!(
                "entry {number} has num_eot {found}, expected at most its {most} targets"
            )));
        }
    }
    Ok(())
}

impl Files {
    fn create(folder: &Path, durable: bool) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        match fs::remove_file(folder.join(INDEX_NAME)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            // The old index must be gone from the disk before its data changes.
            _ => sync(&File::open(folder)?, durable)?,
        }
        let data = File::create(folder.join(DATA_NAME))?;
        let mut index =
            BufWriter::with_capacity(BUFFER_BYTES, File::create(folder.join(INDEX_TEMPORARY))?);
        index.write_all(&[0; HEADER_BYTES])?;
        Ok(Self {
            data: BufWriter::with_capacity(BUFFER_BYTES, data),
            index,
            num_entries: 0,
            data_bytes: 0,
            checksum: Mixer::new(),
            durable,
            bytes: Vec::new(),
        })
    }

    fn write(&mut self, entry: Entry, context: &[i32], target: &[i32]) -> io::Result<()> {
        for ids in [context, target] {
            self.bytes.resize(4 * ids.len(), 0);
            for (bytes, id) in self.bytes.as_chunks_mut::<4>().0.iter_mut().zip(ids) {
                *bytes = id.to_le_bytes();
            }
            self.data.write_all(&self.bytes)?;
        }
        let line = entry.to_bytes();
        self.index.write_all(&line)?;
        self.checksum.add_bytes(&line);
        self.num_entries += 1;
        self.data_bytes += entry.num_bytes();
        Ok(())
    }

    fn finish(self, folder: &Path) -> io::Result<()> {
        sync(&self.data.into_inner().map_err(io::IntoInnerError::into_error)?, self.durable)?;
        let header = Header {
            num_entries: self.num_entries,
            data_bytes: self.data_bytes,
            checksum: self.checksum.value(),
        };
        let mut index = self.index.into_inner().map_err(io::IntoInnerError::into_error)?;
        index.seek(SeekFrom::Start(0))?;
        index.write_all(&header.to_bytes())?;
        sync(&index, self.durable)?;
        fs::rename(folder.join(INDEX_TEMPORARY), folder.join(INDEX_NAME))?;
        sync(&File::open(folder)?, self.durable)
    }
}

fn sync(file: &File, durable: bool) -> io::Result<()> {
    if durable { file.sync_all() } else { Ok(()) }
}
