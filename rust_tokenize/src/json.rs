//! Is this line one strict JSON object? If not: which rule, at which byte.
//!
//! In: the bytes of a line. Out: the same bytes as text, or a [`Problem`] with a stable code and a
//! reason that names the 1-based byte column. Nothing is built, so a hostile line costs no memory;
//! Python's `json` then reads the text and cannot disagree. Stricter than common readers where they
//! differ among themselves: duplicate keys, lone surrogate escapes, `NaN`, numbers outside float64
//! and deep nesting are all refused. `serde_json` was not used: it accepts duplicate keys and gives
//! no reason of ours.

use std::collections::HashSet;
use std::fmt::Display;

/// Containers inside one another, the outermost object included.
pub const MAX_DEPTH: usize = 64;

/// From this many characters on a number without exponent can overflow float64.
const LONG_NUMBER: usize = 300;

/// Why a line was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Stable name, `E_JSON_...`.
    pub code: &'static str,
    /// What was found at which byte column, and what was expected.
    pub reason: String,
}

type Checked<T> = std::result::Result<T, Problem>;

/// Checks that `line` holds exactly one JSON object, blanks around it allowed.
pub fn check_object(line: &[u8]) -> Checked<&str> {
    let text = std::str::from_utf8(line).map_err(|error| not_utf8(line, error))?;
    let mut checker = Checker { text, at: 0 };
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

struct Checker<'a> {
    text: &'a str,
    at: usize,
}

impl Checker<'_> {
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
        match self.peek() {
            Some(b'{' | b'[') if depth == MAX_DEPTH => {
                let what = format!("found nesting deeper than {MAX_DEPTH}, expected less");
                Err(self.problem("E_JSON_DEPTH", what))
            }
            Some(b'{') => self.object(depth + 1),
            Some(b'[') => self.array(depth + 1),
            Some(b'"') => self.string(None),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b'N' | b'I') => self.not_a_number(),
            Some(b't') => self.literal("true"),
            Some(b'f') => self.literal("false"),
            Some(b'n') => self.literal("null"),
            _ => self.unexpected("a value"),
        }
    }

    fn object(&mut self, depth: usize) -> Checked<()> {
        let mut keys = HashSet::new();
        self.at += 1;
        self.skip_blanks();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(());
        }
        loop {
            self.key(&mut keys)?;
            self.skip_blanks();
            if self.peek() != Some(b':') {
                return self.unexpected("`:`");
            }
            self.at += 1;
            self.skip_blanks();
            self.value(depth)?;
            if self.closes(b'}', "`,` or `}`")? {
                return Ok(());
            }
        }
    }

    /// Keys are compared after their escapes are resolved: `"a"` and `"\u0061"` are the same key.
    fn key(&mut self, keys: &mut HashSet<String>) -> Checked<()> {
        if self.peek() != Some(b'"') {
            return self.unexpected("a key in double quotes");
        }
        let start = self.at;
        let mut key = String::new();
        self.string(Some(&mut key))?;
        let shown: String = key.chars().take(40).flat_map(char::escape_debug).collect();
        if keys.insert(key) {
            return Ok(());
        }
        self.at = start;
        let what = format!("found the key `{shown}` a second time, expected each key once");
        Err(self.problem("E_JSON_DUPLICATE_KEY", what))
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

    /// Checks a string; its text goes to `decoded` if there is one.
    fn string(&mut self, mut decoded: Option<&mut String>) -> Checked<()> {
        self.at += 1;
        loop {
            let start = self.at;
            while matches!(self.peek(), Some(byte) if byte >= 0x20 && byte != b'"' && byte != b'\\')
            {
                self.at += 1;
            }
            if let Some(out) = decoded.as_deref_mut() {
                out.push_str(&self.text[start..self.at]);
            }
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(());
                }
                Some(b'\\') => {
                    let char = self.escape()?;
                    if let Some(out) = decoded.as_deref_mut() {
                        out.push(char);
                    }
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
