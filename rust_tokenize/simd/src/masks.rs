//! Which of 64 bytes are what, as 64 bits.

/// The bytes for which `is_member` holds; bit `i` is byte `i`.
///
/// A predicate of comparisons becomes vector instructions; gathering their bits does not by itself.
#[inline]
#[must_use]
pub fn mask(bytes: &[u8; 64], is_member: impl Fn(u8) -> bool) -> u64 {
    let mut found = [0; 64];
    for (found, &byte) in found.iter_mut().zip(bytes) {
        *found = if is_member(byte) { 0xFF } else { 0 };
    }
    gather(&found)
}

/// The high bits of 64 bytes that are 0 or 0xFF.
#[cfg(target_arch = "x86_64")]
#[inline] // an instruction for 16 bytes, where `gather_portable` multiplies for 8
fn gather(bytes: &[u8; 64]) -> u64 {
    use std::arch::x86_64::{_mm_loadu_si128, _mm_movemask_epi8};
    let mut bits = 0;
    for (position, lane) in bytes.as_chunks::<16>().0.iter().enumerate() {
        // SAFETY: every x86-64 has SSE2, and the load reads the 16 bytes of `lane`, aligned or not.
        let high = unsafe { _mm_movemask_epi8(_mm_loadu_si128(lane.as_ptr().cast())) };
        bits |= u64::from(high.cast_unsigned()) << (16 * position);
    }
    bits
}

#[cfg(not(target_arch = "x86_64"))]
use gather_portable as gather;

/// [`mask`]'s bits where there is no instruction that gathers them: of 64 bytes that are 0 or 0xFF.
#[must_use]
pub fn gather_portable(bytes: &[u8; 64]) -> u64 {
    let mut bits = 0;
    for (position, lane) in bytes.as_chunks().0.iter().enumerate() {
        let ones = u64::from_le_bytes(*lane) & 0x0101_0101_0101_0101;
        // the product moves bit 8i to bit 56 + i, and no two sums meet below
        bits |= ones.wrapping_mul(0x0102_0408_1020_4080) >> 56 << (8 * position);
    }
    bits
}
