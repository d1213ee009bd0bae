//! Mutated inputs: whatever a file or a line holds, it ends in a value or in an [`Error`].
//!
//! Deterministic and bounded; `FUZZ_EXECUTIONS` asks for more of each. Executions that panic fail
//! by themselves where nothing guards; where a guard turns a panic into an error, its text tells.

use std::io::Cursor;
use std::path::Path;

use rust_tokenize::encoder::{EncodeOptions, Encoder};
use rust_tokenize::error::{Error, Result, guard};
use rust_tokenize::hugging_face::HuggingFaceEncoder;
use rust_tokenize::lines::LineReader;
use rust_tokenize::native::NativeEncoder;
use rust_tokenize::native::model::byte_level_char;
use serde_json::Value;

use crate::json_lines::check;
use crate::random::{Folder, Random};

const LINES: [&str; 8] = [
    r#"{"prompt":"a","response":"b"}"#,
    r#"{"a":[1,-2.5e3,true,false,null,{"b":"\u00e9\ud83d\ude42\n"}],"c":{}}"#,
    "{\"é\":\"日本\u{2028}\",\"x\":\"\\\\\\\"\\/\\b\\f\"}",
    r#"  {"k":0.0001,"l":1E+10,"m":-0}  "#,
    r#"{"deep":[[[[[[[[[[[[{"a":[]}]]]]]]]]]]]]}"#,
    r#"{"long":123456789012345678901234567890.5e-300}"#,
    r#"{"a":1,"b":2,"a":3}"#,
    "[]",
];
const PIECES: [&str; 24] = [
    "{", "}", "[", "]", ",", ":", "\"", "\\", "\\u", "d800", "\\udc00", "\u{feff}", "1e999", "NaN",
    "-", "0", ".", "e", "null", "tru", "\r", "\n", "\u{0}", "\"a\":",
];

fn executions(default: usize) -> usize {
    std::env::var("FUZZ_EXECUTIONS").map_or(default, |text| text.parse().unwrap())
}

/// One to `most` edits: a byte changed, a piece put in or taken out, a part doubled, the end cut off.
fn mutated(random: &mut Random, most: usize, seeds: &[&[u8]], pieces: &[&str]) -> Vec<u8> {
    let mut bytes = random.pick(seeds).to_vec();
    for _ in 0..random.within(1..most + 1) {
        let at = random.below(bytes.len() + 1);
        let end = at + random.below((bytes.len() - at).min(24) + 1);
        match random.below(6) {
            0 if at < bytes.len() => bytes[at] = u8::try_from(random.below(256)).unwrap(),
            1 => drop(bytes.drain(at..end)),
            2 => {
                let copy = bytes[at..end].to_vec();
                bytes.splice(at..at, copy).for_each(drop);
            }
            3 => {
                let other = random.pick(seeds);
                let from = random.below(other.len() + 1);
                bytes.splice(at..end, other[from..].iter().copied()).for_each(drop);
            }
            4 if random.below(8) == 0 => bytes.truncate(at),
            _ => drop(bytes.splice(at..at, random.pick(pieces).bytes())),
        }
    }
    bytes
}

#[test]
fn mutated_lines_are_judged_without_a_panic() {
    let mut random = Random::new(17);
    let seeds = LINES.map(str::as_bytes);
    let mut accepted = 0;
    let count = executions(200_000);
    for _ in 0..count {
        let line = mutated(&mut random, 6, &seeds, &PIECES);
        match check(&line) {
            Ok(text) => {
                assert_eq!(text.as_bytes(), line);
                let value = serde_json::from_slice::<Value>(&line);
                assert!(value.is_ok_and(|value| value.is_object()), "{text:?}");
                accepted += 1;
            }
            Err(problem) => {
                assert!(problem.code.starts_with("E_JSON_"), "{problem:?}");
                assert!(problem.reason.starts_with("column "), "{problem:?}");
                assert!(!problem.reason.contains(char::is_control), "{problem:?}");
            }
        }
    }
    assert!(accepted > count / 100, "{accepted} of {count}"); // both outcomes are tried
}

#[test]
fn mutated_files_are_read_as_a_plain_reader_would() {
    let mut random = Random::new(18);
    let whole = LINES.join("\n");
    let seeds = [whole.as_bytes(), b"\xEF\xBB\xBF{}\r\n\n {\"a\":\"\xFF\"}", b""];
    for number in 0..executions(2_000) {
        let bytes = mutated(&mut random, 6, &seeds, &PIECES);
        let limit = random.within(1..80);
        let source = Cursor::new(bytes.clone());
        let mut reader = LineReader::from_reader(Path::new("lines"), source, limit).unwrap();
        let mut found = Vec::new();
        loop {
            let batch = reader.read_batch(random.within(1..9)).unwrap();
            if batch.is_empty() {
                break;
            }
            found.extend(batch.into_iter().map(|line| (line.number, line.text.is_ok())));
        }
        assert_eq!(found, plainly(&bytes, limit), "execution {number}");
        assert_eq!(reader.bytes_read(), bytes.len() as u64);
    }
}

/// Number of each line that is not blank, and whether it is an object.
fn plainly(bytes: &[u8], limit: usize) -> Vec<(u64, bool)> {
    let mut lines: Vec<&[u8]> = bytes.split(|&byte| byte == b'\n').collect();
    if lines.last() == Some(&b"".as_slice()) {
        lines.pop();
    }
    let judge = |(index, line): (usize, &&[u8])| {
        let number = index as u64 + 1;
        let body =
            if index == 0 { line.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(line) } else { line };
        let blank = body.iter().all(|byte| b" \t\r".contains(byte));
        (line.len() > limit)
            .then_some((number, false))
            .or_else(|| (!blank).then(|| (number, check(body).is_ok())))
    };
    lines.iter().enumerate().filter_map(judge).collect()
}

const BYTE_LEVEL: &str = r#"{"version":"1.0","added_tokens":[{"id":258,"content":"<s>","special":true,
"normalized":false,"single_word":false,"lstrip":false,"rstrip":false}],"normalizer":null,
"pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true},
"post_processor":null,"decoder":{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,
"use_regex":true},"model":{"type":"BPE","dropout":null,"unk_token":null,"fuse_unk":false,
"byte_fallback":false,"ignore_merges":false,"vocab":{@,"ab":256,"Ġa":257},
"merges":[["a","b"],["Ġ","a"]]}}"#;
const SENTENCEPIECE: &str = r#"{"version":"1.0","added_tokens":[{"id":0,"content":"<unk>",
"special":true,"normalized":false,"single_word":false,"lstrip":true,"rstrip":false}],
"normalizer":{"type":"Sequence","normalizers":[{"type":"Prepend","prepend":"▁"},{"type":"Replace",
"pattern":{"String":" "},"content":"▁"}]},"pre_tokenizer":null,"post_processor":{"type":
"TemplateProcessing","single":[{"SpecialToken":{"id":"<unk>","type_id":0}},{"Sequence":{"id":"A",
"type_id":0}}],"pair":[{"Sequence":{"id":"A","type_id":0}},{"Sequence":{"id":"B","type_id":1}}],
"special_tokens":{"<unk>":{"id":"<unk>","ids":[0],"tokens":["<unk>"]}}},"decoder":{"type":"Sequence",
"decoders":[{"type":"Replace","pattern":{"String":"▁"},"content":" "},{"type":"ByteFallback"},
{"type":"Fuse"},{"type":"Strip","content":" ","start":1,"stop":0}]},"model":{"type":"BPE",
"dropout":null,"unk_token":"<unk>","fuse_unk":true,"byte_fallback":true,"vocab":{"<unk>":0,"a":1,
"▁":2,"▁a":3,"<0xC3>":4,"<0xA9>":5},"merges":["▁ a"]}}"#;
const FIELDS: [&str; 24] = [
    "null",
    "true",
    "-1",
    "4294967295",
    "4294967296",
    "1e999",
    "\"\"",
    "[]",
    "{}",
    "\"ab\":9,",
    "\"ignore_merges\":true",
    "\"byte_fallback\":true",
    "\"type\":\"Metaspace\"",
    "[[\"a\",\"a\"]]",
    "\"NFC\"",
    "\"Split\"",
    "{\"Regex\":\"(\"}",
    "\"special\":true",
    "\"rstrip\":true",
    "▁",
    "[[[[[[",
    "\"normalized\":true",
    "\"##\"",
    "\\u0000",
];
const TEXTS: [&str; 8] = [
    "",
    "ab a\u{e9}b",
    "<s>ab<s",
    " \n ",
    "▁a▁",
    "\u{0}\u{10ffff}",
    "<unk> <unk>a",
    "e\u{301}'s 12",
];

/// All 256 bytes as entries of a vocabulary.
fn byte_entries() -> String {
    let entry = |byte: u8| format!("{}:{byte}", Value::from(byte_level_char(byte).to_string()));
    (0..=255).map(entry).collect::<Vec<_>>().join(",")
}

/// What a caller may do with a definition: the ids of all texts, one after the other.
fn use_it(encoder: &dyn Encoder) -> Result<Vec<i32>> {
    let mut ids = Vec::new();
    for (number, text) in TEXTS.iter().cycle().take(4 * TEXTS.len()).enumerate() {
        let options = EncodeOptions {
            add_special_tokens: number % 2 == 0,
            parse_special: number % 3 > 0,
            continuation: number % 5 > 2,
        };
        encoder.prepare(options)?;
        encoder.encode(text, options, &mut ids)?;
    }
    let known: Vec<u32> = ids.iter().map(|&id| id.cast_unsigned()).chain([u32::MAX]).collect();
    encoder.decode(&known, true)?;
    Ok(ids)
}

#[test]
fn mutated_definitions_load_or_are_refused() {
    let mut random = Random::new(19);
    let folder = Folder::new();
    let (mut loaded, mut native, mut refused) = (0, 0, 0);
    let byte_level = BYTE_LEVEL.replace('@', &byte_entries());
    let seeds = [byte_level.as_bytes(), SENTENCEPIECE.as_bytes()];
    let total = executions(5_000);
    for number in 0..total {
        let text = mutated(&mut random, 2, &seeds, &FIELDS);
        let path = folder.write("tokenizer.json", &text);
        let used = HuggingFaceEncoder::from_file(&path).and_then(|it| guard(|| use_it(&it)));
        // Nothing guards this one: a panic fails here.
        let ours = NativeEncoder::from_slice(&text).map(|it| use_it(&it));
        match (used, ours) {
            (Ok(expected), Some(found)) => {
                assert_eq!(found.unwrap(), expected, "execution {number}");
                native += 1;
            }
            (Ok(_), None) => loaded += 1,
            // The linked crate panics on some definitions; the place in the text is in its folder.
            (Err(Error::Tokenizer(_)), None) => refused += 1,
            (Err(Error::Panic(text)), None) if text.contains("tokenizers-0.") => refused += 1,
            (Err(error), ours) => panic!(
                "execution {number}: {error}; native: {ours:?}\n{}",
                String::from_utf8_lossy(&text)
            ),
        }
    }
    let counts = [loaded, native, refused];
    assert!(counts.iter().all(|&count| count > total / 100), "{counts:?}");
}

#[test]
fn what_the_reference_fails_at_is_not_native() {
    assert!(NativeEncoder::from_slice(SENTENCEPIECE.as_bytes()).is_some());
    for (old, new) in [
        (r#"{"id":"A","#, r#"{"id":"A","id":"A","#), // a key twice
        (r#""type":"BPE""#, r#""type":null"#),
        (r#""start":1,"stop":0"#, r#""start":1,"stop":1"#), // panics on short tokens
    ] {
        let edited = SENTENCEPIECE.replace(old, new);
        assert_ne!(edited, SENTENCEPIECE);
        assert!(NativeEncoder::from_slice(edited.as_bytes()).is_none(), "{new}");
    }
}
