//! Entries of a spool as packs for training: whole sequences one after the other, no padding.
//!
//! In: a spool, entries, the tokens a pack holds. Out: flat arrays of all packs. Which entries meet
//! in a pack is the choice of [`bins::pack`], in a pack they keep the order given.
//! A sequence is never cut: one longer than a pack has a pack of its own.

use crate::bins::{self, Mode};
use crate::error::{Error, Result};
use crate::spool::{Entry, Spool};

/// All packs; a sequence is an entry's context ids and then its targets.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Packs {
    /// Ids of all sequences, pack after pack.
    pub input_ids: Vec<i32>,
    /// Each token's place in its sequence.
    pub position_ids: Vec<i32>,
    /// 1 for targets: answer and end of turn.
    pub response_mask: Vec<u8>,
    /// Where each sequence begins; the last is the end.
    pub cu_seqlens: Vec<i64>,
    /// The first sequence of each pack; the last is their number.
    pub pack_starts: Vec<i64>,
    /// The entry of each sequence.
    pub entries: Vec<i64>,
}

/// Packs entries.
pub fn pack_sequences(spool: &Spool, entries: &[usize], capacity: usize) -> Result<Packs> {
    let lengths = entries.iter().map(|&number| {
        let entry = spool.entry(number)?;
        Ok(entry.context_len as usize + entry.target_len as usize)
    });
    let lengths: Vec<usize> = lengths.collect::<Result<_>>()?;
    let bins = bins::pack(&lengths, capacity, Mode::Global)?;
    let mut order: Vec<usize> = (0..entries.len()).collect();
    order.sort_by_key(|&item| bins[item]); // stable: in a pack as given
    let mut packs = Packs::with_room(lengths.iter().sum());
    let mut places = vec![0; entries.len()];
    let mut last = None;
    for item in order {
        if last != Some(bins[item]) {
            packs.pack_starts.push(signed(packs.entries.len())?);
            last = Some(bins[item]);
        }
        places[item] = packs.response_mask.len();
        packs.add(spool.entry(entries[item])?, entries[item])?;
    }
    packs.pack_starts.push(signed(packs.entries.len())?);
    spool.read_to(entries, &places, &mut packs.input_ids)?;
    Ok(packs)
}

fn signed<T: TryFrom<usize>>(count: usize) -> Result<T> {
    T::try_from(count).map_err(|_| Error::Argument("found more tokens than can be counted".into()))
}

impl Packs {
    fn with_room(num_tokens: usize) -> Self {
        Self {
            input_ids: vec![0; num_tokens],
            position_ids: Vec::with_capacity(num_tokens),
            response_mask: Vec::with_capacity(num_tokens),
            cu_seqlens: vec![0],
            ..Self::default()
        }
    }

    /// Adds all of a sequence but its ids.
    fn add(&mut self, entry: &Entry, number: usize) -> Result<()> {
        let start = self.response_mask.len();
        let (context, targets) = (entry.context_len as usize, entry.target_len as usize);
        self.position_ids.extend(0..signed::<i32>(context + targets)?);
        self.response_mask.resize(start + context, 0);
        self.response_mask.resize(start + context + targets, 1);
        self.cu_seqlens.push(signed(self.response_mask.len())?);
        self.entries.push(signed(number)?);
        Ok(())
    }
}
