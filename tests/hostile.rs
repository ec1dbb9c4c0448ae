//! Files that were made to break their reader: every one is read or refused, with neither a panic nor
//! an allocation out of proportion to its size.
//!
//! Each test changes good files at random. The cases are the same ones every time and few; with
//! `PROPTEST_CASES=1000000 cargo test --release --test hostile` they are many, and others each time.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "hostile/readers.rs"]
mod readers;
#[path = "hostile/source.rs"]
mod source;

use proptest::{
    collection::vec,
    prelude::*,
    test_runner::{Config as Cases, RngAlgorithm, TestRng, TestRunner},
};

use self::readers::{READERS, reader};

/// One change of a file; places are shares of its length.
#[derive(Clone, Debug)]
enum Change {
    Flip(f64, u8),
    Cut(f64),
    Insert(f64, Vec<u8>),
    Overwrite(f64, Vec<u8>),
    Repeat(f64, usize),
}

fn change() -> impl Strategy<Value = Change> {
    let place = || 0.0..1.0_f64;
    // Numbers that sizes and offsets overflow with, and words of the formats.
    let nasty = prop_oneof![
        vec(any::<u8>(), 1..16),
        prop::sample::select(vec![
            vec![0xff; 8],
            vec![0xff, 0xff, 0xff, 0x7f],
            vec![0; 8],
            vec![0, 0, 0, 0, 0, 0, 0, 0x80],
            b"18446744073709551615".to_vec(),
            b"-1".to_vec(),
            b"1e400".to_vec(),
            b"nan".to_vec(),
            b"null".to_vec(),
            b"\"".to_vec(),
            b"[[[[[[[[".to_vec(),
            b"{\"".to_vec(),
            b",".to_vec(),
            b"\n".to_vec(),
            b"\xef\xbb\xbf".to_vec(),
            "☃".as_bytes().to_vec(),
        ]),
    ];
    prop_oneof![
        4 => (place(), 1..=255_u8).prop_map(|(at, flip)| Change::Flip(at, flip)),
        1 => place().prop_map(Change::Cut),
        2 => (place(), nasty.clone()).prop_map(|(at, bytes)| Change::Insert(at, bytes)),
        3 => (place(), nasty).prop_map(|(at, bytes)| Change::Overwrite(at, bytes)),
        1 => (place(), 1..64_usize).prop_map(|(at, length)| Change::Repeat(at, length)),
    ]
}

fn apply(bytes: &[u8], changes: &[Change]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for change in changes {
        let place = |share: f64| (share * bytes.len() as f64) as usize;
        match change {
            Change::Flip(at, flip) => {
                let at = place(*at);
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= flip;
                }
            }
            Change::Cut(at) => bytes.truncate(place(*at)),
            Change::Insert(at, new) => {
                let at = place(*at);
                bytes.splice(at..at, new.iter().copied());
            }
            Change::Overwrite(at, new) => {
                let at = place(*at);
                let end = (at + new.len()).min(bytes.len());
                bytes.splice(at..end, new.iter().copied());
            }
            Change::Repeat(at, length) => {
                let at = place(*at);
                let piece = bytes[at..(at + length).min(bytes.len())].to_vec();
                bytes.splice(at..at, piece);
            }
        }
    }
    bytes
}

/// Reads the reader's files, what was found before, what a fuzzer kept, and changed copies.
fn survives(name: &str) {
    let reader = reader(name);
    let n = reader.files.len();
    for (file, (_, bytes)) in reader.files.iter().enumerate() {
        reader.case(file, bytes);
    }
    for (of, file, changes) in FOUND {
        if *of == name {
            let file = reader.files.iter().position(|(name, _)| name == file).unwrap();
            reader.case(file, &apply(&reader.files[file].1, changes));
        }
    }
    for (name, bytes) in source::folder(&format!("fuzz/corpus/{name}")) {
        let (file, bytes) = reader.file_of(&bytes).unwrap_or_else(|| panic!("{name}"));
        reader.case(file, bytes);
    }
    let asked = std::env::var_os("PROPTEST_CASES").is_some();
    let cases = if asked { Cases::default() } else { Cases::with_cases(400) };
    let cases = Cases { failure_persistence: None, ..cases };
    let mut runner = if asked {
        TestRunner::new(cases)
    } else {
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
        TestRunner::new_with_rng(cases, rng)
    };
    let ran = runner.run(&(0..n, vec(change(), 1..6)), |(file, changes)| {
        reader.case(file, &apply(&reader.files[file].1, &changes));
        Ok(())
    });
    if let Err(error) = ran {
        panic!("{error}");
    }
}

/// What broke a reader once: the reader, its file and the changes.
const FOUND: &[(&str, &str, &[Change])] =
    // An element type among others: integers in the place of floats.
    &[("weights", "model.bpk", &[Change::Flip(0.146_163_536_805_590_56, 15)])];

#[test]
fn every_reader_has_its_test() {
    let tested = include_str!("hostile.rs");
    for (name, _) in READERS {
        assert!(tested.contains(&format!("survives(\"{name}\")")), "{name}");
    }
}

#[test]
fn configurations_are_read_or_refused() {
    survives("configurations");
}

#[test]
fn overrides_are_read_or_refused() {
    survives("overrides");
}

#[test]
fn what_a_run_says_of_itself_is_read_or_refused() {
    survives("runs");
}

#[test]
fn weights_are_read_or_refused() {
    survives("weights");
}

#[test]
fn files_of_features_are_read_or_refused() {
    survives("features");
}

#[test]
fn tables_are_read_or_refused() {
    survives("tables");
}

#[test]
fn archives_of_series_are_read_or_refused() {
    survives("archives");
}

#[test]
fn vocabularies_are_read_or_refused() {
    survives("vocabularies");
}

#[test]
fn shards_of_tokens_are_read_or_refused() {
    survives("shards");
}

#[test]
fn weights_of_other_programs_are_read_or_refused() {
    survives("foreign_weights");
}
