//! A JSON Lines file as a stream of checked lines.
//!
//! In: a path, or whatever else gives bytes. Out: batches of [`Line`], each the text of one JSON object or the reason why it is
//! none; or a [`Chunk`] of lines yet to be checked, for who can do it on several threads. Lines end at byte 0x0A alone, so
//! that U+2028 inside a string splits nothing. Memory is bounded by the longest line allowed: a longer one is skipped as it
//! is read, and reported.

use std::io::{self, BufRead, BufReader, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};

use memchr::memchr;

use crate::error::{Error, Result};
use crate::json::{self, Node, Problem};

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

/// Lines of a file that were not blank, as bytes.
#[derive(Debug)]
pub struct Chunk {
    bytes: Vec<u8>,
    lines: Vec<RawLine>,
    max_line_bytes: usize,
}

#[derive(Debug)]
struct RawLine {
    number: u64,
    offset: u64,
    place: Range<usize>,
    /// Bytes it has in the file; a line that is too long was not kept.
    length: u64,
}

impl Chunk {
    /// All lines of a text that is no file.
    pub fn from_bytes(text: Vec<u8>) -> Result<Self> {
        let length = text.len().max(1);
        let text = Box::new(io::Cursor::new(text));
        LineReader::new(Path::new("text in memory"), text, length).read_chunk(length)
    }

    /// Number of lines.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Whether there is none: the file has ended.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Bytes of each line.
    #[must_use]
    pub fn sizes(&self) -> Vec<usize> {
        self.lines.iter().map(|line| line.place.len()).collect()
    }

    /// 1-based number of a line in its file.
    #[must_use]
    pub fn number(&self, index: usize) -> u64 {
        self.lines[index].number
    }

    /// Checks one line.
    #[must_use]
    pub fn line(&self, index: usize) -> Line {
        let RawLine { number, offset, .. } = self.lines[index];
        let text = self.scan(index, &mut Vec::new(), 0).map(str::to_owned);
        Line { number, offset, text }
    }

    /// Checks one line and notes where its parts are, see [`json::scan_object`].
    pub fn scan(
        &self,
        index: usize,
        nodes: &mut Vec<Node>,
        most_nodes: usize,
    ) -> std::result::Result<&str, Problem> {
        let line = &self.lines[index];
        if line.length > self.max_line_bytes as u64 {
            return Err(too_long(line.length, self.max_line_bytes));
        }
        json::scan_object(&self.bytes[line.place.clone()], nodes, most_nodes)
    }
}

/// Reads a file once, from its beginning to its end.
pub struct LineReader {
    path: PathBuf,
    file: Box<dyn BufRead + Send + Sync>,
    max_line_bytes: usize,
    number: u64,
    bytes_read: u64,
}

impl LineReader {
    /// Reads `source`, in the name of `path`; a line of more than `max_line_bytes` bytes, its end apart,
    /// will be refused.
    pub fn from_reader(
        path: &Path,
        source: impl Read + Send + Sync + 'static,
        max_line_bytes: usize,
    ) -> Result<Self> {
        if max_line_bytes == 0 {
            return Err(Error::Argument("`max_line_bytes` is 0, expected at least 1".to_owned()));
        }
        let source = Box::new(BufReader::with_capacity(READ_BYTES, source));
        Ok(Self::new(path, source, max_line_bytes))
    }

    fn new(path: &Path, file: Box<dyn BufRead + Send + Sync>, max_line_bytes: usize) -> Self {
        Self { path: path.to_path_buf(), file, max_line_bytes, number: 0, bytes_read: 0 }
    }

    /// Bytes consumed so far.
    #[must_use]
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read
    }

    /// Gives up to `max_lines` lines; none at the end of the file, and only there.
    pub fn read_batch(&mut self, max_lines: usize) -> Result<Vec<Line>> {
        let chunk = self.read_chunk(max_lines)?;
        Ok((0..chunk.len()).map(|index| chunk.line(index)).collect())
    }

    /// Gives the same lines unchecked.
    pub fn read_chunk(&mut self, max_lines: usize) -> Result<Chunk> {
        if max_lines == 0 {
            return Err(Error::Argument("`max_lines` is 0, expected at least 1".to_owned()));
        }
        let mut chunk =
            Chunk { bytes: Vec::new(), lines: Vec::new(), max_line_bytes: self.max_line_bytes };
        while chunk.lines.len() < max_lines && chunk.bytes.len() < BATCH_BYTES {
            let mut offset = self.bytes_read;
            let mut start = chunk.bytes.len();
            let read = self.next_line(&mut chunk.bytes).map_err(Error::io(&self.path))?;
            let Some(length) = read else { break };
            self.number += 1;
            if self.number == 1 && chunk.bytes[start..].starts_with(BYTE_ORDER_MARK) {
                start += BYTE_ORDER_MARK.len();
                offset += BYTE_ORDER_MARK.len() as u64;
            }
            let body = &chunk.bytes[start..];
            let is_blank = body.iter().all(|byte| matches!(byte, b' ' | b'\t' | b'\r'));
            if is_blank && length <= self.max_line_bytes as u64 {
                chunk.bytes.truncate(start);
                continue;
            }
            let place = start..chunk.bytes.len();
            chunk.lines.push(RawLine { number: self.number, offset, place, length });
        }
        Ok(chunk)
    }

    /// Appends one line to `bytes` (nothing if it is too long) and gives its length; None at the
    /// end of the file.
    fn next_line(&mut self, bytes: &mut Vec<u8>) -> io::Result<Option<u64>> {
        let start = bytes.len();
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
            let end = memchr(b'\n', chunk);
            ended = end.is_some();
            let body = &chunk[..end.unwrap_or(chunk.len())];
            length += body.len() as u64;
            if length <= self.max_line_bytes as u64 {
                bytes.extend_from_slice(body);
            } else {
                bytes.truncate(start);
            }
            let consumed = body.len() + usize::from(ended);
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
