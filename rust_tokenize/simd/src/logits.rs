//! What a product of hidden states and head is made of, and what is kept of it.

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

/// What a tile of the vocabulary says about a row, its target left out.
#[derive(Clone, Copy, Default)]
pub struct Partial {
    /// The largest logit.
    pub max: f32,
    /// Sum of exp(logit - max).
    pub sum: f32,
    /// Sum of exp(logit - max) * logit.
    pub weighted: f32,
    /// How many logits are above the target's.
    pub larger: f32,
}

/// Whether this CPU can do it: AVX-512 with bf16 products.
#[must_use]
pub fn is_supported() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16");
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}
