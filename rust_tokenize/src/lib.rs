//! Text to packed arrays: everything of fam-engine that touches every byte or every token.
//!
//! ```text
//! file -> lines (checked JSON) -> records (texts, template, ids) -> spool -> plan -> batch
//! ```
//! Records that are unusual in any way go through Python instead, one by one.
//!
//! Text and slices come in, flat vectors go out; no object is made per token. `py.rs` is the only
//! file that knows Python, so that `cargo test` needs none. Files, JSON and tokenizer definitions
//! come from strangers: whatever is wrong with them ends in an [`error::Error`] that says where,
//! never in a panic that reaches the caller.

pub mod batch;
pub mod bins;
pub mod continuation;
pub mod conversation;
pub mod cuts;
pub mod encoder;
pub mod error;
pub mod fields;
pub mod hugging_face;
pub mod json;
pub mod linear_logprob;
pub mod lines;
pub mod native;
pub mod packs;
pub mod plan;
pub mod records;
pub mod sections;
pub mod specials;
pub mod spool;
pub mod spool_writer;
pub mod template;
pub mod threads;
pub mod verify;

#[cfg(feature = "python")]
mod py;
