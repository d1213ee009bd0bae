//! The tokens of a model and their ids, both ways.

use crate::native::strings::{Index, Strings};

/// Tokens as the file spells them, by rising id.
#[derive(Debug, Clone)]
pub struct Vocabulary {
    tokens: Strings,
    ids: Vec<u32>,
    index: Index,
    longest: usize,
}

impl Vocabulary {
    /// Token `i` has id `ids[i]`. None if a token or an id occurs twice, an id needs more than 31
    /// bits, or there is not one id a token.
    #[must_use]
    pub fn new(tokens: Strings, ids: Vec<u32>) -> Option<Self> {
        if tokens.len() != ids.len() || ids.iter().any(|&id| i32::try_from(id).is_err()) {
            return None;
        }
        let (tokens, ids) = if rises(&ids) { (tokens, ids) } else { sorted(&tokens, &ids)? };
        let index = rises(&ids).then(|| Index::build(&tokens))??;
        let longest = tokens.iter().map(str::len).max().unwrap_or(0);
        Some(Self { tokens, ids, index, longest })
    }

    /// Number of tokens.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there are no tokens.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Bytes of the longest token.
    #[must_use]
    pub fn longest(&self) -> usize {
        self.longest
    }

    /// The tokens, by rising id.
    #[must_use]
    pub fn tokens(&self) -> &Strings {
        &self.tokens
    }

    /// Their ids.
    #[must_use]
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Tokens and ids.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u32)> {
        self.tokens.iter().zip(self.ids.iter().copied())
    }

    /// The id of a token.
    #[must_use]
    pub fn id_of(&self, token: &[u8]) -> Option<u32> {
        self.index.find(&self.tokens, token).map(|number| self.ids[number])
    }

    /// The token of an id.
    #[must_use]
    pub fn token_of(&self, id: u32) -> Option<&str> {
        self.number_of(id).map(|number| self.tokens.get(number))
    }

    /// Whether there is a token of this id.
    #[must_use]
    pub fn contains(&self, id: u32) -> bool {
        self.number_of(id).is_some()
    }

    /// Which of the tokens has this id.
    #[must_use]
    pub fn number_of(&self, id: u32) -> Option<usize> {
        let direct = id as usize; // nearly always
        if self.ids.get(direct) == Some(&id) {
            return Some(direct);
        }
        self.ids.binary_search(&id).ok()
    }
}

fn rises(ids: &[u32]) -> bool {
    ids.windows(2).all(|pair| pair[0] < pair[1])
}

fn sorted(tokens: &Strings, ids: &[u32]) -> Option<(Strings, Vec<u32>)> {
    let mut order: Vec<usize> = (0..ids.len()).collect();
    order.sort_by_key(|&number| ids[number]);
    let mut sorted = Strings::default();
    for &number in &order {
        sorted.push(tokens.get(number)).then_some(())?;
    }
    Some((sorted, order.into_iter().map(|number| ids[number]).collect()))
}
