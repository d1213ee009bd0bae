//! The crate's one error type, and the guard that turns a panic into it.
//!
//! The `tokenizers` crate panics on some malformed definitions, and a panic that crosses into
//! Python becomes a `PanicException`, which `except Exception` does not catch. [`guard`] catches
//! every panic at the boundary, and keeps it off stderr: its message travels in the error instead.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::Once;

/// What can go wrong in this crate.
#[derive(Debug)]
pub enum Error {
    /// A caller passed something that makes no sense.
    Argument(String),
    /// A tokenizer definition, a text or an id that cannot be used.
    Tokenizer(String),
    /// A spool that is unfinished, damaged or of another version.
    Spool(String),
    /// The operating system refused.
    Io {
        /// The file or folder concerned.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Whoever asked for the work wants no more of it.
    Interrupted(Box<dyn std::error::Error + Send + Sync>),
    /// A bug: ours or a dependency's.
    Panic(String),
}

/// The result of anything here that can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// Asked every now and then by work that can last; its error ends the work.
pub type Check<'a> = &'a dyn Fn() -> Result<()>;

impl Error {
    /// Makes the function that adds `path` to an I/O error.
    pub fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_path_buf(), source }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Argument(text) | Self::Tokenizer(text) | Self::Spool(text) => out.write_str(text),
            Self::Io { path, source } => write!(out, "`{}`: {source}", path.display()),
            Self::Interrupted(reason) => write!(out, "interrupted: {reason}"),
            Self::Panic(text) => write!(out, "internal error: {text}"),
        }
    }
}

impl std::error::Error for Error {}

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
    static PLACE: RefCell<String> = const { RefCell::new(String::new()) };
}
static HOOK: Once = Once::new();

/// Runs `work`; a panic inside it becomes [`Error::Panic`] with its message and place.
pub fn guard<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    HOOK.call_once(install_hook);
    let outer = GUARDED.replace(true);
    let outcome = panic::catch_unwind(AssertUnwindSafe(work));
    GUARDED.set(outer);
    outcome.unwrap_or_else(|payload| {
        let message = payload
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| payload.downcast_ref::<&str>().copied())
            .unwrap_or("panic without a message");
        Err(Error::Panic(format!("{message}{}", PLACE.take())))
    })
}

/// Outside a guard the default hook still reports, so that a bug elsewhere is not hidden.
fn install_hook() {
    let default = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if GUARDED.get() {
            let place = info.location().map(|at| format!(" ({at})"));
            PLACE.set(place.unwrap_or_default());
        } else {
            default(info);
        }
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_an_error_with_message_and_place() {
        let caught = guard::<()>(|| panic!("index {} is out", 3));
        let text = caught.unwrap_err().to_string();
        assert!(text.contains("index 3 is out"), "{text}");
        assert!(text.contains("error.rs"), "{text}");
    }

    #[test]
    fn guards_nest() {
        let outer = guard(|| {
            assert!(guard::<()>(|| panic!("inner")).is_err());
            assert!(GUARDED.get());
            Ok(7)
        });
        assert_eq!(outer.unwrap(), 7);
        assert!(!GUARDED.get());
    }
}
