//! Every way in which a line can be bad, and a comparison with another parser on random lines.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::path::Path;

use rust_tokenize::error::Error;
use rust_tokenize::json::{MAX_DEPTH, Problem, scan_object};
use rust_tokenize::lines::{Line, LineReader};
use serde_json::Value;

use crate::random::{Folder, Random};

/// Nobody asks for the parts of the line.
pub fn check(line: &[u8]) -> Result<&str, Problem> {
    scan_object(line, &mut Vec::new(), 0)
}

fn nested(depth: usize) -> String {
    format!("{{\"a\":{}{}}}", "[".repeat(depth - 1), "]".repeat(depth - 1))
}

#[test]
fn good_lines_pass_unchanged() {
    let lines = [
        r"{}",
        r#" {"a" : [1, -0, 0.5, 1e308, -1E-999, 1e+2, true, false, null, {}, []]} "#,
        r#"{"a":"\"\\\/\b\f\n\r\t\u0041\uD83D\uDE00","b":"é日本🙂"}"#,
        "{\"a\":\"line\u{2028}separator\u{85}\u{7f}\"}\r",
        r#"{"a":{"a":{"a":1}},"b":{"a":1}}"#,
        r#"{"a":123456789012345678901234567890}"#,
        r#"{"a":"\ufeff"}"#,
        r#"{"":0}"#,
    ];
    for line in lines {
        assert_eq!(check(line.as_bytes()).unwrap(), line);
    }
    assert!(check(nested(MAX_DEPTH).as_bytes()).is_ok());
}

#[test]
fn bad_lines_are_named_with_their_column() {
    let digits = "9".repeat(400);
    let cases: Vec<(Vec<u8>, &str, usize)> = vec![
        (b"{\"a\":\"\xff\"}".to_vec(), "E_JSON_UTF8", 7),
        (b"{\"a\":\"\xc0\xaf\"}".to_vec(), "E_JSON_UTF8", 7), // overlong
        (b"{\"a\":\"\xed\xa0\x80\"}".to_vec(), "E_JSON_UTF8", 7), // a surrogate as bytes
        (b"{\"a\":\"\xe2\x82".to_vec(), "E_JSON_UTF8", 7),
        (b"\xff\xfe{\0".to_vec(), "E_JSON_UTF8", 1),
        (br#"{"a":NaN}"#.to_vec(), "E_JSON_NUMBER", 6),
        (br#"{"a":Infinity}"#.to_vec(), "E_JSON_NUMBER", 6),
        (br#"{"a":-Infinity}"#.to_vec(), "E_JSON_NUMBER", 7),
        (br#"{"a":1e999}"#.to_vec(), "E_JSON_NUMBER", 6),
        (format!("{{\"a\":{digits}}}").into_bytes(), "E_JSON_NUMBER", 6),
        (br#"{"a":"\ud800"}"#.to_vec(), "E_JSON_SURROGATE", 7),
        (br#"{"a":"\udc00"}"#.to_vec(), "E_JSON_SURROGATE", 7),
        (br#"{"a":"x\ud800\ud800"}"#.to_vec(), "E_JSON_SURROGATE", 8),
        (br#"{"a":"\ud800\u0041"}"#.to_vec(), "E_JSON_SURROGATE", 7),
        (br#"{"a":1,"a":2}"#.to_vec(), "E_JSON_DUPLICATE_KEY", 8),
        (br#"{"a":1,"\u0061":2}"#.to_vec(), "E_JSON_DUPLICATE_KEY", 8),
        (br#"{"b":[{"a":1,"a":2}]}"#.to_vec(), "E_JSON_DUPLICATE_KEY", 14),
        (b"\xef\xbb\xbf{}".to_vec(), "E_JSON_SYNTAX", 1),
        (br#"{"a":1} {"a":2}"#.to_vec(), "E_JSON_SYNTAX", 9),
        (br#"{"a":1}{"a":2}"#.to_vec(), "E_JSON_SYNTAX", 8),
        (nested(MAX_DEPTH + 1).into_bytes(), "E_JSON_DEPTH", 69),
        (nested(200_000).into_bytes(), "E_JSON_DEPTH", 69),
        ("[".repeat(200_000).into_bytes(), "E_JSON_DEPTH", 65),
        (b"[1]".to_vec(), "E_JSON_NOT_OBJECT", 1),
        (b"  \"a\"".to_vec(), "E_JSON_NOT_OBJECT", 3),
        (b"null".to_vec(), "E_JSON_NOT_OBJECT", 1),
        (br#"{"a":"b"#.to_vec(), "E_JSON_SYNTAX", 8),
        (br#"{"a":"b""#.to_vec(), "E_JSON_SYNTAX", 9),
        (br#"{"a":"#.to_vec(), "E_JSON_SYNTAX", 6),
        (br#"{"a":tru}"#.to_vec(), "E_JSON_SYNTAX", 6),
        (b"{".to_vec(), "E_JSON_SYNTAX", 2),
        (b"{'a':1}".to_vec(), "E_JSON_SYNTAX", 2),
        (b"{a:1}".to_vec(), "E_JSON_SYNTAX", 2),
        (br#"{"a":1,}"#.to_vec(), "E_JSON_SYNTAX", 8),
        (br#"{"a":[1,]}"#.to_vec(), "E_JSON_SYNTAX", 9),
        (br#"{"a" 1}"#.to_vec(), "E_JSON_SYNTAX", 6),
        (b"{\"a\":\"\t\"}".to_vec(), "E_JSON_SYNTAX", 7),
        (br#"{"a":"\x"}"#.to_vec(), "E_JSON_SYNTAX", 8),
        (br#"{"a":"\u12g4"}"#.to_vec(), "E_JSON_SYNTAX", 11),
        (br#"{"a":01}"#.to_vec(), "E_JSON_SYNTAX", 7),
        (br#"{"a":1.}"#.to_vec(), "E_JSON_SYNTAX", 8),
        (br#"{"a":.5}"#.to_vec(), "E_JSON_SYNTAX", 6),
        (br#"{"a":+1}"#.to_vec(), "E_JSON_SYNTAX", 6),
        (br#"{"a":1e}"#.to_vec(), "E_JSON_SYNTAX", 8),
        (b"{\"a\":1} // no".to_vec(), "E_JSON_SYNTAX", 9),
        (b"\0\0\0".to_vec(), "E_JSON_SYNTAX", 1),
        (b"\xc2\xa0{}".to_vec(), "E_JSON_SYNTAX", 1), // a blank, but not one of JSON's
    ];
    for (line, code, column) in cases {
        let shown = String::from_utf8_lossy(&line[..line.len().min(60)]).into_owned();
        let problem = check(&line).expect_err(&shown);
        assert_eq!(problem.code, code, "{shown}: {}", problem.reason);
        assert!(problem.reason.starts_with(&format!("column {column}: ")), "{shown}: {problem:?}");
        assert!(problem.reason.contains("expected"), "{problem:?}");
        assert!(!problem.reason.chars().any(char::is_control), "{problem:?}");
    }
}

/// Pieces that, strung together, are sometimes JSON.
const PIECES: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\"a\"",
    "\"b\"",
    "\"\\u0061\"",
    "\"\\ud83d\\ude00\"",
    "1",
    "-2.5",
    "0",
    "1e5",
    "1e999",
    "true",
    "null",
    " ",
    "\"\\n\"",
    "\"é\"",
    "\"\\ud800\"",
    "NaN",
    "\"",
    "\\",
    "\u{1}",
    "{\"k\":",
];

fn random_value(random: &mut Random, depth: usize) -> String {
    match random.below(if depth > 4 { 4 } else { 6 }) {
        0 => (*random.pick(&["0", "-1.5e3", "12345", "1E-7"])).to_owned(),
        1 => (*random.pick(&["true", "false", "null"])).to_owned(),
        2 | 3 => (*random.pick(&["\"\"", "\"é\\n\"", "\"\\ud83d\\ude00\"", "\"a b\""])).to_owned(),
        4 => {
            let items: Vec<_> =
                (0..random.below(4)).map(|_| random_value(random, depth + 1)).collect();
            format!("[{}]", items.join(" , "))
        }
        _ => {
            let count = random.below(4);
            let member = |number| format!("\"k{number}\": {}", random_value(random, depth + 1));
            let members: Vec<_> = (0..count).map(member).collect();
            format!("{{{}}}", members.join(","))
        }
    }
}

#[test]
fn random_lines_are_judged_as_another_parser_judges_them() {
    let mut num_good = 0;
    for seed in 0..30_000 {
        let mut random = Random::new(seed);
        let mut line = if random.below(2) == 0 {
            format!("{{\"a\":{}}}", random_value(&mut random, 0))
        } else {
            (0..random.within(1..12)).map(|_| *random.pick(PIECES)).collect()
        };
        if random.below(2) == 0 {
            let cut = random.below(line.len() + 1);
            if line.is_char_boundary(cut) {
                line.insert_str(cut, random.pick::<&str>(PIECES));
            }
        }
        let ours = check(line.as_bytes());
        let theirs = serde_json::from_str::<Value>(&line).is_ok_and(|value| value.is_object());
        match ours {
            Ok(_) => assert!(theirs, "seed {seed}: {line}"),
            Err(problem) if problem.code == "E_JSON_DUPLICATE_KEY" => {} // they accept it
            Err(problem) => assert!(!theirs, "seed {seed}: {line}: {problem:?}"),
        }
        num_good += usize::from(theirs);
    }
    assert!(num_good > 5000, "{num_good}"); // both sides of the judgement are exercised
}

#[test]
fn random_bytes_never_panic() {
    for seed in 0..20_000 {
        let mut random = Random::new(seed);
        let alphabet = b"{}[]\",:\\u0d8e19.-+tfnN \t\xc3\xa9\xed\xff\x00";
        let line: Vec<u8> = (0..random.below(30)).map(|_| *random.pick(alphabet)).collect();
        let _ = check(&line);
    }
}

fn open(path: &Path, max_line_bytes: usize) -> LineReader {
    LineReader::from_reader(path, File::open(path).unwrap(), max_line_bytes).unwrap()
}

fn read_all(
    text: impl AsRef<[u8]>,
    max_line_bytes: usize,
    max_lines: usize,
) -> (Vec<Line>, LineReader) {
    let folder = Folder::new();
    let path = folder.write("data.jsonl", text);
    let mut reader = open(&path, max_line_bytes);
    let mut lines = Vec::new();
    loop {
        let batch = reader.read_batch(max_lines).unwrap();
        if batch.is_empty() {
            return (lines, reader);
        }
        assert!(batch.len() <= max_lines);
        lines.extend(batch);
    }
}

#[test]
fn lines_keep_their_numbers_and_offsets() {
    let text = "\u{feff}{\"a\":1}\n\n \t\r\n{\"a\":2}\r\nbad\n{\"a\":\"\u{2028}\"}";
    for max_lines in [1, 2, 100] {
        let (lines, reader) = read_all(text, 1000, max_lines);
        let places: Vec<_> = lines.iter().map(|line| (line.number, line.offset)).collect();
        assert_eq!(places, [(1, 3), (4, 16), (5, 25), (6, 29)]);
        assert_eq!(lines[1].text.as_deref(), Ok("{\"a\":2}\r"));
        assert_eq!(lines[2].text.as_ref().unwrap_err().code, "E_JSON_SYNTAX");
        assert_eq!(lines[3].text.as_deref(), Ok("{\"a\":\"\u{2028}\"}"));
        assert_eq!(reader.bytes_read(), text.len() as u64);
    }
}

#[test]
fn a_long_line_is_skipped_and_the_next_one_read() {
    let long = format!("{{\"a\":\"{}\"}}", "x".repeat(3_000_000)); // many reads long
    let text = format!("{{}}\n{long}\n{{\"b\":1}}\n{long}");
    let (lines, _) = read_all(&text, 100, 10);
    let codes: Vec<_> =
        lines.iter().map(|line| line.text.as_ref().err().map(|problem| problem.code)).collect();
    let expected = Some("E_JSON_LINE_TOO_LONG");
    assert_eq!(codes, [None, expected, None, expected]);
    assert!(lines[1].text.as_ref().unwrap_err().reason.contains("3000008 bytes"), "{:?}", lines[1]);
    let (lines, _) = read_all(&text, long.len(), 10);
    assert!(lines.iter().all(|line| line.text.is_ok())); // the limit itself is allowed
}

#[test]
fn line_numbers_are_right_for_random_files() {
    for seed in 0..300 {
        let mut random = Random::new(seed);
        let choices = ["{}", "", " ", "{\"a\":\"é\"}", "x", "{}\r", "{\"long\":\"0123456789\"}"];
        let chosen: Vec<&str> = (0..random.within(1..40)).map(|_| *random.pick(&choices)).collect();
        let expected: HashSet<u64> = (1..)
            .zip(&chosen)
            .filter(|(_, line)| !line.trim().is_empty())
            .map(|(n, _)| n)
            .collect();
        let (lines, _) = read_all(chosen.join("\n"), 15, random.within(1..50));
        let found: HashSet<u64> = lines.iter().map(|line| line.number).collect();
        assert_eq!(found, expected, "seed {seed}");
    }
}

#[test]
fn what_the_system_refuses_is_an_io_error() {
    let folder = Folder::new();
    let mut opened = open(folder.path(), 10);
    assert!(matches!(opened.read_batch(1), Err(Error::Io { .. }))); // a folder opens but does not read
    let without_room = LineReader::from_reader(folder.path(), io::empty(), 0);
    assert!(matches!(without_room, Err(Error::Argument(_))));
    assert!(matches!(opened.read_batch(0), Err(Error::Argument(_))));
}
