//! The reference tokenizer: `tokenizer.json` through the `tokenizers` crate.
//!
//! In: a path. Out: an [`Encoder`] whose ids are those of the Python package `tokenizers` with the
//! same file. The sections are read one by one, so that an error can name the section, truncation
//! and padding stored in the file never apply, and the four ways to read a text (special tokens
//! parsed or not, continuation or not) share one vocabulary: the crate keeps these switches inside
//! a tokenizer, and a copy of it costs as much memory as the first.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::value::RawValue;
use tokenizers as hf;

use crate::continuation::{Sections, without_prefix};
use crate::encoder::{AddedToken, EncodeOptions, Encoder};
use crate::error::{Error, Result, guard};

type Pipeline = hf::TokenizerImpl<
    SharedModel,
    hf::NormalizerWrapper,
    hf::PreTokenizerWrapper,
    hf::PostProcessorWrapper,
    hf::DecoderWrapper,
>;

#[derive(Deserialize)]
struct TokenizerFile<'a> {
    version: Option<String>,
    #[serde(default)]
    added_tokens: Vec<AddedEntry>,
    #[serde(borrow)]
    normalizer: Option<&'a RawValue>,
    #[serde(borrow)]
    pre_tokenizer: Option<&'a RawValue>,
    #[serde(borrow)]
    post_processor: Option<&'a RawValue>,
    #[serde(borrow)]
    decoder: Option<&'a RawValue>,
    #[serde(borrow)]
    model: &'a RawValue,
}

#[derive(Deserialize)]
struct AddedEntry {
    id: u32,
    #[serde(flatten)]
    token: hf::AddedToken,
}

/// A model several pipelines use.
#[derive(Clone)]
struct SharedModel(Arc<hf::ModelWrapper>);

impl hf::Model for SharedModel {
    type Trainer = <hf::ModelWrapper as hf::Model>::Trainer;

    fn tokenize(&self, sequence: &str) -> hf::Result<Vec<hf::Token>> {
        self.0.tokenize(sequence)
    }
    fn token_to_id(&self, token: &str) -> Option<u32> {
        self.0.token_to_id(token)
    }
    fn id_to_token(&self, id: u32) -> Option<String> {
        self.0.id_to_token(id)
    }
    fn get_vocab(&self) -> HashMap<String, u32> {
        self.0.get_vocab()
    }
    fn get_vocab_size(&self) -> usize {
        self.0.get_vocab_size()
    }
    fn save(&self, folder: &Path, prefix: Option<&str>) -> hf::Result<Vec<PathBuf>> {
        self.0.save(folder, prefix)
    }
    fn get_trainer(&self) -> Self::Trainer {
        self.0.get_trainer()
    }
}

/// A loaded `tokenizer.json`.
pub struct HuggingFaceEncoder {
    pipeline: Pipeline,
    sections: Sections,
    added: Vec<hf::AddedToken>,
    /// The other three readings, made when first asked for.
    special_as_text: OnceLock<Pipeline>,
    continuing: OnceLock<std::result::Result<Option<Pipeline>, String>>,
    continuing_special_as_text: OnceLock<Pipeline>,
}

impl HuggingFaceEncoder {
    /// Loads a `tokenizer.json`.
    pub fn from_file(path: &Path) -> Result<Self> {
        let text = fs::read(path).map_err(Error::io(path))?;
        // A definition that makes the crate panic is a bad definition, not a bug of ours.
        guard(|| Self::from_slice(&text))
            .map_err(|error| Error::Tokenizer(format!("`{}`: {error}", path.display())))
    }

    fn from_slice(text: &[u8]) -> Result<Self> {
        // The whole of it: what is not read could hold other bytes, which the reference refuses.
        let text = str::from_utf8(text).map_err(|error| not_loaded("file", error))?;
        let file: TokenizerFile<'_> =
            serde_json::from_str(text).map_err(|error| not_loaded("file", error))?;
        if let Some(version) = file.version.filter(|version| version != "1.0") {
            return Err(Error::Tokenizer(format!("its version is `{version}`, expected `1.0`")));
        }
        let model: hf::ModelWrapper =
            parse("model", Some(file.model))?.ok_or_else(|| no_model("null"))?;
        check_model(&model)?;
        let sections = Sections {
            normalizer: parse("normalizer", file.normalizer)?.unwrap_or(Value::Null),
            pre_tokenizer: parse("pre_tokenizer", file.pre_tokenizer)?.unwrap_or(Value::Null),
        };
        let base = hf::TokenizerBuilder::new()
            .with_model(SharedModel(Arc::new(model)))
            .with_normalizer(parse("normalizer", file.normalizer)?)
            .with_pre_tokenizer(parse("pre_tokenizer", file.pre_tokenizer)?)
            .with_post_processor(parse("post_processor", file.post_processor)?)
            .with_decoder(parse("decoder", file.decoder)?)
            .build();
        let mut pipeline = base.map_err(no_model)?;
        let added: Vec<_> = file.added_tokens.iter().map(|entry| entry.token.clone()).collect();
        add_tokens(&mut pipeline, &added)?;
        check_added(&pipeline, &file.added_tokens)?;
        Ok(Self {
            pipeline,
            sections,
            added,
            special_as_text: OnceLock::new(),
            continuing: OnceLock::new(),
            continuing_special_as_text: OnceLock::new(),
        })
    }

    fn pipeline(&self, options: EncodeOptions) -> Result<&Pipeline> {
        let continuing = if options.continuation {
            let made = self
                .continuing
                .get_or_init(|| self.make_continuing().map_err(|error| error.to_string()));
            made.as_ref().map_err(|error| Error::Tokenizer(error.clone()))?.as_ref()
        } else {
            None
        };
        Ok(match (continuing, options.parse_special) {
            (None, true) => &self.pipeline,
            (None, false) => {
                self.special_as_text.get_or_init(|| with_special_as_text(&self.pipeline))
            }
            (Some(pipeline), true) => pipeline,
            (Some(pipeline), false) => {
                self.continuing_special_as_text.get_or_init(|| with_special_as_text(pipeline))
            }
        })
    }

    /// None if nothing puts a blank in front: the pipeline there is will do.
    fn make_continuing(&self) -> Result<Option<Pipeline>> {
        let Some(sections) = without_prefix(&self.sections)? else {
            return Ok(None);
        };
        let normalizer: Option<hf::NormalizerWrapper> =
            serde_json::from_value(sections.normalizer).map_err(not_edited)?;
        let pre_tokenizer: Option<hf::PreTokenizerWrapper> =
            serde_json::from_value(sections.pre_tokenizer).map_err(not_edited)?;
        let base = hf::TokenizerBuilder::new()
            .with_model(self.pipeline.get_model().clone())
            .with_normalizer(normalizer)
            .with_pre_tokenizer(pre_tokenizer)
            .with_post_processor(self.pipeline.get_post_processor().cloned())
            .with_decoder(self.pipeline.get_decoder().cloned())
            .build();
        let mut pipeline = base.map_err(no_model)?;
        // Added tokens are normalized as they are added, so they cannot be taken over.
        add_tokens(&mut pipeline, &self.added)?;
        Ok(Some(pipeline))
    }
}

/// A token that normalizes to nothing is refused: the crate finds it everywhere without end, until
/// the memory is full and the process dies.
fn add_tokens(pipeline: &mut Pipeline, tokens: &[hf::AddedToken]) -> Result<()> {
    for token in tokens.iter().filter(|token| token.normalized && !token.content.is_empty()) {
        let Some(normalizer) = pipeline.get_normalizer() else { break };
        let mut content = hf::NormalizedString::from(token.content.as_str());
        hf::Normalizer::normalize(normalizer, &mut content)
            .map_err(|error| not_loaded("`normalizer` section", error))?;
        if content.is_empty() {
            return Err(Error::Tokenizer(format!(
                "its added token `{}` normalizes to nothing, expected some text",
                token.content.escape_debug()
            )));
        }
    }
    pipeline
        .add_tokens(tokens.iter().cloned())
        .map_err(|error| not_loaded("`added_tokens` section", error))?;
    Ok(())
}

fn with_special_as_text(pipeline: &Pipeline) -> Pipeline {
    let mut copy = pipeline.clone();
    copy.set_encode_special_tokens(true);
    copy
}

fn not_loaded(what: &str, error: impl std::fmt::Display) -> Error {
    // With a `continuing_subword_prefix` the crate cuts tokens between bytes, unchecked, and quotes
    // them: the text may be no UTF-8, of which Python makes no exception but a crash.
    let said = error.to_string();
    let said = String::from_utf8_lossy(said.as_bytes());
    Error::Tokenizer(format!("its {what} cannot be used: {said}"))
}

fn not_edited(error: impl std::fmt::Display) -> Error {
    not_loaded("form without a blank in front", error)
}

fn no_model(error: impl std::fmt::Display) -> Error {
    not_loaded("`model` section", error)
}

fn parse<T: DeserializeOwned>(name: &str, section: Option<&RawValue>) -> Result<Option<T>> {
    let Some(raw) = section else { return Ok(None) };
    let parsed = serde_json::from_str(raw.get());
    parsed.map_err(|error| not_loaded(&format!("`{name}` section"), error))
}

/// Dropout would give other ids at every call.
fn check_model(model: &hf::ModelWrapper) -> Result<()> {
    if let hf::ModelWrapper::BPE(bpe) = model
        && let Some(dropout) = bpe.dropout.filter(|&dropout| dropout > 0.0)
    {
        return Err(Error::Tokenizer(format!(
            "its model has dropout {dropout}, expected none: ids would be random"
        )));
    }
    Ok(())
}

/// The crate numbers added tokens itself; a file that says otherwise would silently mean other
/// embeddings.
fn check_added(pipeline: &Pipeline, entries: &[AddedEntry]) -> Result<()> {
    for entry in entries.iter().filter(|entry| !entry.token.content.is_empty()) {
        let content = &entry.token.content;
        let loaded = pipeline.token_to_id(content);
        if loaded != Some(entry.id) {
            return Err(Error::Tokenizer(format!(
                "its added token `{content}` has id {}, but loads as {loaded:?}",
                entry.id
            )));
        }
    }
    Ok(())
}

fn to_i32(id: u32) -> Result<i32> {
    i32::try_from(id)
        .map_err(|_| Error::Tokenizer(format!("the token id {id} does not fit 32 bits")))
}

impl Encoder for HuggingFaceEncoder {
    fn engine(&self) -> &'static str {
        "tokenizers"
    }

    fn vocab_size(&self) -> usize {
        self.pipeline.get_vocab_size(true)
    }

    fn prepare(&self, options: EncodeOptions) -> Result<()> {
        self.pipeline(options).map(|_| ())
    }

    fn encode(&self, text: &str, options: EncodeOptions, ids: &mut Vec<i32>) -> Result<()> {
        let pipeline = self.pipeline(options)?;
        let encoded = pipeline.encode_fast(text, options.add_special_tokens);
        let encoding = encoded.map_err(|error| Error::Tokenizer(error.to_string()))?;
        for &id in encoding.get_ids() {
            ids.push(to_i32(id)?);
        }
        Ok(())
    }

    fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String> {
        let decoded = self.pipeline.decode(ids, skip_special_tokens);
        decoded.map_err(|error| Error::Tokenizer(format!("the ids cannot be decoded: {error}")))
    }

    fn token_to_id(&self, token: &str) -> Option<i32> {
        self.pipeline.token_to_id(token).and_then(|id| i32::try_from(id).ok())
    }

    fn id_to_token(&self, id: u32) -> Option<String> {
        self.pipeline.id_to_token(id)
    }

    fn added_tokens(&self) -> Vec<AddedToken> {
        let decoder = self.pipeline.get_added_vocabulary().get_added_tokens_decoder();
        let described = decoder.iter().filter_map(|(&id, token)| {
            let id = i32::try_from(id).ok()?;
            Some(AddedToken { content: token.content.clone(), id, special: token.special })
        });
        let mut tokens: Vec<_> = described.collect();
        tokens.sort_by_key(|token| token.id);
        tokens
    }
}
