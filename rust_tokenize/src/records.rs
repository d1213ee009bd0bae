//! Lines to token ids: the whole way of a record in one place, without an object per token.
//!
//! In: a chunk of unchecked lines, the columns of their file, templates as data. Out: ids, flags and
//! labels as columns, and the lines that are *not for this path*: whatever is unusual goes to the
//! reader in Python, which says what is wrong with it, or reads it after all. So behaviour and words
//! have one definition, and this one has only the common case to get right: where it gives ids,
//! they are those of `fam_engine.data.tokenizer.TextEncoder`, flags included.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use memchr::memchr2;

use crate::conversation::{Conversation, Role};
use crate::cuts::{first_cut, last_cut};
use crate::encoder::{EncodeOptions, Encoder};
use crate::error::{Error, Result, guard};
use crate::fields::{Fields, Labels};
use crate::json::Node;
use crate::lines::Chunk;
use crate::native::hash::mix;
use crate::sections::{Cutter, Sections, Step, parsing};
use crate::specials::Specials;
use crate::spool::hash_ids;
use crate::spool_writer::NewEntry;
use crate::template::{Content, Piece, Template, answer_after, is_bare, render, trims};
use crate::threads;

/// A special token is written in one of the texts.
pub const SPECIAL_IN_TEXT: u8 = 1;
/// The template does not keep the answer as it is.
pub const TEMPLATE_ALTERED: u8 = 2;
/// Context and answer encoded together give other ids.
pub const BOUNDARY_MERGED: u8 = 4;
/// Nothing stands before the first token.
pub const FIRST_TOKEN_UNSCORED: u8 = 8;

/// Values of a line beyond which it is not for this path: memory stays flat.
const MOST_NODES: usize = 1 << 14;

/// What is the same for all records of a job.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What a plain prompt begins with.
    pub bos: Option<i32>,
    /// What ends an answer.
    pub end_of_turn: Vec<i32>,
    /// Whether contexts come from a template; otherwise they are the prompts.
    pub has_template: bool,
    /// Context and answer are encoded together and cut at the context's own length.
    pub joint: bool,
    /// Special tokens in texts count as such.
    pub parse_special: bool,
    /// Longest sequence, tokens; longer ones are not for this path.
    pub max_length: usize,
}

/// The templates of one sequence of roles.
struct Shape {
    context: Template,
    whole: Template,
    sections: Sections,
    /// How the answer stands in `whole`, where that is the context, the answer and anything.
    answer: Option<Content>,
    /// Whether white space around the answer is left out of `whole`; None: the answer stands there
    /// never or several times.
    trims: Option<bool>,
}

/// Encodes the records of one job.
pub struct RecordEncoder {
    encoder: Arc<dyn Encoder>,
    settings: Settings,
    specials: Specials,
    /// Whether text after a special token is read as a continuation.
    continues: bool,
    /// Whether a special token has a newline in its name.
    has_newline: bool,
    /// [`Encoder::cuts_at_blanks`].
    cuts_at_blanks: bool,
    shapes: HashMap<Vec<Role>, Shape>,
}

/// The beginning of an answer, up to where it may be cut whatever it follows: what comes before it
/// changes the ids of this part alone.
#[derive(Clone, Copy)]
struct Head {
    bytes: usize,
    ids: usize,
}

/// Records as columns, in the order of their lines.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Records {
    /// Indices in the chunk of the lines that are not for this path.
    pub others: Vec<usize>,
    /// Line number of each record.
    pub lines: Vec<u64>,
    /// Context ids of all records.
    pub context_ids: Vec<i32>,
    /// Where each context ends.
    pub context_ends: Vec<usize>,
    /// Answer ids of all records, each followed by what ends the turn.
    pub target_ids: Vec<i32>,
    /// Where each record's targets end.
    pub target_ends: Vec<usize>,
    /// What is unusual about each, bits.
    pub flags: Vec<u8>,
    /// Bytes of each answer.
    pub num_bytes: Vec<usize>,
    /// [`texts_digest`] of each prompt and answer.
    pub digests: Vec<i64>,
    /// What else each row says; the group, where it does not, is named after the context
    /// as it is encoded alone.
    pub labels: Vec<Labels>,
    /// Ids that end each record's targets without being of its answer.
    pub num_eot: u8,
}

/// Room a thread uses again for each record.
#[derive(Default)]
struct Scratch {
    nodes: Vec<Node>,
    conversation: Conversation,
    text: String,
    whole: String,
    context: Vec<i32>,
    response: Vec<i32>,
    joint: Vec<i32>,
    /// Name of the context as it is encoded alone, where `context` is another.
    prompt_name: Option<String>,
}

impl RecordEncoder {
    /// Makes ready.
    pub fn new(encoder: Arc<dyn Encoder>, settings: Settings) -> Result<Self> {
        let specials = Specials::new(&encoder.added_tokens());
        let with = |parse_special, continuation| EncodeOptions {
            add_special_tokens: false,
            parse_special,
            continuation,
        };
        encoder.prepare(with(settings.has_template || settings.parse_special, false))?;
        encoder.prepare(with(settings.parse_special, true))?;
        let continues = specials.text_after_continues(encoder.as_ref())?;
        let has_newline = specials.names().any(|(name, _)| name.contains('\n'));
        let cuts_at_blanks = encoder.cuts_at_blanks();
        let shapes = HashMap::new();
        Ok(Self { encoder, settings, specials, continues, has_newline, cuts_at_blanks, shapes })
    }

    /// Tells how conversations of some roles are rendered: the context with its generation prompt,
    /// and the whole with the answer. Other conversations are not for this path.
    pub fn add_shape(
        &mut self,
        roles: Vec<Role>,
        context: Template,
        whole: Template,
    ) -> Result<()> {
        let (answer, last) = (roles.len(), context.last_turn());
        if last >= Some(answer) || whole.last_turn() > Some(answer) {
            return Err(Error::Argument(format!("a template names turn {last:?} of {answer}")));
        }
        let sections = Cutter::new(self.encoder.as_ref(), &self.specials)?.cut(&context.pieces)?;
        let trims = trims(&whole, answer);
        let answer = answer_after(&context, &whole, answer);
        self.shapes.insert(roles, Shape { context, whole, sections, answer, trims });
        Ok(())
    }

    /// Takes a shape back.
    pub fn remove_shape(&mut self, roles: &[Role]) {
        self.shapes.remove(roles);
    }

    /// Encodes the lines of a chunk on at most `num_threads` threads; the outcome does not depend on
    /// them.
    pub fn encode(
        &self,
        chunk: &Chunk,
        fields: &Fields,
        num_threads: Option<usize>,
    ) -> Result<Records> {
        let num_eot = u8::try_from(self.settings.end_of_turn.len())
            .map_err(|_| Error::Argument("an end of turn has more than 255 ids".to_owned()))?;
        let parts = threads::in_order(&chunk.sizes(), num_threads, |run| {
            let mut records = Records { num_eot, ..Records::default() };
            let mut scratch = Scratch::default();
            for index in run {
                if !self.encode_line(chunk, index, fields, &mut scratch, &mut records) {
                    records.others.push(index);
                }
            }
            Ok(records)
        })?;
        Ok(Records::join(parts))
    }

    /// False if the line is not for this path.
    fn encode_line(
        &self,
        chunk: &Chunk,
        index: usize,
        fields: &Fields,
        scratch: &mut Scratch,
        records: &mut Records,
    ) -> bool {
        let Ok(text) = chunk.scan(index, &mut scratch.nodes, MOST_NODES) else {
            return false;
        };
        if scratch.nodes.len() == MOST_NODES {
            return false;
        }
        let Some(mut labels) = fields.read(text, &scratch.nodes, &mut scratch.conversation) else {
            return false;
        };
        // What the tokenizer refuses, or panics at, Python meets again and reports.
        let Ok(Some(flags)) = guard(|| self.encode_record(scratch)) else {
            return false;
        };
        if !self.fits(scratch) {
            return false;
        }
        labels.group.get_or_insert_with(|| {
            scratch.prompt_name.take().unwrap_or_else(|| context_name(&scratch.context))
        });
        records.lines.push(chunk.number(index));
        records.context_ids.extend_from_slice(&scratch.context);
        records.context_ends.push(records.context_ids.len());
        records.target_ids.extend_from_slice(&scratch.response);
        records.target_ids.extend_from_slice(&self.settings.end_of_turn);
        records.target_ends.push(records.target_ids.len());
        records.flags.push(flags);
        records.num_bytes.push(scratch.conversation.answer().len());
        records.digests.push(texts_digest(scratch.conversation.turns()));
        records.labels.push(labels);
        true
    }

    /// Whether there is a context, something to predict, and the model takes the record; the last
    /// target is never read.
    fn fits(&self, scratch: &Scratch) -> bool {
        let targets = scratch.response.len() + self.settings.end_of_turn.len();
        let Some(read) = targets.checked_sub(1) else {
            return false;
        };
        !scratch.context.is_empty() && scratch.context.len() + read <= self.settings.max_length
    }

    /// Fills context and response; gives the flags, or None if the record is not for this path.
    fn encode_record(&self, scratch: &mut Scratch) -> Result<Option<u8>> {
        if self.has_stand_in(&scratch.conversation) {
            return Ok(None);
        }
        let mut flags = 0;
        if self.has_special(scratch) {
            flags |= SPECIAL_IN_TEXT;
        }
        scratch.context.clear();
        scratch.response.clear();
        scratch.joint.clear();
        scratch.prompt_name = None;
        let head = self.encode_answer(scratch)?;
        let is_merged = if self.settings.has_template {
            let Some(shape) = self.shapes.get(&scratch.conversation.roles) else {
                return Ok(None);
            };
            let Some(is_altered) = shape.alters(scratch, flags & SPECIAL_IN_TEXT != 0) else {
                return Ok(None);
            };
            flags |= if is_altered { TEMPLATE_ALTERED } else { 0 };
            if flags & SPECIAL_IN_TEXT == 0 || self.settings.parse_special {
                self.encode_sections(&shape.sections, head, scratch)?
            } else {
                self.encode_around(&shape.context, scratch)?
            }
        } else {
            self.encode_verbatim(head, scratch)?
        };
        flags |= if is_merged { BOUNDARY_MERGED } else { 0 };
        flags |= self.give_first(scratch);
        Ok(Some(flags))
    }

    /// Fills the response; gives the part of it that depends on what it follows.
    fn encode_answer(&self, scratch: &mut Scratch) -> Result<Head> {
        let (answer, ids) = (scratch.conversation.answer(), &mut scratch.response);
        let bytes = if self.cuts_at_blanks { first_cut(answer) } else { answer.len() };
        self.encoder.encode(&answer[..bytes], self.answering(), ids)?;
        let head = Head { bytes, ids: ids.len() };
        if bytes < answer.len() {
            self.encoder.encode(&answer[bytes..], self.answering(), ids)?;
        }
        Ok(head)
    }

    fn answering(&self) -> EncodeOptions {
        let parse_special = self.settings.parse_special;
        EncodeOptions { add_special_tokens: false, parse_special, continuation: true }
    }

    /// Whether a text may hold one of the private-use characters the reader in Python lends to
    /// special tokens, U+F0000 and on.
    fn has_stand_in(&self, conversation: &Conversation) -> bool {
        !self.specials.is_empty()
            && memchr2(0xF3, 0xF4, conversation.all_text().as_bytes()).is_some()
    }

    fn has_special(&self, scratch: &mut Scratch) -> bool {
        if scratch.conversation.texts().any(|text| self.specials.find(text, 0).is_some()) {
            return true;
        }
        // A name with a newline may span the turns of the verbatim prompt.
        self.has_newline && {
            scratch.text.clear();
            scratch.conversation.write_verbatim(&mut scratch.text);
            self.specials.find(&scratch.text, 0).is_some()
        }
    }

    // -- contexts: each fills `context`, and tells whether the boundary is merged ------------------

    fn encode_sections(
        &self,
        sections: &Sections,
        head: Head,
        scratch: &mut Scratch,
    ) -> Result<bool> {
        let Scratch { conversation, text, context, .. } = scratch;
        for step in &sections.steps {
            match step {
                Step::Ids(ids) => context.extend_from_slice(ids),
                Step::Encode(section) => {
                    text.clear();
                    render(&section.pieces, conversation, text);
                    if !text.is_empty() {
                        self.encoder.encode(text, parsing(section.continues), context)?;
                    }
                }
            }
        }
        let start = context.len();
        let options = parsing(sections.tail.continues);
        text.clear();
        render(&sections.tail.pieces, conversation, text);
        if text.is_empty() && options.continuation {
            return Ok(false); // together with nothing the answer is read as it is alone
        }
        match &sections.tail_ids {
            Some(ids) => context.extend_from_slice(ids),
            None if text.is_empty() => {}
            None => self.encoder.encode(text, options, context)?,
        }
        text.push_str(&conversation.answer()[..head.bytes]);
        self.encoder.encode(text, options, &mut scratch.joint)?;
        Ok(self.meet(start, head.ids, scratch))
    }

    /// With special tokens that are text: the template's own are found around them.
    fn encode_around(&self, template: &Template, scratch: &mut Scratch) -> Result<bool> {
        let Scratch { conversation, text, context, joint, .. } = scratch;
        text.clear();
        let mut plain = Vec::new();
        for piece in &template.pieces {
            let start = text.len();
            render(std::slice::from_ref(piece), conversation, text);
            if matches!(piece, Piece::Content(_)) {
                self.add_specials(text, start, &mut plain);
            }
        }
        self.encode_parsed(text, &plain, context)?;
        let start = text.len();
        text.push_str(conversation.answer());
        self.add_specials(text, start, &mut plain);
        self.encode_parsed(text, &plain, joint)?;
        Ok(self.meet(0, scratch.response.len(), scratch))
    }

    /// Adds where special tokens are written in `text` from byte `start` on.
    fn add_specials(&self, text: &str, start: usize, places: &mut Vec<Range<usize>>) {
        let found = self.specials.find_around(&text[start..], &[]);
        places.extend(found.into_iter().map(|(at, _)| start + at.start..start + at.end));
    }

    /// A text none of whose special tokens is plain is read in one piece.
    fn encode_parsed(&self, text: &str, plain: &[Range<usize>], ids: &mut Vec<i32>) -> Result<()> {
        let (encoder, options) = (self.encoder.as_ref(), parsing(false));
        if plain.is_empty() {
            return encoder.encode(text, options, ids);
        }
        self.specials.encode_around(encoder, self.continues, (text, plain), options, ids)
    }

    fn encode_verbatim(&self, head: Head, scratch: &mut Scratch) -> Result<bool> {
        let Scratch { conversation, text, context, joint, .. } = scratch;
        let options = EncodeOptions { continuation: false, ..self.answering() };
        text.clear();
        conversation.write_verbatim(text);
        let cut = if self.cuts_at_blanks { last_cut(text) } else { 0 };
        if cut > 0 {
            self.encoder.encode(&text[..cut], options, context)?;
        }
        let is_begun = !context.is_empty();
        if is_begun {
            self.give_bos(context);
        }
        let start = context.len();
        self.encoder.encode(&text[cut..], options, context)?;
        text.push_str(&conversation.answer()[..head.bytes]);
        self.encoder.encode(&text[cut..], options, joint)?;
        if !is_begun {
            self.give_bos(context);
            self.give_bos(joint);
        }
        Ok(self.meet(start, head.ids, scratch))
    }

    /// Puts what a plain prompt begins with in front of ids that do not begin so.
    fn give_bos(&self, ids: &mut Vec<i32>) {
        if let Some(bos) = self.settings.bos.filter(|bos| ids.first() != Some(bos)) {
            ids.insert(0, bos);
        }
    }

    /// Compares the context from `start` on and the first `num_head` ids of the response with both
    /// encoded together.
    fn meet(&self, start: usize, num_head: usize, scratch: &mut Scratch) -> bool {
        let Scratch { context, response, joint, prompt_name, .. } = scratch;
        let own = &context[start..];
        let is_same = joint.strip_prefix(own).is_some_and(|rest| *rest == response[..num_head]);
        if self.settings.joint && !is_same {
            *prompt_name = Some(context_name(self.begun(context, response)));
            joint.extend_from_slice(&response[num_head..]);
            let cut = own.len().min(joint.len());
            response.clear();
            response.extend_from_slice(&joint[cut..]);
            context.truncate(start);
            context.extend_from_slice(&joint[..cut]);
        }
        !is_same
    }

    /// What stands before the first token to be scored: the context or, if that is empty, what a
    /// plain prompt begins with or the first token of the response.
    fn begun<'a>(&'a self, context: &'a [i32], response: &'a [i32]) -> &'a [i32] {
        match &self.settings.bos {
            _ if !context.is_empty() => context,
            Some(bos) => std::slice::from_ref(bos),
            None => &response[..response.len().min(1)],
        }
    }

    /// Sees to it that something stands before the first token to be scored.
    fn give_first(&self, scratch: &mut Scratch) -> u8 {
        if !scratch.context.is_empty() {
            return 0;
        }
        let Scratch { context, response, .. } = scratch;
        context.extend_from_slice(self.begun(&[], response));
        if self.settings.bos.is_some() {
            return 0;
        }
        response.drain(..context.len());
        FIRST_TOKEN_UNSCORED
    }
}

impl Shape {
    /// Whether the template does not keep the answer after the context; None if the templates do not
    /// fit. `special`: the reader in Python looks at other texts than these.
    fn alters(&self, scratch: &mut Scratch, special: bool) -> Option<bool> {
        let Scratch { conversation, text, whole, .. } = scratch;
        if !self.context.fits(conversation) || !self.whole.fits(conversation) {
            return None;
        }
        let answer = conversation.answer();
        if self.answer.is_some_and(|content| content.of(conversation) == answer) {
            return Some(false);
        }
        if special {
            return None;
        }
        // White space that the template writes itself is not the answer's.
        let is_trimmed = !is_bare(answer) && self.trims?;
        text.clear();
        whole.clear();
        render(&self.context.pieces, conversation, text);
        render(&self.whole.pieces, conversation, whole);
        let same = text.chars().zip(whole.chars()).take_while(|(mine, theirs)| mine == theirs);
        let start: usize = same.map(|(char, _)| char.len_utf8()).sum();
        Some(is_trimmed || !whole[start..].contains(answer))
    }
}

/// Names a prompt by its ids, for grouping answers to the same question.
#[must_use]
pub fn context_name(ids: &[i32]) -> String {
    format!("{:016x}", hash_ids(ids))
}

/// Tells texts that changed from those that did not. Files hold it: what it gives must stay.
#[must_use]
pub fn texts_digest<'a>(texts: impl IntoIterator<Item = &'a str>) -> i64 {
    texts
        .into_iter()
        .fold(0, |digest, text| mix(digest, digest_bytes(text.as_bytes())))
        .cast_signed()
}

/// Sixteen bytes a multiplication, twice as fast as `hash_bytes`: it reads every text of a job.
fn digest_bytes(bytes: &[u8]) -> u64 {
    let (pairs, rest) = bytes.as_chunks::<16>();
    let mut last = [0; 16];
    last[..rest.len()].copy_from_slice(rest);
    pairs.iter().chain([&last]).fold(bytes.len() as u64, |digest, pair| {
        let both = u128::from_le_bytes(*pair);
        #[allow(clippy::cast_possible_truncation)] // the two halves
        let (first, second) = (both as u64, (both >> 64) as u64);
        mix(digest ^ first, second)
    })
}

impl Records {
    /// Number of records.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Whether no line was taken.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Some of them as entries of a spool, of records numbered from `record` on; None if there are
    /// not that many.
    #[must_use]
    pub fn entries(
        &self,
        range: Range<usize>,
        record: u32,
        variant: u8,
    ) -> Option<impl Iterator<Item = NewEntry<'_>>> {
        let is_inside = range.start <= range.end && range.end <= self.len();
        is_inside.then(|| {
            range.zip(record..).map(move |(number, record)| NewEntry {
                context: &self.context_ids[self.context_range(number)],
                target: &self.target_ids[self.target_range(number)],
                num_eot: self.num_eot,
                variant,
                record,
            })
        })
    }

    /// Where a record's context ids are.
    #[must_use]
    pub fn context_range(&self, number: usize) -> Range<usize> {
        number.checked_sub(1).map_or(0, |before| self.context_ends[before])
            ..self.context_ends[number]
    }

    /// Where a record's target ids are.
    #[must_use]
    pub fn target_range(&self, number: usize) -> Range<usize> {
        number.checked_sub(1).map_or(0, |before| self.target_ends[before])..self.target_ends[number]
    }

    fn join(parts: Vec<Self>) -> Self {
        let mut parts = parts.into_iter();
        let mut all = parts.next().unwrap_or_default();
        for mut part in parts {
            let (context, target) = (all.context_ids.len(), all.target_ids.len());
            all.others.append(&mut part.others);
            all.lines.append(&mut part.lines);
            all.context_ids.append(&mut part.context_ids);
            all.context_ends.extend(part.context_ends.iter().map(|end| context + end));
            all.target_ids.append(&mut part.target_ids);
            all.target_ends.extend(part.target_ends.iter().map(|end| target + end));
            all.flags.append(&mut part.flags);
            all.num_bytes.append(&mut part.num_bytes);
            all.digests.append(&mut part.digests);
            all.labels.append(&mut part.labels);
        }
        all
    }
}
