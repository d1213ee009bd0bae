//! Which entries are computed together.
//!
//! In: a spool and the entries to do. Out: batches of at most `max_tokens` tokens, and of at most as
//! many targets: answers of one token cost no tokens beside their prompt, but a row each. Entries with the
//! same context ids form a *unit*: one prompt segment and a response segment for each, so the
//! prompt is computed once. Units are packed best-fit-decreasing (see [`crate::bins`]). The plan
//! depends on the spool and the set of entries alone.

use crate::batch::MULTIPLE;
use crate::bins::{self, Mode};
use crate::error::{Check, Error, Result};
use crate::spool::Spool;

/// Batches, largest units first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Entries of all batches, one batch after the other.
    entries: Vec<usize>,
    /// Where each batch begins in `entries`; the last is the end.
    offsets: Vec<usize>,
    total_tokens: usize,
    tokens_without_sharing: usize,
}

impl Plan {
    /// Number of batches.
    #[must_use]
    pub fn num_batches(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Entries of a batch: unit after unit, units and entries in rising order.
    pub fn batch_entries(&self, batch: usize) -> Result<&[usize]> {
        self.check(batch)?;
        Ok(&self.entries[self.offsets[batch]..self.offsets[batch + 1]])
    }

    /// Tokens of all batches before padding.
    #[must_use]
    pub fn total_tokens(&self) -> usize {
        self.total_tokens
    }

    /// Tokens it would be if every entry brought its own prompt.
    #[must_use]
    pub fn tokens_without_sharing(&self) -> usize {
        self.tokens_without_sharing
    }

    fn check(&self, batch: usize) -> Result<()> {
        let count = self.num_batches();
        if batch < count {
            return Ok(());
        }
        Err(Error::Argument(format!(
            "batch {batch} was asked for, expected a number below {count}"
        )))
    }
}

/// Entries that share a prompt segment.
struct Unit {
    entries: Vec<usize>,
    tokens: usize,
    targets: usize,
}

impl Unit {
    fn with_prompt(tokens: usize) -> Self {
        Self { entries: Vec::new(), tokens, targets: 0 }
    }

    /// What it takes of a batch's budget with more of both: memory goes with the larger.
    fn size_with(&self, tokens: usize, targets: usize) -> usize {
        (self.tokens + tokens).max(self.targets + targets)
    }
}

/// One context in so many is read after a check: some milliseconds, if the file is in memory.
const CHECK_EVERY: usize = 4096;

/// Plans batches of at most `max_tokens` tokens, padding included where that is more than
/// [`MULTIPLE`]; an entry that is longer gets a batch of its own. `check` is asked while
/// contexts are read, which is most of what a plan of millions takes (1.1 us an entry).
pub fn plan_batches(
    spool: &Spool,
    entries: &[usize],
    max_tokens: usize,
    check: Check<'_>,
) -> Result<Plan> {
    if max_tokens == 0 {
        return Err(Error::Argument("`max_tokens` is 0, expected at least 1".to_owned()));
    }
    // A batch is padded to the grid: room above its last point would only be exceeded by padding.
    let max_tokens =
        if max_tokens > MULTIPLE { max_tokens / MULTIPLE * MULTIPLE } else { max_tokens };
    let mut units = Vec::new();
    for siblings in group_siblings(spool, entries, check)? {
        cut_units(spool, &siblings, max_tokens, &mut units)?;
    }
    units.sort_unstable_by_key(|unit| unit.entries[0]);
    let lengths: Vec<usize> = units.iter().map(|unit| unit.size_with(0, 0)).collect();
    let bins = bins::pack(&lengths, max_tokens, Mode::Global)?;
    let mut tokens_without_sharing = 0;
    for &number in entries {
        let entry = spool.entry(number)?;
        tokens_without_sharing += entry.context_len as usize + entry.response_tokens();
    }
    Ok(assemble(&units, &bins, tokens_without_sharing))
}

/// Sets of entries with identical context ids, each set in rising order.
fn group_siblings(spool: &Spool, entries: &[usize], check: Check<'_>) -> Result<Vec<Vec<usize>>> {
    let mut keyed = Vec::with_capacity(entries.len());
    for &number in entries {
        let entry = spool.entry(number)?;
        keyed.push((entry.context_hash, entry.context_len, number));
    }
    keyed.sort_unstable();
    if let Some(pair) = keyed.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(Error::Argument(format!("entry {} is listed twice, expected once", pair[0].2)));
    }
    let mut groups = Vec::new();
    for run in keyed.chunk_by(|left, right| (left.0, left.1) == (right.0, right.1)) {
        let members: Vec<usize> = run.iter().map(|key| key.2).collect();
        separate(spool, members, &mut groups, check)?;
    }
    Ok(groups)
}

/// Splits entries of equal hash by their ids: two contexts that merely collide must never be
/// merged.
fn separate(
    spool: &Spool,
    members: Vec<usize>,
    groups: &mut Vec<Vec<usize>>,
    check: Check<'_>,
) -> Result<()> {
    if members.len() == 1 {
        groups.push(members);
        return Ok(());
    }
    let mut classes: Vec<(Vec<i32>, Vec<usize>)> = Vec::new();
    for number in members {
        if number.is_multiple_of(CHECK_EVERY) {
            check()?;
        }
        let ids = spool.context(number)?;
        match classes.iter_mut().find(|class| class.0 == ids) {
            Some(class) => class.1.push(number),
            None => classes.push((ids, vec![number])),
        }
    }
    groups.extend(classes.into_iter().map(|class| class.1));
    Ok(())
}

/// Cuts siblings into units that fit; each repeats the prompt.
fn cut_units(
    spool: &Spool,
    siblings: &[usize],
    max_tokens: usize,
    units: &mut Vec<Unit>,
) -> Result<()> {
    let prompt = spool.entry(siblings[0])?.context_len as usize;
    let mut unit = Unit::with_prompt(prompt);
    for &number in siblings {
        let entry = spool.entry(number)?;
        let (response, targets) = (entry.response_tokens(), entry.target_len as usize);
        if !unit.entries.is_empty() && unit.size_with(response, targets) > max_tokens {
            units.push(std::mem::replace(&mut unit, Unit::with_prompt(prompt)));
        }
        unit.entries.push(number);
        unit.tokens += response;
        unit.targets += targets;
    }
    units.push(unit);
    Ok(())
}

/// Gathers the units of each bin, in rising order of their first entry.
fn assemble(units: &[Unit], bins: &[u32], tokens_without_sharing: usize) -> Plan {
    let num_batches = bins.iter().max().map_or(0, |&last| last as usize + 1);
    let mut offsets = vec![0; num_batches + 1];
    for (unit, &bin) in units.iter().zip(bins) {
        offsets[bin as usize + 1] += unit.entries.len();
    }
    for batch in 0..num_batches {
        offsets[batch + 1] += offsets[batch];
    }
    let mut next = offsets.clone();
    let mut entries = vec![0; offsets[num_batches]];
    for (unit, &bin) in units.iter().zip(bins) {
        let start = next[bin as usize];
        next[bin as usize] += unit.entries.len();
        entries[start..next[bin as usize]].copy_from_slice(&unit.entries);
    }
    let total_tokens = units.iter().map(|unit| unit.tokens).sum();
    Plan { entries, offsets, total_tokens, tokens_without_sharing }
}
