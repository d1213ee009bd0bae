//! Which of 64 bytes are what, as 64 bits each: bit `i` is byte `i`.
//!
//! The classes are written once, as comparisons that become vector instructions, and compiled for
//! the widest vectors the processor has. Gathering the bits does not become instructions by itself.

/// The classes of 64 bytes, ASCII and the bytes of UTF-8.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Masks {
    /// `A-Za-z`.
    pub letter: u64,
    /// `A-Z`.
    pub upper: u64,
    /// `0-9`.
    pub digit: u64,
    /// The character U+0020.
    pub blank: u64,
    /// White space but for the blank and the ends of lines.
    pub tab: u64,
    /// `\r` and `\n`.
    pub line_end: u64,
    /// Apostrophes.
    pub quote: u64,
    /// Slashes.
    pub slash: u64,
    /// Controls that are no white space.
    pub control: u64,
    /// Bytes of characters that are not ASCII.
    pub wide: u64,
    /// Of these, all but the first of a character.
    pub inner: u64,
    /// The first bytes of U+5000-8FFF.
    pub ideograph: u64,
}

/// The classes of `bytes`.
#[inline]
#[must_use]
pub fn masks(bytes: &[u8; 64]) -> Masks {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512bw") {
        // SAFETY: the processor has it.
        return unsafe { x86::masks_avx512(bytes) };
    } else if is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has it.
        return unsafe { x86::masks_avx2(bytes) };
    }
    masks_portable(bytes)
}

/// The same with no instruction that not every processor has.
#[must_use]
pub fn masks_portable(bytes: &[u8; 64]) -> Masks {
    classify(bytes, gather)
}

/// `gather` gives the high bits of 64 bytes that are 0 or 0xFF.
#[allow(clippy::inline_always)] // or it is not compiled for each kind of vectors
#[inline(always)]
fn classify(bytes: &[u8; 64], gather: impl Fn(&[u8; 64]) -> u64) -> Masks {
    let mask = |is_member: fn(u8) -> bool| {
        gather(&bytes.map(|byte| if is_member(byte) { 0xFF } else { 0 }))
    };
    Masks {
        letter: mask(|byte| byte.is_ascii_alphabetic()),
        upper: mask(|byte| byte.is_ascii_uppercase()),
        digit: mask(|byte| byte.is_ascii_digit()),
        blank: mask(|byte| byte == b' '),
        tab: mask(|byte| matches!(byte, b'\t' | 0x0B | 0x0C)),
        line_end: mask(|byte| matches!(byte, b'\r' | b'\n')),
        quote: mask(|byte| byte == b'\''),
        slash: mask(|byte| byte == b'/'),
        control: mask(|byte| matches!(byte, 0..9 | 0x0E..b' ' | 0x7F)),
        wide: mask(|byte| byte > 0x7F),
        inner: mask(|byte| matches!(byte, 0x80..0xC0)),
        ideograph: mask(|byte| matches!(byte, 0xE5..0xE9)),
    }
}

fn gather(bytes: &[u8; 64]) -> u64 {
    let mut bits = 0;
    for (position, lane) in bytes.as_chunks().0.iter().enumerate() {
        let ones = u64::from_le_bytes(*lane) & 0x0101_0101_0101_0101;
        // the product moves bit 8i to bit 56 + i, and no two sums meet below
        bits |= ones.wrapping_mul(0x0102_0408_1020_4080) >> 56 << (8 * position);
    }
    bits
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Masks, classify};
    use std::arch::x86_64::{__m256i, __m512i, _mm256_movemask_epi8, _mm512_movepi8_mask};
    use std::mem::transmute;

    #[target_feature(enable = "avx512bw")]
    pub fn masks_avx512(bytes: &[u8; 64]) -> Masks {
        classify(bytes, |found| {
            // SAFETY: 64 bytes are a vector of 64, whatever they are.
            let whole = unsafe { transmute::<[u8; 64], __m512i>(*found) };
            _mm512_movepi8_mask(whole)
        })
    }

    #[target_feature(enable = "avx2")]
    pub fn masks_avx2(bytes: &[u8; 64]) -> Masks {
        classify(bytes, |found| {
            // SAFETY: 64 bytes are two vectors of 32, whatever they are.
            let halves = unsafe { transmute::<[u8; 64], [__m256i; 2]>(*found) };
            let [low, high] =
                halves.map(|half| u64::from(_mm256_movemask_epi8(half).cast_unsigned()));
            low | high << 32
        })
    }
}
