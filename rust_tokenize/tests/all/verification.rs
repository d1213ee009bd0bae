//! The differential check against encoders that are wrong on purpose.

use std::cell::Cell;

use rust_tokenize::encoder::{AddedToken, EncodeOptions, Encoder};
use rust_tokenize::error::{Error, Result};
use rust_tokenize::verify::{self, MAX_REPORTED, Verification};

/// Ids are code points, but for what `fault` makes of a text.
struct CodePoints {
    fault: fn(&str, EncodeOptions) -> Fault,
}

enum Fault {
    None,
    LastIdOff,
    Refuses,
    Panics,
}

impl Encoder for CodePoints {
    fn engine(&self) -> &'static str {
        "code points"
    }
    fn vocab_size(&self) -> usize {
        0x0011_0000
    }
    fn prepare(&self, _: EncodeOptions) -> Result<()> {
        Ok(())
    }
    fn encode(&self, text: &str, options: EncodeOptions, ids: &mut Vec<i32>) -> Result<()> {
        ids.extend(text.chars().map(|char| i32::try_from(u32::from(char)).unwrap()));
        match (self.fault)(text, options) {
            Fault::None => {}
            Fault::LastIdOff => ids.push(-1),
            Fault::Refuses => return Err(Error::Tokenizer("no".to_owned())),
            Fault::Panics => panic!("oh"),
        }
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

const RIGHT: CodePoints = CodePoints { fault: |_, _| Fault::None };

fn wrong(fault: fn(&str, EncodeOptions) -> Fault) -> CodePoints {
    CodePoints { fault }
}

/// Nobody interrupts.
fn verify<T: AsRef<str> + Sync>(
    encoder: &CodePoints,
    reference: &CodePoints,
    texts: &[T],
    num_threads: Option<usize>,
) -> Result<Verification> {
    verify::verify(encoder, reference, texts, num_threads, &|| Ok(()))
}

/// Checks until it was asked `most` times; gives what came of it and how often it was asked.
fn verify_until(
    most: usize,
    encoder: &CodePoints,
    texts: &[String],
) -> (Result<Verification>, usize) {
    let asked = Cell::new(0);
    let check = || {
        asked.set(asked.get() + 1);
        if asked.get() < most { Ok(()) } else { Err(Error::Interrupted("enough".into())) }
    };
    let found = verify::verify(encoder, &RIGHT, texts, Some(1), &check);
    (found, asked.get())
}

#[test]
fn equal_encoders_differ_nowhere() {
    let texts: Vec<String> = (0..3000).map(|number| format!("text {number} é")).collect();
    let found = verify(&RIGHT, &RIGHT, &texts, Some(2)).unwrap();
    assert_eq!((found.num_compared, found.num_mismatched), (12_000, 0));
    assert!(found.mismatches.is_empty());
    assert_eq!(verify(&RIGHT, &RIGHT, &[""; 0], None).unwrap().num_compared, 0);
    assert!(matches!(verify(&RIGHT, &RIGHT, &["a"], Some(0)), Err(Error::Argument(_))));
}

#[test]
fn a_difference_is_shrunk_to_what_it_needs() {
    let broken = wrong(|text, _| match text.find('é') {
        Some(at) if text[at..].contains("zz") => Fault::LastIdOff,
        _ => Fault::None,
    });
    let mut texts = vec!["harmless zz é".to_owned(); 1500];
    texts[1200] = format!("{}é{}zz{}", "a b\n".repeat(300), "漢字".repeat(77), "end".repeat(50));
    let found = verify(&broken, &RIGHT, &texts, None).unwrap();
    assert_eq!((found.num_compared, found.num_mismatched), (6000, 4));
    let [mismatch] = found.mismatches.as_slice() else { panic!("{:?}", found.mismatches) };
    assert_eq!((mismatch.text_index, mismatch.text.as_str()), (1200, "ézz"));
    assert_eq!(mismatch.ids, Ok(vec![233, 122, 122, -1]));
    assert_eq!(mismatch.expected, Ok(vec![233, 122, 122]));
}

#[test]
fn the_reading_that_differs_is_named() {
    let plain = |options: EncodeOptions| options.continuation && !options.parse_special;
    let broken = wrong(|text, options| {
        if options.continuation && !options.parse_special && !text.is_empty() {
            Fault::LastIdOff
        } else {
            Fault::None
        }
    });
    let found = verify(&broken, &RIGHT, &["one", "two", ""], None).unwrap();
    assert_eq!((found.num_compared, found.num_mismatched), (12, 2));
    // "one" shrinks to "e", "two" to "o": whichever character is tried last stays
    let texts: Vec<&str> = found.mismatches.iter().map(|found| found.text.as_str()).collect();
    assert_eq!(texts, ["e", "o"]);
    assert!(found.mismatches.iter().all(|mismatch| plain(mismatch.options)));
}

#[test]
fn the_same_minimal_text_is_listed_once_and_many_are_counted_only() {
    let broken = wrong(|text, _| {
        if text.chars().any(|char| char.is_ascii_digit()) { Fault::LastIdOff } else { Fault::None }
    });
    let texts: Vec<String> = (0..100).map(|number| format!("x{}y", number % 3)).collect();
    let found = verify(&broken, &RIGHT, &texts, None).unwrap();
    assert_eq!(found.num_mismatched, 400);
    let minimal: Vec<&str> = found.mismatches.iter().map(|found| found.text.as_str()).collect();
    assert_eq!(minimal, ["0", "1", "2"]);
    let texts: Vec<String> = (0..100).map(|number| format!("{number}")).collect();
    assert!(verify(&broken, &RIGHT, &texts, None).unwrap().mismatches.len() <= MAX_REPORTED);
}

#[test]
fn a_failure_of_one_is_a_difference_and_of_both_is_none() {
    let refuses = wrong(|text, _| if text.contains('q') { Fault::Refuses } else { Fault::None });
    let panics = wrong(|text, _| if text.contains('q') { Fault::Panics } else { Fault::None });
    for broken in [&refuses, &panics] {
        let found = verify(broken, &RIGHT, &["fine", "a q b"], None).unwrap();
        assert_eq!((found.num_compared, found.num_mismatched), (8, 4));
        assert_eq!(found.mismatches[0].text, "q");
        assert!(found.mismatches[0].ids.is_err());
        assert_eq!(found.mismatches[0].expected, Ok(vec![113]));
    }
    let found = verify(&refuses, &panics, &["fine", "a q b"], None).unwrap();
    assert_eq!((found.num_compared, found.num_mismatched), (4, 0));
}

#[test]
fn shrinking_ends_on_a_long_text_that_needs_all_of_itself() {
    let broken = wrong(|text, _| if text.len() >= 30_000 { Fault::LastIdOff } else { Fault::None });
    // Every character is needed: a plain shrinker would encode 30,000 texts of this length.
    let found = verify(&broken, &RIGHT, &["a".repeat(30_000)], None).unwrap();
    assert_eq!(found.mismatches[0].text.len(), 30_000);
    let found = verify(&broken, &RIGHT, &["a".repeat(70_000)], None).unwrap();
    assert!((30_000..40_000).contains(&found.mismatches[0].text.len())); // as far as it got
}

#[test]
fn a_check_ends_when_it_is_told_to() {
    let texts = vec!["text ".repeat(60_000); 10]; // 3 MB
    let (whole, num_asked) = verify_until(usize::MAX, &RIGHT, &texts);
    assert_eq!(whole.unwrap().num_compared, 40);
    // Four of these texts are a megabyte, and are encoded four times by each of the two.
    assert_eq!(num_asked, 3 * 4 * 2);
    for most in [1, 2, num_asked] {
        let (ended, asked) = verify_until(most, &RIGHT, &texts);
        assert!(matches!(ended, Err(Error::Interrupted(_))));
        assert_eq!(asked, most);
    }
}

#[test]
fn a_check_ends_within_a_difference_it_shrinks() {
    let broken = wrong(|text, _| if text.len() >= 1000 { Fault::LastIdOff } else { Fault::None });
    let texts = ["a".repeat(1000)];
    let (ended, asked) = verify_until(20, &broken, &texts);
    assert!(matches!(ended, Err(Error::Interrupted(_))));
    assert_eq!(asked, 20); // of which 8 came before
}
