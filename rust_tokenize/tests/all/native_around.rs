//! `encode_around`: special tokens are text where the text is a user's.

use std::ops::Range;

use rust_tokenize::encoder::{EncodeOptions, Encoder};
use rust_tokenize::native::NativeEncoder;
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
        let all = SPECIAL.iter().chain(&["hello"]);
        let here = all.filter(|token| text.as_bytes()[at..].starts_with(token.as_bytes()));
        let Some(token) = here.max_by_key(|token| token.len()) else {
            at += 1;
            continue;
        };
        let end = at + token.len();
        let touches = (at..end).any(|byte| plain.iter().any(|range| range.contains(&byte)));
        if *token != "hello" && !touches {
            reference.encode(&text[done..at], AS_TEXT, &mut ids).unwrap();
            ids.push(reference.token_to_id(token).unwrap());
            done = end;
        }
        at = end;
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
        let reference = reference(&made);
        let mut random = Random::new(13);
        let extra: Vec<String> = SPECIAL.map(str::to_owned).to_vec();
        for _ in 0..3000 {
            let text = random_text(&mut random, &extra);
            let plain = random_ranges(&mut random, &text);
            let mut found = Vec::new();
            native.encode_around(&text, &plain, PARSED, &mut found).unwrap();
            assert_eq!(found, plainly(&reference, &text, &plain), "{text:?} {plain:?}");
            found.clear();
            native.encode_around(&text, &plain, AS_TEXT, &mut found).unwrap();
            let mut expected = Vec::new();
            reference.encode(&text, AS_TEXT, &mut expected).unwrap();
            assert_eq!(found, expected);
        }
    }
}

/// Tokens searched for in normalized text, where that has other positions than the text.
#[test]
#[allow(clippy::single_range_in_vec_init)] // a list of one range
fn plain_ranges_follow_the_text_through_its_normalizer() {
    let made = definition(json!({"type": "NFC"}), true);
    let native = NativeEncoder::from_slice(made.to_string().as_bytes()).unwrap();
    let token = native.token_to_id("<s>").unwrap();
    let text = "e\u{301}e\u{301} <s> e\u{301} <s> e\u{301}";
    let second = text.rfind("<s>").unwrap();
    let first = text.find("<s>").unwrap();
    let count = |plain: &[Range<usize>]| {
        let mut ids = Vec::new();
        native.encode_around(text, plain, PARSED, &mut ids).unwrap();
        ids.iter().filter(|&&id| id == token).count()
    };
    assert_eq!(count(&[]), 2);
    assert_eq!(count(&[0..first, first + 3..second, second + 3..text.len()]), 2);
    assert_eq!(count(&[0..first + 1]), 1);
    assert_eq!(count(&[second + 2..text.len()]), 1);
    assert_eq!(count(&[0..first + 1, second..second + 1]), 0);
    assert_eq!(count(&[0..text.len()]), 0);
    assert_eq!(count(&[first + 1..first + 1]), 2, "an empty range touches nothing");
}
