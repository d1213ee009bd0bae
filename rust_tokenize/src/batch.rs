//! One batch as the flat arrays the model takes.
//!
//! In: a spool and the entries of a batch, in the order their results are wanted. Out:
//! [`PackedBatch`]. Each distinct context becomes one prompt segment, followed by the response
//! segments of its entries, which attend to it and to themselves; positions of a response go on
//! from its prompt. Tokens and rows are padded to multiples of [`MULTIPLE`], for every matrix
//! product must see full tiles if a record is to get the same bits in any company.

use std::collections::HashMap;
use std::collections::hash_map;

use crate::error::{Error, Result};
use crate::spool::Spool;

/// Tokens and rows come in multiples of this.
pub const MULTIPLE: usize = 64;

/// A batch: T tokens in S segments, R rows of which `num_rows` are real, E entries.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct PackedBatch {
    /// `[T]` token ids; a dummy segment of zeros pads the tail.
    pub input_ids: Vec<i32>,
    /// `[T]` position of each token in its record.
    pub position_ids: Vec<i32>,
    /// `[S + 1]` where segments begin; the last is T.
    pub cu_seqlens: Vec<i32>,
    /// `[S]` the prompt segment a response segment also sees, else -1.
    pub parents: Vec<i32>,
    /// `[R]` the token whose hidden state predicts `targets`.
    pub rows: Vec<i32>,
    /// `[R]` the token to be predicted.
    pub targets: Vec<i32>,
    /// Rows that are not padding; they come first.
    pub num_rows: usize,
    /// `[E + 1]` where each entry's rows begin; the last is `num_rows`.
    pub entry_rows: Vec<i64>,
}

/// An entry while it is being placed.
struct Placed {
    targets: Vec<i32>,
    prompt_end: usize,
    response_start: usize,
}

/// Entries with the same context, in the order given.
struct Siblings {
    context: Vec<i32>,
    members: Vec<usize>,
}

/// Packs `entries`; siblings need not be adjacent.
pub fn pack_batch(spool: &Spool, entries: &[usize]) -> Result<PackedBatch> {
    if entries.is_empty() {
        return Err(Error::Argument(
            "a batch of no entries was asked for, expected at least 1".to_owned(),
        ));
    }
    let (groups, mut placed) = read_groups(spool, entries)?;
    let mut batch = PackedBatch { cu_seqlens: vec![0], ..PackedBatch::default() };
    for group in &groups {
        batch.add_group(group, &mut placed)?;
    }
    batch.pad_tokens()?;
    batch.add_rows(&placed)?;
    Ok(batch)
}

fn read_groups(spool: &Spool, entries: &[usize]) -> Result<(Vec<Siblings>, Vec<Placed>)> {
    let mut groups: Vec<Siblings> = Vec::new();
    let mut known: HashMap<Vec<i32>, usize> = HashMap::new();
    let mut placed = Vec::with_capacity(entries.len());
    for (member, &number) in entries.iter().enumerate() {
        let (context, targets) = spool.read(number)?;
        match known.entry(context) {
            hash_map::Entry::Occupied(seen) => groups[*seen.get()].members.push(member),
            hash_map::Entry::Vacant(new) => {
                groups.push(Siblings { context: new.key().clone(), members: vec![member] });
                new.insert(groups.len() - 1);
            }
        }
        placed.push(Placed { targets, prompt_end: 0, response_start: 0 });
    }
    Ok((groups, placed))
}

fn to_i32(number: usize) -> Result<i32> {
    i32::try_from(number).map_err(|_| {
        Error::Argument(format!("the batch is too large: {number} does not fit 32 bits"))
    })
}

impl PackedBatch {
    fn add_group(&mut self, group: &Siblings, placed: &mut [Placed]) -> Result<()> {
        let parent = to_i32(self.parents.len())?;
        self.add_segment(&group.context, 0, -1)?;
        let prompt_end = self.input_ids.len();
        for &member in &group.members {
            let entry = &mut placed[member];
            entry.prompt_end = prompt_end;
            entry.response_start = self.input_ids.len();
            if let [fed @ .., _] = entry.targets.as_slice()
                && !fed.is_empty()
            {
                self.add_segment(fed, group.context.len(), parent)?;
            }
        }
        Ok(())
    }

    fn add_segment(&mut self, ids: &[i32], position: usize, parent: i32) -> Result<()> {
        self.input_ids.extend_from_slice(ids);
        self.cu_seqlens.push(to_i32(self.input_ids.len())?);
        self.parents.push(parent);
        self.position_ids.extend(to_i32(position)?..to_i32(position + ids.len())?);
        Ok(())
    }

    fn pad_tokens(&mut self) -> Result<()> {
        let missing = self.input_ids.len().next_multiple_of(MULTIPLE) - self.input_ids.len();
        if missing == 0 {
            return Ok(());
        }
        self.add_segment(&[0; MULTIPLE][..missing], 0, -1)
    }

    /// The first target of an entry is predicted by the last token of its prompt, the others by its
    /// response segment.
    fn add_rows(&mut self, placed: &[Placed]) -> Result<()> {
        self.entry_rows.push(0);
        for entry in placed {
            if !entry.targets.is_empty() {
                let start = to_i32(entry.response_start)?;
                let end = to_i32(entry.response_start + entry.targets.len() - 1)?;
                self.rows.push(to_i32(entry.prompt_end - 1)?);
                self.rows.extend(start..end);
                self.targets.extend_from_slice(&entry.targets);
            }
            self.entry_rows.push(i64::from(to_i32(self.rows.len())?));
        }
        self.num_rows = self.rows.len();
        let padded = self.num_rows.next_multiple_of(MULTIPLE);
        self.rows.resize(padded, 0);
        self.targets.resize(padded, 0);
        Ok(())
    }
}
