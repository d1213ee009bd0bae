//! The pipelines the native engine takes: everything else is left to the `tokenizers` crate.
//!
//! In: the sections `normalizer`, `pre_tokenizer` and `post_processor` of a `tokenizer.json`. Out: a
//! [`Pipeline`], or None. A section must be one of the forms below to the last field; "nearly" is
//! never taken. Fields the reference requires are checked by reading the sections with it
//! (`assemble.rs`).

use serde_json::{Map, Value};

use crate::native::scan::Family;

/// What happens to text before it meets the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pipeline {
    /// Applied to each section between added tokens that are searched for in raw text.
    pub normalizer: Normalizer,
    /// Applied to each section between all added tokens.
    pub prefix: Prefix,
    /// How a section is cut into pieces.
    pub pieces: Pieces,
}

/// Normalizers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Normalizer {
    /// Nothing changes.
    None,
    /// Unicode's composed form.
    Nfc,
    /// SentencePiece's blanks, and perhaps one in front of every section.
    Blanks {
        /// Put one in front.
        prepend: bool,
    },
}

/// When a pretokenizer puts a blank in front of a section.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prefix {
    /// Never.
    Never,
    /// Unless there is one.
    UnlessBlank,
    /// At the start of the text, unless there is one.
    FirstUnlessBlank,
}

/// How a section is cut into pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pieces {
    /// Byte-level, by a scanner.
    Bytes(Family),
    /// Byte-level, uncut.
    WholeBytes,
    /// SentencePiece-style: the section is one piece.
    WholeChars,
    /// SentencePiece-style: a piece starts at each blank.
    CharsFromEachBlank,
}

/// The pipeline of these sections, if it is one of those known here.
#[must_use]
pub fn pipeline(normalizer: &Value, pre_tokenizer: &Value) -> Option<Pipeline> {
    let normalizer = known_normalizer(normalizer)?;
    let (prefix, pieces) = match normalizer {
        Normalizer::Blanks { .. } => (Prefix::Never, after_blanks(pre_tokenizer)?),
        Normalizer::Nfc => byte_level(pre_tokenizer)?,
        Normalizer::None => byte_level(pre_tokenizer).or_else(|| metaspace(pre_tokenizer))?,
    };
    Some(Pipeline { normalizer, prefix, pieces })
}

/// The object `value` if its type is `kind` and it has no other fields than `allowed`.
fn object<'a>(value: &'a Value, kind: &str, allowed: &[&str]) -> Option<&'a Map<String, Value>> {
    let fields = value.as_object()?;
    let known = fields.keys().all(|key| key == "type" || allowed.contains(&key.as_str()));
    (known && fields.get("type")?.as_str()? == kind).then_some(fields)
}

/// The steps of a `Sequence`, or a single step.
fn steps<'a>(value: &'a Value, name: &str) -> Option<Vec<&'a Value>> {
    if value["type"] != "Sequence" {
        return Some(vec![value]);
    }
    Some(object(value, "Sequence", &[name])?.get(name)?.as_array()?.iter().collect())
}

fn known_normalizer(value: &Value) -> Option<Normalizer> {
    if value.is_null() {
        return Some(Normalizer::None);
    }
    match steps(value, "normalizers")?.as_slice() {
        [] => Some(Normalizer::None),
        [step] if object(step, "NFC", &[]).is_some() => Some(Normalizer::Nfc),
        [step] if is_replace(step) => Some(Normalizer::Blanks { prepend: false }),
        [first, second] if is_prepend(first) && is_replace(second) => {
            Some(Normalizer::Blanks { prepend: true })
        }
        _ => None,
    }
}

fn is_prepend(step: &Value) -> bool {
    object(step, "Prepend", &["prepend"])
        .is_some_and(|fields| fields.get("prepend") == Some(&"\u{2581}".into()))
}

fn is_replace(step: &Value) -> bool {
    object(step, "Replace", &["pattern", "content"]).is_some_and(|fields| {
        fields.get("pattern") == Some(&serde_json::json!({"String": " "}))
            && fields.get("content") == Some(&"\u{2581}".into())
    })
}

/// After the blanks are replaced, a split at blanks finds none.
fn after_blanks(value: &Value) -> Option<Pieces> {
    let split = serde_json::json!({
        "type": "Split",
        "pattern": {"String": " "},
        "behavior": "MergedWithPrevious",
        "invert": false,
    });
    (value.is_null() || *value == split).then_some(Pieces::WholeChars)
}

fn metaspace(value: &Value) -> Option<(Prefix, Pieces)> {
    let known = ["replacement", "prepend_scheme", "add_prefix_space", "split", "str_rep"];
    let fields = object(value, "Metaspace", &known)?;
    let blank = Value::from("\u{2581}");
    if fields.get("replacement") != Some(&blank)
        || fields.get("str_rep").is_some_and(|rep| *rep != blank)
    {
        return None;
    }
    let add_prefix_space = match fields.get("add_prefix_space") {
        None | Some(Value::Null) => true,
        Some(value) => value.as_bool()?,
    };
    let prefix = match fields.get("prepend_scheme").map(Value::as_str) {
        Some(Some("never")) => Prefix::Never,
        Some(Some("first")) if add_prefix_space => Prefix::FirstUnlessBlank,
        Some(Some("always")) | None if add_prefix_space => Prefix::UnlessBlank,
        _ => return None,
    };
    let split = match fields.get("split") {
        None | Some(Value::Null) => true,
        Some(value) => value.as_bool()?,
    };
    Some((prefix, if split { Pieces::CharsFromEachBlank } else { Pieces::WholeChars }))
}

fn byte_level(value: &Value) -> Option<(Prefix, Pieces)> {
    if value["type"] == "Sequence" {
        object(value, "Sequence", &["pretokenizers"])?;
        return Some((Prefix::Never, Pieces::Bytes(Family::from_pre_tokenizer(value)?)));
    }
    let fields = object(value, "ByteLevel", &["add_prefix_space", "trim_offsets", "use_regex"])?;
    let flag = |name| fields.get(name).map_or(Some(true), Value::as_bool);
    let prefix = if flag("add_prefix_space")? { Prefix::UnlessBlank } else { Prefix::Never };
    let pieces = if flag("use_regex")? { Pieces::Bytes(Family::Gpt2) } else { Pieces::WholeBytes };
    Some((prefix, pieces))
}
