//! One reader, named by `SSM_FUZZ_READER`, fed by libFuzzer. The first byte of a case says which of
//! the reader's good files the others stand in for. With `SSM_FUZZ_SEEDS` it writes the good files as
//! cases into that directory, for libFuzzer to begin with.

#![no_main]
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a finding")]

#[path = "../../tests/hostile/readers.rs"]
mod readers;

use std::{env, fs, path::PathBuf};

use libfuzzer_sys::fuzz_target;

use self::readers::{Reader, reader};

thread_local! {
    static READER: Reader = open();
}

fn open() -> Reader {
    let reader = reader(&env::var("SSM_FUZZ_READER").unwrap());
    if let Some(dir) = env::var_os("SSM_FUZZ_SEEDS").map(PathBuf::from) {
        // More kinds than a byte can name are kinds of one format: configurations.
        for (kind, (_, bytes)) in reader.files.iter().take(256).enumerate() {
            fs::write(dir.join(format!("{kind:03}")), [&[kind as u8], &**bytes].concat()).unwrap();
        }
    }
    reader
}

fuzz_target!(|data: &[u8]| {
    READER.with(|reader| {
        if let Some((kind, bytes)) = data.split_first() {
            reader.case(usize::from(*kind) % reader.files.len(), bytes);
        }
    });
});
