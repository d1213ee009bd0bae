//! A JSON Lines file as a stream of checked lines.
//!
//! In: a path. Out: batches of [`Line`], each the text of one JSON object or the reason why it is
//! none. Lines end at byte 0x0A alone, so that U+2028 inside a string splits nothing. Memory is
//! bounded by the longest line allowed: a longer one is skipped as it is read, and reported. Every
//! byte consumed goes through SHA-256, so that the end of the file is also its identity.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::json::{self, Problem};

/// Bytes asked from the system at a time.
const READ_BYTES: usize = 1 << 18;
/// A batch also ends when its texts reach this size: a batch of long lines must not fill the
/// memory.
const BATCH_BYTES: usize = 16 << 20;
const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// One line that was not blank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// 1-based, blank lines counted.
    pub number: u64,
    /// Where the line begins in the file, in bytes, a byte order mark apart.
    pub offset: u64,
    /// The JSON text, or what is wrong with it.
    pub text: std::result::Result<String, Problem>,
}

/// Reads a file once, from its beginning to its end.
pub struct LineReader {
    path: PathBuf,
    file: BufReader<File>,
    max_line_bytes: usize,
    line: Vec<u8>,
    number: u64,
    bytes_read: u64,
    hash: Sha256,
}

impl LineReader {
    /// Opens `path`; a line of more than `max_line_bytes` bytes, its end apart, will be refused.
    pub fn open(path: &Path, max_line_bytes: usize) -> Result<Self> {
        if max_line_bytes == 0 {
            return Err(Error::Argument("`max_line_bytes` is 0, expected at least 1".to_owned()));
        }
        let file = File::open(path).map_err(Error::io(path))?;
        Ok(Self {
            path: path.to_path_buf(),
            file: BufReader::with_capacity(READ_BYTES, file),
            max_line_bytes,
            line: Vec::new(),
            number: 0,
            bytes_read: 0,
            hash: Sha256::new(),
        })
    }

    /// Bytes consumed so far.
    #[must_use]
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read
    }

    /// SHA-256 of the bytes consumed so far, in hexadecimal.
    #[must_use]
    pub fn sha256(&self) -> String {
        use std::fmt::Write as _;
        let digest = self.hash.clone().finalize();
        digest.iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}"); // writing to a String cannot fail
            text
        })
    }

    /// Gives up to `max_lines` lines; none at the end of the file, and only there.
    pub fn read_batch(&mut self, max_lines: usize) -> Result<Vec<Line>> {
        if max_lines == 0 {
            return Err(Error::Argument("`max_lines` is 0, expected at least 1".to_owned()));
        }
        let mut batch = Vec::new();
        let mut num_bytes = 0;
        while batch.len() < max_lines && num_bytes < BATCH_BYTES {
            let mut offset = self.bytes_read;
            let read = self.next_line().map_err(Error::io(&self.path))?;
            let Some(length) = read else { break };
            self.number += 1;
            let mut body = self.line.as_slice();
            if self.number == 1 && body.starts_with(BYTE_ORDER_MARK) {
                body = &body[BYTE_ORDER_MARK.len()..];
                offset += BYTE_ORDER_MARK.len() as u64;
            }
            let text = if length > self.max_line_bytes as u64 {
                Err(too_long(length, self.max_line_bytes))
            } else if body.iter().all(|byte| matches!(byte, b' ' | b'\t' | b'\r')) {
                continue;
            } else {
                json::check_object(body).map(str::to_owned)
            };
            num_bytes += text.as_ref().map_or(0, String::len);
            batch.push(Line { number: self.number, offset, text });
        }
        Ok(batch)
    }

    /// Reads one line into `self.line` (nothing if it is too long) and gives its length; None at
    /// the end of the file.
    fn next_line(&mut self) -> io::Result<Option<u64>> {
        self.line.clear();
        let mut length = 0;
        let mut ended = false;
        while !ended {
            let chunk = match self.file.fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                chunk => chunk?,
            };
            if chunk.is_empty() {
                return Ok((length > 0).then_some(length));
            }
            let end = chunk.iter().position(|&byte| byte == b'\n');
            ended = end.is_some();
            let body = &chunk[..end.unwrap_or(chunk.len())];
            length += body.len() as u64;
            if length <= self.max_line_bytes as u64 {
                self.line.extend_from_slice(body);
            } else {
                self.line = Vec::new();
            }
            let consumed = body.len() + usize::from(ended);
            self.hash.update(&chunk[..consumed]);
            self.bytes_read += consumed as u64;
            self.file.consume(consumed);
        }
        Ok(Some(length))
    }
}

fn too_long(length: u64, limit: usize) -> Problem {
    let reason =
        format!("column {}: found a line of {length} bytes, expected at most {limit}", limit + 1);
    Problem { code: "E_JSON_LINE_TOO_LONG", reason }
}
