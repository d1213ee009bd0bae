//! Any text through our own engine and through the library: the same ids.
//!
//! `FUZZ_DEFINITIONS` names a folder of tokenizer definitions. The input's first two bytes choose one
//! and a way to read the text.
#![no_main]

use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use rust_tokenize::encoder::Encoder;
use rust_tokenize::error::guard;
use rust_tokenize::hugging_face::HuggingFaceEncoder;
use rust_tokenize::native::NativeEncoder;
use rust_tokenize_fuzz::reading;

type Pair = (PathBuf, NativeEncoder, HuggingFaceEncoder);

static PAIRS: LazyLock<Vec<Pair>> = LazyLock::new(|| {
    let folder = std::env::var("FUZZ_DEFINITIONS").expect("FUZZ_DEFINITIONS names a folder");
    let mut paths: Vec<PathBuf> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let load = |path: PathBuf| {
        let native = NativeEncoder::from_slice(&fs::read(&path).unwrap()).expect("a native one");
        let theirs = HuggingFaceEncoder::from_file(&path).expect("a good one");
        (path, native, theirs)
    };
    paths.into_iter().map(load).collect()
});

fuzz_target!(|data: &[u8]| {
    let [which, how, bytes @ ..] = data else { return };
    let (path, native, theirs) = &PAIRS[usize::from(*which) % PAIRS.len()];
    let (text, options) = (String::from_utf8_lossy(bytes), reading(*how));
    let (mut ids, mut expected) = (Vec::new(), Vec::new());
    let compared = guard(|| {
        theirs.prepare(options)?;
        theirs.encode(&text, options, &mut expected)
    });
    native.encode(&text, options, &mut ids).expect("every text has ids");
    if compared.is_ok() {
        assert_eq!(ids, expected, "{} {options:?} {text:?}", path.display());
    }
});
