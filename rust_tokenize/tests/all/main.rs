//! Tests of the crate through its public face; no Python needed.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // helpers of tests may fail loudly

mod around;
mod batches;
mod bin_packing;
mod cutting;
mod encoding;
mod fuzzing;
mod json_lines;
mod native;
mod native_cache;
mod native_small;
mod nfc;
mod random;
mod records;
mod scanning;
mod spools;
mod verification;
