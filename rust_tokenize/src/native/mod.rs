//! The native tokenizer: byte-level and SentencePiece-style BPE with the ids of the reference,
//! `tokenizers` 0.23, at many times its speed.

pub mod class_tables;
pub mod classes;
mod expand;
pub mod nfc;
pub mod nfc_tables;
pub mod scan;
