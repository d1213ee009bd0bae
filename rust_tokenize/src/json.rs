//! Is this line one strict JSON object? If not: which rule, at which byte. If so: where its parts
//! are.
//!
//! In: the bytes of a line. Out: the same bytes as text, or a [`Problem`] with a stable code and a
//! reason that names the 1-based byte column. No values are built; where they are can be noted in
//! the same pass ([`scan_object`]), up to a number of them, so a hostile line costs no memory.
//! Python's `json` then reads the text and cannot disagree. Stricter than common readers where they
//! differ among themselves: duplicate keys, lone surrogate escapes, `NaN`, numbers outside float64
//! and deep nesting are all refused. `serde_json` was not used: it accepts duplicate keys and gives
//! no reason of ours.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt::Display;

/// Containers inside one another, the outermost object included.
pub const MAX_DEPTH: usize = 64;

/// From this many characters on a number without exponent can overflow float64.
const LONG_NUMBER: usize = 300;

/// Objects with more keys than this look for a second one by hash.
const MANY_KEYS: usize = 16;

/// What a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An object; its keys and values follow, in turn.
    Object,
    /// An array; its values follow.
    Array,
    /// A string without escapes: its text is what stands between the quotes.
    Plain,
    /// A string with escapes, see [`unescape`].
    Escaped,
    /// A number.
    Number,
    /// `true`.
    True,
    /// `false`.
    False,
    /// `null`.
    Null,
}

/// A value, and where it is in its line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Node {
    /// What it is.
    pub kind: Kind,
    /// Its first byte.
    pub start: usize,
    /// The byte after its last.
    pub end: usize,
    /// Index of the node after this one and all that is inside it.
    pub after: usize,
}

/// Why a line was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Stable name, `E_JSON_...`.
    pub code: &'static str,
    /// What was found at which byte column, and what was expected.
    pub reason: String,
}

type Checked<T> = std::result::Result<T, Problem>;

/// Checks that `line` holds exactly one JSON object, blanks around it allowed, and notes the object,
/// `nodes[0]`, and all in it; `nodes` is full, and of no use, when the line has more than `most_nodes`
/// values and keys.
pub fn scan_object<'a>(
    line: &'a [u8],
    nodes: &mut Vec<Node>,
    most_nodes: usize,
) -> Checked<&'a str> {
    let text = std::str::from_utf8(line).map_err(|error| not_utf8(line, error))?;
    nodes.clear();
    let mut checker = Checker { text, at: 0, keys: Vec::new(), nodes, most_nodes };
    checker.skip_blanks();
    let first = checker.peek();
    let start = checker.at;
    checker.value(0)?;
    checker.skip_blanks();
    if let Some(byte) = checker.peek() {
        let reason = format!("found {} after the value, expected the end of the line", show(byte));
        return Err(checker.problem("E_JSON_SYNTAX", reason));
    }
    if first != Some(b'{') {
        let reason =
            format!("column {}: found a value that is not an object, expected `{{`", start + 1);
        return Err(Problem { code: "E_JSON_NOT_OBJECT", reason });
    }
    Ok(text)
}

/// Appends what a checked string says; `inner` is what stands between its quotes.
pub fn unescape(inner: &str, out: &mut String) {
    let mut nodes = Vec::new();
    let mut checker =
        Checker { text: inner, at: 0, keys: Vec::new(), nodes: &mut nodes, most_nodes: 0 };
    loop {
        let start = checker.at;
        checker.at += plain_run(&inner.as_bytes()[start..]);
        out.push_str(&inner[start..checker.at]);
        // What was checked has only good escapes and ends after a run.
        match checker.peek() {
            Some(b'\\') => match checker.escape() {
                Ok(char) => out.push(char),
                Err(_) => return,
            },
            _ => return,
        }
    }
}

/// Number of bytes before the first that ends a run of a string: a quote, a backslash, a control
/// character.
fn plain_run(bytes: &[u8]) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let (words, rest) = bytes.as_chunks::<8>();
    for (number, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        // The lowest bit set in each is exact; a borrow can only fake bits above it.
        let below = |limit: u64, word: u64| word.wrapping_sub(ONES * limit) & !word & (ONES << 7);
        let quote = below(1, word ^ (ONES * u64::from(b'"')));
        let backslash = below(1, word ^ (ONES * u64::from(b'\\')));
        let found = quote | backslash | below(0x20, word);
        if found != 0 {
            return number * 8 + (found.trailing_zeros() / 8) as usize;
        }
    }
    let ends = |&byte: &u8| byte < 0x20 || byte == b'"' || byte == b'\\';
    words.len() * 8 + rest.iter().position(ends).unwrap_or(rest.len())
}

fn not_utf8(line: &[u8], error: std::str::Utf8Error) -> Problem {
    let at = error.valid_up_to();
    let byte = line.get(at).copied().unwrap_or_default();
    let hint = match line {
        [0xFF, 0xFE, ..] | [0xFE, 0xFF, ..] => " (the file looks like UTF-16)",
        _ => "",
    };
    let what =
        if error.error_len().is_none() { "an incomplete character" } else { "an invalid byte" };
    let reason = format!("column {}: found {what}, 0x{byte:02X}, expected UTF-8{hint}", at + 1);
    Problem { code: "E_JSON_UTF8", reason }
}

/// A byte as it may appear in a message: never a control character.
fn show(byte: u8) -> String {
    match byte {
        0xEF => "a byte order mark or other character outside ASCII".to_owned(),
        0x20..=0x7E => format!("`{}`", char::from(byte)),
        _ => format!("byte 0x{byte:02X}"),
    }
}

struct Checker<'a, 'n> {
    text: &'a str,
    at: usize,
    /// Keys of the objects around this place, the innermost one's last.
    keys: Vec<Cow<'a, str>>,
    nodes: &'n mut Vec<Node>,
    most_nodes: usize,
}

impl<'a> Checker<'a, '_> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn skip_blanks(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
    }

    fn problem(&self, code: &'static str, what: impl Display) -> Problem {
        let reason = format!("column {}: {what}", self.at + 1);
        Problem { code, reason }
    }

    fn unexpected<T>(&self, expected: &str) -> Checked<T> {
        let found = self.peek().map_or("the end of the line".to_owned(), show);
        Err(self.problem("E_JSON_SYNTAX", format!("found {found}, expected {expected}")))
    }

    /// `depth`: containers around this value. Recursion stops at `MAX_DEPTH`, so the stack stays
    /// small.
    fn value(&mut self, depth: usize) -> Checked<()> {
        let (node, start) = (self.nodes.len(), self.at);
        self.note(start);
        let kind = match self.peek() {
            Some(b'{' | b'[') if depth == MAX_DEPTH => {
                let what = format!("found nesting deeper than {MAX_DEPTH}, expected less");
                return Err(self.problem("E_JSON_DEPTH", what));
            }
            Some(b'{') => self.object(depth + 1).map(|()| Kind::Object),
            Some(b'[') => self.array(depth + 1).map(|()| Kind::Array),
            Some(b'"') => self.string(),
            Some(b'-' | b'0'..=b'9') => self.number().map(|()| Kind::Number),
            Some(b'N' | b'I') => self.not_a_number().map(|()| Kind::Number),
            Some(b't') => self.literal("true").map(|()| Kind::True),
            Some(b'f') => self.literal("false").map(|()| Kind::False),
            Some(b'n') => self.literal("null").map(|()| Kind::Null),
            _ => self.unexpected("a value").map(|()| Kind::Null),
        }?;
        self.complete(node, kind);
        Ok(())
    }

    fn note(&mut self, start: usize) {
        if self.nodes.len() < self.most_nodes {
            self.nodes.push(Node { kind: Kind::Null, start, end: start, after: 0 });
        }
    }

    fn complete(&mut self, node: usize, kind: Kind) {
        let after = self.nodes.len();
        if let Some(node) = self.nodes.get_mut(node) {
            *node = Node { kind, start: node.start, end: self.at, after };
        }
    }

    fn object(&mut self, depth: usize) -> Checked<()> {
        let outer = self.keys.len();
        let mut many = HashSet::new();
        self.at += 1;
        self.skip_blanks();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(());
        }
        loop {
            self.key(outer, &mut many)?;
            self.skip_blanks();
            if self.peek() != Some(b':') {
                return self.unexpected("`:`");
            }
            self.at += 1;
            self.skip_blanks();
            self.value(depth)?;
            if self.closes(b'}', "`,` or `}`")? {
                self.keys.truncate(outer);
                return Ok(());
            }
        }
    }

    /// Keys are compared after their escapes are resolved: `"a"` and `"\u0061"` are the same key.
    /// `outer`: where this object's keys begin; `many`: all of them once they are many.
    fn key(&mut self, outer: usize, many: &mut HashSet<Cow<'a, str>>) -> Checked<()> {
        if self.peek() != Some(b'"') {
            return self.unexpected("a key in double quotes");
        }
        let (node, start) = (self.nodes.len(), self.at);
        self.note(start);
        let kind = self.string()?;
        self.complete(node, kind);
        let key = self.resolved(start, kind);
        if many.is_empty() && self.keys.len() - outer == MANY_KEYS {
            many.extend(self.keys.drain(outer..));
        }
        let is_new =
            if many.is_empty() { !self.keys[outer..].contains(&key) } else { !many.contains(&key) };
        if !is_new {
            let shown: String = key.chars().take(40).flat_map(char::escape_debug).collect();
            self.at = start;
            let what = format!("found the key `{shown}` a second time, expected each key once");
            return Err(self.problem("E_JSON_DUPLICATE_KEY", what));
        }
        if many.is_empty() {
            self.keys.push(key);
        } else {
            many.insert(key);
        }
        Ok(())
    }

    /// The text of the string from `start` to here.
    fn resolved(&self, start: usize, kind: Kind) -> Cow<'a, str> {
        let inner = &self.text[start + 1..self.at - 1];
        if kind == Kind::Plain {
            return Cow::Borrowed(inner);
        }
        let mut text = String::new();
        unescape(inner, &mut text);
        Cow::Owned(text)
    }

    fn array(&mut self, depth: usize) -> Checked<()> {
        self.at += 1;
        self.skip_blanks();
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(());
        }
        loop {
            self.value(depth)?;
            if self.closes(b']', "`,` or `]`")? {
                return Ok(());
            }
        }
    }

    /// After a member: true at `end`, false after a comma.
    fn closes(&mut self, end: u8, expected: &str) -> Checked<bool> {
        self.skip_blanks();
        match self.peek() {
            Some(byte) if byte == end => {
                self.at += 1;
                Ok(true)
            }
            Some(b',') => {
                self.at += 1;
                self.skip_blanks();
                Ok(false)
            }
            _ => self.unexpected(expected),
        }
    }

    /// Checks a string; tells whether it has escapes.
    fn string(&mut self) -> Checked<Kind> {
        let mut kind = Kind::Plain;
        self.at += 1;
        loop {
            self.at += plain_run(&self.text.as_bytes()[self.at..]);
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(kind);
                }
                Some(b'\\') => {
                    kind = Kind::Escaped;
                    self.escape()?;
                }
                Some(_) => return self.unexpected("a control character to be escaped"),
                None => return self.unexpected("the closing `\"` of a string"),
            }
        }
    }

    fn escape(&mut self) -> Checked<char> {
        let start = self.at;
        self.at += 1;
        let char = match self.peek() {
            Some(b'u') => return self.unicode_escape(start),
            Some(byte @ (b'"' | b'\\' | b'/')) => char::from(byte),
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            _ => return self.unexpected("one of `\"\\/bfnrtu` after a backslash"),
        };
        self.at += 1;
        Ok(char)
    }

    fn unicode_escape(&mut self, start: usize) -> Checked<char> {
        let mut code = self.four_digits()?;
        if (0xD800..0xDC00).contains(&code) && self.text.as_bytes()[self.at..].starts_with(b"\\u") {
            self.at += 1;
            let low = self.four_digits()?;
            if (0xDC00..0xE000).contains(&low) {
                code = 0x1_0000 + ((code - 0xD800) << 10) + (low - 0xDC00);
            }
        }
        char::from_u32(code).ok_or_else(|| {
            self.at = start;
            let what = format!("found the lone surrogate \\u{code:04x}, expected a pair");
            self.problem("E_JSON_SURROGATE", what)
        })
    }

    /// Reads `u` and the four digits after it.
    fn four_digits(&mut self) -> Checked<u32> {
        let mut code = 0;
        for _ in 0..4 {
            self.at += 1;
            let digit = self.peek().and_then(|byte| char::from(byte).to_digit(16));
            match digit {
                Some(digit) => code = code * 16 + digit,
                None => return self.unexpected("four hexadecimal digits after `\\u`"),
            }
        }
        self.at += 1;
        Ok(code)
    }

    fn number(&mut self) -> Checked<()> {
        let start = self.at;
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        match self.peek() {
            Some(b'0') => self.at += 1,
            Some(b'1'..=b'9') => self.digits()?,
            Some(b'I') => return self.not_a_number(),
            _ => return self.unexpected("a digit"),
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        let has_exponent = matches!(self.peek(), Some(b'e' | b'E'));
        if has_exponent {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        let text = &self.text[start..self.at];
        if has_exponent || text.len() > LONG_NUMBER {
            self.finite(text, start)?;
        }
        Ok(())
    }

    fn digits(&mut self) -> Checked<()> {
        if !matches!(self.peek(), Some(b'0'..=b'9')) {
            return self.unexpected("a digit");
        }
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        Ok(())
    }

    fn finite(&mut self, text: &str, start: usize) -> Checked<()> {
        if text.parse::<f64>().is_ok_and(f64::is_finite) {
            return Ok(());
        }
        self.at = start;
        let shown: String = text.chars().take(20).collect();
        let what = format!("found a number outside float64, `{shown}`, expected a finite one");
        Err(self.problem("E_JSON_NUMBER", what))
    }

    fn not_a_number(&self) -> Checked<()> {
        let rest = &self.text[self.at..];
        for name in ["NaN", "Infinity"] {
            if rest.starts_with(name) {
                let what = format!("found `{name}`, expected a JSON number or null");
                return Err(self.problem("E_JSON_NUMBER", what));
            }
        }
        self.unexpected("a value")
    }

    fn literal(&mut self, word: &str) -> Checked<()> {
        if !self.text[self.at..].starts_with(word) {
            return self.unexpected(&format!("`{word}`"));
        }
        self.at += word.len();
        Ok(())
    }
}
