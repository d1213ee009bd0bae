//! Records whose prompt and answer meet in a few words, beside records read as a whole.

use std::sync::Arc;

use rust_tokenize::conversation::Role;
use rust_tokenize::encoder::{AddedToken, EncodeOptions, Encoder};
use rust_tokenize::error::Result;
use rust_tokenize::fields::{Field, Fields, Form};
use rust_tokenize::lines::Chunk;
use rust_tokenize::native::NativeEncoder;
use rust_tokenize::records::{BOUNDARY_MERGED, RecordEncoder, Records, Settings};
use rust_tokenize::template::{Content, Piece, Template};
use serde_json::{Value, json};

use crate::native::{all_options, random_text};
use crate::native_small::{byte_level, some_definitions};
use crate::random::Random;

/// An encoder whose texts are never cut.
struct Uncut(NativeEncoder);

impl Encoder for Uncut {
    fn engine(&self) -> &'static str {
        self.0.engine()
    }
    fn vocab_size(&self) -> usize {
        self.0.vocab_size()
    }
    fn prepare(&self, options: EncodeOptions) -> Result<()> {
        self.0.prepare(options)
    }
    fn encode(&self, text: &str, options: EncodeOptions, ids: &mut Vec<i32>) -> Result<()> {
        self.0.encode(text, options, ids)
    }
    fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String> {
        self.0.decode(ids, skip_special_tokens)
    }
    fn token_to_id(&self, token: &str) -> Option<i32> {
        self.0.token_to_id(token)
    }
    fn id_to_token(&self, id: u32) -> Option<String> {
        self.0.id_to_token(id)
    }
    fn added_tokens(&self) -> Vec<AddedToken> {
        self.0.added_tokens()
    }
}

/// A byte-level definition whose added tokens are these, some with a property.
fn definition(added: &[(&str, &str)]) -> Value {
    let mut made = some_definitions().swap_remove(0);
    let first = made["model"]["vocab"].as_object().unwrap().len();
    let entries = added.iter().zip(first..).map(|((content, property), id)| {
        let mut entry = json!({"id": id, "content": content, "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false, "special": false});
        entry[*property] = json!(true);
        entry
    });
    made["added_tokens"] = entries.collect();
    made
}

const ADDED: [(&str, &str); 3] = [("<s>", "special"), ("</s>", "special"), ("he", "normalized")];

fn native(definition: &Value) -> NativeEncoder {
    NativeEncoder::from_slice(definition.to_string().as_bytes()).unwrap()
}

#[test]
fn parts_have_the_ids_of_the_whole() {
    let mut random = Random::new(21);
    for normalizer in [Value::Null, json!({"type": "NFC"})] {
        let mut made = definition(&ADDED);
        made["normalizer"] = normalizer;
        let encoder = native(&made);
        assert!(encoder.cuts_at_blanks());
        let extra = ["<s>".to_owned(), "</s>".to_owned(), "he".to_owned()];
        for _ in 0..500 {
            let left = random_text(&mut random, &extra) + *random.pick(&["e", "h", "s"]);
            let right = format!(" {}", random_text(&mut random, &extra));
            for options in all_options().into_iter().filter(|one| !one.add_special_tokens) {
                let (mut whole, mut parts) = (Vec::new(), Vec::new());
                encoder.encode(&format!("{left}{right}"), options, &mut whole).unwrap();
                encoder.encode(&left, options, &mut parts).unwrap();
                encoder.encode(&right, options, &mut parts).unwrap();
                assert_eq!(whole, parts, "{left:?} {right:?}");
            }
        }
    }
}

#[test]
fn what_looks_over_a_blank_is_not_cut() {
    for property in ["single_word", "lstrip", "rstrip"] {
        assert!(!native(&definition(&[("<s>", property)])).cuts_at_blanks(), "{property}");
    }
    assert!(!native(&definition(&[("a b", "special")])).cuts_at_blanks());
    assert!(native(&definition(&[("a. b", "special")])).cuts_at_blanks());
    for pre_tokenizer in [byte_level(true, true), byte_level(false, false)] {
        let mut made = definition(&ADDED);
        made["pre_tokenizer"] = pre_tokenizer;
        assert!(!native(&made).cuts_at_blanks());
    }
    assert!(!native(&some_definitions()[1]).cuts_at_blanks()); // SentencePiece
}

fn content(turn: usize) -> Piece {
    Piece::Content(Content { turn, trimmed: false })
}

fn records(encoder: Arc<dyn Encoder>, settings: Settings, tail: &str, text: &str) -> Records {
    let mut encoder = RecordEncoder::new(encoder, settings).unwrap();
    let context = [Piece::Literal("<s>q".to_owned()), content(0), Piece::Literal(tail.to_owned())];
    let whole = [&context[..], &[content(1)]].concat();
    let [context, whole] =
        [context.to_vec(), whole].map(|pieces| Template { pieces, guards: Vec::new() });
    encoder.add_shape(vec![Role::User], context, whole).unwrap();
    let columns = [("p", Field::Prompt), ("r", Field::Response)];
    let columns = columns.map(|(name, field)| (name.to_owned(), field)).to_vec();
    let chunk = Chunk::from_bytes(text.as_bytes().to_vec()).unwrap();
    encoder.encode(&chunk, &Fields { form: Form::Prompt, columns }, Some(1)).unwrap()
}

#[test]
fn records_are_those_that_are_read_as_a_whole() {
    let mut random = Random::new(22);
    let extra = ["<s>".to_owned(), "</s>".to_owned(), "he ".to_owned(), "el or".to_owned()];
    let lines: Vec<String> = (0..300)
        .map(|_| {
            let [prompt, answer] = [(); 2].map(|()| random_text(&mut random, &extra));
            json!({"p": prompt, "r": answer}).to_string()
        })
        .collect();
    let text = lines.join("\n");
    let made = definition(&ADDED);
    let (encoder, plain) = (Arc::new(native(&made)), Arc::new(Uncut(native(&made))));
    let mut num_merged = 0;
    for tail in ["</s>a", "</s>", "\n", " el "] {
        for number in 0..16 {
            let [has_template, joint, parse_special, has_bos] =
                [1, 2, 4, 8].map(|bit| number & bit > 0);
            let bos = has_bos.then_some(70);
            let settings = Settings {
                bos,
                end_of_turn: vec![2],
                has_template,
                joint,
                parse_special,
                max_length: 1000,
            };
            let cut = records(encoder.clone(), settings.clone(), tail, &text);
            let uncut = records(plain.clone(), settings.clone(), tail, &text);
            assert_eq!(cut, uncut, "{tail:?} {settings:?}");
            num_merged += cut.flags.iter().filter(|&flags| flags & BOUNDARY_MERGED > 0).count();
        }
    }
    assert!(num_merged > 100, "{num_merged} of some thousands");
}
