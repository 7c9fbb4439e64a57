//! `cargo +nightly fuzz run attributes`: bytes as a list of attributes.

#![no_main]

#[allow(dead_code)]
#[path = "../../crates/image/tests/image/entry.rs"]
mod entry;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = entry::attribute_list(bytes);
});
