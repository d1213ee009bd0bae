//! Loading, threads, special tokens and continuations, with definitions small enough to read.

use rust_tokenize::continuation::{Sections, without_prefix};
use rust_tokenize::encoder::{AddedToken, EncodeOptions, Encoder, encode_batch};
use rust_tokenize::error::{Error, Result};
use rust_tokenize::hugging_face::HuggingFaceEncoder;
use serde_json::{Value, json};

use crate::random::{Folder, Random};

const PLAIN: EncodeOptions =
    EncodeOptions { add_special_tokens: false, parse_special: true, continuation: false };

/// A character-level model with a blank mark, one merge and two special tokens.
fn definition(normalizer: Value, pre_tokenizer: Value) -> Value {
    json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
                    "pad_type_id": 0, "pad_token": "<unk>"},
        "added_tokens": [
            {"id": 0, "content": "<unk>", "single_word": false, "lstrip": false, "rstrip": false,
             "normalized": false, "special": true},
            {"id": 7, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
             "normalized": false, "special": true},
        ],
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [7], "tokens": ["<s>"]}}},
        "decoder": null,
        "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": false,
            "vocab": {"<unk>": 0, "▁": 1, "a": 2, "b": 3, "▁a": 4, "<": 5, ">": 6}, "merges": [["▁", "a"]]},
    })
}

fn metaspace(scheme: &str) -> Value {
    json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false})
}

fn load(definition: &Value) -> Result<HuggingFaceEncoder> {
    let folder = Folder::new();
    HuggingFaceEncoder::from_file(&folder.write("tokenizer.json", definition.to_string()))
}

fn ids(encoder: &dyn Encoder, text: &str, options: EncodeOptions) -> Vec<i32> {
    encode_batch(encoder, &[text], options, Some(1)).unwrap().ids
}

#[test]
fn stored_truncation_and_padding_do_not_apply() {
    let encoder = load(&definition(Value::Null, metaspace("first"))).unwrap();
    assert_eq!(ids(&encoder, "a b a", PLAIN), [4, 1, 3, 4]);
    assert_eq!(ids(&encoder, "", PLAIN), Vec::<i32>::new());
}

#[test]
fn special_tokens_are_parsed_added_or_plain() {
    let encoder = load(&definition(Value::Null, metaspace("first"))).unwrap();
    assert_eq!(ids(&encoder, "a<s>b", PLAIN), [4, 7, 3]);
    assert_eq!(
        ids(&encoder, "a<s>b", EncodeOptions { parse_special: false, ..PLAIN }),
        [4, 5, 0, 6, 3]
    );
    assert_eq!(ids(&encoder, "a", EncodeOptions { add_special_tokens: true, ..PLAIN }), [7, 4]);
    let added = |content: &str, id| AddedToken { content: content.to_owned(), id, special: true };
    assert_eq!(encoder.added_tokens(), [added("<unk>", 0), added("<s>", 7)]);
    assert_eq!(encoder.vocab_size(), 8);
    assert_eq!((encoder.token_to_id("<s>"), encoder.token_to_id("zz")), (Some(7), None));
    assert_eq!((encoder.id_to_token(4).as_deref(), encoder.id_to_token(99)), (Some("▁a"), None));
    assert_eq!(encoder.decode(&[7, 2, 3], false).unwrap(), "<s> a b");
    assert_eq!(encoder.decode(&[7, 2, 3, 99], true).unwrap(), "a b");
}

#[test]
fn a_continuation_has_no_blank_in_front() {
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let prepend = json!({"type": "Prepend", "prepend": "▁"});
    let both = json!({"type": "Sequence", "normalizers": [prepend, replace]});
    let continuing = EncodeOptions { continuation: true, ..PLAIN };
    let forms = [
        definition(Value::Null, metaspace("first")),
        definition(Value::Null, metaspace("always")),
        definition(
            Value::Null,
            json!({"type": "Metaspace", "replacement": "▁", "add_prefix_space": true, "split": false}),
        ),
        definition(both, Value::Null),
    ];
    for form in forms {
        let encoder = load(&form).unwrap();
        assert_eq!(ids(&encoder, "a", PLAIN), [4], "{form}");
        assert_eq!(ids(&encoder, "a", continuing), [2], "{form}");
        assert_eq!(ids(&encoder, " a", continuing), [4], "{form}");
        assert_eq!(
            ids(&encoder, "a<s>", EncodeOptions { parse_special: false, ..continuing }),
            [2, 5, 0, 6]
        );
        assert_eq!(ids(&encoder, "a", PLAIN), [4], "{form}"); // the first reading is untouched
    }
}

#[test]
fn continuations_that_cannot_be_are_refused() {
    let words = json!({"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace("always")]});
    let encoder = load(&definition(Value::Null, words)).unwrap();
    let options = EncodeOptions { continuation: true, ..PLAIN };
    let refused = encode_batch(&encoder, &["a"], options, None);
    assert!(matches!(refused, Err(Error::Tokenizer(_))), "{refused:?}");
    assert!(encode_batch(&encoder, &["a"], PLAIN, None).is_ok());
}

#[test]
fn only_what_puts_a_blank_in_front_is_taken_out() {
    let sections = |pre_tokenizer| Sections { normalizer: json!({"type": "NFC"}), pre_tokenizer };
    let byte_level =
        |prefix: Value| json!({"type": "ByteLevel", "add_prefix_space": prefix, "use_regex": true});
    assert_eq!(without_prefix(&sections(byte_level(json!(false)))).unwrap(), None);
    assert_eq!(without_prefix(&sections(Value::Null)).unwrap(), None);
    assert_eq!(without_prefix(&sections(metaspace("never"))).unwrap(), None);
    let edited = without_prefix(&sections(byte_level(json!(true)))).unwrap();
    assert_eq!(edited, Some(sections(byte_level(json!(false)))));
}

#[test]
fn ids_do_not_depend_on_threads() {
    let encoder = load(&definition(Value::Null, metaspace("first"))).unwrap();
    let mut random = Random::new(7);
    let pieces = ["a", "b", " ", "<s>", "é", "aaaa", ""];
    let mut text = || -> String { (0..random.below(400)).map(|_| *random.pick(&pieces)).collect() };
    let texts: Vec<String> = (0..500).map(|_| text()).collect();
    let alone = encode_batch(&encoder, &texts, PLAIN, Some(1)).unwrap();
    assert_eq!(alone.offsets.len(), texts.len() + 1);
    for num_threads in [Some(2), Some(3), Some(16), None] {
        assert_eq!(encode_batch(&encoder, &texts, PLAIN, num_threads).unwrap(), alone);
    }
    let refused = encode_batch(&encoder, &texts, PLAIN, Some(0));
    assert!(matches!(refused, Err(Error::Argument(_))));
    let nothing: [&str; 0] = [];
    assert_eq!(encode_batch(&encoder, &nothing, PLAIN, None).unwrap().offsets, [0]);
}

/// Fails or panics on some texts.
struct Faulty;

impl Encoder for Faulty {
    fn engine(&self) -> &'static str {
        "faulty"
    }
    fn vocab_size(&self) -> usize {
        0
    }
    fn prepare(&self, _: EncodeOptions) -> Result<()> {
        Ok(())
    }
    fn encode(&self, text: &str, _: EncodeOptions, ids: &mut Vec<i32>) -> Result<()> {
        assert!(!text.starts_with('!'), "out of bounds");
        ids.push(1);
        Ok(())
    }
    fn decode(&self, _: &[u32], _: bool) -> Result<String> {
        Ok(String::new())
    }
    fn token_to_id(&self, _: &str) -> Option<i32> {
        None
    }
    fn id_to_token(&self, _: u32) -> Option<String> {
        None
    }
    fn added_tokens(&self) -> Vec<AddedToken> {
        Vec::new()
    }
}

#[test]
fn a_panic_in_a_tokenizer_names_the_first_text_concerned() {
    let mut texts = vec!["x".repeat(1000); 500];
    texts[321] = "!".to_owned();
    texts[499] = "!".to_owned();
    for num_threads in [1, 4] {
        let error = encode_batch(&Faulty, &texts, PLAIN, Some(num_threads)).unwrap_err();
        assert!(matches!(error, Error::Tokenizer(_)));
        let text = error.to_string();
        assert!(text.contains("text 321 of the batch") && text.contains("out of bounds"), "{text}");
    }
}

#[test]
fn bad_definitions_are_refused_with_their_section() {
    let good = || definition(Value::Null, metaspace("first"));
    let changed = |path: &str, value: Value| {
        let mut changed = good();
        *changed.pointer_mut(path).unwrap() = value;
        changed
    };
    let cases = [
        (changed("/version", json!("2.0")), "version"),
        (changed("/model", json!({"type": "BPE"})), "`model`"),
        (changed("/model", Value::Null), "model"),
        (changed("/model/merges", json!([["a", "zz"]])), "`model`"),
        (changed("/pre_tokenizer", json!({"type": "Unknown"})), "`pre_tokenizer`"),
        (changed("/normalizer", json!({"type": "Strip"})), "`normalizer`"),
        (changed("/post_processor", json!(3)), "`post_processor`"),
        (changed("/decoder", json!({"type": "Strip"})), "`decoder`"),
        (changed("/added_tokens", json!([{"id": 1}])), "file"),
        (changed("/added_tokens/1/id", json!(9)), "`<s>`"),
        (changed("/added_tokens/1/id", json!(1_u64 << 40)), "file"),
        (json!([]), "file"),
        (json!({}), "model"),
    ];
    for (bad, name) in cases {
        let error = load(&bad).map(|_| ()).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, Error::Tokenizer(_)) && text.contains(name), "{name}: {text}");
    }
    let mut dropout = good();
    dropout["model"]["dropout"] = json!(0.1);
    assert!(load(&dropout).map(|_| ()).unwrap_err().to_string().contains("dropout"));
}

#[test]
fn files_that_are_no_definition_are_refused() {
    let folder = Folder::new();
    for bytes in [&b""[..], b"{", b"\xff\xfe", b"\x80\x04pickle", b"nul"] {
        let path = folder.write("tokenizer.json", bytes);
        let refused = HuggingFaceEncoder::from_file(&path).map(|_| ());
        assert!(matches!(refused, Err(Error::Tokenizer(_))), "{refused:?}");
    }
    let missing = HuggingFaceEncoder::from_file(&folder.path().join("none")).map(|_| ());
    assert!(matches!(missing, Err(Error::Io { .. })));
}

#[test]
fn damaged_definitions_never_panic() {
    let sound = definition(json!({"type": "NFC"}), metaspace("first")).to_string();
    let folder = Folder::new();
    for seed in 0..600 {
        let mut random = Random::new(seed);
        let mut bytes = sound.clone().into_bytes();
        for _ in 0..random.within(1..4) {
            let at = random.below(bytes.len());
            match random.below(3) {
                0 => bytes[at] = *random.pick(b"0123456789{}[]\":,-a\xff"),
                1 => drop(bytes.remove(at)),
                _ => bytes.truncate(at.max(1)),
            }
        }
        let path = folder.write("tokenizer.json", bytes);
        if let Ok(encoder) = HuggingFaceEncoder::from_file(&path) {
            let options = EncodeOptions { add_special_tokens: true, continuation: true, ..PLAIN };
            let _ = encode_batch(&encoder, &["a b<s> é"], options, Some(1));
        }
    }
}
