//! What can be wrong with an image, and how that is said.

use std::borrow::Cow;
use std::fmt;
use thiserror::Error;

/// Why an image or an attribute cannot be read or written.
///
/// Offsets are in bytes. They count from the start of the image for whatever
/// [`decode`](crate::file::decode) and [`MessageRef::attributes`](crate::file::MessageRef::attributes)
/// find, and from the start of the given bytes for
/// [`attributes`](crate::attribute::attributes). Messages are counted from 1.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Error {
    /// There are no bytes at all.
    #[error("the image is empty")]
    Empty,
    /// The bytes do not start with [`MAGIC`](crate::file::MAGIC).
    #[error("not a sockcr image")]
    NotAnImage,
    /// The image is, or would be, larger than [`MAX_IMAGE`](crate::file::MAX_IMAGE).
    #[error("the image of {} is larger than the limit of {}", Bytes(*size), Bytes(*limit))]
    TooLarge {
        /// Its size in bytes.
        size: usize,
        /// The largest size allowed, in bytes.
        limit: usize,
    },
    /// The image ends inside its header.
    #[error("image is truncated: its header lacks {}", Bytes(*missing))]
    HeaderTruncated {
        /// How many bytes are not there.
        missing: usize,
    },
    /// The header cannot be accepted.
    #[error("{0}")]
    Header(HeaderFault),
    /// The image ends inside a message, or the message claims more than there is.
    #[error("image is truncated: message {message} at byte {offset} lacks {}", Bytes(*missing))]
    Truncated {
        /// The message, counted from 1.
        message: usize,
        /// Where the message starts.
        offset: usize,
        /// How many of its bytes are not there.
        missing: usize,
    },
    /// The messages stop, and the one that ends an image is not among them.
    #[error("image is truncated: it stops at byte {offset} without its end")]
    NoEnd {
        /// Where the messages stop.
        offset: usize,
    },
    /// A message cannot be accepted.
    #[error("message {message} at byte {offset} {fault}")]
    Message {
        /// The message, counted from 1.
        message: usize,
        /// Where the message starts.
        offset: usize,
        /// What is wrong with it.
        fault: MessageFault,
    },
    /// The end cannot be accepted.
    #[error("the end of the image at byte {offset} {fault}")]
    End {
        /// Where the end starts.
        offset: usize,
        /// What is wrong with it.
        fault: EndFault,
    },
    /// Something stands after the end.
    #[error("{} too many: the image ends at byte {offset}", Bytes(*excess))]
    Trailing {
        /// Where the image ends.
        offset: usize,
        /// How many bytes follow.
        excess: usize,
    },
    /// The bytes are not those that were written.
    #[error("image is damaged: its checksum should be {stored:#010x}, but is {computed:#010x}")]
    Checksum {
        /// The CRC-32C that the end tells.
        stored: u32,
        /// The CRC-32C of the bytes before the end.
        computed: u32,
    },
    /// An attribute cannot be accepted.
    #[error("attribute {number} at byte {offset} {fault}")]
    Attribute {
        /// Its number, without netlink's flag bits.
        number: u16,
        /// Where the attribute starts.
        offset: usize,
        /// What is wrong with it.
        fault: AttributeFault,
    },
    /// Too few bytes are left for the header of an attribute.
    #[error("{} at byte {offset}: too few for an attribute", Bytes(*left))]
    AttributeHeader {
        /// Where they are.
        offset: usize,
        /// How many there are: 1, 2 or 3.
        left: usize,
    },
    /// A payload that netlink's 16-bit length cannot express.
    #[error("attribute {number} cannot hold {}: at most {limit} fit", Bytes(*length))]
    PayloadTooLong {
        /// The number of the attribute.
        number: u16,
        /// The length of the payload in bytes.
        length: usize,
        /// The longest payload there can be, in bytes.
        limit: usize,
    },
    /// A number that no attribute can have.
    #[error("{number} is no attribute number: they go from 1 to {limit}")]
    NoNumber {
        /// That number.
        number: u16,
        /// The largest number there can be.
        limit: u16,
    },
    /// A text with a NUL was to be written.
    #[error("attribute {number} is text and cannot hold a NUL")]
    NulInText {
        /// The number of the attribute.
        number: u16,
    },
}

impl Error {
    /// Where the attribute begins that it is about, in bytes; `None`: it is about something else.
    pub fn offset(&self) -> Option<usize> {
        match self {
            Error::Attribute { offset, .. } | Error::AttributeHeader { offset, .. } => {
                Some(*offset)
            }
            _ => None,
        }
    }
}

/// What is wrong with the header of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum HeaderFault {
    /// The image comes from a machine of the other byte order.
    #[error("image was written on a machine of the other byte order")]
    ForeignByteOrder,
    /// The byte-order mark is one of neither order.
    #[error("image header: {found:#06x} at byte 10 is no byte-order mark")]
    ByteOrderMark {
        /// What stands in its place.
        found: u16,
    },
    /// The image is of a version that did not exist when this program was written.
    #[error("image format version {version} is newer than this program knows ({known})")]
    Newer {
        /// The version of the image.
        version: u16,
        /// The newest version that can be read.
        known: u16,
    },
    /// No version has this number.
    #[error("there is no image format version {version}")]
    NoVersion {
        /// The version it claims.
        version: u16,
    },
    /// Reserved bytes are not zero.
    #[error("image header: {found:#010x} at byte 12 should be zero")]
    Reserved {
        /// What stands there.
        found: u32,
    },
}

/// What is wrong with a message; reads on after "message 2 at byte 96".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum MessageFault {
    /// Its length is smaller than its own header, or no multiple of 4.
    #[error("says it is {} long, which no message is", Bytes(*.length as usize))]
    Length {
        /// The length it claims, in bytes.
        length: u32,
    },
    /// Its type is not [`MESSAGE_TYPE`](crate::file::MESSAGE_TYPE).
    #[error("has the unknown type {found}")]
    Type {
        /// The type it has.
        found: u16,
    },
    /// Its flags are something else than NLM_F_MULTI.
    #[error("has the flags {found:#06x} instead of 0x0002")]
    Flags {
        /// The flags it has.
        found: u16,
    },
    /// Its port is not 0.
    #[error("has the port {found} instead of 0")]
    Port {
        /// The port it has.
        found: u32,
    },
    /// The version in its generic netlink header is not 1.
    #[error("has the version {found} instead of 1")]
    Version {
        /// The version it has.
        found: u8,
    },
    /// The reserved half-word in its generic netlink header is not 0.
    #[error("has {found:#06x} where zero is due")]
    Reserved {
        /// What stands there.
        found: u16,
    },
    /// Its command is none of [`Command`](crate::file::Command).
    #[error("has the unknown command {found}")]
    Command {
        /// The command it has.
        found: u8,
    },
    /// It starts another socket than the next.
    #[error("is about socket {found} in the place of socket {due}")]
    Socket {
        /// The socket it is about.
        found: u32,
        /// The socket that is next.
        due: u32,
    },
    /// It belongs to the queue of another socket than the one it stands behind.
    #[error("is queued on socket {found}, but stands behind socket {behind}")]
    Queue {
        /// The socket it is about.
        found: u32,
        /// The socket that was started last.
        behind: u32,
    },
    /// It belongs to a queue, and no socket was started yet.
    #[error("is queued on socket {found} before any socket is there")]
    QueueFirst {
        /// The socket it is about.
        found: u32,
    },
}

/// What is wrong with the end; reads on after "the end of the image at byte 96".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum EndFault {
    /// It is not as long as an end is.
    #[error("says it is {} long instead of 28", Bytes(*.length as usize))]
    Length {
        /// The length it claims, in bytes.
        length: u32,
    },
    /// Its flags are something else than NLM_F_MULTI.
    #[error("has the flags {found:#06x} instead of 0x0002")]
    Flags {
        /// The flags it has.
        found: u16,
    },
    /// Its sequence number or its port is not 0.
    #[error("has a sequence number or port that is not zero")]
    Address,
    /// It counts other sockets than there are.
    #[error("counts {told} sockets where there are {found}")]
    Sockets {
        /// How many it counts.
        told: u32,
        /// How many there are.
        found: u32,
    },
    /// It counts other messages than there are.
    #[error("counts {told} messages where there are {found}")]
    Messages {
        /// How many it counts.
        told: u32,
        /// How many there are.
        found: u32,
    },
}

/// What is wrong with an attribute; reads on after "attribute 5 at byte 12".
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum AttributeFault {
    /// Its number is 0.
    #[error("has a number that is never used")]
    Number,
    /// Its length is smaller than its own header.
    #[error("says it is {} long, less than its own header", Bytes(usize::from(*.length)))]
    Length {
        /// The length it claims, in bytes.
        length: u16,
    },
    /// It claims more bytes, padding included, than there are.
    #[error("lacks {}", Bytes(*missing))]
    Truncated {
        /// How many bytes are not there.
        missing: usize,
    },
    /// The bytes that fill it up to a multiple of 4 are not zero.
    #[error("is padded with something other than zeros")]
    Padding,
    /// It has the flag NLA_F_NET_BYTEORDER.
    #[error("says it is in network byte order, which nothing here is")]
    NetworkByteOrder,
    /// The payload has another length than its type.
    #[error("holds {} instead of {expected}", Bytes(*found))]
    Size {
        /// The length of the type, in bytes.
        expected: usize,
        /// The length of the payload, in bytes.
        found: usize,
    },
    /// The payload is not UTF-8, or holds a NUL.
    #[error("is not text")]
    Text,
    /// It has the flag NLA_F_NESTED, and a value was asked for.
    #[error("holds attributes instead of a value")]
    Nested,
    /// Its reader has found that it makes no sense.
    #[error("{0}")]
    Invalid(Cow<'static, str>),
}

/// A number of bytes, in words.
struct Bytes(usize);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            1 => f.write_str("1 byte"),
            many => write!(f, "{many} bytes"),
        }
    }
}
