//! A template cut at its special tokens: what is the same in every record is encoded once.
//!
//! In: a template's pieces and an encoder. Out: ids known beforehand, and between them *sections*,
//! literal text and contents that are encoded together because the tokenizer may merge across
//! their borders. A cut is made only at a special token that is found wherever it stands and that
//! no neighbour changes; both are proved here, the first from the names of all added tokens, the
//! second by trial with the encoder. Where that fails the text stays in one piece, which is slower
//! and never wrong.

use std::ops::Range;

use crate::encoder::{AddedToken, EncodeOptions, Encoder};
use crate::error::Result;
use crate::specials::Specials;
use crate::template::Piece;

/// What stands next to a special token when it is tried: what merges, is stripped or composes.
const NEIGHBOURS: [&str; 12] =
    ["a", " a", "a ", "  ", "\n", "\n\na", "1", "é", "▁", "'s", "\u{338}a", "\u{301}a"];

/// How the text of templates is read: their special tokens are real.
#[must_use]
pub fn parsing(continuation: bool) -> EncodeOptions {
    EncodeOptions { add_special_tokens: false, parse_special: true, continuation }
}

/// Pieces encoded together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Section {
    /// Its text.
    pub pieces: Vec<Piece>,
    /// Whether it is read as the continuation of another text.
    pub continues: bool,
}

/// A part of a context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The same in every record.
    Ids(Vec<i32>),
    /// To be encoded for each.
    Encode(Section),
}

/// A context, ready to be encoded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sections {
    /// All but the last section.
    pub steps: Vec<Step>,
    /// What the answer follows; may be empty.
    pub tail: Section,
    /// The ids of the tail, where they are the same in every record.
    pub tail_ids: Option<Vec<i32>>,
}

/// Cuts templates for one tokenizer.
pub struct Cutter<'a> {
    encoder: &'a dyn Encoder,
    specials: &'a Specials,
    added: Vec<AddedToken>,
    /// Whether text after a special token is read as a continuation.
    continues: bool,
}

impl<'a> Cutter<'a> {
    /// For texts read by `encoder`.
    pub fn new(encoder: &'a dyn Encoder, specials: &'a Specials) -> Result<Self> {
        let continues = specials.text_after_continues(encoder)?;
        Ok(Self { encoder, specials, added: encoder.added_tokens(), continues })
    }

    /// Cuts the pieces of a context.
    pub fn cut(&self, pieces: &[Piece]) -> Result<Sections> {
        let mut sections = Sections::default();
        for piece in pieces {
            match piece {
                Piece::Literal(text) => self.cut_literal(text, &mut sections)?,
                Piece::Content(_) => sections.tail.pieces.push(piece.clone()),
            }
        }
        sections.tail_ids = self.encode_literals(&sections.tail)?;
        Ok(sections)
    }

    fn cut_literal(&self, text: &str, sections: &mut Sections) -> Result<()> {
        let push = |section: &mut Section, text: &str| {
            if !text.is_empty() {
                section.pieces.push(Piece::Literal(text.to_owned()));
            }
        };
        let cuts = self.safe_cuts(text)?;
        let (Some(first), Some(last)) = (cuts.first(), cuts.last()) else {
            push(&mut sections.tail, text);
            return Ok(());
        };
        push(&mut sections.tail, &text[..first.start]);
        let next = Section { pieces: Vec::new(), continues: self.continues };
        let ended = std::mem::replace(&mut sections.tail, next);
        self.end(ended, &mut sections.steps)?;
        let mut ids = Vec::new();
        self.encoder.encode(&text[first.start..last.end], parsing(false), &mut ids)?;
        push_ids(&mut sections.steps, ids);
        push(&mut sections.tail, &text[last.end..]);
        Ok(())
    }

    /// A section without contents is encoded here.
    fn end(&self, section: Section, steps: &mut Vec<Step>) -> Result<()> {
        match self.encode_literals(&section)? {
            Some(ids) => push_ids(steps, ids),
            None => steps.push(Step::Encode(section)),
        }
        Ok(())
    }

    /// The ids of a section without contents.
    fn encode_literals(&self, section: &Section) -> Result<Option<Vec<i32>>> {
        let mut text = String::new();
        for piece in &section.pieces {
            match piece {
                Piece::Literal(literal) => text.push_str(literal),
                Piece::Content(_) => return Ok(None),
            }
        }
        let mut ids = Vec::new();
        if !text.is_empty() {
            self.encoder.encode(&text, parsing(section.continues), &mut ids)?;
        }
        Ok(Some(ids))
    }

    fn safe_cuts(&self, text: &str) -> Result<Vec<Range<usize>>> {
        let mut cuts = Vec::new();
        let mut at = 0;
        while let Some((place, id)) = self.specials.find(text, at) {
            at = place.end;
            let name = &text[place.clone()];
            if self.is_found_everywhere(name) && self.is_left_alone(name, id)? {
                cuts.push(place);
            }
        }
        Ok(cuts)
    }

    /// Whether no added token can begin before it and reach into it, or begin with it and go on.
    fn is_found_everywhere(&self, name: &str) -> bool {
        !self.added.iter().map(|token| token.content.as_bytes()).any(|other| {
            let name = name.as_bytes();
            let reaches_into = (1..other.len()).any(|start| {
                let end = &other[start..];
                end.starts_with(name) || name.starts_with(end)
            });
            reaches_into || (other != name && other.starts_with(name))
        })
    }

    /// Whether texts around it are encoded as they are alone.
    fn is_left_alone(&self, name: &str, id: i32) -> Result<bool> {
        let ids = |text: &str, continues| -> Result<Vec<i32>> {
            let mut ids = Vec::new();
            self.encoder.encode(text, parsing(continues), &mut ids)?;
            Ok(ids)
        };
        for left in NEIGHBOURS {
            for right in NEIGHBOURS {
                let (first, rest) = (ids(left, false)?, ids(right, self.continues)?);
                if ids(&format!("{left}{name}{right}"), false)?
                    != [&first, &[id][..], &rest].concat()
                    || ids(&format!("{name}{right}{name}"), false)?
                        != [&[id][..], &rest, &[id]].concat()
                {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }
}

fn push_ids(steps: &mut Vec<Step>, mut ids: Vec<i32>) {
    match steps.last_mut() {
        Some(Step::Ids(known)) => known.append(&mut ids),
        _ if ids.is_empty() => {}
        _ => steps.push(Step::Ids(ids)),
    }
}
