//! Hashes of short byte strings: one or a few multiplications.
//!
//! Tables bound their probes or their load, so that text chosen to collide makes them slower, never
//! wrong; hence no secret and no defence.

const KEY_A: u64 = 0x9e37_79b9_7f4a_7c15;
const KEY_B: u64 = 0xd6e8_feb8_6659_fd93;

/// Mixes two words into one whose high bits are as good as its low ones.
#[inline]
#[must_use]
pub fn mix(a: u64, b: u64) -> u64 {
    let product = u128::from(a ^ KEY_A) * u128::from(b ^ KEY_B);
    #[allow(clippy::cast_possible_truncation)] // the two halves
    let folded = (product >> 64) as u64 ^ product as u64;
    folded
}

/// The hash of a byte string.
#[must_use]
pub fn hash_bytes(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let mut hash = bytes.len() as u64;
    for word in words {
        hash = mix(hash, u64::from_le_bytes(*word));
    }
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    mix(hash, u64::from_le_bytes(last))
}
