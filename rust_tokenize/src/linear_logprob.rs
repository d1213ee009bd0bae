//! What a model says about one token a row, from hidden states and head in bf16, on a CPU: checks,
//! threads, and the merge of what the tiles of the vocabulary found.
//!
//! The equations are those of `kernels/linear_logprob.py`, which is the reference. torch has no
//! product of bf16 matrices with an fp32 result on CPUs, so the reference multiplies in fp32, at
//! half the speed, and goes over each tile of logits six times. Here the logits live in registers.
//!
//! A value's bits depend on its row, its column and the width alone: not on the other rows, nor on
//! the number of threads.

// Elsewhere only the refusal is left of it.
#![cfg_attr(not(target_arch = "x86_64"), allow(dead_code, unused_imports))]

use std::sync::{Mutex, PoisonError};

use rust_simd::logits::Partial;
pub use rust_simd::logits::{Matrices, is_supported};

use crate::error::{Error, Result};

/// Ranks end here.
const MAX_RANK: f64 = 100.0;

/// One value a row; see `kernels/linear_logprob.py` for what they mean.
#[derive(Debug, Default)]
#[allow(missing_docs)]
pub struct Facts {
    pub logprobs: Vec<f64>,
    pub ranks: Vec<i32>,
    pub entropies: Vec<f64>,
    pub margins: Vec<f64>,
}

/// Computes the facts of `targets`, one a row.
#[cfg(target_arch = "x86_64")]
pub fn linear_logprob(matrices: Matrices, targets: &[u32], num_threads: usize) -> Result<Facts> {
    check(matrices, targets)?;
    let Some(job) = rust_simd::avx512::Job::new(matrices, targets) else {
        return Err(unsupported());
    };
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
        return Err(unsupported());
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

fn unsupported() -> Error {
    Error::Argument("this CPU has no bf16 products (AVX512-BF16)".into())
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
