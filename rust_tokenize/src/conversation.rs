//! One record's texts: the turns before an answer, and the answer.

use std::ops::Range;

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Whoever set the conversation up.
    System,
    /// The same, by its newer name.
    Developer,
    /// Who asks.
    User,
    /// Who answers.
    Assistant,
    /// A tool's result.
    Tool,
}

impl Role {
    /// The role of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "system" => Self::System,
            "developer" => Self::Developer,
            "user" => Self::User,
            "assistant" => Self::Assistant,
            "tool" => Self::Tool,
            _ => return None,
        })
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::Developer => "developer",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }
}

/// The texts of a record, in one string that is used again for the next.
#[derive(Debug, Default)]
pub struct Conversation {
    text: String,
    /// The turns' roles, in order; the answer's is not among them.
    pub roles: Vec<Role>,
    /// Each turn's content, then the answer.
    contents: Vec<Range<usize>>,
    /// Whether the verbatim prompt has a newline after each content.
    pub newlines: bool,
}

impl Conversation {
    /// Forgets everything.
    pub fn clear(&mut self) {
        self.text.clear();
        self.roles.clear();
        self.contents.clear();
        self.newlines = true;
    }

    /// Adds a content that `write` appends.
    pub fn add(&mut self, write: impl FnOnce(&mut String)) {
        let start = self.text.len();
        write(&mut self.text);
        self.contents.push(start..self.text.len());
    }

    /// What a turn says; the answer comes after the last turn.
    #[must_use]
    pub fn content(&self, turn: usize) -> &str {
        self.contents.get(turn).map_or("", |range| &self.text[range.clone()])
    }

    /// The answer.
    #[must_use]
    pub fn answer(&self) -> &str {
        self.content(self.roles.len())
    }

    /// All texts, one after the other: only good for looking for single characters.
    #[must_use]
    pub fn all_text(&self) -> &str {
        &self.text
    }

    /// Each text, the answer last.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        self.contents.iter().map(|range| &self.text[range.clone()])
    }

    /// Who speaks and what they say, turn by turn, the answer last.
    pub fn turns(&self) -> impl Iterator<Item = &str> {
        let before =
            (0..self.roles.len()).flat_map(|turn| [self.roles[turn].name(), self.content(turn)]);
        before.chain([self.answer()])
    }

    /// Appends the prompt for models without a template.
    pub fn write_verbatim(&self, out: &mut String) {
        for turn in 0..self.roles.len() {
            out.push_str(self.content(turn));
            if self.newlines {
                out.push('\n');
            }
        }
    }
}
