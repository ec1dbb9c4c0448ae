//! One reader, and whatever libFuzzer makes of its good files and of those in directories: see `fuzz/run`.
//!
//! As `fuzz READER [DIRECTORY]... [OPTION OF LIBFUZZER]...` on any machine. What is found is written into
//! the first directory.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a failed unwrap is a failed test")]

#[path = "hostile/readers.rs"]
mod readers;

/// Files of the repository, out of the program itself.
mod source {
    const FILES: &[(&str, &str, &[u8])] = include!(env!("FUZZ_FILES"));

    /// Names and bytes of the files in a folder.
    pub(crate) fn folder(folder: &str) -> Vec<(String, Vec<u8>)> {
        let files = FILES.iter().filter(|(parent, ..)| *parent == folder);
        files.map(|(_, name, bytes)| ((*name).to_owned(), bytes.to_vec())).collect()
    }
}

use std::{
    ffi::{CString, c_char, c_int},
    fs::File,
    io::Write,
    panic::{self, AssertUnwindSafe},
    path::Path,
    sync::Mutex,
};

use self::readers::{READERS, Reader};

unsafe extern "C" {
    /// libFuzzer: runs `one` on input after input, until it has been told to end or `one` has died.
    fn LLVMFuzzerRunDriver(
        count: *mut c_int,
        arguments: *mut *mut *mut c_char,
        one: extern "C" fn(*const u8, usize) -> c_int,
    ) -> c_int;
}

thread_local! {
    static READER: Reader = {
        let name = std::env::var(NAME).unwrap_or_default();
        let known: Vec<&str> = READERS.iter().map(|(name, _)| *name).collect();
        assert!(known.contains(&name.as_str()), "`{name}` is none of {}", known.join(", "));
        readers::reader(&name)
    };
}

/// What panics said, in case one of them leaves the reader.
static SAID: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// 0 for an input that a reader has read or refused, -1 for one that has no reader.
extern "C" fn one(bytes: *const u8, length: usize) -> c_int {
    // SAFETY: as many bytes as libFuzzer says; of none the address may be null.
    let input =
        if length == 0 { &[] } else { unsafe { std::slice::from_raw_parts(bytes, length) } };
    READER.with(|reader| {
        let Some((file, bytes)) = reader.file_of(input) else { return -1 };
        SAID.lock().unwrap().clear();
        if panic::catch_unwind(AssertUnwindSafe(|| reader.case(file, bytes))).is_err() {
            eprintln!("{}", SAID.lock().unwrap().join("\n"));
            std::process::abort();
        }
        0
    })
}

/// Tells the reader to processes that libFuzzer starts, as to merge: it knows the other arguments only.
const NAME: &str = "FUZZ_READER";

fn main() {
    let mut given: Vec<String> = std::env::args().collect();
    let is_first = std::env::var_os(NAME).is_none();
    if is_first {
        let name = if given.len() > 1 { given.remove(1) } else { String::new() };
        // SAFETY: there are no other threads yet.
        unsafe { std::env::set_var(NAME, name) };
    }
    // libFuzzer takes seeds from directories only.
    let seeds = tempfile::tempdir().unwrap();
    READER.with(|reader| {
        for (at, (name, bytes)) in reader.files.iter().enumerate() {
            let mut file = File::create(seeds.path().join(at.to_string())).unwrap();
            file.write_all(&[name.as_bytes(), b"\n", bytes].concat()).unwrap();
        }
    });
    // A reader may catch what a library panics with: that is said only where nobody does.
    panic::set_hook(Box::new(|panic| {
        if let Ok(mut said) = SAID.lock() {
            said.truncate(8);
            said.push(panic.to_string());
        }
    }));

    // The first directory is the one that is written to, so the seeds come last. Single files, as those
    // that broke something, are read once and alone.
    if is_first && !given.iter().skip(1).any(|path| Path::new(path).is_file()) {
        given.push(seeds.path().display().to_string());
    }
    let given: Vec<CString> = given.into_iter().map(|text| CString::new(text).unwrap()).collect();
    let mut pointers: Vec<*mut c_char> =
        given.iter().map(|text| text.as_ptr().cast_mut()).collect();
    pointers.push(std::ptr::null_mut());
    let mut count = c_int::try_from(given.len()).unwrap();
    // SAFETY: a `main` of C has these arguments; they live as long as the call.
    let code = unsafe { LLVMFuzzerRunDriver(&mut count, &mut pointers.as_mut_ptr(), one) };
    drop(seeds);
    std::process::exit(code);
}
