//! Netlink attributes: a number and a payload, one after another.
//!
//! An attribute is a u16 length (of header and payload), a u16 number whose two top bits are
//! flags, the payload, and zeros up to a multiple of 4 bytes. Integers are in the order of the
//! machine. A payload can be attributes again; then the flag NLA_F_NESTED (0x8000) is set.
//!
//! [`Writer`] writes them, [`attributes`] reads them. The reader accepts exactly what the writer
//! can write, so that one list of attributes has one form only: zeros in the padding, nothing
//! left over, no NLA_F_NET_BYTEORDER, no number 0.
//!
//! Nothing here calls itself. Nested attributes are opened one level at a time by whoever knows
//! what should be inside ([`Attribute::nested`]), so bytes nested thousands deep cost nothing.
//!
//! ```
//! use sockcr_image::attribute::{Writer, attributes};
//! use sockcr_image::number;
//!
//! let mut writer = Writer::new();
//! writer.u8(number::IPOPT_TTL, 64)?;
//! writer.nested(number::NOT_CARRIED, |inner| {
//!     inner.str(number::WHAT, "error queue")?;
//!     inner.str(number::REASON, "reading it would empty it")
//! })?;
//! let bytes = writer.finish();
//!
//! for attribute in attributes(&bytes) {
//!     let attribute = attribute?;
//!     match attribute.number {
//!         number::IPOPT_TTL => assert_eq!(attribute.as_u8()?, 64),
//!         number::NOT_CARRIED => assert_eq!(attribute.nested().count(), 2),
//!         other => panic!("nobody wrote {other}"),
//!     }
//! }
//! # Ok::<(), sockcr_image::Error>(())
//! ```

use crate::error::{AttributeFault, Error};
use std::borrow::Cow;
use std::iter::FusedIterator;

/// The longest payload of one attribute, in bytes: netlink has 16 bits for header and payload.
pub const MAX_PAYLOAD: usize = u16::MAX as usize - HEADER;

/// The largest number of an attribute: the two bits above it are netlink's flags.
pub const MAX_NUMBER: u16 = 0x3fff;

const HEADER: usize = 4;
const ALIGNMENT: usize = 4;
const NLA_F_NESTED: u16 = 0x8000;
const NLA_F_NET_BYTEORDER: u16 = 0x4000;

/// Writes attributes, in the order of the calls.
///
/// Every method refuses a number outside 1..=[`MAX_NUMBER`] and a payload longer than
/// [`MAX_PAYLOAD`]; what it refuses leaves no trace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// A writer that has written nothing.
    pub fn new() -> Writer {
        Writer::default()
    }

    /// An attribute with these bytes.
    pub fn put(&mut self, number: u16, payload: &[u8]) -> Result<(), Error> {
        self.write(number, 0, payload)
    }

    /// An attribute that holds the attributes another writer has finished.
    pub fn put_nested(&mut self, number: u16, attributes: &[u8]) -> Result<(), Error> {
        self.write(number, NLA_F_NESTED, attributes)
    }

    /// An attribute that holds attributes; nothing is written when `fill` fails.
    pub fn nested(
        &mut self,
        number: u16,
        fill: impl FnOnce(&mut Writer) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut inner = Writer::new();
        fill(&mut inner)?;
        self.put_nested(number, &inner.finish())
    }

    /// An attribute without a payload: its presence is its value.
    pub fn flag(&mut self, number: u16) -> Result<(), Error> {
        self.put(number, &[])
    }

    /// One byte.
    pub fn u8(&mut self, number: u16, value: u8) -> Result<(), Error> {
        self.put(number, &[value])
    }

    /// Four bytes in the order of the machine.
    pub fn u32(&mut self, number: u16, value: u32) -> Result<(), Error> {
        self.put(number, &value.to_ne_bytes())
    }

    /// Four bytes in the order of the machine.
    pub fn i32(&mut self, number: u16, value: i32) -> Result<(), Error> {
        self.put(number, &value.to_ne_bytes())
    }

    /// Eight bytes in the order of the machine.
    pub fn u64(&mut self, number: u16, value: u64) -> Result<(), Error> {
        self.put(number, &value.to_ne_bytes())
    }

    /// Text as UTF-8, with no NUL in it and none behind it.
    pub fn str(&mut self, number: u16, text: &str) -> Result<(), Error> {
        match text.contains('\0') {
            true => Err(Error::NulInText { number }),
            false => self.put(number, text.as_bytes()),
        }
    }

    /// What was written: a multiple of 4 bytes.
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }

    fn write(&mut self, number: u16, flags: u16, payload: &[u8]) -> Result<(), Error> {
        if !(1..=MAX_NUMBER).contains(&number) {
            return Err(Error::NoNumber {
                number,
                limit: MAX_NUMBER,
            });
        }
        let length = u16::try_from(HEADER + payload.len()).map_err(|_| Error::PayloadTooLong {
            number,
            length: payload.len(),
            limit: MAX_PAYLOAD,
        })?;
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend((number | flags).to_ne_bytes());
        self.bytes.extend(payload);
        let padded = self.bytes.len().next_multiple_of(ALIGNMENT);
        self.bytes.resize(padded, 0);
        Ok(())
    }
}

/// Reads attributes; the offsets it tells count from the start of `bytes`.
///
/// Numbers may be unknown, repeated or in any order: what they mean is for the caller to say.
pub fn attributes(bytes: &[u8]) -> Attributes<'_> {
    Attributes::at(bytes, 0)
}

/// The attributes in some bytes, until the first that is damaged.
///
/// After an error there is nothing more: where the next attribute starts is not known.
#[derive(Debug, Clone)]
pub struct Attributes<'a> {
    rest: &'a [u8],
    offset: usize,
}

impl<'a> Attributes<'a> {
    /// Attributes that start at byte `offset` of something larger.
    /// The attributes in some bytes that have been cut out of a message, where they begin at `offset`.
    pub fn at(bytes: &'a [u8], offset: usize) -> Attributes<'a> {
        Attributes {
            rest: bytes,
            offset,
        }
    }

    /// Whether all of them are whole.
    pub(crate) fn verify(mut self) -> Result<(), Error> {
        self.try_for_each(|attribute| attribute.map(drop))
    }

    fn read(&mut self) -> Result<Attribute<'a>, Error> {
        let (length, number) = self.header()?;
        let wrong = |fault| Error::Attribute {
            number: number & MAX_NUMBER,
            offset: self.offset,
            fault,
        };
        check_header(length, number).map_err(wrong)?;
        let length = usize::from(length);
        let padded = length.next_multiple_of(ALIGNMENT);
        let missing = padded.saturating_sub(self.rest.len());
        let lacks = || wrong(AttributeFault::Truncated { missing });
        let payload = self.rest.get(HEADER..length).ok_or_else(lacks)?;
        let padding = self.rest.get(length..padded).ok_or_else(lacks)?;
        let rest = self.rest.get(padded..).ok_or_else(lacks)?;
        if padding.iter().any(|byte| *byte != 0) {
            return Err(wrong(AttributeFault::Padding));
        }
        let attribute = Attribute {
            number: number & MAX_NUMBER,
            nested: number & NLA_F_NESTED != 0,
            payload,
            offset: self.offset,
        };
        self.rest = rest;
        self.offset += padded;
        Ok(attribute)
    }

    /// The length and the number with its flags, as they stand.
    fn header(&self) -> Result<(u16, u16), Error> {
        match *self.rest {
            [a, b, c, d, ..] => Ok((u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d]))),
            _ => Err(Error::AttributeHeader {
                offset: self.offset,
                left: self.rest.len(),
            }),
        }
    }
}

fn check_header(length: u16, number: u16) -> Result<(), AttributeFault> {
    if usize::from(length) < HEADER {
        return Err(AttributeFault::Length { length });
    }
    if number & NLA_F_NET_BYTEORDER != 0 {
        return Err(AttributeFault::NetworkByteOrder);
    }
    if number & MAX_NUMBER == 0 {
        return Err(AttributeFault::Number);
    }
    Ok(())
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Result<Attribute<'a>, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let read = self.read();
        if read.is_err() {
            self.rest = &[];
        }
        Some(read)
    }
}

impl FusedIterator for Attributes<'_> {}

/// One attribute, read from bytes.
///
/// The typed accessors check that the payload has exactly the length of the type, and that it is
/// a value rather than nested attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attribute<'a> {
    /// Its number, from 1 to [`MAX_NUMBER`].
    pub number: u16,
    /// Whether it says that it holds attributes (NLA_F_NESTED).
    pub nested: bool,
    /// What it holds, without header and padding.
    pub payload: &'a [u8],
    /// Where it starts, in bytes; its payload starts 4 bytes later.
    pub offset: usize,
}

impl<'a> Attribute<'a> {
    /// Accepts an attribute without a payload.
    pub fn as_flag(&self) -> Result<(), Error> {
        self.as_array::<0>().map(drop)
    }

    /// One byte.
    pub fn as_u8(&self) -> Result<u8, Error> {
        self.as_array().map(u8::from_ne_bytes)
    }

    /// Four bytes in the order of the machine.
    pub fn as_u32(&self) -> Result<u32, Error> {
        self.as_array().map(u32::from_ne_bytes)
    }

    /// Four bytes in the order of the machine.
    pub fn as_i32(&self) -> Result<i32, Error> {
        self.as_array().map(i32::from_ne_bytes)
    }

    /// Eight bytes in the order of the machine.
    pub fn as_u64(&self) -> Result<u64, Error> {
        self.as_array().map(u64::from_ne_bytes)
    }

    /// UTF-8 without a NUL.
    pub fn as_str(&self) -> Result<&'a str, Error> {
        std::str::from_utf8(self.value()?)
            .ok()
            .filter(|text| !text.contains('\0'))
            .ok_or_else(|| self.wrong(AttributeFault::Text))
    }

    /// Exactly `N` bytes.
    pub fn as_array<const N: usize>(&self) -> Result<[u8; N], Error> {
        let payload = self.value()?;
        payload.try_into().map_err(|_| {
            self.wrong(AttributeFault::Size {
                expected: N,
                found: payload.len(),
            })
        })
    }

    /// The attributes in the payload, whether or not [`nested`](Attribute::nested) says that
    /// there are any: the kernels of 2007 did not set the flag.
    pub fn nested(&self) -> Attributes<'a> {
        Attributes::at(self.payload, self.offset + HEADER)
    }

    /// An error about this attribute; `why` reads on after "attribute 5 at byte 12".
    pub fn invalid(&self, why: impl Into<Cow<'static, str>>) -> Error {
        self.wrong(AttributeFault::Invalid(why.into()))
    }

    fn value(&self) -> Result<&'a [u8], Error> {
        match self.nested {
            true => Err(self.wrong(AttributeFault::Nested)),
            false => Ok(self.payload),
        }
    }

    fn wrong(&self, fault: AttributeFault) -> Error {
        Error::Attribute {
            number: self.number,
            offset: self.offset,
            fault,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(write: impl FnOnce(&mut Writer) -> Result<(), Error>) -> Vec<u8> {
        let mut writer = Writer::new();
        write(&mut writer).unwrap();
        writer.finish()
    }

    fn read(bytes: &[u8]) -> Attribute<'_> {
        let mut found = attributes(bytes);
        let first = found.next().unwrap().unwrap();
        assert!(found.next().is_none());
        first
    }

    #[test]
    fn every_type_comes_back() {
        assert_eq!(read(&one(|w| w.flag(6))).as_flag(), Ok(()));
        assert_eq!(read(&one(|w| w.u8(29, 0xfe))).as_u8(), Ok(0xfe));
        assert_eq!(
            read(&one(|w| w.u32(1, u32::MAX - 1))).as_u32(),
            Ok(u32::MAX - 1)
        );
        assert_eq!(read(&one(|w| w.i32(72, -4711))).as_i32(), Ok(-4711));
        assert_eq!(read(&one(|w| w.u64(300, 1 << 63))).as_u64(), Ok(1 << 63));
        assert_eq!(read(&one(|w| w.str(75, "größe"))).as_str(), Ok("größe"));
        assert_eq!(
            read(&one(|w| w.put(78, &[10, 1, 0, 1]))).as_array(),
            Ok([10, 1, 0, 1])
        );
    }

    #[test]
    fn padding_is_zero_and_is_not_payload() {
        for length in 0..9 {
            let bytes = one(|w| w.put(1, &vec![0xff; length]));
            assert_eq!(bytes.len(), 4 + length.next_multiple_of(4));
            assert!(bytes.iter().skip(4 + length).all(|byte| *byte == 0));
            assert_eq!(read(&bytes).payload, vec![0xff; length]);
        }
    }

    #[test]
    fn a_value_of_another_length_is_refused() {
        let error = read(&one(|w| w.u32(13, 6))).as_u8().unwrap_err();
        assert_eq!(
            error.to_string(),
            "attribute 13 at byte 0 holds 4 bytes instead of 1"
        );
        let error = read(&one(|w| w.u8(29, 6))).as_u32().unwrap_err();
        assert_eq!(
            error.to_string(),
            "attribute 29 at byte 0 holds 1 byte instead of 4"
        );
        let error = read(&one(|w| w.u8(6, 1))).as_flag().unwrap_err();
        assert_eq!(
            error.to_string(),
            "attribute 6 at byte 0 holds 1 byte instead of 0"
        );
        assert!(read(&one(|w| w.u32(1, 1))).as_u64().is_err());
        assert!(read(&one(|w| w.u64(1, 1))).as_i32().is_err());
    }

    #[test]
    fn attributes_are_no_value() {
        let bytes = one(|w| w.nested(66, |inner| inner.put(67, &[])));
        let attribute = read(&bytes);
        let error = attribute.as_u32().unwrap_err();
        assert_eq!(
            error.to_string(),
            "attribute 66 at byte 0 holds attributes instead of a value"
        );
        assert!(attribute.as_str().is_err() && attribute.as_array::<4>().is_err());
    }

    #[test]
    fn text_is_utf8_without_nul() {
        for bytes in [&b"a\0b"[..], b"\0", b"a\0", b"\xff", b"\xc3"] {
            let bytes = one(|w| w.put(75, bytes));
            let error = read(&bytes).as_str().unwrap_err();
            assert_eq!(error.to_string(), "attribute 75 at byte 0 is not text");
        }
        let error = Writer::new().str(75, "a\0b").unwrap_err();
        assert_eq!(error, Error::NulInText { number: 75 });
    }

    #[test]
    fn the_longest_payload_fits_and_one_more_does_not() {
        let bytes = one(|w| w.put(70, &vec![7; MAX_PAYLOAD]));
        assert_eq!(read(&bytes).payload.len(), 65531);
        let mut writer = Writer::new();
        let error = writer.put(70, &vec![7; MAX_PAYLOAD + 1]).unwrap_err();
        let text = "attribute 70 cannot hold 65532 bytes: at most 65531 fit";
        assert_eq!(error.to_string(), text);
        assert_eq!(writer.finish(), []);
    }

    #[test]
    fn what_fails_leaves_no_trace() {
        let mut writer = Writer::new();
        let half = |inner: &mut Writer| {
            inner.u32(67, 1)?;
            inner.str(75, "\0")
        };
        assert_eq!(
            writer.nested(66, half),
            Err(Error::NulInText { number: 75 })
        );
        let full = |inner: &mut Writer| {
            inner.put(70, &[1; 40000])?;
            inner.put(70, &[2; 40000])
        };
        let error = writer.nested(66, full).unwrap_err();
        let text = "attribute 66 cannot hold 80008 bytes: at most 65531 fit";
        assert_eq!(error.to_string(), text);
        assert_eq!(writer.finish(), []);
    }

    #[test]
    fn numbers_outside_of_netlinks_14_bits_are_refused() {
        for number in [0, 0x4000, 0x8001, u16::MAX] {
            let mut writer = Writer::new();
            let limit = MAX_NUMBER;
            assert_eq!(writer.flag(number), Err(Error::NoNumber { number, limit }));
            assert_eq!(
                writer.put_nested(number, &[]),
                Err(Error::NoNumber { number, limit })
            );
        }
        assert_eq!(read(&one(|w| w.flag(MAX_NUMBER))).number, 0x3fff);
    }

    #[test]
    fn a_reader_can_find_fault_in_its_own_words() {
        let bytes = one(|w| w.u32(73, 99));
        let error = read(&bytes).invalid("is no signal");
        assert_eq!(error.to_string(), "attribute 73 at byte 0 is no signal");
    }
}
