//! What the fuzz targets share: texts, the ways to read them, a folder for files.

use std::fs;
use std::path::PathBuf;

use rust_tokenize::encoder::{EncodeOptions, Encoder};
use rust_tokenize::error::Result;

/// A definition of SentencePiece's kind, with all that such a file has and few tokens.
pub const SMALL: &[u8] = include_bytes!("../corpus/definition/sentencepiece.json");

const TEXTS: [&str; 8] =
    ["", "ab a\u{e9}b", "<s>ab<s", " \n ", "▁a▁", "\0\u{10ffff}", "<unk> <unk>a", "e\u{301}'s 12"];

/// One of the ways to read a text.
pub fn reading(number: u8) -> EncodeOptions {
    EncodeOptions {
        add_special_tokens: number & 1 > 0,
        parse_special: number & 2 > 0,
        continuation: number & 4 > 0,
    }
}

/// Encodes and decodes some texts in every way.
pub fn use_it(encoder: &dyn Encoder) -> Result<()> {
    for number in 0..8 {
        let options = reading(number);
        encoder.prepare(options)?;
        for text in TEXTS {
            let mut ids = Vec::new();
            encoder.encode(text, options, &mut ids)?;
            let ids: Vec<u32> = ids.iter().map(|id| id.cast_unsigned()).collect();
            encoder.decode(&ids, number & 1 > 0)?;
        }
    }
    Ok(())
}

/// A folder of this process, in memory where there is such a place.
pub fn folder() -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    let place = if memory.is_dir() { memory } else { std::env::temp_dir() };
    let path = place.join(format!("rust_tokenize_fuzz-{}", std::process::id()));
    fs::create_dir_all(&path).expect("a folder for temporary files");
    path
}
