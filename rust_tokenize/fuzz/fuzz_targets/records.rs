//! Lines to ids by way of compiled templates: every line is either a record or for another reader,
//! the same ones on one thread as on several, and what a record is made of adds up.
#![no_main]

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use rust_tokenize::conversation::Role;
use rust_tokenize::fields::{Field, Fields, Form};
use rust_tokenize::lines::Chunk;
use rust_tokenize::native::NativeEncoder;
use rust_tokenize::records::{RecordEncoder, Settings};
use rust_tokenize::template::{Content, Guard, Piece, Template, Test};
use rust_tokenize_fuzz::SMALL;

const FORMS: [Form; 5] =
    [Form::Turns, Form::TurnsAndAnswer, Form::Prompt, Form::Question, Form::Instruction];
const COLUMNS: [(&str, Field); 8] = [
    ("p", Field::Prompt),
    ("i", Field::Input),
    ("r", Field::Response),
    ("id", Field::Id),
    ("s", Field::Source),
    ("g", Field::Group),
    ("c", Field::Correct),
    ("t", Field::Checked),
];

static ENCODERS: LazyLock<Vec<RecordEncoder>> = LazyLock::new(|| (0..8).map(encoder).collect());

fn encoder(number: u8) -> RecordEncoder {
    let settings = Settings {
        bos: (number & 1 > 0).then_some(0),
        end_of_turn: vec![1, 2],
        has_template: number < 6,
        joint: number & 2 > 0,
        parse_special: number & 4 > 0,
        max_length: 64,
    };
    let native = NativeEncoder::from_slice(SMALL).expect("a native definition");
    let mut encoder = RecordEncoder::new(Arc::new(native), settings).expect("good settings");
    if number < 6 {
        for (roles, trimmed) in [(vec![Role::User], false), (vec![Role::System, Role::User], true)]
        {
            let last = roles.len();
            let mut context = vec![Piece::Literal("<unk>".to_owned())];
            context.extend((0..last).map(|turn| Piece::Content(Content { turn, trimmed })));
            let mut whole = context.clone();
            whole.push(Piece::Content(Content { turn: last, trimmed }));
            whole.push(Piece::Literal("<unk>a".to_owned()));
            let content = Content { turn: 0, trimmed };
            let guards = vec![Guard { content, test: Test::Contains, text: "ba".to_owned() }];
            let [context, whole] =
                [context, whole].map(|pieces| Template { pieces, guards: guards.clone() });
            encoder.add_shape(roles, context, whole).expect("a good shape");
        }
    }
    encoder
}

fuzz_target!(|data: &[u8]| {
    let [how, lines @ ..] = data else { return };
    let encoder = &ENCODERS[usize::from(how & 7)];
    let form = FORMS[usize::from(how >> 3) % FORMS.len()];
    let columns = COLUMNS.map(|(name, field)| (name.to_owned(), field)).to_vec();
    let fields = Fields { form, columns };
    let chunk = Chunk::from_bytes(lines.to_vec()).expect("memory always reads");
    let records = encoder.encode(&chunk, &fields, Some(1)).expect("good settings");
    assert_eq!(records.lines.len() + records.others.len(), chunk.len());
    assert_eq!(records.context_ends.last().copied().unwrap_or(0), records.context_ids.len());
    assert_eq!(records.target_ends.last().copied().unwrap_or(0), records.target_ids.len());
    assert!(records.others.is_sorted() && records.lines.is_sorted());
    if chunk.len() > 1 {
        assert_eq!(encoder.encode(&chunk, &fields, Some(2)).expect("good settings"), records);
    }
});
