//! What a model says about one token a row, from hidden states and head in bf16, on a CPU: checks,
//! threads, and the merge of what the tiles of the vocabulary found.
//!
//! The equations are those of `kernels/linear_logprob.py`, which is the reference. torch has no
//! product of bf16 matrices with an fp32 result on CPUs, so the reference multiplies in fp32, at
//! half the speed, and goes over each tile of logits six times. Here the logits live in registers.
//!
//! A value's bits depend on its row, its column and the width alone: not on the other rows, nor on
//! the number of threads.

use std::sync::{Mutex, PoisonError};

use crate::error::{Error, Result};

#[cfg(target_arch = "x86_64")]
mod avx512;

/// Ranks end here.
const MAX_RANK: f64 = 100.0;

/// Matrices of bf16 bits, row by row: hidden states `[R, D]` and head `[V, D]`.
#[derive(Clone, Copy)]
pub struct Matrices<'a> {
    /// `[R, D]`.
    pub hidden: &'a [i16],
    /// `[V, D]`.
    pub head: &'a [i16],
    /// D, an even number.
    pub width: usize,
}

/// One value a row; see `kernels/linear_logprob.py` for what they mean.
#[derive(Debug, Default)]
#[allow(missing_docs)]
pub struct Facts {
    pub logprobs: Vec<f64>,
    pub ranks: Vec<i32>,
    pub entropies: Vec<f64>,
    pub margins: Vec<f64>,
}

/// What a tile of the vocabulary says about a row, its target left out.
#[derive(Clone, Copy, Default)]
struct Partial {
    /// The largest logit.
    max: f32,
    /// Sum of exp(logit - max).
    sum: f32,
    /// Sum of exp(logit - max) * logit.
    weighted: f32,
    /// How many logits are above the target's.
    larger: f32,
}

/// Whether this CPU can do it: AVX-512 with bf16 products.
#[must_use]
pub fn is_supported() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16");
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

/// Computes the facts of `targets`, one a row.
#[cfg(target_arch = "x86_64")]
pub fn linear_logprob(matrices: Matrices, targets: &[u32], num_threads: usize) -> Result<Facts> {
    check(matrices, targets)?;
    let job = avx512::Job::new(matrices, targets);
    let num_tiles = job.num_tiles();
    let mut partials = vec![Partial::default(); num_tiles * targets.len()];
    let tiles = Mutex::new(partials.chunks_mut(targets.len().max(1)).enumerate());
    let work = || {
        let mut panel = job.panel();
        loop {
            let next = tiles.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((tile, out)) = next else { break };
            job.tile(tile, &mut panel, out);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..num_threads {
            scope.spawn(work);
        }
        work();
    });
    Ok(merge(&partials, job.target_logits()))
}

/// Computes the facts of `targets`, one a row.
#[cfg(not(target_arch = "x86_64"))]
pub fn linear_logprob(matrices: Matrices, targets: &[u32], _num_threads: usize) -> Result<Facts> {
    check(matrices, targets)?;
    Ok(Facts::default())
}

fn check(matrices: Matrices, targets: &[u32]) -> Result<()> {
    let Matrices { hidden, head, width } = matrices;
    let refuse = |what: String| Err(Error::Argument(what));
    if !is_supported() {
        return refuse("this CPU has no bf16 products (AVX512-BF16)".into());
    }
    if width == 0 || width % 2 == 1 {
        return refuse(format!("the width is {width}, expected an even number"));
    }
    if hidden.len() != targets.len() * width || head.len() % width != 0 {
        return refuse("the matrices do not fit the targets and each other".into());
    }
    let vocab_size = head.len() / width;
    if i32::try_from(vocab_size).is_err() {
        return refuse(format!("a vocabulary of {vocab_size}, expected less than 2^31"));
    }
    match targets.iter().find(|&&target| target as usize >= vocab_size) {
        Some(target) => refuse(format!("target {target} in a vocabulary of {vocab_size}")),
        None => Ok(()),
    }
}

/// Puts tiles and target together, in fp64 and in the order of the tiles.
fn merge(partials: &[Partial], target_logits: &[f32]) -> Facts {
    let num_rows = target_logits.len();
    let mut facts = Facts::default();
    for (row, &target) in target_logits.iter().enumerate() {
        let target = f64::from(target);
        let tiles = || partials.iter().skip(row).step_by(num_rows);
        let largest = tiles().map(|tile| f64::from(tile.max)).fold(f64::MIN, f64::max);
        let top = largest.max(target);
        let weight = |tile: &Partial| (f64::from(tile.max) - top).exp();
        let others: f64 = tiles().map(|tile| weight(tile) * f64::from(tile.sum)).sum();
        let weighted: f64 = tiles().map(|tile| weight(tile) * f64::from(tile.weighted)).sum();
        let own = (target - top).exp();
        let total = others + own;
        let lse = top + total.ln();
        let larger: f64 = tiles().map(|tile| f64::from(tile.larger)).sum();
        facts.logprobs.push(target - lse);
        #[allow(clippy::cast_possible_truncation)] // from 1 to 100
        facts.ranks.push((1.0 + larger).min(MAX_RANK) as i32);
        facts.entropies.push(lse - (weighted + own * target) / total);
        facts.margins.push(target - largest);
    }
    facts
}
