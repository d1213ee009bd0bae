//! Definitions kept between processes, so that the JSON is read once.
//!
//! In: the text of a `tokenizer.json`. Out: its definition, from a file named by the SHA-256 of that
//! text if there is one, else from the text itself, and then the file is written. A file that is
//! stale, cut off or damaged is written anew; one that cannot be written is simply not there.

use std::env;
use std::fmt::Write;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicUsize, Ordering};

use sha2::{Digest, Sha256};

use crate::native::binary;
use crate::native::definition::Definition;

/// Names the folder, or is `off`.
const VARIABLE: &str = "FAM_ENGINE_CACHE";
/// JSON below this many bytes is read as fast as a cached file is found.
const MIN_BYTES: usize = 1 << 18;

/// The folder for the definition of `text`: `$FAM_ENGINE_CACHE`, else `fam-engine` in
/// `$XDG_CACHE_HOME` or `~/.cache`. None if caching is off or not worth it.
#[must_use]
pub fn folder_for(text: &[u8]) -> Option<PathBuf> {
    let path = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if text.len() < MIN_BYTES {
        return None;
    }
    match path(VARIABLE) {
        Some(chosen) => (chosen.as_os_str() != "off").then_some(chosen),
        None => path("XDG_CACHE_HOME")
            .or_else(|| Some(path("HOME")?.join(".cache")))
            .map(|caches| caches.join("fam-engine")),
    }
}

/// The definition of `text` by way of `folder`; None if `read` gives none.
pub fn definition(
    text: &[u8],
    folder: &Path,
    read: impl FnOnce(&[u8]) -> Option<Definition>,
) -> Option<Definition> {
    let source: [u8; 32] = Sha256::digest(text).into();
    let path = folder.join(file_name(&source));
    let kept = fs::read(&path).ok().and_then(|bytes| binary::from_bytes(&bytes, &source));
    if kept.is_some() {
        return kept;
    }
    let definition = read(text)?;
    if let Some(bytes) = binary::to_bytes(&definition, &source) {
        // Without it the next process reads the JSON again; nothing else is lost.
        let _ = write_whole(&path, &bytes);
    }
    Some(definition)
}

fn file_name(source: &[u8; 32]) -> String {
    let mut name = String::new();
    for byte in source {
        let _ = write!(name, "{byte:02x}"); // a String takes everything
    }
    name + ".tokenizer"
}

/// Other processes see the old file or the new one, never half of it.
fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let unfinished = path.with_extension(format!("{}-{number}.tmp", process::id()));
    let written = fs::write(&unfinished, bytes).and_then(|()| fs::rename(&unfinished, path));
    if written.is_err() {
        let _ = fs::remove_file(&unfinished);
    }
    written
}
