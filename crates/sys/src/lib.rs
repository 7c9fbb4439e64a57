//! The kernel interfaces sockcr needs that no safe crate offers, one file each.
//!
//! This is the only crate of the project with unsafe code; every block says why it is sound.
#![allow(unsafe_code)]

pub mod bpf;
