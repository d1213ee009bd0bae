//! `tokenizer.json`, read fast: the vocabulary and the merges straight into flat tables.
//!
//! In: the bytes of the file. Out: [`Definition`], or None for a file that is not a BPE model in a
//! form known here: such a file is left to the `tokenizers` crate, which also knows best what is
//! wrong with it. What is read here means what it means there: unknown or repeated fields, repeated
//! tokens or ids, and merges of unknown tokens all end in None. With it goes what follows from the
//! tokens and takes longer to find than to read.

use std::fmt;

use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::native::joins::Joins;
use crate::native::merges::Merge;
use crate::native::strict::strict;
use crate::native::strings::Strings;
use crate::native::vocabulary::Vocabulary;

/// Everything of a file that is not a table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// `added_tokens`, as in the file.
    pub added_tokens: Vec<AddedEntry>,
    /// `normalizer`.
    pub normalizer: Value,
    /// `pre_tokenizer`.
    pub pre_tokenizer: Value,
    /// `post_processor`.
    pub post_processor: Value,
    /// `decoder`.
    pub decoder: Value,
    /// `model.unk_token`.
    pub unk_token: Option<String>,
    /// `model.fuse_unk`.
    pub fuse_unk: bool,
    /// `model.byte_fallback`.
    pub byte_fallback: bool,
    /// `model.ignore_merges`.
    pub ignore_merges: bool,
}

/// An entry of `added_tokens`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(clippy::struct_excessive_bools)] // the fields of the file
pub struct AddedEntry {
    /// The id the file gives it.
    pub id: u32,
    /// Its text.
    pub content: String,
    /// Matches whole words only.
    pub single_word: bool,
    /// Swallows white space on its left.
    pub lstrip: bool,
    /// Swallows white space on its right.
    pub rstrip: bool,
    /// Is searched for in normalized text.
    pub normalized: bool,
    /// Is a control token.
    pub special: bool,
}

/// A BPE tokenizer as its file describes it.
#[derive(Debug, Clone)]
pub struct Definition {
    /// Everything but the tables.
    pub header: Header,
    /// The model's tokens.
    pub vocabulary: Vocabulary,
    /// The model's merges, by rank.
    pub merges: Vec<Merge>,
    /// What tokens join.
    pub joins: Joins,
}

#[derive(Deserialize)]
struct File {
    version: Option<String>,
    #[serde(default)]
    added_tokens: Vec<AddedEntry>,
    #[serde(default, deserialize_with = "strict")]
    normalizer: Value,
    #[serde(default, deserialize_with = "strict")]
    pre_tokenizer: Value,
    #[serde(default, deserialize_with = "strict")]
    post_processor: Value,
    #[serde(default, deserialize_with = "strict")]
    decoder: Value,
    model: ModelSection,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelSection {
    #[serde(rename = "type", default, deserialize_with = "named")]
    kind: Option<String>,
    dropout: Option<f32>,
    unk_token: Option<String>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    fuse_unk: Option<bool>,
    byte_fallback: Option<bool>,
    ignore_merges: Option<bool>,
    vocab: VocabSection,
    merges: MergesSection,
}

/// The type may be missing, not null.
fn named<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    String::deserialize(deserializer).map(Some)
}

impl Definition {
    /// Reads a file; None if it is to be left to the `tokenizers` crate.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        let file: File = serde_json::from_str(std::str::from_utf8(text).ok()?).ok()?;
        let model = file.model;
        let known = file.version.is_none_or(|version| version == "1.0")
            && model.kind.is_none_or(|kind| kind == "BPE")
            && model.dropout.is_none_or(|dropout| dropout == 0.0)
            && model.continuing_subword_prefix.is_none_or(|prefix| prefix.is_empty())
            && model.end_of_word_suffix.is_none_or(|suffix| suffix.is_empty());
        if !known {
            return None;
        }
        let vocabulary = Vocabulary::new(model.vocab.tokens, model.vocab.ids)?;
        let merges = resolve(&model.merges.parts, &vocabulary)?;
        let header = Header {
            added_tokens: file.added_tokens,
            normalizer: file.normalizer,
            pre_tokenizer: file.pre_tokenizer,
            post_processor: file.post_processor,
            decoder: file.decoder,
            unk_token: model.unk_token,
            fuse_unk: model.fuse_unk.unwrap_or(false),
            byte_fallback: model.byte_fallback.unwrap_or(false),
            ignore_merges: model.ignore_merges.unwrap_or(false),
        };
        let joins = Joins::new(&vocabulary);
        Some(Self { header, vocabulary, merges, joins })
    }
}

/// Merges of texts to merges of ids; None if a text is no token or empty.
fn resolve(parts: &Strings, vocabulary: &Vocabulary) -> Option<Vec<Merge>> {
    let mut merged = String::new();
    let pairs = (0..parts.len() / 2).map(|number| {
        let (left, right) = (parts.get(2 * number), parts.get(2 * number + 1));
        if left.is_empty() || right.is_empty() {
            return None;
        }
        merged.clear();
        merged.push_str(left);
        merged.push_str(right);
        Some(Merge {
            left: vocabulary.id_of(left.as_bytes())?,
            right: vocabulary.id_of(right.as_bytes())?,
            merged: vocabulary.id_of(merged.as_bytes())?,
        })
    });
    pairs.collect()
}

/// Appends a JSON string to strings.
struct Push<'a>(&'a mut Strings);

impl<'de> DeserializeSeed<'de> for Push<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Push<'_> {
    type Value = ();

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a string")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        if self.0.push(text) { Ok(()) } else { Err(E::custom("too much text")) }
    }
}

#[derive(Default)]
struct VocabSection {
    tokens: Strings,
    ids: Vec<u32>,
}

impl<'de> Deserialize<'de> for VocabSection {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(VocabVisitor)
    }
}

struct VocabVisitor;

impl<'de> Visitor<'de> for VocabVisitor {
    type Value = VocabSection;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("an object of ids by token")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<VocabSection, A::Error> {
        let mut section = VocabSection::default();
        while map.next_key_seed(Push(&mut section.tokens))?.is_some() {
            section.ids.push(map.next_value()?);
        }
        Ok(section)
    }
}

/// Left and right part of each merge.
#[derive(Default)]
struct MergesSection {
    parts: Strings,
}

impl<'de> Deserialize<'de> for MergesSection {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(MergesVisitor)
    }
}

struct MergesVisitor;

impl<'de> Visitor<'de> for MergesVisitor {
    type Value = MergesSection;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a list of merges")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<MergesSection, A::Error> {
        let mut section = MergesSection::default();
        let mut spelling = None;
        while let Some(found) = list.next_element_seed(PushMerge(&mut section.parts))? {
            if *spelling.get_or_insert(found) != found {
                return Err(A::Error::custom("merges spelled in two ways"));
            }
        }
        Ok(section)
    }
}

/// How a merge is written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Spelling {
    /// `"a b"`
    Line,
    /// `["a", "b"]`
    Pair,
}

/// Appends the two parts of a merge.
struct PushMerge<'a>(&'a mut Strings);

impl<'de> DeserializeSeed<'de> for PushMerge<'_> {
    type Value = Spelling;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Spelling, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for PushMerge<'_> {
    type Value = Spelling;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a merge")
    }

    fn visit_str<E: serde::de::Error>(self, line: &str) -> Result<Spelling, E> {
        if line.starts_with("#version") {
            return Ok(Spelling::Line);
        }
        let parts = line.split_once(' ').filter(|(_, right)| !right.contains(' '));
        let (left, right) = parts.ok_or_else(|| E::custom("a merge of other than two parts"))?;
        if self.0.push(left) && self.0.push(right) {
            Ok(Spelling::Line)
        } else {
            Err(E::custom("too much text"))
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut pair: A) -> Result<Spelling, A::Error> {
        let left = pair.next_element_seed(Push(self.0))?;
        let right = pair.next_element_seed(Push(self.0))?;
        if left.is_none() || right.is_none() {
            return Err(A::Error::custom("a merge of fewer than two parts"));
        }
        Ok(Spelling::Pair)
    }
}
