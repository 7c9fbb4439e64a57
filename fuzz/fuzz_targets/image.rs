//! `cargo +nightly fuzz run image`: bytes as an image, and as the messages of a sealed one.

#![no_main]

#[allow(dead_code)]
#[path = "../../crates/image/tests/image/entry.rs"]
mod entry;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    // The fuzzer does not guess checksums: most of the way is behind the second call.
    let _ = entry::image(bytes);
    let _ = entry::sealed(bytes);
});
