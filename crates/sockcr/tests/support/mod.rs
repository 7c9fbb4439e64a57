//! What the tests share: places to run in, and the system calls by number, so that nothing of the
//! library's tables is measured by itself.
#![allow(dead_code, reason = "each test binary uses a part of it")]

pub mod by;
pub mod inject;
pub mod octets;
pub mod place;
pub mod socket;
pub mod twin;
pub mod values;

use std::error::Error;

use sockcr::kernel::{self, Reader};

/// What a test answers.
pub type Outcome = Result<(), Box<dyn Error + Send + Sync>>;

/// Says that a test cannot run here; where everything should be there, that is a failure.
pub fn skip(why: &str) -> Outcome {
    println!("skipped: {why}");
    match std::env::var("CI").as_deref() {
        Ok("true") => Err(format!("skipped where nothing may be: {why}").into()),
        _ => Ok(()),
    }
}

/// The reader of hidden state, or the reason for a skip.
pub fn reader() -> Result<&'static Reader, String> {
    kernel::reader().map_err(|why| why.to_string())
}
