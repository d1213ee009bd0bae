//! Normalization form C as the reference composes it.

use std::borrow::Cow;

/// `text` in NFC; borrowed where nothing changes.
#[must_use]
pub fn nfc(text: &str) -> Cow<'_, str> {
    if text.is_ascii() {
        return Cow::Borrowed(text);
    }
    let mut normalized = tokenizers::NormalizedString::from(text);
    normalized.nfc();
    Cow::Owned(normalized.get().to_owned())
}
