//! A tile of the vocabulary against all rows, with AVX512-BF16.
//!
//! The head is packed 48 columns (tokens) at a time, so that one instruction multiplies a pair of
//! neighbours along D for 16 columns; 8 rows x 48 columns of logits build up in 24 registers. What
//! is wanted of them is kept a lane: column j goes to lane j % 16, whose maximum, sums and counts
//! live on from panel to panel and come together at the end of the tile. Everything is a fixed
//! order of the same operations for every row.
//!
//! Memory: a packed panel (86 KB for D = 896) stays in the L2 cache while all rows pass by it.

// Loads from arrays are transmutes, and a function with target features is unsafe to call from
// one without: nothing here touches a pointer.

use std::arch::x86_64::{
    __m512, __m512bh, __m512i, __mmask16, _CMP_GT_OQ, _mm512_add_epi32, _mm512_add_ps,
    _mm512_cmp_ps_mask, _mm512_cmpeq_epi32_mask, _mm512_cmpge_epi32_mask, _mm512_dpbf16_ps,
    _mm512_fmadd_ps, _mm512_fnmadd_ps, _mm512_mask_add_ps, _mm512_mask_mov_ps, _mm512_max_ps,
    _mm512_mul_ps, _mm512_reduce_add_ps, _mm512_reduce_max_ps, _mm512_roundscale_ps,
    _mm512_scalef_ps, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_sub_ps,
};
use std::mem::transmute;

use crate::logits::{Matrices, Partial, is_supported};

const ROW_BLOCK: usize = 8;
const LANES: usize = 16;
const VECTORS: usize = 3;
const PANEL: usize = LANES * VECTORS;
/// 960 columns; sums over more than that are fp64.
const PANELS_PER_TILE: usize = 20;
/// The logit of what does not count. Finite, so that weight 0 times a sum of it is 0 and not NaN.
const LEFT_OUT: f32 = -1e30;

/// For each pair of neighbours along D, that pair of 48 columns.
pub type Panel = Vec<[[u32; LANES]; VECTORS]>;
type Block = [[__m512; VECTORS]; ROW_BLOCK];

/// The packed hidden states, and what is known of the targets.
pub struct Job<'a> {
    head: &'a [i16],
    width: usize,
    vocab_size: usize,
    /// For each block of rows and each pair along D, that pair of 8 rows.
    hidden: Vec<[u32; ROW_BLOCK]>,
    targets: &'a [u32],
    target_logits: Vec<f32>,
}

impl<'a> Job<'a> {
    /// Packs the rows and computes their targets' logits; None if this CPU cannot. The caller has
    /// checked the sizes: others give a panic.
    #[must_use]
    pub fn new(matrices: Matrices<'a>, targets: &'a [u32]) -> Option<Self> {
        if !is_supported() {
            return None;
        }
        let Matrices { hidden, head, width } = matrices;
        let packed = hidden.chunks(width * ROW_BLOCK).flat_map(|rows| {
            let value =
                move |row: usize, at: usize| rows.get(row * width + at..row * width + at + 2);
            (0..width).step_by(2).map(move |at| {
                std::array::from_fn(|row| value(row, at).map_or(0, pair)) // 0: after the last row
            })
        });
        let mut job = Self {
            head,
            width,
            vocab_size: head.len() / width,
            hidden: packed.collect(),
            targets,
            target_logits: Vec::with_capacity(targets.len()),
        };
        // SAFETY: the features were seen above.
        job.target_logits = unsafe { job.compute_target_logits() };
        Some(job)
    }

    /// How many tiles the vocabulary has.
    #[must_use]
    pub fn num_tiles(&self) -> usize {
        self.vocab_size.div_ceil(PANEL * PANELS_PER_TILE)
    }

    /// The logit of each row's own target.
    #[must_use]
    pub fn target_logits(&self) -> &[f32] {
        &self.target_logits
    }

    /// Memory for one packed panel.
    #[must_use]
    pub fn panel(&self) -> Panel {
        vec![[[0; LANES]; VECTORS]; self.width / 2]
    }

    /// Computes what tile number `tile` says about each row.
    pub fn tile(&self, tile: usize, panel: &mut Panel, out: &mut [Partial]) {
        // SAFETY: `new` saw the features, or there would be no `self`.
        unsafe { self.compute_tile(tile, panel, out) }
    }

    /// Logits of each row's own target, by the product that computes them in a tile: they have the
    /// same bits, so that a token with equal weights is not counted as larger.
    #[target_feature(enable = "avx512f,avx512bf16")]
    fn compute_target_logits(&self) -> Vec<f32> {
        let mut panel = self.panel();
        let mut logits = Vec::with_capacity(self.targets.len());
        for (rows, targets) in self.blocks().zip(self.targets.chunks(ROW_BLOCK)) {
            self.pack(targets.iter().map(|&target| target as usize), &mut panel);
            let block = product(rows, &panel);
            for (row, [first, ..]) in block.iter().enumerate().take(targets.len()) {
                // SAFETY: both are 64 bytes without invalid values.
                logits.push(unsafe { transmute::<__m512, [f32; LANES]>(*first) }[row]);
            }
        }
        logits
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    fn compute_tile(&self, tile: usize, panel: &mut Panel, out: &mut [Partial]) {
        let start = tile * PANEL * PANELS_PER_TILE;
        let stop = self.vocab_size.min(start + PANEL * PANELS_PER_TILE);
        let mut lanes = vec![Lanes::new(); out.len()];
        for first in (start..stop).step_by(PANEL) {
            self.pack(first..stop.min(first + PANEL), panel);
            let columns = Columns::new(first, self.vocab_size);
            for (number, (rows, lanes)) in
                self.blocks().zip(lanes.chunks_mut(ROW_BLOCK)).enumerate()
            {
                let block = product(rows, panel);
                for (at, (logits, lanes)) in block.iter().zip(lanes).enumerate() {
                    let row = number * ROW_BLOCK + at;
                    let left_out = columns.left_out(self.targets[row]);
                    lanes.add(logits, left_out, self.target_logits[row]);
                }
            }
        }
        for (lanes, out) in lanes.iter().zip(out) {
            *out = lanes.reduce();
        }
    }

    fn blocks(&self) -> std::slice::ChunksExact<'_, [u32; ROW_BLOCK]> {
        self.hidden.chunks_exact(self.width / 2)
    }

    /// Packs head rows as columns; places without one keep what they hold, which is left out.
    fn pack(&self, columns: impl Iterator<Item = usize>, panel: &mut Panel) {
        for (place, column) in columns.enumerate() {
            let row = &self.head[column * self.width..][..self.width];
            for (values, packed) in row.chunks_exact(2).zip(panel.iter_mut()) {
                packed[place / LANES][place % LANES] = pair(values);
            }
        }
    }
}

/// Two bf16 values as one word, the first one low.
fn pair(values: &[i16]) -> u32 {
    u32::from(values[0].cast_unsigned()) | u32::from(values[1].cast_unsigned()) << 16
}

/// Multiplies 8 rows with 48 columns.
#[target_feature(enable = "avx512f,avx512bf16")]
fn product(rows: &[[u32; ROW_BLOCK]], panel: &Panel) -> Block {
    let mut sums = [[_mm512_setzero_ps(); VECTORS]; ROW_BLOCK];
    for (rows, columns) in rows.iter().zip(panel) {
        // SAFETY: 64 bytes each, any bits are 32 bf16 values.
        let columns = columns.map(|c| unsafe { transmute::<[u32; LANES], __m512bh>(c) });
        for (sums, &row) in sums.iter_mut().zip(rows) {
            let row = _mm512_set1_epi32(row.cast_signed());
            // SAFETY: as above.
            let row = unsafe { transmute::<__m512i, __m512bh>(row) };
            for (sum, column) in sums.iter_mut().zip(columns) {
                *sum = _mm512_dpbf16_ps(*sum, row, column);
            }
        }
    }
    sums
}

/// Which columns of a panel do not count.
struct Columns {
    ids: [__m512i; VECTORS],
    /// Those beyond the vocabulary.
    outside: [__mmask16; VECTORS],
}

impl Columns {
    #[target_feature(enable = "avx512f")]
    #[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap)] // below 2^31: `check`
    fn new(first: usize, vocab_size: usize) -> Self {
        let lane: [i32; LANES] = std::array::from_fn(|lane| lane as i32);
        // SAFETY: 64 bytes without invalid values.
        let lane = unsafe { transmute::<[i32; LANES], __m512i>(lane) };
        let mut ids = [lane; VECTORS];
        let mut outside = [0; VECTORS];
        for (vector, (ids, outside)) in ids.iter_mut().zip(&mut outside).enumerate() {
            let start = (first + vector * LANES) as i32;
            *ids = _mm512_add_epi32(*ids, _mm512_set1_epi32(start));
            *outside = _mm512_cmpge_epi32_mask(*ids, _mm512_set1_epi32(vocab_size as i32));
        }
        Self { ids, outside }
    }

    #[target_feature(enable = "avx512f")]
    fn left_out(&self, target: u32) -> [__mmask16; VECTORS] {
        let target = _mm512_set1_epi32(target.cast_signed());
        let mut masks = self.outside;
        for (mask, ids) in masks.iter_mut().zip(self.ids) {
            *mask |= _mm512_cmpeq_epi32_mask(ids, target);
        }
        masks
    }
}

/// What 16 lanes have seen of a row so far; see [`Partial`].
#[derive(Clone, Copy)]
struct Lanes {
    max: __m512,
    sum: __m512,
    weighted: __m512,
    larger: __m512,
}

impl Lanes {
    #[target_feature(enable = "avx512f")]
    fn new() -> Self {
        let zero = _mm512_setzero_ps();
        Self { max: _mm512_set1_ps(LEFT_OUT), sum: zero, weighted: zero, larger: zero }
    }

    /// Takes up a panel's logits of this row.
    #[target_feature(enable = "avx512f")]
    fn add(&mut self, logits: &[__m512; VECTORS], left_out: [__mmask16; VECTORS], target: f32) {
        let target = _mm512_set1_ps(target);
        let mut logits = *logits;
        let mut max = self.max;
        for (logit, mask) in logits.iter_mut().zip(left_out) {
            *logit = _mm512_mask_mov_ps(*logit, mask, _mm512_set1_ps(LEFT_OUT));
            max = _mm512_max_ps(max, *logit);
        }
        let shrink = exp(_mm512_sub_ps(self.max, max));
        self.max = max;
        self.sum = _mm512_mul_ps(self.sum, shrink);
        self.weighted = _mm512_mul_ps(self.weighted, shrink);
        for logit in logits {
            let weight = exp(_mm512_sub_ps(logit, max));
            self.sum = _mm512_add_ps(self.sum, weight);
            self.weighted = _mm512_fmadd_ps(weight, logit, self.weighted);
            let larger = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(logit, target);
            let one = _mm512_set1_ps(1.0);
            self.larger = _mm512_mask_add_ps(self.larger, larger, self.larger, one);
        }
    }

    /// Brings the lanes together.
    #[target_feature(enable = "avx512f")]
    fn reduce(&self) -> Partial {
        let max = _mm512_reduce_max_ps(self.max);
        let shrink = exp(_mm512_sub_ps(self.max, _mm512_set1_ps(max)));
        Partial {
            max,
            sum: _mm512_reduce_add_ps(_mm512_mul_ps(self.sum, shrink)),
            weighted: _mm512_reduce_add_ps(_mm512_mul_ps(self.weighted, shrink)),
            larger: _mm512_reduce_add_ps(self.larger),
        }
    }
}

/// exp of numbers up to 0, to 1e-7 of the result: 2^n by the exponent, the rest by Taylor's series.
#[target_feature(enable = "avx512f")]
fn exp(x: __m512) -> __m512 {
    const LN2_HIGH: f32 = 0.693_359_4; // 12 bits, so that n times it is exact
    const LN2_LOW: f32 = -2.121_944_4e-4;
    const SERIES: [f32; 7] =
        [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0];
    // Below -104 it is 0. A NaN as the second operand stays one.
    let x = _mm512_max_ps(_mm512_set1_ps(-104.0), x);
    let scaled = _mm512_mul_ps(x, _mm512_set1_ps(std::f32::consts::LOG2_E));
    let n = _mm512_roundscale_ps::<0>(scaled);
    let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(LN2_HIGH), x);
    let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(LN2_LOW), r);
    let mut value = _mm512_set1_ps(SERIES[0]);
    for factor in &SERIES[1..] {
        value = _mm512_fmadd_ps(value, r, _mm512_set1_ps(*factor));
    }
    _mm512_scalef_ps(_mm512_fmadd_ps(value, r, _mm512_set1_ps(1.0)), n)
}
