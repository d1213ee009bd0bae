//! The native engine beside the reference: the same ids, whatever the text and the options.

use std::path::{Path, PathBuf};

use rust_tokenize::encoder::{EncodeOptions, Encoder};
use rust_tokenize::hugging_face::HuggingFaceEncoder;
use rust_tokenize::native::NativeEncoder;

use crate::random::Random;

/// What breaks tokenizers, and what random texts are made of.
const BITS: &[&str] = &[
    "",
    " ",
    "  ",
    "   ",
    "\t",
    "\n",
    "\r\n",
    "\n\n",
    "a",
    "b",
    "x",
    "e",
    "he",
    "hello",
    "Hello",
    " the",
    " world",
    "'s",
    "'S",
    "'\u{17f}",
    "'ll",
    "'",
    "1",
    "12",
    "123",
    "4567",
    "\u{663}",
    "\u{b2}",
    ".",
    ",",
    "...",
    "!?",
    "(",
    "=>",
    "_",
    "-",
    "\u{85}",
    "\u{a0}",
    "\u{2028}",
    "\u{3000}",
    "\u{200b}",
    "\u{feff}",
    "\u{301}",
    "e\u{301}",
    "\u{e9}",
    "\u{1100}\u{1161}",
    "\u{ac00}",
    "\u{11a8}",
    "日本語",
    "テキスト",
    "漢",
    "\u{e20}\u{e32}",
    "🙂",
    "👨\u{200d}👩",
    "\u{10ffff}",
    "\u{0}",
    "\u{2581}",
    "\u{2581}\u{2581}",
    "\u{2581}a",
    "<s>",
    "</s>",
    "<unk>",
    "<s",
    "<|endoftext|>",
    "<|endoftext|",
    "<|im_start|>",
    "<|im_end|>",
    "<|end|>",
    "<|user|>",
    "<|begin_of_text|>",
    "<|eot_id|>",
    "<0x41>",
    "<mask>",
    "[INST]",
    "<tool_call>",
    ">\u{338}",
    "\u{16d67}\u{16d67}",
    "def f(x):\n\treturn x\n",
    "        ",
    "http://a.b/c?d=e",
    "ÀÉ",
    "ß",
    "ﬆ",
    "İ",
    "ǅ",
    "Aa",
    "aA",
    "AAAA",
];

pub fn all_options() -> Vec<EncodeOptions> {
    let option = |bits: u8| EncodeOptions {
        add_special_tokens: bits & 1 == 1,
        parse_special: bits & 2 == 2,
        continuation: bits & 4 == 4,
    };
    (0..8).map(option).collect()
}

pub fn random_text(random: &mut Random, extra: &[String]) -> String {
    let num_bits = random.below(12);
    let mut text = String::new();
    for _ in 0..num_bits {
        if !extra.is_empty() && random.below(3) == 0 {
            text.push_str(random.pick::<String>(extra));
        } else {
            text.push_str(BITS[random.below(BITS.len())]);
        }
    }
    text
}

fn ids(encoder: &dyn Encoder, text: &str, options: EncodeOptions) -> Vec<i32> {
    let mut ids = Vec::new();
    encoder.encode(text, options, &mut ids).unwrap();
    ids
}

pub fn shared_files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/tokenizers");
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<_> =
        entries.filter_map(|entry| Some(entry.ok()?.path().join("tokenizer.json"))).collect();
    paths.retain(|path| path.is_file());
    paths.sort();
    paths
}

/// Compares on random texts; the native engine twice, so that its cache is cold and warm.
pub fn compare(native: &NativeEncoder, reference: &dyn Encoder, num_texts: usize, seed: u64) {
    let mut random = Random::new(seed);
    let added = native.added_tokens().into_iter().map(|token| token.content);
    let extra: Vec<String> = added.take(40).collect();
    let mut texts: Vec<String> = BITS.iter().map(|&bit| bit.to_owned()).collect();
    texts.extend((0..num_texts).map(|_| random_text(&mut random, &extra)));
    for text in &texts {
        for options in all_options() {
            let expected = ids(reference, text, options);
            for _ in 0..2 {
                assert_eq!(ids(native, text, options), expected, "{text:?} {options:?}");
            }
        }
    }
}

#[test]
fn ids_equal_those_of_the_reference_on_real_tokenizers() {
    let paths = shared_files();
    let mut num_native = 0;
    for path in &paths {
        let Some(native) = NativeEncoder::from_slice(&std::fs::read(path).unwrap()) else {
            continue;
        };
        num_native += 1;
        let reference = HuggingFaceEncoder::from_file(path).unwrap();
        compare(&native, &reference, 400, 1);
    }
    // WordPiece, Unigram, Falcon's pipeline and a file the reference refuses are not ours.
    assert_eq!(num_native, paths.len().saturating_sub(4));
}
