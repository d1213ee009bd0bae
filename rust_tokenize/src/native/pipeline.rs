//! The way of a text: cut at added tokens, normalized, cut at the other added tokens, scanned.

use std::borrow::Cow;
use std::ops::Range;

use crate::encoder::EncodeOptions;
use crate::native::NativeEncoder;
use crate::native::added::Section;
use crate::native::allow::{Normalizer, Pieces, Prefix};
use crate::native::assemble::without_prefix;
use crate::native::model::BLANK;
use crate::native::nfc::nfc;
use crate::native::scan::{Cl100k, DeepSeek, Family, Gpt2, O200k, Scanner};
use crate::native::sentencepiece::{BeforeEach, Whole, Words};
use crate::native::worker::Worker;

/// Applies a normalizer.
pub fn normalize(normalizer: Normalizer, text: &str) -> Cow<'_, str> {
    match normalizer {
        Normalizer::None => Cow::Borrowed(text),
        Normalizer::Nfc => nfc(text),
        Normalizer::Blanks { prepend } => {
            let mut blanked = String::with_capacity(text.len() * 3 / 2 + 3);
            if prepend && !text.is_empty() {
                blanked.push(BLANK);
            }
            blanked.extend(text.chars().map(|char| if char == ' ' { BLANK } else { char }));
            Cow::Owned(blanked)
        }
    }
}

impl NativeEncoder {
    /// Appends the ids of `text`.
    pub(super) fn encode_text(
        &self,
        worker: &mut Worker,
        text: &str,
        options: EncodeOptions,
        ids: &mut Vec<i32>,
    ) {
        if options.add_special_tokens {
            ids.extend_from_slice(&self.template.before);
        }
        for section in self.raw_patterns.split(text, options.parse_special) {
            match section {
                Section::Token(id) => ids.push(id.cast_signed()),
                Section::Text(range) => {
                    self.encode_section(worker, text, range, options, ids);
                }
            }
        }
        if options.add_special_tokens {
            ids.extend_from_slice(&self.template.after);
        }
    }

    /// Text between tokens that are searched for in raw text.
    fn encode_section(
        &self,
        worker: &mut Worker,
        text: &str,
        range: Range<usize>,
        options: EncodeOptions,
        ids: &mut Vec<i32>,
    ) {
        let (normalizer, patterns) = if options.continuation {
            (without_prefix(self.pipeline.normalizer), &self.continuing_patterns)
        } else {
            (self.pipeline.normalizer, &self.normalized_patterns)
        };
        let raw = &text[range.clone()];
        if patterns.is_empty()
            && let Normalizer::Blanks { prepend } = normalizer
        {
            // Scanners and models read a blank as the character that stands for it.
            return self.encode_pieces(worker, raw, prepend, ids);
        }
        let whole = normalize(normalizer, raw);
        for section in patterns.split(&whole, options.parse_special) {
            match section {
                Section::Token(id) => ids.push(id.cast_signed()),
                Section::Text(within) => {
                    let first = range.start == 0 && within.start == 0;
                    let blank =
                        !options.continuation && self.adds_blank(&whole[within.clone()], first);
                    self.encode_pieces(worker, &whole[within], blank, ids);
                }
            }
        }
    }

    /// Whether the pretokenizer puts a blank in front of this section.
    fn adds_blank(&self, section: &str, first: bool) -> bool {
        let in_bytes = matches!(self.pipeline.pieces, Pieces::Bytes(_) | Pieces::WholeBytes);
        let has_blank = section.starts_with(' ') || (!in_bytes && section.starts_with(BLANK));
        match self.pipeline.prefix {
            Prefix::Never => false,
            Prefix::UnlessBlank => !has_blank,
            Prefix::FirstUnlessBlank => first && !has_blank,
        }
    }

    /// Text without tokens, with a blank in front of it if `blank`.
    fn encode_pieces(&self, worker: &mut Worker, text: &str, blank: bool, ids: &mut Vec<i32>) {
        match self.pipeline.pieces {
            Pieces::Bytes(family) => self.encode_family(worker, family, text, blank, ids),
            Pieces::WholeBytes => self.encode_bytes(worker, Whole, text, blank, ids),
            Pieces::CharsFromEachBlank => self.encode_chars(worker, BeforeEach, text, blank, ids),
            Pieces::WholeChars => match &self.cuts {
                Some(cuts) => self.encode_chars(worker, Words(cuts), text, blank, ids),
                None => self.encode_chars(worker, Whole, text, blank, ids),
            },
        }
    }

    fn encode_family(
        &self,
        worker: &mut Worker,
        family: Family,
        text: &str,
        blank: bool,
        ids: &mut Vec<i32>,
    ) {
        match family {
            Family::Gpt2 => self.encode_bytes(worker, Gpt2::<false>, text, blank, ids),
            Family::DigitsGpt2 => self.encode_bytes(worker, Gpt2::<true>, text, blank, ids),
            Family::Cl100k => self.encode_bytes(worker, Cl100k::<3, false>, text, blank, ids),
            Family::Qwen2 => self.encode_bytes(worker, Cl100k::<1, false>, text, blank, ids),
            Family::Qwen35 => self.encode_bytes(worker, Cl100k::<1, true>, text, blank, ids),
            Family::O200k => self.encode_bytes(worker, O200k::<3, true>, text, blank, ids),
            Family::Tekken => self.encode_bytes(worker, O200k::<1, false>, text, blank, ids),
            Family::DeepSeek => self.encode_bytes(worker, DeepSeek, text, blank, ids),
        }
    }

    fn encode_bytes<S: Scanner>(
        &self,
        worker: &mut Worker,
        scanner: S,
        text: &str,
        blank: bool,
        ids: &mut Vec<i32>,
    ) {
        if blank {
            worker.encode_with_blank(&self.model, scanner, text, ids);
        } else {
            worker.encode(&self.model, scanner, text, ids);
        }
    }

    fn encode_chars<S: Scanner>(
        &self,
        worker: &mut Worker,
        scanner: S,
        text: &str,
        blank: bool,
        ids: &mut Vec<i32>,
    ) {
        if blank {
            worker.encode_with_blank_on_first(&self.model, scanner, text, ids);
        } else {
            worker.encode(&self.model, scanner, text, ids);
        }
    }

    /// The name of the engine.
    pub(super) fn engine_name(&self) -> &'static str {
        match self.pipeline.pieces {
            Pieces::Bytes(Family::Gpt2) => "native:gpt2",
            Pieces::Bytes(Family::DigitsGpt2) => "native:digits-gpt2",
            Pieces::Bytes(Family::Cl100k) => "native:cl100k",
            Pieces::Bytes(Family::Qwen2) => "native:qwen2",
            Pieces::Bytes(Family::Qwen35) => "native:qwen3.5",
            Pieces::Bytes(Family::O200k) => "native:o200k",
            Pieces::Bytes(Family::Tekken) => "native:tekken",
            Pieces::Bytes(Family::DeepSeek) => "native:deepseek",
            Pieces::WholeBytes => "native:bytes",
            Pieces::WholeChars | Pieces::CharsFromEachBlank => "native:sentencepiece",
        }
    }
}
