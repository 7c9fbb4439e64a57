//! The image of a socket: netlink messages in a file that can tell whether it is whole.
//!
//! An image is a 16-byte header, one message for each socket, and an end that counts and
//! checksums what stands before it. A message is made of netlink attributes.
//!
//! - [`attribute`] writes attributes, and reads them from bytes nobody has vouched for.
//! - [`number`] says which attribute has which number.
//! - [`mod@file`] puts messages together to an image, and verifies one before it hands out any of it.
//!
//! Nothing here opens a file or a socket, allocates by a length that was not checked, or panics
//! on what it reads. `docs/format.md` describes the bytes.
//!
//! ```
//! use sockcr_image::attribute::Writer;
//! use sockcr_image::file::{self, Command, Message};
//! use sockcr_image::number;
//!
//! let mut writer = Writer::new();
//! writer.u32(number::SOCK_TYPE, 2)?;
//! writer.flag(number::SOCKOPT_BROADCAST)?;
//! let message = Message { command: Command::Dump, socket: 1, attributes: writer.finish() };
//!
//! let image = file::encode(&[message])?;
//! let [message] = &file::decode(&image)?[..] else { unreachable!() };
//! let numbers: Result<Vec<u16>, _> = message.attributes().map(|a| Ok(a?.number)).collect();
//! assert_eq!(numbers?, [number::SOCK_TYPE, number::SOCKOPT_BROADCAST]);
//! # Ok::<(), sockcr_image::Error>(())
//! ```

#![forbid(unsafe_code)]

pub mod attribute;
mod error;
pub mod file;
pub mod number;

pub use error::{AttributeFault, EndFault, Error, HeaderFault, MessageFault};
pub use file::looks_like_image;
