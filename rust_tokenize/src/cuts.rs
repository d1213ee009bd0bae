//! Where a text may be cut without a change of its ids: between a letter of ASCII and a blank.
//!
//! In: a text that is read by an encoder of which [`crate::encoder::Encoder::cuts_at_blanks`] is
//! true. Out: the places next to its ends. What an answer follows can then only change the ids
//! before its first cut, so that a prompt and an answer are compared with both encoded together at
//! the cost of some words, not of another pass. Finer cuts (before any pretoken that two texts
//! share) were not worth the case analysis: the first word of an answer has a few bytes.

/// The first cut, or the end of `text`.
#[must_use]
pub fn first_cut(text: &str) -> usize {
    let mut pairs = text.as_bytes().windows(2);
    pairs.position(is_cut).map_or(text.len(), |letter| letter + 1)
}

/// The last cut, or 0.
#[must_use]
pub fn last_cut(text: &str) -> usize {
    let mut pairs = text.as_bytes().windows(2);
    pairs.rposition(is_cut).map_or(0, |letter| letter + 1)
}

/// Whether a text may be cut between these two bytes.
pub(crate) fn is_cut(pair: &[u8]) -> bool {
    pair[0].is_ascii_alphabetic() && pair[1] == b' '
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_stand_between_letters_and_blanks() {
        for (text, first, last) in [
            ("", 0, 0),
            ("a", 1, 0),
            (" a", 2, 0),
            ("a ", 1, 1),
            ("\u{e9} a1 b  c\n", 7, 7),
            ("I am here", 1, 4),
        ] {
            assert_eq!((first_cut(text), last_cut(text)), (first, last), "{text:?}");
        }
    }
}
