//! `cargo +nightly fuzz run requests`: bytes as the packets that a client sends, and as an answer of the service.

#![no_main]

#[path = "../../crates/service/tests/support/entry.rs"]
#[allow(dead_code)]
mod entry;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    entry::packets(entry::cut(bytes));
    entry::answer(bytes);
});
