//! Chat templates as data: literal texts and contents in a row, for conversations of one shape.
//!
//! In: pieces and guards, which Python finds out from a template. Out: renderings, the same as the
//! template's own wherever [`Template::fits`]; the rest is not for this path.

use crate::conversation::Conversation;

/// A part of a rendering.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// The template's own text.
    Literal(String),
    /// What a turn says.
    Content(Content),
}

/// A place where a turn's content stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Content {
    /// Index of the turn; the answer comes after the last.
    pub turn: usize,
    /// Whether white space at both ends is left out.
    pub trimmed: bool,
}

/// What must not be true of a content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Test {
    /// The text is in it.
    Contains,
    /// It begins with the text.
    StartsWith,
    /// It ends with the text.
    EndsWith,
    /// It is the text.
    Equals,
}

/// A condition on a content: that a test is false.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guard {
    /// What is tested.
    pub content: Content,
    /// How.
    pub test: Test,
    /// The text of the test.
    pub text: String,
}

/// What a template makes of every conversation of one shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    /// Joined they are the rendering.
    pub pieces: Vec<Piece>,
    /// What must hold for that.
    pub guards: Vec<Guard>,
}

impl Content {
    /// The text that stands here.
    #[must_use]
    pub fn of<'a>(&self, conversation: &'a Conversation) -> &'a str {
        let text = conversation.content(self.turn);
        if self.trimmed { text.trim_matches(is_space) } else { text }
    }
}

/// What Python's `str.strip` takes away: beyond Unicode's white space the separators of ASCII.
fn is_space(char: char) -> bool {
    char.is_whitespace() || matches!(char, '\u{1c}'..='\u{1f}')
}

impl Template {
    /// Whether the pieces are the template's rendering of a conversation.
    #[must_use]
    pub fn fits(&self, conversation: &Conversation) -> bool {
        self.guards.iter().all(|guard| {
            let (found, text) = (guard.content.of(conversation), guard.text.as_str());
            !match guard.test {
                Test::Contains => found.contains(text),
                Test::StartsWith => found.starts_with(text),
                Test::EndsWith => found.ends_with(text),
                Test::Equals => found == text,
            }
        })
    }

    /// The highest turn it names, if any.
    #[must_use]
    pub fn last_turn(&self) -> Option<usize> {
        let written = self.pieces.iter().filter_map(|piece| match piece {
            Piece::Content(content) => Some(content.turn),
            Piece::Literal(_) => None,
        });
        written.chain(self.guards.iter().map(|guard| guard.content.turn)).max()
    }
}

/// Appends the rendering of some pieces.
pub fn render(pieces: &[Piece], conversation: &Conversation, out: &mut String) {
    for piece in pieces {
        out.push_str(match piece {
            Piece::Literal(text) => text,
            Piece::Content(content) => content.of(conversation),
        });
    }
}

/// The answer as it stands in `whole` if that is `context`, the answer, and anything.
#[must_use]
pub fn answer_after(context: &Template, whole: &Template, answer: usize) -> Option<Content> {
    let rest = whole.pieces.strip_prefix(context.pieces.as_slice())?;
    match rest.first()? {
        Piece::Content(place) if place.turn == answer => Some(*place),
        _ => None,
    }
}

/// Whether `whole` leaves out white space around the answer; None if that does not stand there once.
#[must_use]
pub fn trims(whole: &Template, answer: usize) -> Option<bool> {
    let mut places = whole.pieces.iter().filter_map(|piece| match piece {
        Piece::Content(place) if place.turn == answer => Some(place.trimmed),
        _ => None,
    });
    places.next().filter(|_| places.next().is_none())
}

/// Whether a text has no white space at its ends.
#[must_use]
pub fn is_bare(text: &str) -> bool {
    text.trim_matches(is_space) == text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_is_pythons() {
        // The characters of Python's `str.isspace`, by number.
        let spaces: Vec<u32> =
            (0..=0x0010_FFFF).filter(|&code| char::from_u32(code).is_some_and(is_space)).collect();
        let expected: Vec<u32> = (0x09..=0x0D)
            .chain(0x1C..=0x20)
            .chain([0x85, 0xA0, 0x1680])
            .chain(0x2000..=0x200A)
            .chain([0x2028, 0x2029, 0x202F, 0x205F, 0x3000])
            .collect();
        assert_eq!(spaces, expected);
    }
}
