//! NFC against the reference's, and the tables against their hashes.

use std::borrow::Cow;

use rust_tokenize::native::classes::classes;
use rust_tokenize::native::nfc::{nfc, property};
use rust_tokenize::native::{class_tables, nfc_tables};
use sha2::{Digest, Sha256};
use tokenizers::NormalizedString;

use crate::random::Random;

fn reference(text: &str) -> String {
    let mut normalized = NormalizedString::from(text);
    normalized.nfc();
    normalized.get().to_owned()
}

fn check(text: &str) {
    let (found, expected) = (nfc(text), reference(text));
    assert_eq!(found, expected, "{}", text.escape_unicode());
    let is_borrowed = matches!(found, Cow::Borrowed(_));
    assert_eq!(is_borrowed, text == expected, "{}", text.escape_unicode());
}

fn scalars() -> impl Iterator<Item = char> {
    '\0'..=char::MAX
}

#[test]
fn tables_are_those_whose_hashes_they_carry() {
    let hex = |hash: Sha256| format!("{:x}", hash.finalize());
    let mut hash = Sha256::new();
    hash.update(scalars().map(classes).collect::<Vec<u8>>());
    assert_eq!(hex(hash), class_tables::SHA256);

    let mut hash = Sha256::new();
    hash.update(scalars().map(property).collect::<Vec<u8>>());
    for (composite, parts) in &nfc_tables::DECOMPOSITIONS {
        hash.update(format!("{composite}{parts}"));
    }
    let compositions = nfc_tables::COMPOSITIONS.iter();
    hash.update(compositions.flat_map(|&(a, b, c)| [a, b, c]).collect::<String>());
    assert_eq!(hex(hash), nfc_tables::SHA256);
    assert!(nfc_tables::DECOMPOSITIONS.is_sorted());
    assert!(nfc_tables::COMPOSITIONS.is_sorted());
}

#[test]
fn text_is_composed_as_the_reference_composes_it() {
    for (text, expected) in [
        ("", ""),
        ("plain", "plain"),
        ("e\u{301}", "\u{e9}"),
        ("\u{e9}\u{323}", "\u{1eb9}\u{301}"), // a mark of lower class goes first
        ("q\u{307}\u{323}", "q\u{323}\u{307}"), // reordered, nothing to compose with
        ("a\u{301}\u{300}", "\u{e1}\u{300}"), // equal classes keep their order
        ("a\u{305}\u{301}", "a\u{305}\u{301}"), // and block each other
        ("a\u{315}\u{300}\u{5ae}b", "\u{e0}\u{5ae}\u{315}b"),
        ("\u{301}a", "\u{301}a"),
        ("\u{1100}\u{1161}\u{11a8}", "\u{ac01}"), // Hangul
        ("\u{ac00}\u{11a7}", "\u{ac00}\u{11a7}"), // no tail
        ("\u{ac01}\u{11a8}", "\u{ac01}\u{11a8}"),
        ("\u{2126}\u{212b}", "\u{3a9}\u{c5}"), // singletons
        ("\u{f900}", "\u{8c48}"),
        ("\u{958}", "\u{915}\u{93c}"), // an exclusion stays apart
        ("\u{344}", "\u{308}\u{301}"),
        ("\u{9c7}\u{9be}", "\u{9cb}"), // two starters compose
        ("\u{16d67}\u{16d67}", "\u{16d67}\u{16d67}"), // Unicode 16 composes them, the reference not
    ] {
        assert_eq!(nfc(text), expected, "{}", text.escape_unicode());
        check(text);
    }
}

/// Characters that take part in something.
fn active() -> Vec<char> {
    let decompositions = nfc_tables::DECOMPOSITIONS.iter();
    let mut active: Vec<char> =
        decompositions.flat_map(|(c, parts)| parts.chars().chain([*c])).collect();
    active.extend(scalars().filter(|&c| property(c) != 0));
    active.extend("aZ \n\u{1100}\u{1161}\u{11a7}\u{11a8}\u{ac00}\u{ac01}\u{16d67}日é".chars());
    active.sort_unstable();
    active.dedup();
    active
}

#[test]
fn random_texts_are_composed_as_the_reference_composes_them() {
    let (active, mut random) = (active(), Random::new(21));
    let pairs = &nfc_tables::COMPOSITIONS;
    for _ in 0..10_000 {
        let few: Vec<char> = (0..random.within(1..6)).map(|_| *random.pick(&active)).collect();
        let mut text = String::new();
        for _ in 0..random.below(12) {
            match random.below(6) {
                0 => text.extend(std::iter::repeat_n('x', random.below(70))),
                1 => text.push(*random.pick(&active)),
                2 => text.push(random.pick(pairs).0),
                3 => text.push(random.pick(pairs).1),
                _ => text.push(*random.pick(&few)),
            }
        }
        check(&text);
    }
}

#[test]
fn every_scalar_is_composed_as_the_reference_composes_it() {
    let all: Vec<char> = scalars().collect();
    for some in all.chunks(4_096) {
        check(&some.iter().flat_map(|&c| [c, 'q']).collect::<String>());
        check(
            &some.iter().flat_map(|&c| ['q', c, '\u{323}', c, '\u{301}', 'q']).collect::<String>(),
        );
    }
}

#[test]
fn every_pair_of_composing_parts_is_composed_as_the_reference_composes_it() {
    let mut firsts: Vec<char> = nfc_tables::COMPOSITIONS.iter().map(|entry| entry.0).collect();
    let mut seconds: Vec<char> = nfc_tables::COMPOSITIONS.iter().map(|entry| entry.1).collect();
    seconds.sort_unstable();
    firsts.dedup();
    seconds.dedup();
    for first in firsts {
        for chunk in [&seconds[..], &['\u{1161}', '\u{11a8}']] {
            check(&chunk.iter().flat_map(|&second| [first, second, 'q']).collect::<String>());
        }
        check(
            &seconds
                .iter()
                .flat_map(|&s| [first, '\u{334}', s, '\u{345}', s, 'q'])
                .collect::<String>(),
        );
    }
}

#[test]
fn many_marks_take_no_quadratic_time() {
    let marks = "\u{301}\u{323}\u{345}\u{334}".repeat(100_000);
    let text = format!("a{marks}");
    let composed = "\u{1ea1}".to_owned()
        + &"\u{334}".repeat(100_000)
        + &"\u{323}".repeat(99_999)
        + &"\u{301}".repeat(100_000)
        + &"\u{345}".repeat(100_000);
    assert!(nfc(&text) == composed);
    assert!(nfc(&composed) == composed);
}
