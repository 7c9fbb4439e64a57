//! The type information of the running kernel (BTF): where its structures keep their members.
//!
//! A reader made for a cold start: one pass over the types notes where each one begins and finds
//! the few names that were asked for; nothing else is decoded until it is used. Everything is
//! checked against the ends of the data, so a damaged file gives an error and nothing worse.

use std::ops::Range;

const MAGIC: u16 = 0xeb9f;
const TYPE_HEADER: usize = 12;
/// How deep types may nest: cycles in damaged data end here.
const DEPTH_LIMIT: usize = 64;

/// `BTF_KIND_...` of `linux/btf.h`.
mod kind {
    pub const INT: u32 = 1;
    pub const PTR: u32 = 2;
    pub const ARRAY: u32 = 3;
    pub const STRUCT: u32 = 4;
    pub const UNION: u32 = 5;
    pub const ENUM: u32 = 6;
    pub const FWD: u32 = 7;
    pub const TYPEDEF: u32 = 8;
    pub const VOLATILE: u32 = 9;
    pub const CONST: u32 = 10;
    pub const RESTRICT: u32 = 11;
    pub const FUNC: u32 = 12;
    pub const FUNC_PROTO: u32 = 13;
    pub const VAR: u32 = 14;
    pub const DATASEC: u32 = 15;
    pub const FLOAT: u32 = 16;
    pub const DECL_TAG: u32 = 17;
    pub const TYPE_TAG: u32 = 18;
    pub const ENUM64: u32 = 19;
}

/// Why a question to the type information has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BtfError {
    /// The data is not BTF of this machine's byte order, or is damaged.
    #[error("the kernel's type information is damaged: {0}")]
    Damaged(&'static str),
    /// No such type or function, or it was not asked for when parsing.
    #[error("the kernel has no {kind} `{name}`")]
    Missing {
        /// The word before the name.
        kind: &'static str,
        /// The name looked for.
        name: String,
    },
    /// The structure is there and has no such member.
    #[error("the kernel's `struct {structure}` has no member `{path}`")]
    MissingMember {
        /// The structure looked in.
        structure: String,
        /// The path of the member.
        path: String,
    },
}

/// What a wanted name names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A `struct`.
    Structure,
    /// A function, for its id: a kfunc or the anchor of an iterator.
    Function,
    /// An `enum`.
    Enumeration,
}

impl Kind {
    fn of(code: u32) -> Option<Self> {
        match code {
            kind::STRUCT => Some(Self::Structure),
            kind::FUNC => Some(Self::Function),
            kind::ENUM | kind::ENUM64 => Some(Self::Enumeration),
            _ => None,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Structure => "struct",
            Self::Function => "function",
            Self::Enumeration => "enum",
        }
    }
}

/// Where a member lies in its structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// The first byte, from the beginning of the structure.
    pub offset: usize,
    /// The bytes of the member; for a bit field those that hold it.
    pub size: usize,
    /// For a bit field: its first bit, counted from `offset` as the compiler does, and its width.
    pub bits: Option<(u32, u32)>,
}

impl Field {
    /// The value of the member in a raw copy of the structure, zero-extended. None when the copy
    /// is too short or the member is no integer of at most eight bytes.
    #[must_use]
    pub fn value(&self, raw: &[u8]) -> Option<u64> {
        let bytes = raw.get(self.offset..self.offset.checked_add(self.size)?)?;
        let whole = unsigned(bytes)?;
        let Some((shift, width)) = self.bits else {
            return Some(whole);
        };
        let shift = if cfg!(target_endian = "big") {
            (8 * u32::try_from(self.size).ok()?).checked_sub(shift + width)?
        } else {
            shift
        };
        Some(whole.checked_shr(shift)? & mask(width))
    }
}

/// The type information, parsed as far as the wanted names need.
#[derive(Debug)]
pub struct Btf<'a> {
    data: &'a [u8],
    strings: Range<usize>,
    /// Where each type begins in `data`; the index is the id less one.
    types: Vec<u32>,
    found: Vec<(Kind, &'static str, u32)>,
}

impl<'a> Btf<'a> {
    /// Takes the bytes of a BTF file and finds the wanted names. The first of several equal names
    /// counts.
    pub fn parse(data: &'a [u8], wanted: &[(Kind, &'static str)]) -> Result<Self, BtfError> {
        let (section, strings) = sections(data).ok_or(BtfError::Damaged("its header"))?;
        let mut btf = Self {
            strings,
            types: Vec::with_capacity(section.len() / (2 * TYPE_HEADER)),
            found: Vec::with_capacity(wanted.len()),
            data,
        };
        btf.scan(section, &Wanted::new(wanted))?;
        Ok(btf)
    }

    /// The one pass over all types.
    fn scan(&mut self, section: Range<usize>, wanted: &Wanted<'_>) -> Result<(), BtfError> {
        let mut at = section.start;
        while at < section.end {
            let header = Header::at(self.data, at).ok_or(BtfError::Damaged("a type is cut"))?;
            let length = header
                .length()
                .ok_or(BtfError::Damaged("a type of an unknown kind"))?;
            self.types
                .push(u32::try_from(at).map_err(|_| BtfError::Damaged("it is too long"))?);
            if let Some(kind) = Kind::of(header.kind()) {
                self.note(kind, header.name, wanted);
            }
            at += length;
        }
        if at == section.end {
            Ok(())
        } else {
            Err(BtfError::Damaged("the last type is cut"))
        }
    }

    /// Remembers the id of the type just pushed if its name is wanted.
    fn note(&mut self, kind: Kind, name: u32, wanted: &Wanted<'_>) {
        let Some(text) = self.tail(name) else { return };
        if let Some(name) = wanted.find(kind, text)
            && self.id(kind, name).is_none()
            && let Ok(id) = u32::try_from(self.types.len())
        {
            self.found.push((kind, name, id));
        }
    }

    fn id(&self, kind: Kind, name: &str) -> Option<u32> {
        self.found
            .iter()
            .find(|(found, text, _)| *found == kind && *text == name)
            .map(|(_, _, id)| *id)
    }

    fn wanted(&self, kind: Kind, name: &str) -> Result<u32, BtfError> {
        self.id(kind, name).ok_or_else(|| BtfError::Missing {
            kind: kind.word(),
            name: name.to_owned(),
        })
    }

    /// The id of a function, as kfunc calls and iterators want it.
    pub fn function(&self, name: &str) -> Result<u32, BtfError> {
        self.wanted(Kind::Function, name)
    }

    /// The bytes of a structure.
    pub fn size(&self, structure: &str) -> Result<usize, BtfError> {
        let id = self.wanted(Kind::Structure, structure)?;
        self.size_of(id).ok_or(BtfError::Damaged("a size"))
    }

    /// The value of one name of an `enum`, its low 32 bits.
    pub fn constant(&self, enumeration: &str, name: &str) -> Result<u32, BtfError> {
        let id = self.wanted(Kind::Enumeration, enumeration)?;
        self.enumerator(id, name).ok_or_else(|| BtfError::Missing {
            kind: "constant",
            name: name.to_owned(),
        })
    }

    /// The same of an `enum` without a name.
    pub fn anonymous_constant(&self, name: &str) -> Result<u32, BtfError> {
        let ids = (1..).take(self.types.len());
        let anonymous = ids.filter(|id| {
            let header = self.header(*id).map(|(_, header)| header);
            header.is_some_and(|header| header.kind() == kind::ENUM && header.name == 0)
        });
        let mut found = anonymous.filter_map(|id| self.enumerator(id, name));
        found.next().ok_or_else(|| BtfError::Missing {
            kind: "constant",
            name: name.to_owned(),
        })
    }

    fn enumerator(&self, id: u32, name: &str) -> Option<u32> {
        let (at, header) = self.header(id)?;
        let stride = if header.kind() == kind::ENUM64 { 12 } else { 8 };
        (0..header.count())
            .map(|index| at + TYPE_HEADER + index * stride)
            .find(|place| word(self.data, *place).is_some_and(|offset| self.is_named(offset, name)))
            .and_then(|place| word(self.data, place + 4))
    }

    /// Finds a member by its path, such as `__sk_common.skc_num`. Members of anonymous structures
    /// and unions are found as in C.
    pub fn field(&self, structure: &str, path: &str) -> Result<Field, BtfError> {
        let id = self.wanted(Kind::Structure, structure)?;
        self.resolve(id, path)
            .ok_or_else(|| BtfError::MissingMember {
                structure: structure.to_owned(),
                path: path.to_owned(),
            })
    }

    fn resolve(&self, structure: u32, path: &str) -> Option<Field> {
        let mut place = Member {
            bit: 0,
            width: 0,
            id: structure,
        };
        for name in path.split('.') {
            let member = self.member(place.id, name, DEPTH_LIMIT)?;
            place = Member {
                bit: place.bit.checked_add(member.bit)?,
                ..member
            };
        }
        self.place(&place)
    }

    fn place(&self, member: &Member) -> Option<Field> {
        let offset = usize::try_from(member.bit / 8).ok()?;
        if member.width == 0 {
            return Some(Field {
                offset,
                size: self.size_of(member.id)?,
                bits: None,
            });
        }
        let shift = member.bit % 8;
        let size = usize::try_from((shift + member.width).div_ceil(8)).ok()?;
        Some(Field {
            offset,
            size,
            bits: Some((shift, member.width)),
        })
    }

    fn member(&self, structure: u32, name: &str, depth: usize) -> Option<Member> {
        let (at, header) = self.header(self.strip(structure)?)?;
        if depth == 0 || !matches!(header.kind(), kind::STRUCT | kind::UNION) {
            return None;
        }
        (0..header.count()).find_map(|index| {
            let place = at + TYPE_HEADER + index * 12;
            let name_at = word(self.data, place)?;
            let found = header.member(word(self.data, place + 4)?, word(self.data, place + 8)?);
            if self.is_named(name_at, name) {
                return Some(found);
            }
            if !self.is_named(name_at, "") {
                return None;
            }
            let inner = self.member(found.id, name, depth - 1)?;
            Some(Member {
                bit: found.bit.checked_add(inner.bit)?,
                ..inner
            })
        })
    }

    /// Follows typedefs and qualifiers to the type meant.
    fn strip(&self, mut id: u32) -> Option<u32> {
        for _ in 0..DEPTH_LIMIT {
            let (_, header) = self.header(id)?;
            match header.kind() {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                    id = header.size
                }
                _ => return Some(id),
            }
        }
        None
    }

    fn size_of(&self, mut id: u32) -> Option<usize> {
        let mut elements = 1_usize;
        for _ in 0..DEPTH_LIMIT {
            let (at, header) = self.header(self.strip(id)?)?;
            let size = match header.kind() {
                kind::ARRAY => {
                    let count = word(self.data, at + TYPE_HEADER + 8)?;
                    elements = elements.checked_mul(usize::try_from(count).ok()?)?;
                    id = word(self.data, at + TYPE_HEADER)?;
                    continue;
                }
                kind::PTR => size_of::<u64>(),
                kind::INT
                | kind::STRUCT
                | kind::UNION
                | kind::ENUM
                | kind::ENUM64
                | kind::FLOAT => usize::try_from(header.size).ok()?,
                _ => return None,
            };
            return size.checked_mul(elements);
        }
        None
    }

    fn header(&self, id: u32) -> Option<(usize, Header)> {
        let index = usize::try_from(id).ok()?.checked_sub(1)?;
        let at = usize::try_from(*self.types.get(index)?).ok()?;
        Some((at, Header::at(self.data, at)?))
    }

    /// The string section from a name on.
    fn tail(&self, name: u32) -> Option<&[u8]> {
        let at = self
            .strings
            .start
            .checked_add(usize::try_from(name).ok()?)?;
        self.data.get(at..self.strings.end)
    }

    fn is_named(&self, offset: u32, name: &str) -> bool {
        self.tail(offset).is_some_and(|text| begins(text, name))
    }
}

/// A member on the way to the one looked for.
#[derive(Clone, Copy)]
struct Member {
    /// Its first bit from the beginning of the structure.
    bit: u32,
    /// Its bits if it is a bit field, else 0.
    width: u32,
    id: u32,
}

/// `struct btf_type`.
#[derive(Clone, Copy)]
struct Header {
    name: u32,
    info: u32,
    /// The size, or the type referred to.
    size: u32,
}

impl Header {
    fn at(data: &[u8], at: usize) -> Option<Self> {
        let bytes: &[u8; TYPE_HEADER] = data.get(at..)?.first_chunk()?;
        let [a, b, c, d, e, f, g, h, i, j, k, l] = *bytes;
        Some(Self {
            name: u32::from_ne_bytes([a, b, c, d]),
            info: u32::from_ne_bytes([e, f, g, h]),
            size: u32::from_ne_bytes([i, j, k, l]),
        })
    }

    fn kind(&self) -> u32 {
        (self.info >> 24) & 0x1f
    }

    fn count(&self) -> usize {
        usize::from((self.info & 0xffff) as u16)
    }

    /// The bytes of the whole type.
    fn length(&self) -> Option<usize> {
        let tail = match self.kind() {
            kind::INT | kind::VAR | kind::DECL_TAG => 4,
            kind::ARRAY => 12,
            kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => 12 * self.count(),
            kind::ENUM | kind::FUNC_PROTO => 8 * self.count(),
            kind::PTR
            | kind::FWD
            | kind::TYPEDEF
            | kind::VOLATILE
            | kind::CONST
            | kind::RESTRICT
            | kind::FUNC
            | kind::FLOAT
            | kind::TYPE_TAG => 0,
            _ => return None,
        };
        Some(TYPE_HEADER + tail)
    }

    /// A member of this structure; with the kind flag the offset holds the width of bit fields.
    fn member(&self, id: u32, offset: u32) -> Member {
        if self.info >> 31 == 1 {
            Member {
                bit: offset & 0x00ff_ffff,
                width: offset >> 24,
                id,
            }
        } else {
            Member {
                bit: offset,
                width: 0,
                id,
            }
        }
    }
}

/// The names to find, with a quick way to say no.
struct Wanted<'a> {
    names: &'a [(Kind, &'static str)],
    /// One bit for each mark that a wanted name has.
    marks: [u64; 4],
}

impl<'a> Wanted<'a> {
    fn new(names: &'a [(Kind, &'static str)]) -> Self {
        let mut marks = [0; 4];
        for (_, name) in names {
            let mark = Self::mark(name.as_bytes());
            marks[usize::from(mark >> 6)] |= 1 << (mark & 63);
        }
        Self { names, marks }
    }

    /// A hash of the first bytes. Names shorter than that end in NUL in the section.
    fn mark(text: &[u8]) -> u8 {
        let mut mark = 0_u8;
        for byte in text.iter().take(8).take_while(|byte| **byte != 0) {
            mark = mark.wrapping_mul(31).wrapping_add(*byte);
        }
        mark
    }

    fn find(&self, kind: Kind, text: &[u8]) -> Option<&'static str> {
        let mark = Self::mark(text);
        if self.marks[usize::from(mark >> 6)] >> (mark & 63) & 1 == 0 {
            return None;
        }
        self.names
            .iter()
            .find(|(wanted, name)| *wanted == kind && begins(text, name))
            .map(|(_, name)| *name)
    }
}

/// Whether a NUL-terminated text is `name`.
fn begins(text: &[u8], name: &str) -> bool {
    text.strip_prefix(name.as_bytes())
        .is_some_and(|rest| rest.first() == Some(&0))
}

/// The type section and the string section.
fn sections(data: &[u8]) -> Option<(Range<usize>, Range<usize>)> {
    let magic: &[u8; 2] = data.first_chunk()?;
    if u16::from_ne_bytes(*magic) != MAGIC {
        return None;
    }
    let part = |offset, length| {
        let start = at(data, 4)?.checked_add(at(data, offset)?)?;
        let end = start.checked_add(at(data, length)?)?;
        (end <= data.len()).then_some(start..end)
    };
    Some((part(8, 12)?, part(16, 20)?))
}

fn at(data: &[u8], offset: usize) -> Option<usize> {
    usize::try_from(word(data, offset)?).ok()
}

fn word(data: &[u8], at: usize) -> Option<u32> {
    data.get(at..)?
        .first_chunk()
        .map(|bytes| u32::from_ne_bytes(*bytes))
}

/// An integer of up to eight bytes in this machine's order.
fn unsigned(bytes: &[u8]) -> Option<u64> {
    let mut whole = [0; 8];
    let start = if cfg!(target_endian = "big") {
        whole.len().checked_sub(bytes.len())?
    } else {
        0
    };
    whole
        .get_mut(start..start + bytes.len())?
        .copy_from_slice(bytes);
    Some(u64::from_ne_bytes(whole))
}

fn mask(width: u32) -> u64 {
    1_u64
        .checked_shl(width)
        .map_or(u64::MAX, |bit| bit.wrapping_sub(1))
}

#[cfg(test)]
mod tests;
