//! The reader of type information on a small sample, whole and damaged.

use super::*;

/// A small BTF: `struct pair { int a; struct { u8 low: 3; u8 high: 5; }; int *p[2]; }`.
struct Builder {
    types: Vec<u8>,
    strings: Vec<u8>,
}

impl Builder {
    fn new() -> Self {
        Self {
            types: Vec::new(),
            strings: vec![0],
        }
    }

    fn name(&mut self, text: &str) -> u32 {
        let at = u32::try_from(self.strings.len()).unwrap();
        self.strings.extend(text.as_bytes());
        self.strings.push(0);
        at
    }

    fn words(&mut self, words: &[u32]) {
        for word in words {
            self.types.extend(word.to_ne_bytes());
        }
    }

    fn finish(self) -> Vec<u8> {
        let types = u32::try_from(self.types.len()).unwrap();
        let strings = u32::try_from(self.strings.len()).unwrap();
        let mut data = MAGIC.to_ne_bytes().to_vec();
        data.extend([1, 0]);
        for word in [24, 0, types, types, strings] {
            data.extend(word.to_ne_bytes());
        }
        data.extend(self.types);
        data.extend(self.strings);
        data
    }
}

const WANTED: &[(Kind, &str)] = &[
    (Kind::Structure, "pair"),
    (Kind::Function, "act"),
    (Kind::Enumeration, "colour"),
    (Kind::Function, "absent"),
];

fn sample() -> Vec<u8> {
    let mut b = Builder::new();
    let int = b.name("int");
    b.words(&[int, kind::INT << 24, 4, 32]); // 1
    let byte = b.name("u8");
    b.words(&[byte, kind::INT << 24, 1, 8]); // 2
    b.words(&[0, kind::PTR << 24, 1]); // 3
    b.words(&[0, kind::ARRAY << 24, 0, 3, 1, 2]); // 4: int *[2]
    let (low, high) = (b.name("low"), b.name("high"));
    b.words(&[0, 1 << 31 | kind::STRUCT << 24 | 2, 1]); // 5
    b.words(&[low, 2, 3 << 24, high, 2, 5 << 24 | 3]);
    let (pair, a, p) = (b.name("pair"), b.name("a"), b.name("p"));
    b.words(&[pair, kind::STRUCT << 24 | 3, 24]); // 6
    b.words(&[a, 1, 0, 0, 5, 32, p, 4, 64]);
    let act = b.name("act");
    b.words(&[act, kind::FUNC << 24, 0]); // 7
    let (colour, red, blue) = (b.name("colour"), b.name("RED"), b.name("BLUE"));
    b.words(&[colour, kind::ENUM << 24 | 2, 4, red, 3, blue, 9]); // 8
    b.finish()
}

#[test]
fn members_sizes_functions_and_constants() {
    let data = sample();
    let btf = Btf::parse(&data, WANTED).unwrap();
    assert_eq!(btf.size("pair"), Ok(24));
    let plain = |offset, size| Field {
        offset,
        size,
        bits: None,
    };
    assert_eq!(btf.field("pair", "a"), Ok(plain(0, 4)));
    assert_eq!(btf.field("pair", "p"), Ok(plain(8, 16)));
    let high = btf.field("pair", "high").unwrap();
    assert_eq!((high.offset, high.bits), (4, Some((3, 5))));
    if cfg!(target_endian = "little") {
        assert_eq!(high.value(&[0, 0, 0, 0, 0b1011_0101]), Some(0b1_0110));
    }
    assert_eq!(high.value(&[0; 4]), None);
    assert_eq!(btf.function("act"), Ok(7));
    assert_eq!(btf.constant("colour", "BLUE"), Ok(9));
}

#[test]
fn what_is_missing_is_named() {
    let data = sample();
    let btf = Btf::parse(&data, WANTED).unwrap();
    let member = btf.field("pair", "a.b").unwrap_err().to_string();
    assert!(member.contains("`struct pair`") && member.contains("`a.b`"));
    let function = btf.function("absent").unwrap_err().to_string();
    assert!(function.contains("function `absent`"));
    assert!(btf.constant("colour", "GREEN").is_err());
}

#[test]
fn damaged_data_is_refused_and_never_panics() {
    let whole = sample();
    for length in 0..whole.len() {
        assert!(Btf::parse(&whole[..length], WANTED).is_err());
    }
    for at in 0..whole.len() {
        for flip in [1, 0x80, 0xff] {
            let mut bad = whole.clone();
            bad[at] ^= flip;
            if let Ok(btf) = Btf::parse(&bad, WANTED) {
                let _ = btf.field("pair", "high");
                let _ = btf.field("pair", "p");
                let _ = btf.constant("colour", "BLUE");
            }
        }
    }
}
