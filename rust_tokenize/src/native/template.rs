//! What a `post_processor` puts around the ids of a text.
//!
//! In: the section. Out: the ids in front and behind, or None for a form that is left to the
//! `tokenizers` crate. Steps that only move offsets do nothing here; one step may add ids. (A second
//! one would see what the first made as a pair of texts.)

use serde_json::{Map, Value};

/// Ids around a text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Template {
    /// In front.
    pub before: Vec<i32>,
    /// Behind.
    pub after: Vec<i32>,
}

impl Template {
    /// Reads the section, null if there is none.
    #[must_use]
    pub fn parse(section: &Value) -> Option<Self> {
        if section.is_null() {
            return Some(Self::default());
        }
        if kind(section) != "Sequence" {
            return step(section);
        }
        let fields = fields(section, &["processors"])?;
        let steps = fields.get("processors")?.as_array()?;
        let known: Vec<_> = steps.iter().map(step).collect::<Option<_>>()?;
        let mut adding = known.into_iter().filter(|template| *template != Self::default());
        let template = adding.next().unwrap_or_default();
        adding.next().is_none().then_some(template)
    }
}

fn kind(section: &Value) -> &str {
    section["type"].as_str().unwrap_or_default()
}

/// The fields of an object that has exactly these and `type`. The reference tells the steps apart by
/// their fields alone.
fn fields<'a>(section: &'a Value, names: &[&str]) -> Option<&'a Map<String, Value>> {
    let fields = section.as_object()?;
    let complete = names.iter().all(|name| fields.contains_key(*name));
    (complete && fields.len() == names.len() + 1).then_some(fields)
}

/// What a step adds.
fn step(section: &Value) -> Option<Template> {
    match kind(section) {
        "ByteLevel" => {
            let known = fields(section, &["add_prefix_space", "trim_offsets"])
                .or_else(|| fields(section, &["add_prefix_space", "trim_offsets", "use_regex"]))?;
            let flags = known.iter().filter(|(name, _)| *name != "type");
            flags.into_iter().all(|(_, flag)| flag.is_boolean()).then(Template::default)
        }
        "BertProcessing" => around(fields(section, &["sep", "cls"])?),
        "RobertaProcessing" => {
            let known = fields(section, &["sep", "cls", "trim_offsets", "add_prefix_space"])?;
            known.get("trim_offsets")?.as_bool()?;
            known.get("add_prefix_space")?.as_bool()?;
            around(known)
        }
        "TemplateProcessing" => template(fields(section, &["single", "pair", "special_tokens"])?),
        _ => None,
    }
}

fn id(value: &Value) -> Option<i32> {
    value.as_i64().and_then(|id| i32::try_from(id).ok()).filter(|&id| id >= 0)
}

fn around(fields: &Map<String, Value>) -> Option<Template> {
    let end = |name: &str| match fields.get(name)?.as_array()?.as_slice() {
        [Value::String(_), number] => id(number),
        _ => None,
    };
    Some(Template { before: vec![end("cls")?], after: vec![end("sep")?] })
}

/// The template of a single text, which must have the text once.
fn template(fields: &Map<String, Value>) -> Option<Template> {
    let special = fields.get("special_tokens")?.as_object()?;
    let mut template = Template::default();
    let mut seen = false;
    for piece in fields.get("single")?.as_array()? {
        let piece = piece.as_object().filter(|piece| piece.len() == 1)?;
        if let Some(sequence) = piece.get("Sequence") {
            if seen || sequence["id"] != "A" {
                return None;
            }
            seen = true;
        } else {
            let name = piece.get("SpecialToken")?["id"].as_str()?;
            let ids = special.get(name)?["ids"].as_array()?;
            let side = if seen { &mut template.after } else { &mut template.before };
            for value in ids {
                side.push(id(value)?);
            }
        }
    }
    seen.then_some(template)
}
