//! `cargo +nightly fuzz run checkpoint`: bytes as the attributes of a socket, and as JSON.

#![no_main]

#[path = "../../crates/sockcr/tests/support/entry.rs"]
mod entry;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    entry::refused_or_identical(&entry::wrap(bytes.to_vec()));
    entry::refused_or_identical(&entry::wrap_queue(bytes.to_vec()));
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(checkpoints) = sockcr::json::from_json(text)
    {
        sockcr::image::encode(&checkpoints).expect("what JSON says is written");
    }
});
