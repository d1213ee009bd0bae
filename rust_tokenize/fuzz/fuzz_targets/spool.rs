//! A spool whose files say anything, behind checksums that are right.
#![no_main]

use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use rust_tokenize::batch::pack_batch;
use rust_tokenize::plan::plan_batches;
use rust_tokenize::spool::{ENTRY_BYTES, Spool, hash_ids};
use rust_tokenize_fuzz::folder;

static FOLDER: LazyLock<PathBuf> = LazyLock::new(folder);

fuzz_target!(|data: &[u8]| {
    let [count, rest @ ..] = data else { return };
    let (entries, ids) = rest.split_at((usize::from(*count) * ENTRY_BYTES).min(rest.len()));
    let words = entries.chunks_exact(4).map(|word| i32::from_le_bytes(word.try_into().unwrap()));
    let checksum = hash_ids(&words.collect::<Vec<_>>());
    let mut index = b"FAMSPOOL\x01\0\0\0\x20\0\0\0".to_vec();
    for number in [(entries.len() / ENTRY_BYTES) as u64, ids.len() as u64, checksum] {
        index.extend(number.to_le_bytes());
    }
    index.extend(entries);
    fs::write(FOLDER.join("index.bin"), index).unwrap();
    fs::write(FOLDER.join("data.bin"), ids).unwrap();
    let Ok(spool) = Spool::open(&FOLDER) else { return };
    let all: Vec<usize> = (0..spool.entries().len()).collect();
    for &number in &all {
        let _ = (spool.context(number), spool.read(number));
    }
    let _ = pack_batch(&spool, &all);
    let _ = plan_batches(&spool, &all, 128, &|| Ok(()));
});
