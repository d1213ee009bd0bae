//! Work on many items by several threads, with an outcome that does not depend on them.
//!
//! In: the size of each item and a function over a range of items. Out: what it gave for each
//! range, in order. Items are cut into runs of about equal size, and threads take the next run when
//! they are done with one. Plain scoped threads instead of a pool: nothing survives the call, so a
//! later `fork` is safe.

use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::error::{Error, Result};

/// Runs per thread: few enough to keep a thread's word cache warm, enough to even out slow items.
const RUNS_PER_THREAD: usize = 4;
/// Starting a thread costs as much as encoding about this many bytes.
const BYTES_PER_THREAD: usize = 1 << 15;

/// Calls `work` on runs of items on at most `num_threads` threads (default: as many as the machine
/// has); `sizes` are the items' bytes.
pub fn in_order<T: Send + Sync>(
    sizes: &[usize],
    num_threads: Option<usize>,
    work: impl Fn(Range<usize>) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    if num_threads == Some(0) {
        return Err(Error::Argument("`num_threads` is 0, expected at least 1".to_owned()));
    }
    let total: usize = sizes.iter().sum();
    let wanted =
        num_threads.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from));
    let num_threads = wanted.min(total / BYTES_PER_THREAD).min(sizes.len()).max(1);
    let num_runs = if num_threads == 1 { 1 } else { num_threads * RUNS_PER_THREAD };
    let bounds = cut_runs(sizes, total, num_runs);
    let runs: Vec<OnceLock<Result<T>>> = bounds.windows(2).map(|_| OnceLock::new()).collect();
    let next = AtomicUsize::new(0);
    let take_runs = || {
        while let Some((number, run)) = take(&next, &runs) {
            // Nobody else has this number, so the place is free.
            let _ = run.set(work(bounds[number]..bounds[number + 1]));
        }
    };
    thread::scope(|scope| {
        for _ in 1..num_threads {
            // A system that grants no more threads only makes this slower.
            let _ = thread::Builder::new().spawn_scoped(scope, take_runs);
        }
        take_runs(); // the calling thread keeps its cache from call to call
    });
    let missing = || Err(Error::Panic("a run of items was not worked on".to_owned()));
    runs.into_iter().map(|run| run.into_inner().unwrap_or_else(missing)).collect()
}

fn take<'a, T>(next: &AtomicUsize, all: &'a [T]) -> Option<(usize, &'a T)> {
    let number = next.fetch_add(1, Ordering::Relaxed);
    all.get(number).map(|item| (number, item))
}

/// Bounds of `num_runs` runs of items, each of about the same number of bytes.
fn cut_runs(sizes: &[usize], total: usize, num_runs: usize) -> Vec<usize> {
    let share = total.div_ceil(num_runs).max(1);
    let mut bounds = vec![0];
    let mut filled = 0;
    for (number, size) in sizes.iter().enumerate() {
        filled += size;
        if filled >= share && number + 1 < sizes.len() {
            bounds.push(number + 1);
            filled = 0;
        }
    }
    bounds.push(sizes.len());
    bounds
}
