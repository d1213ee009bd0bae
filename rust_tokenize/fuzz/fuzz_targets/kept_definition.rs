//! A definition kept between processes, damaged by whoever can write to the cache.
//!
//! The checksum is made right, so that what is behind it is reached: the input is a list of places
//! and bytes to put there, the last one perhaps a new end.
#![no_main]

use std::fmt::Write;
use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use rust_tokenize::native::{NativeEncoder, binary, definition::Definition};
use rust_tokenize_fuzz::{SMALL, folder, use_it};
use sha2::{Digest, Sha256};

static SOURCE: LazyLock<[u8; 32]> = LazyLock::new(|| Sha256::digest(SMALL).into());
static FOLDER: LazyLock<PathBuf> = LazyLock::new(folder);
static FILE: LazyLock<PathBuf> = LazyLock::new(|| {
    let mut name = String::new();
    SOURCE.iter().for_each(|byte| write!(name, "{byte:02x}").unwrap());
    FOLDER.join(name + ".tokenizer")
});
static GOOD: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let definition = Definition::parse(SMALL).unwrap();
    binary::to_bytes(&definition, &SOURCE).unwrap()[binary::PREFIX..].to_vec()
});

fuzz_target!(|data: &[u8]| {
    let mut payload = GOOD.clone();
    for edit in data.chunks_exact(4) {
        let place = usize::from(u16::from_le_bytes([edit[0], edit[1]])) % payload.len().max(1);
        match edit[3] % 8 {
            0 => payload.truncate(place),
            1 => payload.insert(place, edit[2]),
            _ if payload.is_empty() => {}
            2 => drop(payload.remove(place)),
            _ => payload[place] = edit[2],
        }
    }
    fs::write(&*FILE, binary::seal(&payload, &SOURCE).unwrap()).unwrap();
    if let Some(encoder) = NativeEncoder::from_slice_by_way_of(SMALL, &FOLDER) {
        use_it(&encoder.with_cache_slots(64)).expect("what loads works");
    }
});
