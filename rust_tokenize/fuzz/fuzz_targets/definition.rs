//! A `tokenizer.json` as our own engine reads it: loaded or left to the library, and then it works.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rust_tokenize::native::NativeEncoder;
use rust_tokenize_fuzz::use_it;

fuzz_target!(|data: &[u8]| {
    if let Some(encoder) = NativeEncoder::from_slice(data) {
        use_it(&encoder.with_cache_slots(64)).expect("what loads works");
    }
});
