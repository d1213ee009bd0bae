//! The same tokenizer for a text that goes on from another.
//!
//! In: the `normalizer` and `pre_tokenizer` sections of a `tokenizer.json`. Out: the sections
//! without the step that puts a blank in front of a text, or None if there is no such step. A
//! response follows its prompt, so the blank that SentencePiece puts before a *text* would be a
//! token nobody wrote. Cutting the first token off afterwards was rejected: the blank merges with
//! the first word.

use serde_json::Value;

use crate::error::{Error, Result};

/// The sections that decide what is put in front of a text.
#[derive(Debug, Clone, PartialEq)]
pub struct Sections {
    /// `normalizer`, null if there is none.
    pub normalizer: Value,
    /// `pre_tokenizer`, null if there is none.
    pub pre_tokenizer: Value,
}

/// Takes out what puts a blank in front; None if nothing does.
pub fn without_prefix(sections: &Sections) -> Result<Option<Sections>> {
    let mut edited = sections.clone();
    drop_prepend(&mut edited.normalizer);
    drop_prefix_space(&mut edited.pre_tokenizer, false)?;
    Ok((edited != *sections).then_some(edited))
}

fn kind(step: &Value) -> &str {
    step.get("type").and_then(Value::as_str).unwrap_or_default()
}

fn drop_prepend(step: &mut Value) {
    match kind(step) {
        "Prepend" => *step = Value::Null,
        "Sequence" => {
            if let Some(steps) = step.get_mut("normalizers").and_then(Value::as_array_mut) {
                steps.iter_mut().for_each(drop_prepend);
                steps.retain(|step| !step.is_null());
            }
        }
        _ => {}
    }
}

/// `follows`: an earlier step has already cut the text into words.
fn drop_prefix_space(step: &mut Value, follows: bool) -> Result<()> {
    match kind(step) {
        "Metaspace" => drop_metaspace_prefix(step, follows)?,
        "ByteLevel" if step["add_prefix_space"] != false => {
            if follows {
                return Err(per_word());
            }
            step["add_prefix_space"] = Value::Bool(false);
        }
        "Sequence" => {
            if let Some(steps) = step.get_mut("pretokenizers").and_then(Value::as_array_mut) {
                for (number, step) in steps.iter_mut().enumerate() {
                    drop_prefix_space(step, follows || number > 0)?;
                }
            }
        }
        _ => {}
    }
    Ok(())
}

fn drop_metaspace_prefix(step: &mut Value, follows: bool) -> Result<()> {
    // Older files have `add_prefix_space` alone; both absent means "always".
    let scheme = step.get("prepend_scheme").and_then(Value::as_str).unwrap_or("always");
    let never = scheme == "never" || step.get("add_prefix_space") == Some(&Value::Bool(false));
    if never {
        return Ok(());
    }
    if follows && scheme == "always" {
        return Err(per_word());
    }
    step["prepend_scheme"] = Value::from("never");
    if let Some(fields) = step.as_object_mut() {
        fields.remove("add_prefix_space");
    }
    Ok(())
}

fn per_word() -> Error {
    let what =
        "this tokenizer puts a blank in front of every word, so it cannot encode a continuation";
    Error::Tokenizer(what.to_owned())
}
