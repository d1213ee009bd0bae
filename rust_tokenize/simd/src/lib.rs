//! Vector instructions, behind functions that are safe to call whatever they are given.
//!
//! The only crate of ours that may hold `unsafe`: `rust_tokenize`, which reads what strangers wrote,
//! forbids it. Nothing here reads a file, a text or a definition.

#[cfg(target_arch = "x86_64")]
pub mod avx512;
pub mod logits;
pub mod masks;

/// Asks for the cache line of `place`, so that a later look at it need not wait for memory.
#[inline]
pub fn prefetch<T>(place: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE, which every x86-64 has; no memory is changed, and the address is of a reference.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(place).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}
