//! Whether texts may be cut at blanks, see [`crate::encoder::Encoder::cuts_at_blanks`].
//!
//! No expression of a byte-level family has a pretoken with white space after a letter, so one ends
//! at every such place; it ends there too if the text does. None looks back, so what follows is cut
//! as if it stood alone. A blank neither composes with a letter nor with what follows, so the same
//! holds before NFC. What is left to rule out are blanks put in front of sections, and added tokens
//! that reach over such a place or look beyond their own text.

use crate::cuts::is_cut;
use crate::native::NativeEncoder;
use crate::native::added::{Pattern, PatternSet};
use crate::native::allow::{Normalizer, Pieces, Prefix};

impl NativeEncoder {
    pub(super) fn is_cut_at_blanks(&self) -> bool {
        let sets =
            [&self.raw_patterns, &self.normalized_patterns, &self.continuing_patterns].into_iter();
        matches!(self.pipeline.pieces, Pieces::Bytes(_))
            && matches!(self.pipeline.normalizer, Normalizer::None | Normalizer::Nfc)
            && self.pipeline.prefix == Prefix::Never
            && sets.flat_map(PatternSet::patterns).all(keeps_to_itself)
    }
}

fn keeps_to_itself(pattern: &Pattern) -> bool {
    let looks_around = pattern.single_word || pattern.lstrip || pattern.rstrip;
    !looks_around && !pattern.text.as_bytes().windows(2).any(is_cut)
}
