//! Noise into the entries that the fuzzer uses.

use crate::{build, entry};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use sockcr_image::file;

/// Words that mean something in an image, and words that do not.
fn likely_words() -> impl Strategy<Value = Vec<u8>> {
    let word = prop_oneof![
        3 => (0u16..0x60, prop_oneof![0u16..0x60, 0x8000u16..0x8060]),
        1 => (any::<u16>(), any::<u16>()),
    ];
    vec(word, 0..40).prop_map(|words| {
        words
            .iter()
            .flat_map(|(a, b)| [a.to_ne_bytes(), b.to_ne_bytes()].concat())
            .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn noise_is_no_image(noise in vec(any::<u8>(), 0..200)) {
        prop_assert!(entry::image(&noise).is_err());
    }

    #[test]
    fn noise_behind_a_header_is_no_image(noise in vec(any::<u8>(), 0..200)) {
        let mut image = build::open(&[]);
        image.extend(noise);
        prop_assert!(entry::image(&image).is_err());
    }

    #[test]
    fn noise_as_messages_is_refused(noise in vec(any::<u8>(), 1..200)) {
        prop_assert!(entry::sealed(&noise).is_err());
    }

    #[test]
    fn likely_words_as_messages_are_judged(words in likely_words()) {
        let accepted = entry::sealed(&words).is_ok();
        prop_assert!(!accepted || words.is_empty() || words.len() >= 20);
    }

    #[test]
    fn noise_as_attributes_is_judged(noise in vec(any::<u8>(), 0..200)) {
        let accepted = entry::attribute_list(&noise).is_ok();
        prop_assert!(!accepted || noise.len().is_multiple_of(4));
    }

    #[test]
    fn likely_words_as_attributes_are_judged(words in likely_words()) {
        if let Ok(count) = entry::attribute_list(&words) {
            prop_assert!(count * 4 <= words.len());
        }
    }

    #[test]
    fn a_changed_image_with_a_right_checksum_is_judged(
        place in any::<Index>(), value in any::<u8>(), more in any::<bool>(),
    ) {
        let image = file::encode(&build::sample()).unwrap();
        let mut messages = image[16..image.len() - 28].to_vec();
        let place = place.index(messages.len());
        match more {
            true => messages.insert(place, value),
            false => messages[place] = value,
        }
        if let Ok(again) = entry::sealed(&messages) {
            prop_assert_eq!(again.len(), 4);
        }
    }
}
