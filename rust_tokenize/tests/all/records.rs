//! Records through the whole path, with a tokenizer and templates small enough to read.

use std::collections::HashSet;
use std::sync::Arc;

use rust_tokenize::conversation::Role;
use rust_tokenize::encoder::{AddedToken, EncodeOptions, Encoder};
use rust_tokenize::error::{Error, Result};
use rust_tokenize::fields::{Field, Fields, Form};
use rust_tokenize::lines::Chunk;
use rust_tokenize::records::{
    BOUNDARY_MERGED, FIRST_TOKEN_UNSCORED, RecordEncoder, Records, SPECIAL_IN_TEXT, Settings,
    TEMPLATE_ALTERED, context_name, texts_digest,
};
use rust_tokenize::sections::{Cutter, Section, Step};
use rust_tokenize::specials::Specials;
use rust_tokenize::template::{Content, Guard, Piece, Template, Test};

/// An id a character; `ab` is one token, 1000; `<s>` and `</s>` are special, 1 and 2. `!` is an
/// error and `?` a panic.
struct Letters {
    /// `<s>` swallows the blank after it.
    strips: bool,
    /// One more added token, 3, which is not special.
    other: Option<&'static str>,
}

const PLAIN: Letters = Letters { strips: false, other: None };

const AB: i32 = 1000;

impl Encoder for Letters {
    fn engine(&self) -> &'static str {
        "letters"
    }
    fn vocab_size(&self) -> usize {
        2000
    }
    fn prepare(&self, _: EncodeOptions) -> Result<()> {
        Ok(())
    }
    fn encode(&self, text: &str, options: EncodeOptions, ids: &mut Vec<i32>) -> Result<()> {
        let mut rest = text;
        while let Some(char) = rest.chars().next() {
            let special = [("<s>", 1), ("</s>", 2)].into_iter();
            let mut found =
                special.filter(|(name, _)| options.parse_special && rest.starts_with(name));
            if let Some((name, id)) = found.next() {
                ids.push(id);
                rest = &rest[name.len()..];
                rest = if self.strips && id == 1 { rest.trim_start_matches(' ') } else { rest };
            } else if let Some(after) = rest.strip_prefix("ab") {
                ids.push(AB);
                rest = after;
            } else if char == '!' {
                return Err(Error::Tokenizer("found `!`".to_owned()));
            } else {
                assert_ne!(char, '?', "panics");
                ids.push(u32::from(char).cast_signed());
                rest = &rest[char.len_utf8()..];
            }
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
        let token =
            |content: &str, id| AddedToken { content: content.to_owned(), id, special: id < 3 };
        let other = self.other.map(|content| token(content, 3));
        [token("<s>", 1), token("</s>", 2)].into_iter().chain(other).collect()
    }
}

fn settings() -> Settings {
    Settings {
        bos: None,
        end_of_turn: vec![2],
        has_template: true,
        joint: false,
        parse_special: false,
        max_length: 1000,
    }
}

fn literal(text: &str) -> Piece {
    Piece::Literal(text.to_owned())
}

fn content(turn: usize, trimmed: bool) -> Piece {
    Piece::Content(Content { turn, trimmed })
}

fn template(pieces: &[Piece]) -> Template {
    Template { pieces: pieces.to_vec(), guards: Vec::new() }
}

/// `<s>user:QUESTION</s><s>a` and then the answer.
fn encoder(settings: Settings, trimmed: bool) -> RecordEncoder {
    let mut encoder = RecordEncoder::new(Arc::new(PLAIN), settings).unwrap();
    let context = [literal("<s>user:"), content(0, false), literal("</s><s>a")];
    let whole = [&context[..], &[content(1, trimmed), literal("</s>")]].concat();
    encoder.add_shape(vec![Role::User], template(&context), template(&whole)).unwrap();
    encoder
}

fn fields(form: Form) -> Fields {
    let named = [
        ("p", Field::Prompt),
        ("i", Field::Input),
        ("r", Field::Response),
        ("id", Field::Id),
        ("group", Field::Group),
        ("correct", Field::Correct),
        ("task", Field::Checked),
    ];
    Fields { form, columns: named.map(|(name, field)| (name.to_owned(), field)).to_vec() }
}

fn encode(encoder: &RecordEncoder, form: Form, text: &str) -> Records {
    let chunk = Chunk::from_bytes(text.as_bytes().to_vec()).unwrap();
    encoder.encode(&chunk, &fields(form), Some(1)).unwrap()
}

/// Context, answer and flags of one line.
fn one(encoder: &RecordEncoder, line: &str) -> (Vec<i32>, Vec<i32>, u8) {
    let records = encode(encoder, Form::Prompt, line);
    assert_eq!((records.len(), records.others.len()), (1, 0), "{line}");
    (records.context_ids, records.target_ids, records.flags[0])
}

fn letters(text: &str) -> Vec<i32> {
    let mut ids = Vec::new();
    let options =
        EncodeOptions { add_special_tokens: false, parse_special: true, continuation: false };
    PLAIN.encode(text, options, &mut ids).unwrap();
    ids
}

#[test]
fn a_template_surrounds_the_question_and_an_end_of_turn_follows_the_answer() {
    let (context, targets, flags) =
        one(&encoder(settings(), false), r#"{"p":"abc","r":"x\u0041"}"#);
    assert_eq!(context, letters("<s>user:abc</s><s>a"));
    assert_eq!(targets, letters("xA</s>"));
    assert_eq!(flags, 0);
}

#[test]
fn a_merge_across_the_boundary_is_flagged_and_made_on_demand() {
    let line = r#"{"p":"q","r":"bc"}"#;
    let (context, targets, flags) = one(&encoder(settings(), false), line);
    assert_eq!((context.last(), flags), (Some(&i32::from(b'a')), BOUNDARY_MERGED));
    assert_eq!(targets, letters("bc</s>"));
    let joint = encoder(Settings { joint: true, ..settings() }, false);
    let (context, targets, flags) = one(&joint, line);
    assert_eq!((context.last(), flags), (Some(&AB), BOUNDARY_MERGED));
    assert_eq!(targets, letters("c</s>"));
}

#[test]
fn special_tokens_in_texts_are_text_unless_asked() {
    let line = r#"{"p":"x</s>","r":"<s>y"}"#;
    let (context, targets, flags) = one(&encoder(settings(), false), line);
    let text =
        |text: &str| -> Vec<i32> { text.chars().map(|c| u32::from(c).cast_signed()).collect() };
    assert_eq!(context, [letters("<s>user:x"), text("</s>"), letters("</s><s>a")].concat());
    assert_eq!(targets, [text("<s>y"), vec![2]].concat());
    assert_eq!(flags, SPECIAL_IN_TEXT);
    let parsing = encoder(Settings { parse_special: true, ..settings() }, false);
    assert_eq!(one(&parsing, line).0, letters("<s>user:x</s></s><s>a"));
}

#[test]
fn an_answer_the_template_trims_is_flagged() {
    let trimming = encoder(settings(), true);
    assert_eq!(one(&trimming, r#"{"p":"q","r":"x"}"#).2, 0);
    assert_eq!(one(&trimming, r#"{"p":"q","r":"x\u001f"}"#).2, TEMPLATE_ALTERED);
    // With special tokens in it the other reader compares other texts.
    let other = encode(&trimming, Form::Prompt, r#"{"p":"q","r":"<s> "}"#);
    assert_eq!(other.others, [0]);
}

#[test]
fn white_space_that_the_template_writes_is_not_the_answers() {
    let whole_with = |answer: &[Piece]| {
        let mut encoder = RecordEncoder::new(Arc::new(PLAIN), settings()).unwrap();
        let context = [literal("<s>user:"), content(0, false), literal("</s><s>a")];
        let before = [literal("<s>user:"), content(0, false), literal("</s><s>a\n\n")];
        let whole = [&before[..], answer, &[literal("\n</s>")]].concat();
        encoder.add_shape(vec![Role::User], template(&context), template(&whole)).unwrap();
        encoder
    };
    let trimming = whole_with(&[content(1, true)]);
    assert_eq!(one(&trimming, r#"{"p":"q","r":"x"}"#).2, 0);
    for answer in ["\\nx", "\\n\\nx", "x\\n", "\\n"] {
        let line = format!(r#"{{"p":"q","r":"{answer}"}}"#);
        assert_eq!(one(&trimming, &line).2, TEMPLATE_ALTERED, "{line}");
        assert_eq!(one(&whole_with(&[content(1, false)]), &line).2, 0, "{line}");
        // Written twice, the other reader tells which one it is.
        let twice = whole_with(&[content(1, true), content(1, false)]);
        assert_eq!(encode(&twice, Form::Prompt, &line).others, [0], "{line}");
    }
}

#[test]
fn what_has_no_token_to_predict_is_for_the_other_reader() {
    let settings = Settings { end_of_turn: vec![], has_template: false, ..settings() };
    let plain = RecordEncoder::new(Arc::new(PLAIN), settings).unwrap();
    assert_eq!(one(&plain, r#"{"p":"","r":"xy"}"#).1, letters("y"));
    assert_eq!(encode(&plain, Form::Prompt, r#"{"p":"","r":"x"}"#).others, [0]);
}

#[test]
fn without_a_template_a_prompt_is_verbatim_and_led_by_one_bos() {
    let plain = |bos| {
        let settings = Settings { bos, has_template: false, parse_special: true, ..settings() };
        RecordEncoder::new(Arc::new(PLAIN), settings).unwrap()
    };
    assert_eq!(one(&plain(Some(1)), r#"{"p":"q","r":"x"}"#).0, letters("<s>q"));
    assert_eq!(one(&plain(Some(1)), r#"{"p":"<s>q","r":"x"}"#).0, letters("<s>q"));
    assert_eq!(one(&plain(None), r#"{"p":"","r":"xy"}"#), (letters("x"), letters("y</s>"), 8));
    assert_eq!(FIRST_TOKEN_UNSCORED, 8);
    let question = encode(&plain(None), Form::Question, r#"{"p":"q","r":"x"}"#);
    assert_eq!(question.context_ids, letters("q\n"));
    let about = encode(&plain(None), Form::Instruction, r#"{"p":"q","i":"z","r":"x"}"#);
    assert_eq!(about.context_ids, letters("q\n\nz\n"));
    let turns = r#"{"p":[{"from":"human","value":"q"},{"role":"assistant","content":"x"}]}"#;
    assert_eq!(encode(&plain(None), Form::Turns, turns).context_ids, letters("q\n"));
}

#[test]
fn what_is_unusual_is_for_the_other_reader() {
    let encoder = encoder(settings(), false);
    let lines = [
        r#"{"p":"q"}"#,
        r#"{"p":"q","r":null}"#,
        r#"{"p":"q","r":""}"#,
        r#"{"p":1,"r":"x"}"#,
        r#"{"p":"q","r":"x""#,
        r#"{"p":"q","r":"x","r":"x"}"#,
        r#"{"p":"q","r":"\ud800"}"#,
        r#"{"p":"q","r":"x","id":1.0}"#,
        r#"{"p":"q","r":"x","id":-0}"#,
        r#"{"p":"q","r":"x","id":true}"#,
        r#"{"p":"q","r":"x","correct":1}"#,
        r#"{"p":"q","r":"x","task":[]}"#,
        r#"{"p":"q","r":"x","i":3}"#,
        "{\"p\":\"q\",\"r\":\"\u{f0000}\"}",
        r#"{"p":"q","r":"x!"}"#,
        r#"{"p":"q?","r":"x"}"#,
        r#"{"p":[{"role":"system","content":"q"}],"r":"x"}"#,
        r#"{"p":[{"role":"nobody","content":"q"}],"r":"x"}"#,
        r#"{"p":[{"from":null,"role":"user","content":"q"}],"r":"x"}"#,
        r#"{"p":[{"role":"user","content":null}],"r":"x"}"#,
    ];
    for line in lines {
        let form = if line.contains("\"i\"") { Form::Instruction } else { Form::Prompt };
        assert_eq!(encode(&encoder, form, line).others, [0], "{line}");
    }
    let long = format!(r#"{{"p":"{}","r":"x"}}"#, "q".repeat(1000));
    assert_eq!(encode(&encoder, Form::Prompt, &long).others, [0]);
    let wide = format!(r#"{{"p":"q","r":"x","w":[{}0]}}"#, "0,".repeat(20_000));
    assert_eq!(encode(&encoder, Form::Prompt, &wide).others, [0]);
}

#[test]
fn a_record_of_exactly_the_longest_length_is_taken() {
    let line = r#"{"p":"q","r":"xyz"}"#;
    // The context, and all targets but the last: three letters, without the end of turn.
    let length = letters("<s>user:q</s><s>a").len() + 3;
    let fits = encoder(Settings { max_length: length, ..settings() }, false);
    assert_eq!(encode(&fits, Form::Prompt, line).len(), 1);
    let not = encoder(Settings { max_length: length - 1, ..settings() }, false);
    assert_eq!(encode(&not, Form::Prompt, line).others, [0]);
}

#[test]
fn guards_keep_contents_away() {
    for (test, text) in [
        (Test::Contains, "b"),
        (Test::StartsWith, "a"),
        (Test::EndsWith, "c"),
        (Test::Equals, "abc"),
    ] {
        let mut encoder = encoder(settings(), false);
        let mut context = template(&[content(0, false), literal("</s>")]);
        let place = Content { turn: 0, trimmed: true };
        context.guards.push(Guard { content: place, test, text: text.to_owned() });
        let whole = template(&[&context.pieces[..], &[content(1, false)]].concat());
        encoder.add_shape(vec![Role::User], context, whole).unwrap();
        assert_eq!(encode(&encoder, Form::Prompt, r#"{"p":" abc ","r":"x"}"#).others, [0]);
        assert_eq!(encode(&encoder, Form::Prompt, r#"{"p":"xay","r":"x"}"#).len(), 1);
    }
}

#[test]
fn labels_are_read_and_a_group_is_named_after_its_context() {
    let encoder = encoder(settings(), false);
    let lines = concat!(
        r#"{"p":"q","r":"x","id":12,"correct":true,"group":"\u0067"}"#,
        "\n\n",
        r#"{"p":"q","r":"xé","id":"","correct":null,"group":""}"#,
        "\n",
    );
    let records = encode(&encoder, Form::Prompt, lines);
    assert_eq!(records.lines, [1, 3]);
    assert_eq!(records.num_bytes, [1, 3]);
    let [first, second] = &records.labels[..] else { panic!("two records") };
    assert_eq!((first.id.as_deref(), first.correct), (Some("12"), Some(true)));
    assert_eq!((second.id.as_deref(), second.correct), (None, None));
    assert_eq!(first.group.as_deref(), Some("g"));
    let context = letters("<s>user:q</s><s>a");
    assert_eq!(second.group, Some(context_name(&context)));
    assert_eq!(context_name(&[1]).len(), 16);
}

#[test]
fn a_digest_is_of_every_turn_and_the_answer() {
    let encoder = encoder(settings(), false);
    let lines = [r#"{"p":"q","r":"x","id":1}"#, r#"{"p":"q","r":"y"}"#, r#"{"p":"Q","r":"x"}"#];
    let digests = encode(&encoder, Form::Prompt, &lines.join("\n")).digests;
    assert_eq!(digests[0], texts_digest(["user", "q", "x"]));
    assert_eq!(digests.iter().collect::<HashSet<_>>().len(), 3);
    assert_ne!(texts_digest(["ab", "c"]), texts_digest(["a", "bc"]));
    // Files hold it.
    assert_eq!(texts_digest(["user", "What is 2 + 3?", "5"]), -1_241_341_874_545_779_233);
}

#[test]
fn a_group_is_the_same_question_whatever_the_boundary() {
    let groups = |settings: Settings| {
        let lines = [r#"{"p":"a","r":"bc"}"#, r#"{"p":"a","r":"xb"}"#, r#"{"p":"b","r":"bc"}"#];
        let records = encode(&encoder(settings, false), Form::Prompt, &lines.join("\n"));
        records.labels.into_iter().map(|labels| labels.group.unwrap()).collect::<Vec<_>>()
    };
    for has_template in [true, false] {
        let separate = groups(Settings { has_template, ..settings() });
        assert_eq!(separate[0], separate[1]);
        assert_ne!(separate[0], separate[2]);
        assert_eq!(groups(Settings { has_template, joint: true, ..settings() }), separate);
    }
}

#[test]
fn threads_do_not_change_the_outcome() {
    let encoder = encoder(settings(), false);
    let good = format!(r#"{{"p":"{}","r":"bc"}}"#, "ab ".repeat(60));
    let lines: Vec<&str> = (0..2000).map(|i| if i % 7 == 3 { "{}" } else { &good }).collect();
    let chunk = Chunk::from_bytes(lines.join("\n").into_bytes()).unwrap();
    let alone = encoder.encode(&chunk, &fields(Form::Prompt), Some(1)).unwrap();
    assert_eq!(alone.others.len(), 286);
    for num_threads in [2, 3, 8] {
        let many = encoder.encode(&chunk, &fields(Form::Prompt), Some(num_threads)).unwrap();
        assert!(many == alone, "{num_threads} threads");
    }
}

#[test]
fn literals_are_encoded_once_where_cuts_are_safe() {
    let specials = Specials::new(&PLAIN.added_tokens());
    let pieces = [literal("<s>a</s>b"), content(0, false), literal("c</s>")];
    let letters_encoder = PLAIN;
    let sections = Cutter::new(&letters_encoder, &specials).unwrap().cut(&pieces).unwrap();
    let middle = vec![literal("b"), content(0, false), literal("c")];
    let expected = [
        Step::Ids(letters("<s>a</s>")),
        Step::Encode(Section { pieces: middle, continues: false }),
        Step::Ids(letters("</s>")),
    ];
    assert_eq!(sections.steps, expected);
    assert!(sections.tail.pieces.is_empty());
    // A token that takes a blank from its neighbour is no place to cut.
    let stripping = Letters { strips: true, ..PLAIN };
    let sections = Cutter::new(&stripping, &specials).unwrap().cut(&pieces).unwrap();
    let Step::Ids(ids) = &sections.steps[0] else { panic!("text before the first content") };
    assert_eq!(ids, &letters("<s>a</s>"));
    let alone = [literal("x<s>"), content(0, false)];
    let sections = Cutter::new(&stripping, &specials).unwrap().cut(&alone).unwrap();
    assert!(sections.steps.is_empty());
    assert_eq!(sections.tail.pieces, alone);
}

#[test]
fn a_token_that_another_may_overlap_is_no_place_to_cut() {
    let cuts = |other| {
        let overlapping = Letters { other: Some(other), ..PLAIN };
        let specials = Specials::new(&overlapping.added_tokens());
        let cutter = Cutter::new(&overlapping, &specials).unwrap();
        let sections = cutter.cut(&[literal("x<s>"), content(0, false)]).unwrap();
        !sections.steps.is_empty()
    };
    assert!(cuts("y"));
    assert!(cuts("s"));
    for other in ["y<", "y<s", "<s>y", "y<s>y"] {
        assert!(!cuts(other), "{other}");
    }
}
