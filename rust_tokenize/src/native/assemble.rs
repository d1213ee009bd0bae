//! From a definition to an encoder, if every part of it is one we know.

use std::sync::Mutex;
use std::thread;

use serde::de::DeserializeOwned;
use serde_json::Value;
use tokenizers as hf;

use crate::error::{Error, Result, guard};
use crate::native::added_tokens::AddedTokens;
use crate::native::allow::{self, Normalizer, Pieces};
use crate::native::definition::{Definition, Header};
use crate::native::merges::Merges;
use crate::native::model::{Alphabet, ByteAlphabet, CharAlphabet, Model, byte_level_table};
use crate::native::pipeline::normalize;
use crate::native::sentencepiece::Cuts;
use crate::native::template::Template;
use crate::native::vocabulary::Vocabulary;
use crate::native::{CACHE_SLOTS, NativeEncoder};

/// Makes an encoder; None if a part of the definition is to be left to the `tokenizers` crate.
pub fn assemble(definition: Definition) -> Option<NativeEncoder> {
    let Definition { header, vocabulary, merges, joins } = definition;
    let pipeline = allow::pipeline(&header.normalizer, &header.pre_tokenizer)?;
    let template = Template::parse(&header.post_processor)?;
    if cuts_ends(&header.decoder) {
        return None;
    }
    let decoder = section::<hf::DecoderWrapper>(&header.decoder).ok()?;
    let normalized = |text: &str| normalize(pipeline.normalizer, text).into_owned();
    let continuing = |text: &str| normalize(without_prefix(pipeline.normalizer), text).into_owned();
    let added = AddedTokens::new(&header.added_tokens, &vocabulary, normalized)?;
    let alphabet = match pipeline.pieces {
        Pieces::Bytes(_) | Pieces::WholeBytes => {
            Alphabet::Bytes(Box::new(ByteAlphabet::new(byte_ids(&vocabulary)?)))
        }
        Pieces::WholeChars | Pieces::CharsFromEachBlank => {
            Alphabet::Chars(char_alphabet(&header, &vocabulary)?)
        }
    };
    let cuts = match &alphabet {
        Alphabet::Bytes(_) => None,
        Alphabet::Chars(chars) => {
            Cuts::new(chars, header.unk_token.as_deref(), &vocabulary, &merges)
        }
    };
    let joins = match &alphabet {
        Alphabet::Bytes(_) => Some(joins),
        Alphabet::Chars(_) if header.ignore_merges => return None,
        Alphabet::Chars(_) => None,
    };
    let merges = Merges::new(&merges);
    let any_whole = header.ignore_merges;
    Some(NativeEncoder {
        raw_patterns: added.raw_patterns()?,
        normalized_patterns: added.normalized_patterns(normalized)?,
        continuing_patterns: added.normalized_patterns(continuing)?,
        model: Model { vocabulary, alphabet, merges, any_whole, joins },
        added,
        pipeline,
        cuts,
        template,
        decoder,
        workers: Mutex::new(Vec::new()),
        cache_slots: CACHE_SLOTS,
        max_resting: thread::available_parallelism().map_or(1, usize::from),
    })
}

/// Reads a file; None if it is to be left to the `tokenizers` crate, as one is that it would refuse.
pub fn read(text: &[u8]) -> Option<Definition> {
    let definition = Definition::parse(text)?;
    let header = &definition.header;
    allow::pipeline(&header.normalizer, &header.pre_tokenizer)?;
    section::<hf::NormalizerWrapper>(&header.normalizer).ok()?;
    section::<hf::PreTokenizerWrapper>(&header.pre_tokenizer).ok()?;
    section::<hf::PostProcessorWrapper>(&header.post_processor).ok()?;
    Some(definition)
}

/// The normalizer of a continuation.
pub fn without_prefix(normalizer: Normalizer) -> Normalizer {
    match normalizer {
        Normalizer::Blanks { .. } => Normalizer::Blanks { prepend: false },
        other => other,
    }
}

/// Whether a decoder cuts the ends of tokens: the library's own panics where a token is shorter.
fn cuts_ends(decoder: &Value) -> bool {
    let parts = decoder.get("decoders").and_then(Value::as_array);
    let is_cut = decoder.get("stop").is_some_and(|stop| stop.as_u64() != Some(0));
    is_cut || parts.is_some_and(|parts| parts.iter().any(cuts_ends))
}

/// A section as the `tokenizers` crate reads it; an error if it would refuse the file, or panic.
fn section<T: DeserializeOwned>(value: &Value) -> Result<Option<T>> {
    let unread = |error: serde_json::Error| Error::Tokenizer(error.to_string());
    guard(|| serde_json::from_value(value.clone()).map_err(unread))
}

/// The ids of the bytes; None if one that UTF-8 uses is missing.
fn byte_ids(vocabulary: &Vocabulary) -> Option<[u32; 256]> {
    let table = byte_level_table();
    let mut ids = [u32::MAX; 256];
    for (token, id) in vocabulary.iter() {
        let mut characters = token.chars();
        if let (Some(character), None) = (characters.next(), characters.next())
            && let Some(Some(byte)) = table.get(character as usize)
        {
            ids[usize::from(*byte)] = id;
        }
    }
    let in_utf8 = |byte: usize| !matches!(byte, 0xc0 | 0xc1 | 0xf5..);
    let missing = |(byte, &id): (usize, &u32)| id == u32::MAX && in_utf8(byte);
    (!ids.iter().enumerate().any(missing)).then_some(ids)
}

/// The characters among the tokens. None if the unknown token is none, on which the reference fails
/// when it meets an unknown character.
fn char_alphabet(header: &Header, vocabulary: &Vocabulary) -> Option<CharAlphabet> {
    let unk = match &header.unk_token {
        Some(token) => Some(vocabulary.id_of(token.as_bytes())?),
        None => None,
    };
    let bytes = header.byte_fallback.then(|| fallback_ids(vocabulary));
    let mut alphabet = CharAlphabet::new(bytes, unk, header.fuse_unk);
    for (token, id) in vocabulary.iter() {
        let mut characters = token.chars();
        if let (Some(character), None) = (characters.next(), characters.next()) {
            alphabet.insert(character, id);
        }
    }
    Some(alphabet)
}

/// The ids of `<0x00>` to `<0xFF>`, `u32::MAX` for those that are missing.
fn fallback_ids(vocabulary: &Vocabulary) -> Box<[u32; 256]> {
    let id = |byte| vocabulary.id_of(format!("<0x{byte:02X}>").as_bytes()).unwrap_or(u32::MAX);
    Box::new(std::array::from_fn(id))
}
