//! Which `pre_tokenizer` of a `tokenizer.json` has which scanner.

use serde_json::Value;

/// The pretokenizers there are scanners for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `ByteLevel` with its own expression: `Gpt2<false>`.
    Gpt2,
    /// `Digits` one by one, then as `Gpt2`: `Gpt2<true>`. `SmolLM2`, `StarCoder`.
    DigitsGpt2,
    /// cl100k, digits by threes: `Cl100k<3, false>`. Llama 3.
    Cl100k,
    /// cl100k, digits one by one: `Cl100k<1, false>`. Qwen 2, 2.5 and 3.
    Qwen2,
    /// cl100k, digits one by one, marks as letters: `Cl100k<1, true>`. Qwen 3.5.
    Qwen35,
    /// o200k: `O200k<3, true>`. gpt-oss, Llama 4.
    O200k,
    /// o200k without contractions, digits one by one: `O200k<1, false>`. Mistral `NeMo`.
    Tekken,
    /// `DeepSeek`: three expressions in sequence. V3, R1, V4.
    DeepSeek,
}

const CL100K: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const O200K: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK: [&str; 3] = [
    r"\p{N}{1,3}",
    "[一-龥\u{3040}-ゟ゠-ヿ]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
];

impl Family {
    /// The family of a `pre_tokenizer`, which must be one of the known ones to the letter.
    #[must_use]
    pub fn from_pre_tokenizer(pre_tokenizer: &Value) -> Option<Self> {
        let steps = match pre_tokenizer["type"].as_str()? {
            "Sequence" => pre_tokenizer["pretokenizers"].as_array()?.as_slice(),
            _ => std::slice::from_ref(pre_tokenizer),
        };
        match steps {
            [last] if is_byte_level(last, true) => Some(Self::Gpt2),
            [digits, last] if is_digits(digits) && is_byte_level(last, true) => {
                Some(Self::DigitsGpt2)
            }
            [split, last] if is_byte_level(last, false) => Self::from_expression(split),
            [splits @ .., last] if is_byte_level(last, false) => {
                let expressions = splits.iter().map(|split| isolated(split));
                expressions.eq(DEEPSEEK.map(Some)).then_some(Self::DeepSeek)
            }
            _ => None,
        }
    }

    fn from_expression(split: &Value) -> Option<Self> {
        match isolated(split).or_else(|| matches_only(split))? {
            CL100K => Some(Self::Cl100k),
            QWEN2 => Some(Self::Qwen2),
            QWEN35 => Some(Self::Qwen35),
            O200K => Some(Self::O200k),
            TEKKEN => Some(Self::Tekken),
            _ => None,
        }
    }
}

/// `trim_offsets` moves no token, so it may be anything.
fn is_byte_level(step: &Value, use_regex: bool) -> bool {
    step["type"] == "ByteLevel"
        && step["add_prefix_space"] == false
        && *step.get("use_regex").unwrap_or(&Value::Bool(true)) == use_regex
}

fn is_digits(step: &Value) -> bool {
    step["type"] == "Digits" && step["individual_digits"] == true
}

/// The expression of a `Split` that keeps what lies between matches.
fn isolated(step: &Value) -> Option<&str> {
    expression(step, "Isolated", false)
}

/// The expression of a `Split` that drops what lies between matches: the same where everything
/// matches, as it does with all but `DeepSeek`'s.
fn matches_only(step: &Value) -> Option<&str> {
    expression(step, "Removed", true)
}

fn expression<'a>(step: &'a Value, behavior: &str, invert: bool) -> Option<&'a str> {
    let is_asked =
        step["type"] == "Split" && step["behavior"] == behavior && step["invert"] == invert;
    if is_asked { step["pattern"]["Regex"].as_str() } else { None }
}
