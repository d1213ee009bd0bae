//! What must not change ids: the cache's size, threads, the file kept between processes. And time.

use std::fs;

use rust_tokenize::encoder::{EncodeOptions, Encoder, encode_batch};
use rust_tokenize::native::{NativeEncoder, binary, definition::Definition};

use crate::native::{random_text, shared_files};
use crate::native_small::some_definitions;
use crate::random::{Folder, Random};

const PLAIN: EncodeOptions =
    EncodeOptions { add_special_tokens: false, parse_special: true, continuation: false };

fn encoder(text: &[u8]) -> NativeEncoder {
    NativeEncoder::from_slice(text).expect("a native definition")
}

/// Made definitions, and a real one if it is there.
fn files() -> Vec<Vec<u8>> {
    let real = shared_files().into_iter().find(|path| path.to_string_lossy().contains("gpt2"));
    let made = some_definitions().into_iter().map(|made| made.to_string().into_bytes());
    made.chain(real.map(|path| fs::read(path).unwrap())).collect()
}

#[test]
fn ids_depend_on_no_cache_and_no_thread() {
    let mut random = Random::new(8);
    for text in files() {
        let mut texts: Vec<String> = (0..600).map(|_| random_text(&mut random, &[])).collect();
        texts.push("a longer word: internationalization ".repeat(3000));
        let expected = encode_batch(&encoder(&text).with_cache_slots(0), &texts, PLAIN, Some(1));
        let expected = expected.unwrap();
        for cache_slots in [0, 4, 16, 64, 1 << 18] {
            let encoder = encoder(&text).with_cache_slots(cache_slots);
            for num_threads in [1, 2, 7] {
                for _ in 0..2 {
                    let found = encode_batch(&encoder, &texts, PLAIN, Some(num_threads)).unwrap();
                    assert!(found == expected, "{cache_slots} slots, {num_threads} threads");
                }
            }
            let one_by_one = texts.iter().map(|text| encode_batch(&encoder, &[text], PLAIN, None));
            let joined: Vec<i32> = one_by_one.flat_map(|batch| batch.unwrap().ids).collect();
            assert!(joined == expected.ids, "{cache_slots} slots");
        }
    }
}

#[test]
fn long_texts_take_linear_memory_and_little_time() {
    for text in files() {
        let encoder = encoder(&text);
        for piece in ["a", "ab", "é", " ", "he", "'", "\n", "1"] {
            let long = piece.repeat(1_000_000);
            let mut ids = Vec::new();
            encoder.encode(&long, PLAIN, &mut ids).unwrap();
            assert!(ids.len() <= long.len() + 3);
            let mut half = Vec::new();
            encoder.encode(&long[..long.len() / 2], PLAIN, &mut half).unwrap();
            assert!(half.len() <= ids.len() && ids.len() <= 2 * half.len() + 8);
        }
    }
}

#[test]
fn a_definition_survives_its_bytes() {
    for text in files() {
        let read = Definition::parse(&text).unwrap();
        let bytes = binary::to_bytes(&read, &[7; 32]).unwrap();
        let again = binary::from_bytes(&bytes, &[7; 32]).unwrap();
        assert_eq!((again.header, again.merges), (read.header, read.merges));
        assert_eq!(again.vocabulary.tokens(), read.vocabulary.tokens());
        assert_eq!(again.vocabulary.ids(), read.vocabulary.ids());
        assert!(binary::from_bytes(&bytes, &[8; 32]).is_none(), "another file's");
    }
}

#[test]
fn damaged_bytes_are_not_believed() {
    let text = some_definitions().remove(0).to_string();
    let read = Definition::parse(text.as_bytes()).unwrap();
    let bytes = binary::to_bytes(&read, &[7; 32]).unwrap();
    for at in 0..bytes.len() {
        for bit in [1, 128] {
            let mut damaged = bytes.clone();
            damaged[at] ^= bit;
            assert!(binary::from_bytes(&damaged, &[7; 32]).is_none(), "bit of byte {at}");
        }
        assert!(binary::from_bytes(&bytes[..at], &[7; 32]).is_none(), "cut at {at}");
    }
    assert!(binary::from_bytes(&[&bytes[..], &[0]].concat(), &[7; 32]).is_none());
}

#[test]
fn a_kept_file_is_used_renewed_when_damaged_and_never_needed() {
    let text = some_definitions().remove(0).to_string().into_bytes();
    let folder = Folder::new();
    let load = || NativeEncoder::from_slice_by_way_of(&text, folder.path()).unwrap();
    let names = || {
        let entries = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path());
        entries.collect::<Vec<_>>()
    };
    let first = load();
    let [kept] = names().try_into().unwrap();
    let good = fs::read(&kept).unwrap();
    let expected = encode_batch(&first, &["hello the a  b"], PLAIN, None).unwrap();
    for damaged in [&good[..0], &good[..9], &good[..good.len() - 1], &vec![0; good.len()], b"{}"] {
        fs::write(&kept, damaged).unwrap();
        assert_eq!(encode_batch(&load(), &["hello the a  b"], PLAIN, None).unwrap(), expected);
        assert_eq!(fs::read(&kept).unwrap(), good, "renewed");
        assert_eq!(names().len(), 1);
    }
    let nowhere = folder.write("a file", "").join("folder");
    let without = NativeEncoder::from_slice_by_way_of(&text, &nowhere).unwrap();
    assert_eq!(encode_batch(&without, &["hello the a  b"], PLAIN, None).unwrap(), expected);
}

/// What the file says is believed only if it is what was written for this very text: one that is
/// whole, but of another tokenizer, is not.
#[test]
fn a_kept_file_of_another_tokenizer_is_stale() {
    let [one, other] = some_definitions().try_into().map_err(|_| "two").unwrap();
    let (one, other) = (one.to_string().into_bytes(), other.to_string().into_bytes());
    let folder = Folder::new();
    let path_of = |text: &[u8]| {
        NativeEncoder::from_slice_by_way_of(text, folder.path()).unwrap();
        let entries = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path());
        entries.max_by_key(|path| fs::metadata(path).unwrap().modified().unwrap()).unwrap()
    };
    let first = path_of(&one);
    let second = path_of(&other);
    fs::copy(&first, &second).unwrap();
    let found = NativeEncoder::from_slice_by_way_of(&other, folder.path()).unwrap();
    assert_eq!(found.engine(), encoder(&other).engine());
}
