//! The added tokens of a tokenizer: their numbers, and how they are searched for.
//!
//! The reference numbers added tokens itself and ignores the ids of the file; a file that says
//! otherwise is left to it, as its wrapper refuses such files.

use std::collections::{BTreeMap, HashMap};

use crate::encoder::AddedToken;
use crate::native::added::{Pattern, PatternSet};
use crate::native::definition::AddedEntry;
use crate::native::vocabulary::Vocabulary;

/// Added tokens by content and by id.
#[derive(Debug, Clone)]
pub struct AddedTokens {
    by_content: HashMap<String, u32>,
    by_id: BTreeMap<u32, Entry>,
    num_new: usize,
}

#[derive(Debug, Clone)]
struct Entry {
    entry: AddedEntry,
    /// What decoding sees of it: a token that is searched for in normalized text is normalized.
    decoded: String,
}

impl AddedTokens {
    /// Numbers the tokens as the reference does; None where that gives other ids than the file or
    /// leaves two tokens with one id. `normalize` is the tokenizer's normalizer.
    #[must_use]
    pub fn new(
        entries: &[AddedEntry],
        vocabulary: &Vocabulary,
        normalize: impl Fn(&str) -> String,
    ) -> Option<Self> {
        let mut tokens = Self { by_content: HashMap::new(), by_id: BTreeMap::new(), num_new: 0 };
        for entry in entries.iter().filter(|entry| !entry.content.is_empty()) {
            let known = vocabulary.id_of(entry.content.as_bytes());
            let id =
                known.map_or_else(|| u32::try_from(vocabulary.len() + tokens.num_new), Ok).ok()?;
            let taken = known.is_none() && vocabulary.contains(id);
            if taken || id != entry.id || i32::try_from(id).is_err() {
                return None;
            }
            tokens.num_new += usize::from(known.is_none());
            let content = &entry.content;
            let decoded = if entry.normalized { normalize(content) } else { content.clone() };
            let again = tokens.by_content.insert(content.clone(), id).is_some();
            if again || tokens.by_id.insert(id, Entry { entry: entry.clone(), decoded }).is_some() {
                return None;
            }
        }
        Some(tokens)
    }

    /// How many are not in the model's vocabulary.
    #[must_use]
    pub fn num_new(&self) -> usize {
        self.num_new
    }

    /// The id of a token.
    #[must_use]
    pub fn id_of(&self, content: &str) -> Option<u32> {
        self.by_content.get(content).copied()
    }

    /// The text of an id as decoding sees it.
    #[must_use]
    pub fn token_of(&self, id: u32) -> Option<&str> {
        self.by_id.get(&id).map(|entry| entry.decoded.as_str())
    }

    /// Whether a text is that of a special token.
    #[must_use]
    pub fn is_special(&self, text: &str) -> bool {
        let entry = self.id_of(text).and_then(|id| self.by_id.get(&id));
        entry.is_some_and(|entry| entry.entry.special)
    }

    /// All of them, by rising id.
    #[must_use]
    pub fn list(&self) -> Vec<AddedToken> {
        let all = self.by_id.iter().map(|(&id, entry)| AddedToken {
            content: entry.entry.content.clone(),
            id: id.cast_signed(),
            special: entry.entry.special,
        });
        all.collect()
    }

    /// Those that are searched for in raw text.
    #[must_use]
    pub fn raw_patterns(&self) -> Option<PatternSet> {
        self.patterns(false, str::to_owned)
    }

    /// Those that are searched for in text normalized by `normalize`.
    #[must_use]
    pub fn normalized_patterns(&self, normalize: impl Fn(&str) -> String) -> Option<PatternSet> {
        self.patterns(true, normalize)
    }

    fn patterns(&self, normalized: bool, normalize: impl Fn(&str) -> String) -> Option<PatternSet> {
        let entries = self.by_id.iter().map(|(&id, entry)| (id, &entry.entry));
        let chosen = entries.filter(|(_, entry)| entry.normalized == normalized);
        let patterns: Vec<_> = chosen
            .map(|(id, entry)| Pattern {
                text: normalize(&entry.content),
                id,
                special: entry.special,
                single_word: entry.single_word,
                lstrip: entry.lstrip,
                rstrip: entry.rstrip,
            })
            .collect();
        // A token of white space may begin within what another has swallowed: the reference then
        // fails on some texts, so such files are its own.
        let swallows = patterns.iter().any(|pattern| pattern.rstrip);
        let blank = |pattern: &Pattern| pattern.text.starts_with(char::is_whitespace);
        if swallows && patterns.iter().any(blank) {
            return None;
        }
        PatternSet::new(patterns)
    }
}
