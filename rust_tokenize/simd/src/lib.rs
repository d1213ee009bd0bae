//! Vector instructions, behind functions that are safe to call whatever they are given.
//!
//! The only crate of ours that may hold `unsafe`: `rust_tokenize`, which reads what strangers wrote,
//! forbids it. Nothing here reads a file, a text or a definition.

#[cfg(target_arch = "x86_64")]
pub mod avx512;
pub mod logits;
pub mod masks;
