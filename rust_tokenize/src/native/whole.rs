//! Tokens that merging gives back from their own text, found without merging.
//!
//! In: a vocabulary and its merges. Out: the tokens whose text, as a piece of its own, becomes just
//! that token. Most new pieces are such tokens (two thirds in English, nine tenths in sums), and one
//! look-up then replaces a merge. Not every token is one: vocabularies have some that no text can
//! become, and seeding a cache with all of them is how another tokenizer came to give wrong ids.
//!
//! A token AB is one if A and B are, if A and B merge into it, and if nothing merges across the place
//! where they meet before that. What lies there changes only along the right edge of A's tree and the
//! left edge of B's, so a few look-ups decide it. Trees are followed only where every merge has a
//! higher rank than those of its parts, for then the merges of A and of B happen in order of rank
//! whatever lies beside them. A token that is not proved is merged like any text: that costs time,
//! nothing else. Merging every token was rejected: it takes ten times as long.

use crate::native::bits::Bits;
use crate::native::merges::{Merge, Merges};
use crate::native::vocabulary::Vocabulary;

/// How a token comes about from its own text.
#[derive(Debug, Clone, Copy)]
enum Made {
    /// Not known to.
    Unproved,
    /// It is a first symbol.
    Symbol,
    /// By a merge: its rank and its parts.
    By { rank: u32, left: u32, right: u32 },
}

/// The numbers of the tokens that their own text becomes; a few may be missing.
#[must_use]
pub fn self_merging(vocabulary: &Vocabulary, list: &[Merge], merges: &Merges) -> Bits {
    let symbols = vocabulary.iter().map(|(token, _)| {
        let mut characters = token.chars();
        let is_symbol = characters.next().is_some() && characters.next().is_none();
        if is_symbol { Made::Symbol } else { Made::Unproved }
    });
    let mut trees = Trees { vocabulary, merges, made: symbols.collect() };
    for (rank, merge) in (0..).zip(list) {
        trees.add(rank, merge);
    }
    let mut proved = Bits::new(trees.made.len());
    for (number, made) in trees.made.iter().enumerate() {
        if !matches!(made, Made::Unproved) {
            proved.insert(number);
        }
    }
    proved
}

struct Trees<'a> {
    vocabulary: &'a Vocabulary,
    merges: &'a Merges,
    /// By number of the token.
    made: Vec<Made>,
}

impl Trees<'_> {
    fn made(&self, id: u32) -> Made {
        self.vocabulary.number_of(id).map_or(Made::Unproved, |number| self.made[number])
    }

    /// Notes what a merge makes, if that is proved by it and was not before.
    fn add(&mut self, rank: u32, merge: &Merge) {
        let Some(number) = self.vocabulary.number_of(merge.merged) else { return };
        // Of a pair that is listed twice the table has the last.
        let counts = self.merges.rank(merge.left, merge.right) == Some(rank);
        if matches!(self.made[number], Made::Unproved)
            && counts
            && self.rises(merge.left, rank)
            && self.rises(merge.right, rank)
            && self.nothing_crosses(merge)
        {
            self.made[number] = Made::By { rank, left: merge.left, right: merge.right };
        }
    }

    /// Whether a part is proved, and by merges of lower rank.
    fn rises(&self, part: u32, rank: u32) -> bool {
        match self.made(part) {
            Made::Unproved => false,
            Made::Symbol => true,
            Made::By { rank: before, .. } => before < rank,
        }
    }

    /// Whether no pair across the middle of a merge goes first. Both edges are undone, the latest
    /// merge first, and the pair that meets then must have been passed over by that merge: its rank
    /// is higher, or the same and the merge further left.
    fn nothing_crosses(&self, merge: &Merge) -> bool {
        let (mut left, mut right) = (merge.left, merge.right);
        loop {
            let goes_first = match (self.made(left), self.made(right)) {
                (Made::By { rank, right: inner, .. }, Made::By { rank: other, .. })
                    if rank > other =>
                {
                    left = inner;
                    self.merges.rank(left, right).is_some_and(|found| found < rank)
                }
                (_, Made::By { rank, left: inner, .. }) => {
                    right = inner;
                    self.merges.rank(left, right).is_some_and(|found| found <= rank)
                }
                (Made::By { rank, right: inner, .. }, _) => {
                    left = inner;
                    self.merges.rank(left, right).is_some_and(|found| found < rank)
                }
                _ => return true,
            };
            if goes_first {
                return false;
            }
        }
    }
}
