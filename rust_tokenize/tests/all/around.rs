//! `Specials::encode_around`: special tokens are text where the text is a user's.

use std::ops::Range;

use rust_tokenize::encoder::{EncodeOptions, Encoder};
use rust_tokenize::native::NativeEncoder;
use rust_tokenize::specials::Specials;
use serde_json::{Value, json};

use crate::native::random_text;
use crate::native_small::{byte_level, byte_level_vocabulary, reference};
use crate::random::Random;

const PARSED: EncodeOptions =
    EncodeOptions { add_special_tokens: false, parse_special: true, continuation: false };
const AS_TEXT: EncodeOptions = EncodeOptions { parse_special: false, ..PARSED };
const SPECIAL: [&str; 4] = ["<s>", "<|end|>", "<|endoftext|>", "<|end"];

fn definition(normalizer: Value, in_normalized: bool) -> Value {
    let vocabulary = byte_level_vocabulary(&mut Random::new(12));
    let first = vocabulary.tokens.len();
    let added = (first..).zip(SPECIAL.iter().chain(&["hello"])).map(|(id, content)| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": in_normalized, "special": *content != "hello"})
    });
    json!({
        "version": "1.0", "added_tokens": added.collect::<Vec<_>>(), "normalizer": normalizer,
        "pre_tokenizer": byte_level(false, true), "post_processor": null, "decoder": null,
        "model": {"type": "BPE", "vocab": vocabulary.vocab(), "merges": vocabulary.merges},
    })
}

/// Cuts at the special tokens that share no byte with `plain`, found one byte after the other, and
/// encodes what lies between with special tokens as text.
fn plainly(reference: &dyn Encoder, text: &str, plain: &[Range<usize>]) -> Vec<i32> {
    let mut ids = Vec::new();
    let (mut at, mut done) = (0, 0);
    while at < text.len() {
        let touches =
            |end: usize| (at..end).any(|byte| plain.iter().any(|range| range.contains(&byte)));
        let is_here = |token: &&&str| {
            text.as_bytes()[at..].starts_with(token.as_bytes()) && !touches(at + token.len())
        };
        let Some(token) = SPECIAL.iter().filter(is_here).max_by_key(|token| token.len()) else {
            at += 1;
            continue;
        };
        reference.encode(&text[done..at], AS_TEXT, &mut ids).unwrap();
        ids.push(reference.token_to_id(token).unwrap());
        at += token.len();
        done = at;
    }
    reference.encode(&text[done..], AS_TEXT, &mut ids).unwrap();
    ids
}

fn random_ranges(random: &mut Random, text: &str) -> Vec<Range<usize>> {
    let bounds: Vec<usize> = (0..=text.len()).filter(|&at| text.is_char_boundary(at)).collect();
    let mut chosen: Vec<usize> =
        (0..2 * random.below(3)).map(|_| *random.pick::<usize>(&bounds)).collect();
    chosen.sort_unstable();
    chosen.as_chunks::<2>().0.iter().map(|&[start, end]| start..end).collect()
}

#[test]
fn special_tokens_that_touch_plain_text_are_text() {
    let nfc = json!({"type": "NFC"});
    for (normalizer, in_normalized) in [(Value::Null, false), (Value::Null, true), (nfc, false)] {
        let made = definition(normalizer, in_normalized);
        let native = NativeEncoder::from_slice(made.to_string().as_bytes()).unwrap();
        let specials = Specials::new(&native.added_tokens());
        let continues = specials.text_after_continues(&native).unwrap();
        let reference = reference(&made);
        let mut random = Random::new(13);
        let extra: Vec<String> = SPECIAL.map(str::to_owned).to_vec();
        for _ in 0..3000 {
            let text = random_text(&mut random, &extra);
            let plain = random_ranges(&mut random, &text);
            let mut found = Vec::new();
            let around = (text.as_str(), plain.as_slice());
            specials.encode_around(&native, continues, around, PARSED, &mut found).unwrap();
            assert_eq!(found, plainly(&reference, &text, &plain), "{text:?} {plain:?}");
            found.clear();
            specials.encode_around(&native, continues, around, AS_TEXT, &mut found).unwrap();
            let mut expected = Vec::new();
            reference.encode(&text, AS_TEXT, &mut expected).unwrap();
            assert_eq!(found, expected);
        }
    }
}
