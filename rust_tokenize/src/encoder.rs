//! Text to token ids: what a tokenizer must offer, and the batch that is the same for all of them.
//!
//! In: texts. Out: flat ids and offsets, the same for any number of threads.

use std::mem::take;
use std::sync::{Mutex, PoisonError};

use crate::error::{Error, Result, guard};
use crate::threads;

/// How a text is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncodeOptions {
    /// Add what the tokenizer puts around a sequence, such as BOS.
    pub add_special_tokens: bool,
    /// Special tokens in the text count as such; otherwise they are plain text.
    pub parse_special: bool,
    /// The text goes on from another: no blank is put in front of it.
    pub continuation: bool,
}

/// A token that was added to a vocabulary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddedToken {
    /// Its text.
    pub content: String,
    /// Its id.
    pub id: i32,
    /// Whether it is a control token that decoding may skip.
    pub special: bool,
}

/// A tokenizer.
pub trait Encoder: Send + Sync {
    /// The name of the implementation.
    fn engine(&self) -> &'static str;
    /// Number of distinct tokens, added ones included.
    fn vocab_size(&self) -> usize;
    /// Makes ready for texts read this way, or says why it cannot.
    fn prepare(&self, options: EncodeOptions) -> Result<()>;
    /// Appends the ids of `text`.
    fn encode(&self, text: &str, options: EncodeOptions, ids: &mut Vec<i32>) -> Result<()>;
    /// Whether a text may be cut anywhere between a letter of ASCII and a blank after it: the ids of
    /// its two parts are those of the whole, and neither depends on how the other is read.
    fn cuts_at_blanks(&self) -> bool {
        false
    }
    /// Appends the ids of each text, and how many there are; stops at the first error. Encoders that
    /// remember words keep them from text to text.
    fn encode_each(
        &self,
        texts: &mut dyn Iterator<Item = &str>,
        options: EncodeOptions,
        ids: &mut Vec<i32>,
        lengths: &mut Vec<usize>,
    ) -> Result<()> {
        for text in texts {
            let before = ids.len();
            self.encode(text, options, ids)?;
            lengths.push(ids.len() - before);
        }
        Ok(())
    }
    /// Gives the text of `ids`; ids without a token vanish.
    fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String>;
    /// The id of a token, if there is one.
    fn token_to_id(&self, token: &str) -> Option<i32>;
    /// The token of an id, if there is one.
    fn id_to_token(&self, id: u32) -> Option<String>;
    /// All added tokens, by rising id.
    fn added_tokens(&self) -> Vec<AddedToken>;
}

/// Ids of many texts: those of text i are `ids[offsets[i]..offsets[i + 1]]`.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Ragged {
    /// The ids of all texts, one text after the other.
    pub ids: Vec<i32>,
    /// One more than there are texts.
    pub offsets: Vec<i64>,
}

/// Ids of one run and the length of each of its texts.
type Run = (Vec<i32>, Vec<usize>);

/// Encodes `texts` on at most `num_threads` threads (default: as many as the machine has).
pub fn encode_batch<T: AsRef<str> + Sync>(
    encoder: &dyn Encoder,
    texts: &[T],
    options: EncodeOptions,
    num_threads: Option<usize>,
) -> Result<Ragged> {
    guard(|| encoder.prepare(options))?;
    let sizes: Vec<usize> = texts.iter().map(|text| text.as_ref().len()).collect();
    let runs = threads::in_order(&sizes, num_threads, |run| {
        let (first, mut ids, mut lengths) = (run.start, Vec::new(), Vec::with_capacity(run.len()));
        // A panic here comes from the text meeting the definition, so it is reported as theirs.
        let texts = &mut texts[run].iter().map(AsRef::as_ref);
        let done = guard(|| encoder.encode_each(texts, options, &mut ids, &mut lengths));
        done.map_err(|error| {
            let number = first + lengths.len();
            Error::Tokenizer(format!("text {number} of the batch cannot be encoded: {error}"))
        })?;
        Ok((ids, lengths))
    })?;
    join_runs(runs, texts.len(), num_threads)
}

fn join_runs(runs: Vec<Run>, num_texts: usize, num_threads: Option<usize>) -> Result<Ragged> {
    let mut offsets = Vec::with_capacity(num_texts + 1);
    let mut end = 0_i64;
    offsets.push(end);
    for length in runs.iter().flat_map(|(_, lengths)| lengths) {
        end += i64::try_from(*length).map_err(|_| Error::Argument("too many ids".to_owned()))?;
        offsets.push(end);
    }
    let ids = join_ids(runs.into_iter().map(|(ids, _)| ids).collect(), num_threads)?;
    Ok(Ragged { ids, offsets })
}

/// Copies parts one behind the other, on several threads: new memory costs more than the copy.
fn join_ids(mut parts: Vec<Vec<i32>>, num_threads: Option<usize>) -> Result<Vec<i32>> {
    if parts.len() == 1 {
        return Ok(parts.swap_remove(0)); // with one thread there is nothing to copy
    }
    let sizes: Vec<usize> = parts.iter().map(|part| size_of_val(part.as_slice())).collect();
    let mut joined = vec![0; parts.iter().map(Vec::len).sum()];
    let mut rest = joined.as_mut_slice();
    let mut places = Vec::with_capacity(parts.len());
    for part in parts {
        let (place, after) = rest.split_at_mut(part.len());
        places.push(Mutex::new((place, part)));
        rest = after;
    }
    threads::in_order(&sizes, num_threads, |run| {
        for place in &places[run] {
            let mut place = place.lock().unwrap_or_else(PoisonError::into_inner);
            let part = take(&mut place.1);
            place.0.copy_from_slice(&part);
        }
        Ok(())
    })?;
    drop(places);
    Ok(joined)
}
