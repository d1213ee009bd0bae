//! The differential check: do two tokenizers give the same ids for somebody's own texts?
//!
//! In: an encoder, a reference and texts. Out: how many encodings were compared, and where they
//! differ, each difference with a text from which no character can be taken (delta debugging, by
//! characters). Every text is read in all four ways the engine reads texts. Shrinking is bounded by
//! the bytes it encodes, not by a clock, so that the outcome is the same on any machine.

use crate::encoder::{EncodeOptions, Encoder, encode_batch};
use crate::error::{Check, Result, guard};

/// Differences that are shrunk and reported; the others are only counted.
pub const MAX_REPORTED: usize = 10;
/// Bytes encoded to shrink one difference: about two seconds of the slower tokenizer.
const SHRINK_BYTES: usize = 4 << 20;
/// Bytes of the texts whose ids are in memory at a time: about a second of the slower tokenizer, after
/// which it asks whether to go on, and work enough for some thirty threads.
const CHUNK_BYTES: usize = 1 << 20;

/// The ways a text is read: special tokens parsed or not, at the start or as a continuation.
const READINGS: [EncodeOptions; 4] =
    [reading(true, false), reading(false, false), reading(true, true), reading(false, true)];

const fn reading(parse_special: bool, continuation: bool) -> EncodeOptions {
    EncodeOptions { add_special_tokens: false, parse_special, continuation }
}

/// Ids, or why there are none.
pub type Outcome = std::result::Result<Vec<i32>, String>;

/// Where the two differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// Which text it was found in.
    pub text_index: usize,
    /// How the text was read.
    pub options: EncodeOptions,
    /// The least of the text that still shows it; the text itself, if it does not alone.
    pub text: String,
    /// What the encoder makes of `text`.
    pub ids: Outcome,
    /// What the reference makes of it.
    pub expected: Outcome,
}

/// What a check found.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Verification {
    /// Encodings compared: each text as often as there are ways to read it.
    pub num_compared: usize,
    /// How many of them differ.
    pub num_mismatched: usize,
    /// The first differences, at most one a text and each minimal text once.
    pub mismatches: Vec<Mismatch>,
}

/// Compares `encoder` with `reference` on `texts`, on at most `num_threads` threads, as long as `check`
/// is content.
///
/// A reading both refuse (a tokenizer that cannot encode a continuation) is not counted; one that
/// only one of them refuses is a difference.
pub fn verify<T: AsRef<str> + Sync>(
    encoder: &dyn Encoder,
    reference: &dyn Encoder,
    texts: &[T],
    num_threads: Option<usize>,
    check: Check<'_>,
) -> Result<Verification> {
    // What is wrong with the arguments is no difference between the two.
    encode_batch(reference, &[""], READINGS[0], num_threads)?;
    let pair = Pair { encoder, reference, num_threads, check };
    let mut found = Verification::default();
    let (mut start, mut shrunk) = (0, 0);
    while start < texts.len() {
        let chunk = first_chunk(&texts[start..]);
        let differing = pair.compare_chunk(chunk, start, &mut found)?;
        for mismatch in differing.into_iter().take(MAX_REPORTED - shrunk) {
            shrunk += 1;
            found.report(pair.shrink(mismatch)?);
        }
        start += chunk.len();
    }
    Ok(found)
}

/// The first texts that have [`CHUNK_BYTES`] together, or all.
fn first_chunk<T: AsRef<str>>(texts: &[T]) -> &[T] {
    let mut bytes = 0;
    let is_full = |text: &T| {
        bytes += text.as_ref().len();
        bytes >= CHUNK_BYTES
    };
    let last = texts.iter().position(is_full);
    &texts[..last.map_or(texts.len(), |last| last + 1)]
}

impl Verification {
    fn report(&mut self, minimal: Mismatch) {
        let is_it =
            |known: &Mismatch| (&known.text, known.options) == (&minimal.text, minimal.options);
        if !self.mismatches.iter().any(is_it) {
            self.mismatches.push(minimal);
        }
    }
}

/// The two that are compared.
struct Pair<'a> {
    encoder: &'a dyn Encoder,
    reference: &'a dyn Encoder,
    num_threads: Option<usize>,
    check: Check<'a>,
}

impl Pair<'_> {
    /// Counts what differs in some texts, the first of which has number `first`; gives one difference
    /// a text.
    fn compare_chunk<T: AsRef<str> + Sync>(
        &self,
        chunk: &[T],
        first: usize,
        found: &mut Verification,
    ) -> Result<Vec<Mismatch>> {
        let mut differing: Vec<Mismatch> = Vec::new();
        for options in READINGS {
            (self.check)()?;
            let ours = batch_outcomes(self.encoder, chunk, options, self.num_threads);
            (self.check)()?;
            let theirs = batch_outcomes(self.reference, chunk, options, self.num_threads);
            for (index, (ids, expected)) in ours.into_iter().zip(theirs).enumerate() {
                if ids.is_err() && expected.is_err() {
                    continue;
                }
                found.num_compared += 1;
                if ids != expected {
                    found.num_mismatched += 1;
                    let (text_index, text) = (first + index, chunk[index].as_ref().to_owned());
                    differing.push(Mismatch { text_index, options, text, ids, expected });
                }
            }
        }
        differing.sort_by_key(|mismatch| mismatch.text_index); // stable: readings keep their order
        differing.dedup_by_key(|mismatch| mismatch.text_index);
        Ok(differing)
    }

    /// What the two make of a text, if that differs.
    fn compare(&self, text: &str, options: EncodeOptions) -> Result<Option<(Outcome, Outcome)>> {
        (self.check)()?;
        let ids = outcome(self.encoder, text, options);
        let expected = outcome(self.reference, text, options);
        let differ = ids != expected && (ids.is_ok() || expected.is_ok());
        Ok(differ.then_some((ids, expected)))
    }

    /// Takes characters away, many at a time and then fewer, as long as the difference stays.
    fn shrink(&self, found: Mismatch) -> Result<Mismatch> {
        let options = found.options;
        let mut smallest = found;
        let Some((ids, expected)) = self.compare(&smallest.text, options)? else {
            return Ok(smallest);
        };
        (smallest.ids, smallest.expected) = (ids, expected);
        let mut chars: Vec<char> = smallest.text.chars().collect();
        let (mut size, mut start) = (chars.len().div_ceil(2), 0);
        let mut is_smaller = false; // since this size was begun
        let mut budget = SHRINK_BYTES;
        while size > 0 && budget > 0 {
            if start >= chars.len() {
                // With single characters it ends only when none of them could go.
                size = if size == 1 { usize::from(is_smaller) } else { size / 2 };
                (start, is_smaller) = (0, false);
                if chars.is_empty() {
                    break;
                }
                continue;
            }
            let end = (start + size).min(chars.len());
            let shorter: String = chars[..start].iter().chain(&chars[end..]).collect();
            budget = budget.saturating_sub(shorter.len() + 1);
            if let Some((ids, expected)) = self.compare(&shorter, options)? {
                smallest = Mismatch { text: shorter, ids, expected, ..smallest };
                chars.drain(start..end);
                is_smaller = true;
            } else {
                start = end;
            }
        }
        Ok(smallest)
    }
}

fn batch_outcomes<T: AsRef<str> + Sync>(
    encoder: &dyn Encoder,
    texts: &[T],
    options: EncodeOptions,
    num_threads: Option<usize>,
) -> Vec<Outcome> {
    match encode_batch(encoder, texts, options, num_threads) {
        Ok(ragged) => {
            let mut ids = ragged.ids.into_iter();
            let lengths = ragged.offsets.windows(2).map(|pair| pair[1] - pair[0]);
            let length = |long: i64| usize::try_from(long).unwrap_or(0);
            lengths.map(|long| Ok(ids.by_ref().take(length(long)).collect())).collect()
        }
        // One text can fail its whole batch: find out which.
        Err(_) => texts.iter().map(|text| outcome(encoder, text.as_ref(), options)).collect(),
    }
}

fn outcome(encoder: &dyn Encoder, text: &str, options: EncodeOptions) -> Outcome {
    let mut ids = Vec::new();
    let done = guard(|| {
        encoder.prepare(options)?;
        encoder.encode(text, options, &mut ids)
    });
    done.map_err(|error| error.to_string())?;
    Ok(ids)
}
