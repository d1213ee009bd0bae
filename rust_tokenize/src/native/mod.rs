//! The native tokenizer: exact ids of byte pair encodings, a hundred times faster.
//!
//! ```text
//! tokenizer.json -> definition -> allow (is every part one we know?) -> model, added tokens
//! text -> added tokens cut it -> normalizer -> scanner (ends of pieces) -> cache -> model -> ids
//! ```
//!
//! In: a `tokenizer.json`. Out: an [`Encoder`] whose ids are those of `HuggingFaceEncoder`, or
//! nothing for a file with any part that is not known here: that one is left to the `tokenizers`
//! crate, and `engine` says which it was. The speed comes from what is not done: no alignment of
//! every byte with the original, no regular expressions, no detour over printable characters, and no
//! merging of a piece that has been seen before.

pub mod added;
pub mod added_tokens;
pub mod allow;
pub mod binary;
pub mod bits;
pub mod cache;
pub mod class_tables;
pub mod classes;
pub mod definition;
pub mod disk_cache;
mod expand;
pub mod hash;
pub mod joins;
pub mod merges;
pub mod model;
pub mod nfc;
pub mod nfc_tables;
pub mod scan;
pub mod sentencepiece;
pub mod strings;
pub mod template;
pub mod vocabulary;
pub mod worker;

mod assemble;
mod cutting;
mod pipeline;
mod strict;

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

use tokenizers as hf;
use tokenizers::Decoder as _;

use crate::encoder::{AddedToken, EncodeOptions, Encoder};
use crate::error::{Error, Result};
use crate::hugging_face::HuggingFaceEncoder;
use crate::native::added::PatternSet;
use crate::native::added_tokens::AddedTokens;
use crate::native::allow::Pipeline;
use crate::native::model::Model;
use crate::native::sentencepiece::Cuts;
use crate::native::template::Template;
use crate::native::worker::Worker;

/// Slots of a worker's cache: 30 MB at most, of which a short text touches little.
const CACHE_SLOTS: usize = 1 << 18;

/// Longest text in bytes.
const MAX_TEXT: usize = 1 << 30;

/// A tokenizer of this module.
pub struct NativeEncoder {
    added: AddedTokens,
    model: Model,
    pipeline: Pipeline,
    /// Where SentencePiece-style text may be cut.
    cuts: Option<Cuts>,
    raw_patterns: PatternSet,
    normalized_patterns: PatternSet,
    /// The same for the normalizer without its blank in front.
    continuing_patterns: PatternSet,
    template: Template,
    decoder: Option<hf::DecoderWrapper>,
    /// Workers that rest between calls, with what their caches have learnt.
    workers: Mutex<Vec<Worker>>,
    cache_slots: usize,
    /// Workers that may rest: as many as the machine runs at once.
    max_resting: usize,
}

/// Loads a `tokenizer.json` with the fastest engine that gives the exact ids.
pub fn load(path: &Path) -> Result<Arc<dyn Encoder>> {
    match load_native(path)? {
        Some(encoder) => Ok(Arc::new(encoder)),
        None => Ok(Arc::new(HuggingFaceEncoder::from_file(path)?)),
    }
}

/// Loads a `tokenizer.json` with the engine of this module; None for one that is left to
/// [`HuggingFaceEncoder`].
pub fn load_native(path: &Path) -> Result<Option<NativeEncoder>> {
    let text = fs::read(path).map_err(Error::io(path))?;
    Ok(match disk_cache::folder_for(&text) {
        Some(folder) => NativeEncoder::from_slice_by_way_of(&text, &folder),
        None => NativeEncoder::from_slice(&text),
    })
}

impl NativeEncoder {
    /// Reads the text of a `tokenizer.json`; None for one that is left to [`HuggingFaceEncoder`].
    #[must_use]
    pub fn from_slice(text: &[u8]) -> Option<Self> {
        assemble::assemble(assemble::read(text)?)
    }

    /// The same, faster where a file in `folder` already has what was read.
    #[must_use]
    pub fn from_slice_by_way_of(text: &[u8], folder: &Path) -> Option<Self> {
        assemble::assemble(disk_cache::definition(text, folder, assemble::read)?)
    }

    /// Sets the size of the workers' caches, a power of two of at least 4, or 0 for none: for tests,
    /// as ids do not depend on it.
    #[must_use]
    pub fn with_cache_slots(mut self, cache_slots: usize) -> Self {
        self.cache_slots = cache_slots;
        self
    }

    /// Lends a worker. It is never waited for: a process forked at the wrong moment has a lock that
    /// nobody will ever open.
    fn with_worker<T>(&self, work: impl FnOnce(&mut Worker) -> T) -> T {
        let resting = self.workers.try_lock().ok().and_then(|mut workers| workers.pop());
        let mut worker = resting.unwrap_or_else(|| Worker::new(self.cache_slots));
        let outcome = work(&mut worker);
        if let Ok(mut workers) = self.workers.try_lock()
            && workers.len() < self.max_resting
        {
            workers.push(worker);
        }
        outcome
    }

    fn encode_on(
        &self,
        worker: &mut Worker,
        text: &str,
        options: EncodeOptions,
        ids: &mut Vec<i32>,
    ) -> Result<()> {
        // Normalized it can be three times as long, and 32 bits must still count it.
        if text.len() > MAX_TEXT {
            let what = format!("a text of {} bytes, expected at most {MAX_TEXT}", text.len());
            return Err(Error::Argument(what));
        }
        self.encode_text(worker, text, options, ids);
        Ok(())
    }
}

impl Encoder for NativeEncoder {
    fn engine(&self) -> &'static str {
        self.engine_name()
    }

    fn vocab_size(&self) -> usize {
        self.model.vocabulary.len() + self.added.num_new()
    }

    fn prepare(&self, _options: EncodeOptions) -> Result<()> {
        Ok(())
    }

    fn encode(&self, text: &str, options: EncodeOptions, ids: &mut Vec<i32>) -> Result<()> {
        self.with_worker(|worker| self.encode_on(worker, text, options, ids))
    }

    fn cuts_at_blanks(&self) -> bool {
        self.is_cut_at_blanks()
    }

    /// One worker for all texts: another thread that took it in between would fetch its cache anew.
    fn encode_each(
        &self,
        texts: &mut dyn Iterator<Item = &str>,
        options: EncodeOptions,
        ids: &mut Vec<i32>,
        lengths: &mut Vec<usize>,
    ) -> Result<()> {
        self.with_worker(|worker| {
            for text in texts {
                let before = ids.len();
                self.encode_on(worker, text, options, ids)?;
                lengths.push(ids.len() - before);
            }
            Ok(())
        })
    }

    fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String> {
        let known = ids.iter().filter_map(|&id| self.token_of(id));
        let kept = known.filter(|token| !skip_special_tokens || !self.added.is_special(token));
        let tokens: Vec<String> = kept.map(str::to_owned).collect();
        let Some(decoder) = &self.decoder else { return Ok(tokens.join(" ")) };
        let text = decoder.decode(tokens);
        text.map_err(|error| Error::Tokenizer(format!("the ids cannot be decoded: {error}")))
    }

    fn token_to_id(&self, token: &str) -> Option<i32> {
        let added = self.added.id_of(token);
        added.or_else(|| self.model.vocabulary.id_of(token.as_bytes())).map(u32::cast_signed)
    }

    fn id_to_token(&self, id: u32) -> Option<String> {
        self.token_of(id).map(str::to_owned)
    }

    fn added_tokens(&self) -> Vec<AddedToken> {
        self.added.list()
    }
}

impl NativeEncoder {
    fn token_of(&self, id: u32) -> Option<&str> {
        self.added.token_of(id).or_else(|| self.model.vocabulary.token_of(id))
    }
}
