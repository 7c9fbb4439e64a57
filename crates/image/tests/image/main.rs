//! The image from outside: what was written comes back, and nothing else is accepted.

#![allow(clippy::unwrap_used, clippy::panic)]

mod build;
mod document;
mod entry;
mod hostile_attributes;
mod hostile_image;
mod noise;
mod peers;
mod released;
mod round_trip;
