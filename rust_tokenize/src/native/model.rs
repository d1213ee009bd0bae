//! The model of a tokenizer: one piece of text to ids, without a cache.
//!
//! A piece becomes its first symbols (bytes or characters), and those merge. Byte-level models work
//! on the bytes themselves; the reference's detour over printable stand-ins for bytes only shows in
//! the file, where [`byte_level_bytes`] undoes it.

use crate::native::joins::Joins;
use crate::native::merges::{Merges, Scratch};
use crate::native::vocabulary::Vocabulary;

/// The character that stands for a blank in SentencePiece-style vocabularies.
pub const BLANK: char = '\u{2581}';
/// No token has this id.
const NO_ID: u32 = u32::MAX;
/// Beyond this many symbols the memory a piece took is given back.
const MAX_KEPT: usize = 1 << 16;

/// What the first symbols of a piece are.
#[derive(Debug, Clone)]
pub enum Alphabet {
    /// Bytes.
    Bytes(Box<ByteAlphabet>),
    /// Characters.
    Chars(CharAlphabet),
}

/// Ids of bytes, and how the vocabulary spells them.
#[derive(Debug, Clone)]
pub struct ByteAlphabet {
    ids: [u32; 256],
    /// The UTF-8 of [`byte_level_char`]; 0 in the second place where that is one byte.
    spellings: [[u8; 2]; 256],
}

impl ByteAlphabet {
    /// The alphabet in which each byte has this id.
    #[must_use]
    pub fn new(ids: [u32; 256]) -> Self {
        let mut spellings = [[0; 2]; 256];
        for (byte, spelling) in (0..=255).zip(&mut spellings) {
            byte_level_char(byte).encode_utf8(spelling); // below U+0144, so two bytes at most
        }
        Self { ids, spellings }
    }

    /// Spells a piece.
    fn spell(&self, piece: &str, spelled: &mut Vec<u8>) {
        spelled.clear();
        for byte in piece.bytes() {
            let [first, second] = self.spellings[usize::from(byte)];
            spelled.push(first);
            if second != 0 {
                spelled.push(second);
            }
        }
    }
}

/// Ids of characters, and what stands for a character that has none.
#[derive(Debug, Clone)]
pub struct CharAlphabet {
    /// For each block of 256 characters the number of its page.
    blocks: Vec<u16>,
    /// Ids, or `NO_ID`; page 0 has none.
    pages: Vec<[u32; 256]>,
    /// Byte fallback: the id of each byte, `NO_ID` for a missing one.
    bytes: Option<Box<[u32; 256]>>,
    /// The token of characters that have none.
    unk: Option<u32>,
    /// Neighbouring unknown characters are one token.
    fuse_unk: bool,
}

impl CharAlphabet {
    /// An alphabet without characters.
    #[must_use]
    pub fn new(bytes: Option<Box<[u32; 256]>>, unk: Option<u32>, fuse_unk: bool) -> Self {
        let num_blocks = (char::MAX as usize >> 8) + 1;
        Self { blocks: vec![0; num_blocks], pages: vec![[NO_ID; 256]], bytes, unk, fuse_unk }
    }

    /// Gives a character its id.
    pub fn insert(&mut self, character: char, id: u32) {
        let block = &mut self.blocks[character as usize >> 8];
        if *block == 0 {
            // There are 4352 blocks, so the number of a page fits.
            *block = u16::try_from(self.pages.len()).unwrap_or_default();
            self.pages.push([NO_ID; 256]);
        }
        self.pages[usize::from(*block)][character as usize & 255] = id;
    }

    /// The id of a character, if it has one.
    #[must_use]
    pub fn get(&self, character: char) -> Option<u32> {
        let page = self.blocks[character as usize >> 8];
        let id = self.pages[usize::from(page)][character as usize & 255];
        (id != NO_ID).then_some(id)
    }

    /// Whether every character becomes at least one symbol.
    #[must_use]
    pub fn keeps_all(&self) -> bool {
        self.has_all_bytes() || self.unk.is_some()
    }

    /// Whether bytes can stand for any character, so that none is unknown.
    #[must_use]
    pub fn has_all_bytes(&self) -> bool {
        self.bytes.as_ref().is_some_and(|bytes| !bytes.contains(&NO_ID))
    }

    /// Whether an id is that of a byte that stands for a part of a character.
    #[must_use]
    pub fn is_byte(&self, id: u32) -> bool {
        self.bytes.as_ref().is_some_and(|bytes| bytes.contains(&id))
    }

    /// The symbols of `piece`, in which a blank and [`BLANK`] are the same.
    ///
    /// An unknown token waits until a known character comes, and bytes that stand for a character do
    /// not end that wait: the order of the reference, odd as it is.
    fn symbols(&self, piece: &str, symbols: &mut Vec<u32>) {
        let mut waiting = None;
        for character in piece.chars() {
            let character = if character == ' ' { BLANK } else { character };
            if let Some(id) = self.get(character) {
                symbols.extend(waiting.take());
                symbols.push(id);
            } else if !self.push_bytes(character, symbols)
                && let Some(unk) = self.unk
            {
                if !self.fuse_unk {
                    symbols.extend(waiting);
                }
                waiting = Some(unk);
            }
        }
        symbols.extend(waiting);
    }

    /// Appends the bytes of a character; false, and nothing is appended, if one has no token.
    fn push_bytes(&self, character: char, symbols: &mut Vec<u32>) -> bool {
        let Some(bytes) = &self.bytes else { return false };
        let before = symbols.len();
        let mut buffer = [0; 4];
        let encoded = character.encode_utf8(&mut buffer).bytes();
        symbols.extend(encoded.map(|byte| bytes[usize::from(byte)]));
        let complete = !symbols[before..].contains(&NO_ID);
        if !complete {
            symbols.truncate(before);
        }
        complete
    }
}

/// A byte pair encoding.
#[derive(Debug, Clone)]
pub struct Model {
    /// The tokens.
    pub vocabulary: Vocabulary,
    /// The first symbols.
    pub alphabet: Alphabet,
    /// What merges.
    pub merges: Merges,
    /// `ignore_merges`: a piece that is a token as a whole is that token, whatever merging makes of
    /// it.
    pub any_whole: bool,
    /// Where long pieces may be cut, if they may.
    pub joins: Option<Joins>,
}

/// Memory that encoding a piece uses again and again.
#[derive(Debug, Default)]
pub struct PieceScratch {
    spelled: Vec<u8>,
    symbols: Vec<u32>,
    merging: Scratch,
}

impl PieceScratch {
    fn clear(&mut self) {
        if self.symbols.capacity() > MAX_KEPT {
            self.symbols = Vec::new();
            self.merging.shrink(MAX_KEPT);
        }
        self.symbols.clear();
    }
}

impl Model {
    /// The ids of a piece, which lie in `scratch` until the next call.
    pub fn encode<'a>(&self, piece: &str, scratch: &'a mut PieceScratch) -> &'a [u32] {
        if self.any_whole
            && let Some(id) = self.whole(piece, &mut scratch.spelled)
        {
            scratch.symbols.clear();
            scratch.symbols.push(id);
            return &scratch.symbols;
        }
        self.merge(piece, scratch)
    }

    /// The ids of a piece or of a part of one, by merging alone.
    pub fn merge<'a>(&self, part: &str, scratch: &'a mut PieceScratch) -> &'a [u32] {
        scratch.clear();
        let PieceScratch { symbols, merging, .. } = scratch;
        match &self.alphabet {
            Alphabet::Bytes(alphabet) => {
                symbols.extend(part.bytes().map(|byte| alphabet.ids[usize::from(byte)]));
            }
            Alphabet::Chars(alphabet) => alphabet.symbols(part, symbols),
        }
        self.merges.apply(symbols, merging);
        symbols
    }

    /// The token that is just this piece of bytes.
    fn whole(&self, piece: &str, spelled: &mut Vec<u8>) -> Option<u32> {
        let Alphabet::Bytes(alphabet) = &self.alphabet else { return None };
        if piece.len() > self.vocabulary.longest() {
            return None; // no spelling is shorter than what it spells
        }
        alphabet.spell(piece, spelled);
        self.vocabulary.id_of(spelled)
    }
}

/// The printable character that stands for a byte in the files of byte-level models: itself where it
/// is printable Latin-1, else one from U+0100 on, in order (`bytes_to_unicode` of GPT-2).
#[must_use]
pub fn byte_level_char(byte: u8) -> char {
    let stands_for_itself = |byte: u8| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    if stands_for_itself(byte) {
        return char::from(byte);
    }
    let number = (0..byte).filter(|&other| !stands_for_itself(other)).count();
    u32::try_from(256 + number).ok().and_then(char::from_u32).unwrap_or_default()
}

/// The byte each of the first 324 characters stands for in the files of byte-level models.
#[must_use]
pub fn byte_level_table() -> [Option<u8>; 324] {
    let mut table = [None; 324];
    for byte in 0..=255 {
        table[byte_level_char(byte) as usize] = Some(byte);
    }
    table
}

/// Appends the bytes a token of a byte-level model stands for; false if it stands for none.
pub fn byte_level_bytes(table: &[Option<u8>; 324], token: &str, bytes: &mut Vec<u8>) -> bool {
    for character in token.chars() {
        let Some(Some(byte)) = table.get(character as usize) else { return false };
        bytes.push(*byte);
    }
    true
}
