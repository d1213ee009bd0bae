//! Text to token ids: what a tokenizer must offer, and the batch that is the same for all of them.
//!
//! In: texts. Out: flat ids and offsets. Texts are cut into runs of about equal bytes, and threads
//! take the next run when they are done with one; a run's ids land in its own place, so that the
//! outcome does not depend on threads. Plain scoped threads instead of a pool: nothing survives the
//! call, so a later `fork` is safe.

use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::error::{Error, Result, guard};

/// Runs per thread: few enough to keep a thread's word cache warm, enough to even out slow texts.
const RUNS_PER_THREAD: usize = 4;
/// Starting a thread costs as much as encoding about this many bytes.
const BYTES_PER_THREAD: usize = 1 << 15;

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
    /// Appends the ids of `text`; special tokens that touch one of the byte ranges `plain` (rising,
    /// disjoint) are read as text, others as `options` says.
    fn encode_around(
        &self,
        text: &str,
        plain: &[Range<usize>],
        options: EncodeOptions,
        ids: &mut Vec<i32>,
    ) -> Result<()>;
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
    if num_threads == Some(0) {
        return Err(Error::Argument("`num_threads` is 0, expected at least 1".to_owned()));
    }
    guard(|| encoder.prepare(options))?;
    let num_bytes: usize = texts.iter().map(|text| text.as_ref().len()).sum();
    let wanted =
        num_threads.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from));
    let num_threads = wanted.min(num_bytes / BYTES_PER_THREAD).min(texts.len()).max(1);
    let num_runs = if num_threads == 1 { 1 } else { num_threads * RUNS_PER_THREAD };
    let bounds = cut_runs(texts, num_bytes, num_runs);
    let runs: Vec<OnceLock<Result<Run>>> = bounds.windows(2).map(|_| OnceLock::new()).collect();
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some((number, run)) = take(&next, &runs) {
            let (start, end) = (bounds[number], bounds[number + 1]);
            // Nobody else has this number, so the place is free.
            let _ = run.set(encode_run(encoder, &texts[start..end], start, options));
        }
    };
    thread::scope(|scope| {
        for _ in 1..num_threads {
            // A system that grants no more threads only makes this slower.
            let _ = thread::Builder::new().spawn_scoped(scope, work);
        }
        work(); // the calling thread keeps its cache from call to call
    });
    join_runs(runs, texts.len())
}

fn take<'a, T>(next: &AtomicUsize, all: &'a [T]) -> Option<(usize, &'a T)> {
    let number = next.fetch_add(1, Ordering::Relaxed);
    all.get(number).map(|item| (number, item))
}

/// Bounds of `num_runs` runs of texts, each of about the same number of bytes.
fn cut_runs<T: AsRef<str>>(texts: &[T], num_bytes: usize, num_runs: usize) -> Vec<usize> {
    let share = num_bytes.div_ceil(num_runs).max(1);
    let mut bounds = vec![0];
    let mut filled = 0;
    for (number, text) in texts.iter().enumerate() {
        filled += text.as_ref().len();
        if filled >= share && number + 1 < texts.len() {
            bounds.push(number + 1);
            filled = 0;
        }
    }
    bounds.push(texts.len());
    bounds
}

fn encode_run<T: AsRef<str>>(
    encoder: &dyn Encoder,
    texts: &[T],
    first: usize,
    options: EncodeOptions,
) -> Result<Run> {
    let mut ids = Vec::new();
    let mut lengths = Vec::with_capacity(texts.len());
    let mut texts = texts.iter().map(AsRef::as_ref);
    let outcome = guard(|| encoder.encode_each(&mut texts, options, &mut ids, &mut lengths));
    // A panic here comes from the text meeting the definition, so it is reported as theirs.
    outcome.map_err(|error| {
        let number = first + lengths.len();
        Error::Tokenizer(format!("text {number} of the batch cannot be encoded: {error}"))
    })?;
    Ok((ids, lengths))
}

fn join_runs(runs: Vec<OnceLock<Result<Run>>>, num_texts: usize) -> Result<Ragged> {
    let mut joined = Ragged { ids: Vec::new(), offsets: Vec::with_capacity(num_texts + 1) };
    let mut end = 0_i64;
    joined.offsets.push(end);
    for run in runs {
        let missing = || Err(Error::Panic("a run of texts was not encoded".to_owned()));
        let (ids, lengths) = run.into_inner().unwrap_or_else(missing)?;
        for length in lengths {
            end += i64::try_from(length).map_err(|_| Error::Argument("too many ids".to_owned()))?;
            joined.offsets.push(end);
        }
        if joined.ids.is_empty() {
            joined.ids = ids; // with one thread there is nothing to copy
        } else {
            joined.ids.extend_from_slice(&ids);
        }
    }
    Ok(joined)
}
