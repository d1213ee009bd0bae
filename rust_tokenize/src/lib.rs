//! Text to packed arrays: everything of fam-engine that touches every byte or every token.
//!
//! ```text
//! file -> lines (checked JSON) -> [Python: templates] -> encoder (ids) -> spool -> plan -> batch
//! ```
//!
//! Text and slices come in, flat vectors go out; no object is made per token. `py.rs` is the only
//! file that knows Python, so that `cargo test` needs none. Files, JSON and tokenizer definitions
//! come from strangers: whatever is wrong with them ends in an [`error::Error`] that says where,
//! never in a panic that reaches the caller.

pub mod batch;
pub mod bins;
pub mod continuation;
pub mod encoder;
pub mod error;
pub mod hugging_face;
pub mod json;
pub mod linear_logprob;
pub mod lines;
pub mod native;
pub mod plan;
pub mod spool;
pub mod spool_writer;

#[cfg(feature = "python")]
mod py;
