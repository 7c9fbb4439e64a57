//! sockcr
pub mod kernel;
