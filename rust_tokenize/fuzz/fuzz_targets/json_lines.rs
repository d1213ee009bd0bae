//! The reader of JSON Lines: every line it takes is an object to another reader too, with the same
//! strings in it; every line it refuses is refused in clean words.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rust_tokenize::json::{Kind, scan_object, unescape};
use rust_tokenize::lines::Chunk;
use serde_json::Value;

fuzz_target!(|data: &[u8]| {
    let chunk = Chunk::from_bytes(data.to_vec()).expect("memory always reads");
    let mut nodes = Vec::new();
    for index in 0..chunk.len() {
        match chunk.line(index).text {
            Ok(text) => {
                let value: Value = serde_json::from_str(&text).expect("JSON to both");
                assert!(value.is_object());
                let same = scan_object(text.as_bytes(), &mut nodes, usize::MAX);
                assert_eq!(same, Ok(text.as_str()));
                for node in nodes.iter().filter(|node| node.kind == Kind::Escaped) {
                    let mut said = String::new();
                    unescape(&text[node.start + 1..node.end - 1], &mut said);
                    let theirs: String = serde_json::from_str(&text[node.start..node.end]).unwrap();
                    assert_eq!(said, theirs);
                }
            }
            Err(problem) => {
                assert!(problem.code.starts_with("E_JSON_"));
                assert!(!problem.reason.contains(char::is_control), "{problem:?}");
            }
        }
    }
});
