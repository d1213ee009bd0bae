//! Which columns of a row say what: the forms of records, read from a checked line.
//!
//! In: a line's text and nodes. Out: its texts and labels; or None where a row is unusual in any way
//! (a field missing or of another type, an unknown role, no answer). None is not an error: such rows
//! are for the reader in Python, which has the last word on what a row means and what is wrong with
//! it. What is taken here is read as it reads it.

use std::borrow::Cow;

use crate::conversation::{Conversation, Role};
use crate::json::{Kind, Node, unescape};

/// How rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A list of turns, the last one the answer.
    Turns,
    /// A list of turns, the answer apart.
    TurnsAndAnswer,
    /// A prompt and an answer: texts, or lists of turns.
    Prompt,
    /// A question and its answer.
    Question,
    /// An instruction, perhaps what it is about, and the answer.
    Instruction,
}

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// What the answer answers: text or turns.
    Prompt,
    /// What an instruction is about.
    Input,
    /// The answer.
    Response,
    /// The record's name.
    Id,
    /// Who wrote the answer.
    Source,
    /// What the answer answers, by name.
    Group,
    /// Whether the answer is right.
    Correct,
    /// A label that must be text or a number but is not needed.
    Checked,
    /// What only Python makes turns of: a row where it holds some is for it.
    History,
    /// What only Python hands to a template: a row where it is neither null nor an empty text is for
    /// it.
    Handed,
}

/// The columns of a file.
#[derive(Debug, Clone)]
pub struct Fields {
    /// How its rows are written.
    pub form: Form,
    /// Each column's name and what it holds; a column may hold several things, and only
    /// [`Field::Checked`] and [`Field::Handed`] may come from several columns.
    pub columns: Vec<(String, Field)>,
}

/// What a row says about a record beside its texts.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Labels {
    /// Its name, if it has one.
    pub id: Option<String>,
    /// Who wrote the answer, if that is said.
    pub source: Option<String>,
    /// What it answers, if that is said.
    pub group: Option<String>,
    /// Whether the answer is right, if that is said.
    pub correct: Option<bool>,
}

/// A line with its nodes, which are named by their indices.
#[derive(Clone, Copy)]
struct Tree<'a> {
    text: &'a str,
    nodes: &'a [Node],
}

/// The nodes of a row's texts.
#[derive(Debug, Default, Clone, Copy)]
struct Texts {
    prompt: Option<usize>,
    input: Option<usize>,
    response: Option<usize>,
}

impl Fields {
    /// Reads a row; `nodes` are all of its line.
    #[must_use]
    pub fn read(
        &self,
        text: &str,
        nodes: &[Node],
        conversation: &mut Conversation,
    ) -> Option<Labels> {
        let tree = Tree { text, nodes };
        let mut texts = Texts::default();
        let mut labels = Labels::default();
        for (key, value) in tree.members(0)? {
            let key = tree.string(key)?;
            for &(_, field) in self.columns.iter().filter(|(name, _)| *name == key) {
                match field {
                    Field::Prompt => texts.prompt = Some(value),
                    Field::Input => texts.input = tree.unless_null(value),
                    Field::Response => texts.response = Some(value),
                    Field::Id => labels.id = tree.label(value)?,
                    Field::Source => labels.source = tree.label(value)?,
                    Field::Group => labels.group = tree.label(value)?,
                    Field::Correct => labels.correct = tree.truth(value)?,
                    Field::Checked => tree.check_label(value)?,
                    Field::History => tree.blank(value).or_else(|| tree.empty_list(value))?,
                    Field::Handed => tree.blank(value)?,
                }
            }
        }
        self.read_texts(tree, texts, conversation)?;
        (!conversation.answer().is_empty()).then_some(labels)
    }

    fn read_texts(&self, tree: Tree<'_>, texts: Texts, out: &mut Conversation) -> Option<()> {
        let prompt = texts.prompt?;
        out.clear();
        match self.form {
            Form::Turns => {
                tree.turns(prompt, out)?;
                return last_is_answer(out);
            }
            Form::Prompt if tree.kind(prompt) == Kind::Array => {
                tree.turns(prompt, out)?;
                let response = texts.response?;
                if tree.kind(response) == Kind::Array {
                    tree.turns(response, out)?;
                    return last_is_answer(out);
                }
            }
            Form::TurnsAndAnswer => tree.turns(prompt, out)?,
            Form::Prompt => {
                out.newlines = false;
                tree.question(prompt, None, out)?;
            }
            Form::Question => tree.question(prompt, None, out)?,
            Form::Instruction => tree.question(prompt, texts.input, out)?,
        }
        tree.content(texts.response?, out)
    }
}

/// Turns the last turn into the answer.
fn last_is_answer(conversation: &mut Conversation) -> Option<()> {
    (conversation.roles.pop() == Some(Role::Assistant)).then_some(())
}

impl<'a> Tree<'a> {
    fn kind(self, node: usize) -> Kind {
        self.nodes.get(node).map_or(Kind::Null, |node| node.kind)
    }

    fn unless_null(self, node: usize) -> Option<usize> {
        (self.kind(node) != Kind::Null).then_some(node)
    }

    fn nothing(self, node: usize) -> Option<()> {
        (self.kind(node) == Kind::Null).then_some(())
    }

    /// Null or an empty text.
    fn blank(self, node: usize) -> Option<()> {
        let here = self.nodes.get(node)?;
        let is_empty = here.kind == Kind::Plain && here.end - here.start == 2;
        (is_empty || here.kind == Kind::Null).then_some(())
    }

    fn empty_list(self, node: usize) -> Option<()> {
        let here = self.nodes.get(node)?;
        (here.kind == Kind::Array && here.after == node + 1).then_some(())
    }

    /// The keys and values of an object.
    fn members(self, object: usize) -> Option<impl Iterator<Item = (usize, usize)>> {
        let mut inside = self.inside(object, Kind::Object)?;
        Some(std::iter::from_fn(move || Some((inside.next()?, inside.next()?))))
    }

    /// The nodes right below one of a kind.
    fn inside(self, node: usize, kind: Kind) -> Option<impl Iterator<Item = usize>> {
        let outer = self.nodes.get(node).filter(|outer| outer.kind == kind)?;
        let mut at = node + 1;
        Some(std::iter::from_fn(move || {
            let this = at;
            at = self.nodes.get(this).filter(|_| this < outer.after)?.after;
            Some(this)
        }))
    }

    /// What stands between the quotes of a string.
    fn inner(self, node: usize) -> Option<Inner<'a>> {
        let node = self.nodes.get(node)?;
        let is_plain = match node.kind {
            Kind::Plain => true,
            Kind::Escaped => false,
            _ => return None,
        };
        let text = self.text.get(node.start + 1..node.end - 1)?;
        Some(Inner { text, is_plain })
    }

    /// The text of a string.
    fn string(self, node: usize) -> Option<Cow<'a, str>> {
        let inner = self.inner(node)?;
        if inner.is_plain {
            return Some(Cow::Borrowed(inner.text));
        }
        let mut text = String::new();
        inner.write(&mut text);
        Some(Cow::Owned(text))
    }

    /// Adds the text of a string as a content.
    fn content(self, node: usize, out: &mut Conversation) -> Option<()> {
        let inner = self.inner(node)?;
        out.add(|text| inner.write(text));
        Some(())
    }

    /// Adds a list of turns.
    fn turns(self, list: usize, out: &mut Conversation) -> Option<()> {
        for turn in self.inside(list, Kind::Array)? {
            let (mut role, mut from, mut content, mut value) = (None, None, None, None);
            for (key, node) in self.members(turn)? {
                match &*self.string(key)? {
                    "role" => role = Some(node),
                    "from" => from = Some(node),
                    "content" => content = Some(node),
                    "value" => value = Some(node),
                    // A template, or training, may read these, so they are for Python.
                    "tool_calls" | "tool_call_id" | "name" | "reasoning_content" | "thinking"
                    | "reasoning" | "weight" => self.nothing(node)?,
                    _ => {}
                }
            }
            // ShareGPT's names, wherever there is a `from`.
            let (role, said) = match from {
                Some(from) => (sharegpt_role(&self.string(from)?)?, value?),
                None => (Role::from_name(&self.string(role?)?)?, content?),
            };
            out.roles.push(role);
            self.content(said, out)?;
        }
        Some(())
    }

    /// Adds what a user asks, with what it is about.
    fn question(self, text: usize, about: Option<usize>, out: &mut Conversation) -> Option<()> {
        let text = self.inner(text)?;
        let nothing = Inner { text: "", is_plain: true };
        let about = about.map_or(Some(nothing), |about| self.inner(about))?;
        out.roles.push(Role::User);
        out.add(|out| {
            text.write(out);
            if !about.text.is_empty() {
                out.push_str("\n\n");
                about.write(out);
            }
        });
        Some(())
    }

    /// A label as text; the inner None is no label.
    #[allow(clippy::option_option)] // the outer one is "not for this path"
    fn label(self, value: usize) -> Option<Option<String>> {
        let node = self.nodes.get(value)?;
        if node.kind == Kind::Null {
            return Some(None);
        }
        if node.kind == Kind::Number {
            // Python writes other numbers in another way than they stand here.
            let text = self.text.get(node.start..node.end).filter(|text| is_plain_int(text))?;
            return Some(Some(text.to_owned()));
        }
        let text = self.string(value)?;
        Some((!text.is_empty()).then(|| text.into_owned()))
    }

    /// Whether a label could be read.
    fn check_label(self, value: usize) -> Option<()> {
        let kind = self.kind(value);
        let fits = matches!(kind, Kind::Plain | Kind::Escaped | Kind::Number | Kind::Null);
        fits.then_some(())
    }

    #[allow(clippy::option_option)] // as above
    fn truth(self, value: usize) -> Option<Option<bool>> {
        match self.kind(value) {
            Kind::True => Some(Some(true)),
            Kind::False => Some(Some(false)),
            Kind::Null => Some(None),
            _ => None,
        }
    }
}

/// What stands between the quotes of a string.
#[derive(Clone, Copy)]
struct Inner<'a> {
    text: &'a str,
    is_plain: bool,
}

impl Inner<'_> {
    fn write(self, out: &mut String) {
        if self.is_plain {
            out.push_str(self.text);
        } else {
            unescape(self.text, out);
        }
    }
}

fn sharegpt_role(name: &str) -> Option<Role> {
    match name {
        "human" | "user" => Some(Role::User),
        "gpt" | "assistant" => Some(Role::Assistant),
        "system" => Some(Role::System),
        _ => None,
    }
}

/// Whether Python writes this number the way it stands here.
fn is_plain_int(text: &str) -> bool {
    text != "-0" && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'-'))
}
