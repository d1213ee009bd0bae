//! The native engine beside the reference on small tokenizers made here: every pipeline it takes,
//! random vocabularies and merges, random added tokens.

use rust_tokenize::encoder::Encoder;
use rust_tokenize::hugging_face::HuggingFaceEncoder;
use rust_tokenize::native::NativeEncoder;
use rust_tokenize::native::model::byte_level_char;
use serde_json::{Map, Value, json};

use crate::native::compare;
use crate::random::{Folder, Random};

const LETTERS: &str = "abehlortw'sS1234.,!()=_-\n\t日本語é🙂<>|/k";

fn split(regex: &str) -> Value {
    json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false})
}

pub fn byte_level(add_prefix_space: bool, use_regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": true,
        "use_regex": use_regex})
}

fn in_sequence(steps: &[Value]) -> Value {
    json!({"type": "Sequence", "pretokenizers": steps})
}

/// Tokens of random pairs of tokens, and the merges that make them.
pub struct Vocabulary {
    pub tokens: Vec<String>,
    pub merges: Vec<Value>,
}

impl Vocabulary {
    fn grow(&mut self, random: &mut Random, pool: &mut Vec<String>, num_merges: usize) {
        for _ in 0..num_merges {
            let (left, right) =
                (random.pick::<String>(pool).clone(), random.pick::<String>(pool).clone());
            let merged = format!("{left}{right}");
            if !self.tokens.contains(&merged) {
                self.tokens.push(merged.clone());
                pool.push(merged);
            }
            // Also where the token was there: several pairs may make the same one.
            self.merges.push(json!([left, right]));
        }
    }

    pub fn vocab(&self) -> Map<String, Value> {
        self.tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect()
    }
}

pub fn byte_level_vocabulary(random: &mut Random) -> Vocabulary {
    let tokens = (0..=255).map(|byte| byte_level_char(byte).to_string()).collect();
    let mut vocabulary = Vocabulary { tokens, merges: Vec::new() };
    let letters = LETTERS.bytes().chain(*b"    ");
    let mut pool: Vec<String> = letters.map(|byte| byte_level_char(byte).to_string()).collect();
    vocabulary.grow(random, &mut pool, 300);
    vocabulary
}

/// `crossing`: merges may join the end of a word to a blank.
fn char_vocabulary(random: &mut Random, num_bytes: u8, crossing: bool) -> Vocabulary {
    let mut tokens = vec!["<unk>".to_owned(), "<s>".to_owned()];
    tokens.extend((0..num_bytes).map(|byte| format!("<0x{byte:02X}>")));
    let mut pool: Vec<String> =
        LETTERS.chars().filter(|letter| *letter != 'k').map(String::from).collect();
    tokens.extend(pool.iter().cloned());
    tokens.push("\u{2581}".to_owned());
    let mut vocabulary = Vocabulary { tokens, merges: Vec::new() };
    if crossing {
        pool.extend(["\u{2581}".to_owned(), "\u{2581}".to_owned()]);
        vocabulary.grow(random, &mut pool, 200);
        return vocabulary;
    }
    vocabulary.grow(random, &mut pool, 120);
    let mut blanks = vec!["\u{2581}".to_owned()];
    vocabulary.grow(random, &mut blanks, 3);
    for _ in 0..60 {
        let left = random.pick::<String>(&blanks).clone();
        let mut pair = vec![left, random.pick::<String>(&pool).clone()];
        let merged = pair.concat();
        if !vocabulary.tokens.contains(&merged) {
            vocabulary.tokens.push(merged.clone());
        }
        vocabulary.merges.push(json!(pair));
        pair.clear();
        blanks.push(merged);
    }
    vocabulary
}

fn added_tokens(random: &mut Random, vocabulary: &Vocabulary) -> Vec<Value> {
    let contents = ["<s>", "</s>", "<|end|>", "<|endoftext|>", "<|end", "he", "\u{e9}", "<mask>"];
    let mut next = vocabulary.tokens.len();
    let mut entries = Vec::new();
    for content in contents {
        if random.below(3) == 0 {
            continue;
        }
        let known = vocabulary.tokens.iter().position(|token| token == content);
        let id = known.unwrap_or(next);
        next += usize::from(known.is_none());
        let mut flag = || random.below(2) == 0;
        entries.push(json!({"id": id, "content": content, "single_word": flag(), "lstrip": flag(),
            "rstrip": flag(), "normalized": flag(), "special": flag()}));
    }
    entries
}

fn definition(
    random: &mut Random,
    vocabulary: &Vocabulary,
    normalizer: Value,
    pre_tokenizer: Value,
) -> Value {
    json!({
        "version": "1.0",
        "added_tokens": added_tokens(random, vocabulary),
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": {"type": "Sequence", "processors": [
            {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true},
            {"type": "TemplateProcessing",
             "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                        {"SpecialToken": {"id": "e", "type_id": 0}}],
             "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
             "special_tokens": {"<s>": {"id": "<s>", "ids": [1, 2], "tokens": ["<s>", "<s>"]},
                                "e": {"id": "e", "ids": [3], "tokens": ["e"]}}}]},
        "decoder": null,
        "model": {"type": "BPE", "vocab": vocabulary.vocab(), "merges": vocabulary.merges},
    })
}

pub fn reference(definition: &Value) -> HuggingFaceEncoder {
    let folder = Folder::new();
    HuggingFaceEncoder::from_file(&folder.write("tokenizer.json", definition.to_string())).unwrap()
}

fn native(definition: &Value) -> NativeEncoder {
    NativeEncoder::from_slice(definition.to_string().as_bytes()).expect("a native definition")
}

#[test]
fn byte_level_pipelines() {
    let cl100k = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let removed = json!({"type": "Split", "pattern": {"Regex": cl100k}, "behavior": "Removed", "invert": true});
    let digits = json!({"type": "Digits", "individual_digits": true});
    let pre_tokenizers = [
        byte_level(false, true),
        byte_level(true, true),
        byte_level(false, false),
        byte_level(true, false),
        in_sequence(&[split(cl100k), byte_level(false, false)]),
        in_sequence(&[split(&cl100k.replace("{1,3}", "")), byte_level(false, false)]),
        in_sequence(&[removed, byte_level(false, false)]),
        in_sequence(&[digits, byte_level(false, true)]),
    ];
    let mut random = Random::new(3);
    for pre_tokenizer in pre_tokenizers {
        for normalizer in [Value::Null, json!({"type": "NFC"})] {
            let vocabulary = byte_level_vocabulary(&mut random);
            let mut made = definition(&mut random, &vocabulary, normalizer, pre_tokenizer.clone());
            made["model"]["ignore_merges"] = json!(random.below(2) == 0);
            compare(&native(&made), &reference(&made), 150, 5);
        }
    }
}

#[test]
fn sentencepiece_style_pipelines() {
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"});
    let prepend = json!({"type": "Prepend", "prepend": "\u{2581}"});
    let both = json!({"type": "Sequence", "normalizers": [prepend, replace]});
    let no_op = json!({"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": false});
    let metaspace = |scheme: &str, split: bool| json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": scheme, "split": split});
    let older = json!({"type": "Metaspace", "replacement": "\u{2581}", "str_rep": "\u{2581}", "add_prefix_space": true});
    let mut pipelines = vec![
        (both, Value::Null),
        (replace.clone(), Value::Null),
        (replace, no_op),
        (Value::Null, older),
    ];
    for scheme in ["first", "always", "never"] {
        pipelines.extend([true, false].map(|split| (Value::Null, metaspace(scheme, split))));
    }
    let mut random = Random::new(4);
    for (normalizer, pre_tokenizer) in pipelines {
        for case in 0..12 {
            let num_bytes = [255, 200, 0][case % 3];
            let crossing = case % 2 == 0;
            let mut vocabulary = char_vocabulary(&mut random, num_bytes, crossing);
            if num_bytes == 255 {
                vocabulary.tokens.push("<0xFF>".to_owned());
            }
            let mut made =
                definition(&mut random, &vocabulary, normalizer.clone(), pre_tokenizer.clone());
            made["model"]["byte_fallback"] = json!(num_bytes > 0);
            made["model"]["fuse_unk"] = json!(random.below(2) == 0);
            if random.below(4) > 0 {
                made["model"]["unk_token"] = json!("<unk>");
            }
            compare(&native(&made), &reference(&made), 60, 6);
        }
    }
}

/// The order of an unknown token and of bytes that stand for a character, as the reference has it.
#[test]
fn bytes_overtake_a_waiting_unknown_token() {
    let mut made = definition(
        &mut Random::new(1),
        &Vocabulary { tokens: vec![], merges: vec![] },
        Value::Null,
        json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "never", "split": false}),
    );
    made["added_tokens"] = json!([]);
    made["model"] = json!({"type": "BPE", "unk_token": "<unk>", "byte_fallback": true, "fuse_unk": true,
        "vocab": {"<unk>": 0, "a": 1, "<0xC3>": 2, "<0xA9>": 3}, "merges": []});
    let (native, reference) = (native(&made), reference(&made));
    for (text, expected) in
        [("b\u{e9}", vec![2, 3, 0]), ("b\u{e9}b", vec![2, 3, 0]), ("ba\u{e9}", vec![0, 1, 2, 3])]
    {
        let options = crate::native::all_options()[2];
        let mut ids = Vec::new();
        native.encode(text, options, &mut ids).unwrap();
        assert_eq!(ids, expected, "{text}");
        ids.clear();
        reference.encode(text, options, &mut ids).unwrap();
        assert_eq!(ids, expected, "{text}");
    }
}

/// A long piece is cut where no token joins two characters, and `ignore_merges` is for pieces alone:
/// a part of one that is a token as a whole is still merged.
#[test]
fn a_part_of_a_piece_is_merged_though_a_piece_is_a_token() {
    let spelled = |text: &str| text.bytes().map(byte_level_char).collect::<String>();
    let mut vocabulary = byte_level_vocabulary(&mut Random::new(2));
    vocabulary.tokens.push(spelled("\u{6771}\u{4eac}"));
    let mut made =
        definition(&mut Random::new(2), &vocabulary, Value::Null, byte_level(false, true));
    made["added_tokens"] = json!([]);
    made["model"]["ignore_merges"] = json!(true);
    let (native, reference) = (native(&made), reference(&made));
    let options = crate::native::all_options()[2];
    let long = "\u{4eba}".repeat(5) + "\u{6771}\u{4eac}";
    for (text, num_ids) in [("\u{6771}\u{4eac}", 1), (&*long, 21), ("\u{6771}\u{4eac}", 1)] {
        let (mut ids, mut expected) = (Vec::new(), Vec::new());
        native.encode(text, options, &mut ids).unwrap();
        reference.encode(text, options, &mut expected).unwrap();
        assert_eq!((ids.len(), ids), (num_ids, expected), "{text}");
    }
}

/// A byte-level and a SentencePiece-style definition.
pub fn some_definitions() -> Vec<Value> {
    let mut random = Random::new(9);
    let vocabulary = byte_level_vocabulary(&mut random);
    let first = definition(&mut random, &vocabulary, Value::Null, byte_level(false, true));
    let vocabulary = char_vocabulary(&mut random, 255, false);
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"});
    let mut second = definition(&mut random, &vocabulary, replace, Value::Null);
    second["model"]["byte_fallback"] = json!(true);
    second["model"]["unk_token"] = json!("<unk>");
    vec![first, second]
}
