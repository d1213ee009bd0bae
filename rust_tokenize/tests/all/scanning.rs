//! Scanners against the reference's pretokenizers, and against expectations one can read.

use rust_simd::masks::{masks, masks_portable};
use rust_tokenize::native::classes::{NUMERIC, classes};
use rust_tokenize::native::scan::{
    Cl100k, DeepSeek, Expression, Family, Gpt2, O200k, OneByOne, Scanner,
};
use serde_json::{Value, json};
use tokenizers::{
    OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, PreTokenizerWrapper,
};

use crate::random::Random;

const ALL: [Family; 8] = [
    Family::Gpt2,
    Family::DigitsGpt2,
    Family::Cl100k,
    Family::Qwen2,
    Family::Qwen35,
    Family::O200k,
    Family::Tekken,
    Family::DeepSeek,
];

/// The ends of all pretokens, `room` at a time; fast, and one by one.
fn ends(family: Family, text: &str, room: usize) -> [Vec<usize>; 2] {
    fn both<E: Expression>(expression: E, text: &str, room: usize) -> [Vec<usize>; 2] {
        [collect(expression, text, room), collect(OneByOne(expression), text, room)]
    }
    match family {
        Family::Gpt2 => both(Gpt2::<false>, text, room),
        Family::DigitsGpt2 => both(Gpt2::<true>, text, room),
        Family::Cl100k => both(Cl100k::<3, false>, text, room),
        Family::Qwen2 => both(Cl100k::<1, false>, text, room),
        Family::Qwen35 => both(Cl100k::<1, true>, text, room),
        Family::O200k => both(O200k::<3, true>, text, room),
        Family::Tekken => both(O200k::<1, false>, text, room),
        Family::DeepSeek => both(DeepSeek, text, room),
    }
}

fn collect(scanner: impl Scanner, text: &str, room: usize) -> Vec<usize> {
    let (mut all, mut some) = (Vec::new(), vec![0; room]);
    loop {
        let count = scanner.scan(text, all.last().copied().unwrap_or(0), &mut some);
        all.extend_from_slice(&some[..count]);
        if count < room {
            return all;
        }
    }
}

fn pieces(family: Family, text: &str) -> Vec<&str> {
    let [ends, one_by_one] = ends(family, text, 64);
    assert_eq!(ends, one_by_one, "{text:?}");
    let starts = [0].into_iter().chain(ends.iter().copied());
    starts.zip(&ends).map(|(start, &end)| &text[start..end]).collect()
}

/// The `pre_tokenizer` of a family, as its `tokenizer.json` has it.
fn pre_tokenizer(family: Family) -> Value {
    let words = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+{C}|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*{C}";
    let contractions = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";
    let space = r"\s*[\r\n]+|\s+(?!\S)|\s+";
    let cl100k = |letters: &str, numbers: &str, others: &str| {
        format!(
            r"{contractions}|[^\r\n\p{{L}}\p{{N}}]?{letters}+|{numbers}| ?[^\s{others}\p{{N}}]+[\r\n]*|{space}"
        )
    };
    let o200k = |contractions: &str, numbers: &str| {
        let words = words.replace("{C}", contractions);
        format!(r"{words}|{numbers}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{space}")
    };
    let deepseek = concat!(
        "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+",
        "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
    );
    let splits = match family {
        Family::Gpt2 => return byte_level(true),
        Family::DigitsGpt2 => {
            let digits = json!({"type": "Digits", "individual_digits": true});
            return json!({"type": "Sequence", "pretokenizers": [digits, byte_level(true)]});
        }
        Family::Cl100k => vec![cl100k(r"\p{L}", r"\p{N}{1,3}", r"\p{L}")],
        Family::Qwen2 => vec![cl100k(r"\p{L}", r"\p{N}", r"\p{L}")],
        Family::Qwen35 => vec![cl100k(r"[\p{L}\p{M}]", r"\p{N}", r"\p{L}\p{M}")],
        Family::O200k => vec![o200k(&format!("{contractions}?"), r"\p{N}{1,3}")],
        Family::Tekken => vec![o200k("", r"\p{N}")],
        Family::DeepSeek => vec![
            r"\p{N}{1,3}".to_owned(),
            "[\u{4e00}-\u{9fa5}\u{3040}-\u{309f}\u{30a0}-\u{30ff}]+".to_owned(),
            deepseek.to_owned(),
        ],
    };
    let splits = splits.iter().map(|regex| split(regex, "Isolated", false));
    let steps: Vec<_> = splits.chain([byte_level(false)]).collect();
    json!({"type": "Sequence", "pretokenizers": steps})
}

fn byte_level(use_regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex})
}

fn split(regex: &str, behavior: &str, invert: bool) -> Value {
    json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": invert})
}

/// The reference's pretokenizer of a family.
struct Reference(PreTokenizerWrapper);

impl Reference {
    fn new(family: Family) -> Self {
        Self(serde_json::from_value(pre_tokenizer(family)).unwrap())
    }

    fn ends(&self, text: &str) -> Vec<usize> {
        let mut pretokenized = PreTokenizedString::from(text);
        self.0.pre_tokenize(&mut pretokenized).unwrap();
        let splits = pretokenized.get_splits(OffsetReferential::Original, OffsetType::Byte);
        splits.iter().filter(|split| !split.0.is_empty()).map(|split| split.1.1).collect()
    }

    fn check(&self, family: Family, text: &str, room: usize) {
        let expected = self.ends(text);
        let [found, one_by_one] = ends(family, text, room);
        assert_eq!(one_by_one, expected, "{family:?}, one by one: {text:?}");
        assert_eq!(found, expected, "{family:?}: {text:?}");
    }
}

#[test]
fn families_are_known_by_their_pre_tokenizers() {
    for family in ALL {
        let known = pre_tokenizer(family);
        assert_eq!(Family::from_pre_tokenizer(&known), Some(family));
        let text = known.to_string();
        for (from, to) in [
            ("add_prefix_space\":false", "add_prefix_space\":true"),
            ("use_regex\":", "use_regex\":1,\"was\":"),
            ("individual_digits\":true", "individual_digits\":false"),
            ("Isolated", "Removed"),
            ("Isolated", "MergedWithNext"),
            ("invert\":false", "invert\":true"),
            (r"\\p{N}{1,3}", r"\\p{N}{1,2}"),
            (r"\\s+(?!", r"\\s+(?="),
            ("Sequence", "Sequences"),
        ] {
            let changed: Value = serde_json::from_str(&text.replace(from, to)).unwrap();
            let found = Family::from_pre_tokenizer(&changed);
            assert!(changed == known || found.is_none(), "{family:?} with {to:?} is {found:?}");
        }
    }
}

#[test]
fn an_expression_that_matches_everything_may_be_inverted() {
    let steps = |family: Family| {
        let isolated = pre_tokenizer(family).to_string();
        let removed = isolated.replace("Isolated", "Removed");
        serde_json::from_str(&removed.replace("\"invert\":false", "\"invert\":true")).unwrap()
    };
    assert_eq!(Family::from_pre_tokenizer(&steps(Family::Cl100k)), Some(Family::Cl100k));
    assert_eq!(Family::from_pre_tokenizer(&steps(Family::DeepSeek)), None);
}

#[test]
fn every_family_cuts_as_its_expression_says() {
    use Family::{Cl100k, DeepSeek, DigitsGpt2, Gpt2, O200k, Qwen2, Qwen35, Tekken};
    let cases: &[(Family, &str, &[&str])] = &[
        (Gpt2, "Hello  world", &["Hello", " ", " world"]),
        (Gpt2, "don't 'll x'S", &["don", "'t", " '", "ll", " x", "'", "S"]),
        (Gpt2, "a\n\n b 12 34", &["a", "\n\n", " b", " 12", " 34"]),
        (Gpt2, "x \n", &["x", " \n"]),
        (Gpt2, "x\t\ty", &["x", "\t", "\t", "y"]),
        (DigitsGpt2, "a  12 b", &["a", "  ", "1", "2", " b"]),
        (DigitsGpt2, "x½٣", &["x", "½", "٣"]),
        (Cl100k, "Don'T x'\u{17f}e", &["Don", "'T", " x", "'\u{17f}", "e"]),
        (Cl100k, "1234567 89", &["123", "456", "7", " ", "89"]),
        (Cl100k, "a \n \n b", &["a", " \n \n", " b"]),
        (Cl100k, "a.\n\n  b", &["a", ".\n\n", " ", " b"]),
        (Cl100k, "f(x).g ..h", &["f", "(x", ").", "g", " ..", "h"]),
        (Cl100k, "a\u{85}b\tc", &["a", "\u{85}b", "\tc"]),
        (Cl100k, "e\u{301}a", &["e", "\u{301}a"]),
        (Qwen2, "12½ 3", &["1", "2", "½", " ", "3"]),
        (Qwen35, "e\u{301}a\u{301} \u{301}.", &["e\u{301}a\u{301}", " \u{301}", "."]),
        (O200k, "HTTPServer fooBar", &["HTTPServer", " foo", "Bar"]),
        (O200k, "don'tX it's's WE'LL", &["don't", "X", " it's", "'s", " WE'LL"]),
        (O200k, "日本ABC a/\n/b", &["日本", "ABC", " a", "/\n/", "b"]),
        (Tekken, "don't 12", &["don", "'t", " ", "1", "2"]),
        (DeepSeek, "a  1234 x'naïve", &["a", "  ", "123", "4", " x", "'na", "ïve"]),
        (DeepSeek, "日本 カ・b", &["日本", " ", "カ", "・", "b"]),
        (DeepSeek, "\u{1}\u{200b}a\u{1}\u{2}.", &["\u{1}", "\u{200b}a", "\u{1}\u{2}", "."]),
    ];
    for &(family, text, expected) in cases {
        assert_eq!(pieces(family, text), expected, "{family:?}");
        Reference::new(family).check(family, text, 64);
    }
}

/// Pieces of text that differ in what an alternative of some expression makes of them.
const PIECES: &[&str] = &[
    " ",
    "  ",
    "\t",
    "\n",
    "\r\n",
    "\r",
    "\u{b}",
    "\u{c}",
    "\u{85}",
    "\u{a0}",
    "\u{2028}",
    "\u{3000}",
    "\u{200b}",
    "\u{feff}",
    "\0",
    "\u{1}",
    "\u{1c}",
    "\u{7f}",
    "a",
    "s",
    "S",
    "t",
    "re",
    "VE",
    "ll",
    "lL",
    "m",
    "D",
    "\u{17f}",
    "Z",
    "word",
    "Word",
    "WORD",
    "wORD",
    "'",
    "'s",
    "'S",
    "'re",
    "'Re",
    "'ll",
    "'lL",
    "'\u{17f}",
    "'l",
    "'r",
    "\u{2019}s",
    ".",
    "..",
    ",",
    "/",
    "//",
    "/\n",
    "\n/",
    "(",
    ")",
    "_",
    "$",
    "-",
    "\\",
    "`",
    "~",
    "!",
    "<|",
    "|>",
    "\u{2026}",
    "1",
    "12",
    "123",
    "1234",
    "½",
    "٣",
    "Ⅻ",
    "²",
    "é",
    "ß",
    "Σ",
    "ǅ",
    "ʰ",
    "ª",
    "日",
    "本語",
    "一",
    "龥",
    "龦",
    "カ",
    "ひ",
    "ー",
    "・",
    "\u{3040}",
    "\u{3099}",
    "゛",
    "한",
    "ᄀ",
    "\u{301}",
    "\u{300}\u{323}",
    "\u{200d}",
    "🙂",
    "👩\u{200d}👧",
    "©",
    "€",
    "\u{e000}",
    "\u{378}",
    "\u{10ffff}",
    "я",
    "Я",
    "слово",
    "ا",
    "\u{64e}",
    "क",
    "\u{93f}",
];

fn random_text(random: &mut Random, most: usize) -> String {
    let ascii: Vec<&str> = PIECES.iter().copied().filter(|piece| piece.is_ascii()).collect();
    let few: Vec<&str> = (0..random.within(1..8)).map(|_| *random.pick(PIECES)).collect();
    let from = match random.below(4) {
        0 => PIECES,
        1 => &ascii,
        2 => &["a", " ", "\n", "'", "s", ".", "1", "B", "/", "\t"],
        _ => &few,
    };
    (0..random.below(most)).map(|_| *random.pick(from)).collect()
}

#[test]
fn random_texts_are_cut_as_the_reference_cuts_them() {
    let references = ALL.map(Reference::new);
    let mut random = Random::new(20);
    for round in 0..2_000 {
        let text = random_text(&mut random, if round % 10 == 0 { 200 } else { 24 });
        for (family, reference) in ALL.into_iter().zip(&references) {
            let room = *random.pick(&[1, 2, 7, 64, 300]);
            reference.check(family, &text, room);
        }
    }
}

/// Each scalar alone and beside what expressions look for: the contexts where its classes show.
///
/// One context each is enough in the planes where no character is in any class.
#[test]
#[ignore = "minutes: run it when tables or scanners change"]
fn every_scalar_is_cut_as_the_reference_cuts_it() {
    const CONTEXTS: [&str; 12] =
        ["#", "a#", "#a", " #", "# ", "1#", "'#", "##", "#\n", ".#", "A#b", "日#"];
    // the crate's `Digits` asks this toolchain, whose edition of Unicode may be another
    let is_same_digit = |c: char| c.is_numeric() == (classes(c) & NUMERIC != 0);
    let known: Vec<char> = ('\0'..=char::MAX).filter(|&c| is_same_digit(c)).collect();
    assert!(known.len() > 1_112_000);
    for family in ALL {
        let reference = Reference::new(family);
        for some in known.chunks(128) {
            for (number, context) in CONTEXTS.iter().enumerate() {
                // "\n\n" behind "a" ends any pretoken: what stands in one line meets no other
                let line = |&c: &char| {
                    let is_empty = matches!(c as u32, 0x4_0000..0xE_0000 | 0xF_0000..);
                    let is_wanted = !is_empty || c as usize % CONTEXTS.len() == number;
                    is_wanted.then(|| format!("a\n\n{}", context.replace('#', &c.to_string())))
                };
                reference.check(family, &some.iter().filter_map(line).collect::<String>(), 64);
            }
        }
    }
}

#[test]
fn ideographs_taken_without_a_look_up_have_one_class() {
    let found: Vec<u8> = ('\u{5000}'..'\u{9000}').map(classes).collect();
    assert!(found.iter().all(|&each| each == found[0]));
    let first_byte = |char: char| char.to_string().as_bytes()[0];
    assert_eq!(
        ['\u{4FFF}', '\u{5000}', '\u{8FFF}', '\u{9000}'].map(first_byte),
        [0xE4, 0xE5, 0xE8, 0xE9]
    );
}

#[test]
fn long_runs_take_linear_time() {
    for piece in [
        "a", "A", " ", "\n", "\t", "1", ".", "'", "\0", "é", "日", "\u{301}", "½", "\u{3000}",
        "🙂", " \n", "日A", "/\n", "'s",
    ] {
        let text = piece.repeat(200_000 / piece.len());
        for family in ALL {
            let [found, one_by_one] = ends(family, &text, 1_000);
            assert_eq!(found, one_by_one, "{family:?} {piece:?}");
            assert_eq!(found.last(), Some(&text.len()));
        }
    }
}

#[test]
fn masks_are_the_same_without_vector_instructions() {
    let mut random = Random::new(22);
    for _ in 0..1_000 {
        let bytes: [u8; 64] = std::array::from_fn(|_| u8::try_from(random.below(256)).unwrap());
        let found = masks(&bytes);
        assert_eq!(masks_portable(&bytes), found);
        for (position, byte) in bytes.iter().enumerate() {
            let is_in = |mask: u64| mask >> position & 1 == 1;
            assert_eq!(is_in(found.letter), byte.is_ascii_alphabetic());
            assert_eq!(is_in(found.inner), byte & 0xC0 == 0x80);
            let space = found.blank | found.tab | found.line_end;
            assert_eq!(is_in(space), byte.is_ascii_whitespace() || *byte == 0x0B);
            assert_eq!(is_in(found.control | found.tab | found.line_end), byte.is_ascii_control());
        }
    }
}

/// What `Encoder::cuts_at_blanks` promises rests on this.
#[test]
fn a_text_may_be_cut_between_a_letter_and_a_blank() {
    let bits = [
        "a", "Zb", " ", "  ", "\n", "\r\n", "\t", "'s", "'", "1", "12", ".", "/", "\u{e9}",
        "\u{301}", "\u{65e5}", "\u{a0}", "\u{1}",
    ];
    let mut random = Random::new(11);
    for _ in 0..4000 {
        let side = |random: &mut Random| -> String {
            (0..random.below(6)).map(|_| *random.pick(&bits)).collect()
        };
        let (left, right) = (side(&mut random) + "e", format!(" {}", side(&mut random)));
        for family in ALL {
            let apart = [pieces(family, &left), pieces(family, &right)].concat();
            assert_eq!(pieces(family, &format!("{left}{right}")), apart, "{family:?}");
        }
    }
}
