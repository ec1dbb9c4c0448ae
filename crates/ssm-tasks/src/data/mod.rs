//! Finding and reading data files, for every task.
//!
//! A data set names a relative file such as `timeseries/ETTh1.csv`. It is looked for below each
//! data directory in order (`--data-dir`, then `SSM_DATA`, then `data/`), as named and by its last
//! part alone, plain or with `.gz`. Nothing is ever downloaded: a missing file is an error that
//! says what to put where, and so is a named directory that does not exist.

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
};

use flate2::read::MultiGzDecoder;
use sha2::{Digest, Sha256};
use ssm_train::error::Error;

/// A published data set that a loader of this crate knows by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownSet {
    /// Name in the papers: `ETTh1`.
    pub name: &'static str,
    /// Key of the task that reads it.
    pub task: &'static str,
    /// The `[data]` section that selects it, as inline TOML: `ett = { variant = "h1" }`.
    pub config: &'static str,
    /// File below a data directory; `.gz` may be added to it.
    pub file: &'static str,
    /// Size in words: `17420 rows x 7 variates, hourly`.
    pub shape: &'static str,
    /// Licence as stated at the origin.
    pub licence: &'static str,
    /// Page to get the file from.
    pub origin: &'static str,
    /// SHA-256 of the uncompressed file; `None` where no copy with a known origin was at hand.
    pub sha256: Option<&'static str>,
}

/// A file in memory.
#[derive(Clone, Debug)]
pub struct DataFile {
    /// Where it was found.
    pub path: PathBuf,
    /// Contents, uncompressed.
    pub bytes: Vec<u8>,
    /// SHA-256 of the uncompressed contents, in lower-case hexadecimal digits.
    ///
    /// It does not depend on whether, and by which tool, the file was compressed.
    pub sha256: String,
}

impl DataFile {
    /// Last part of the path without `.gz`: `ETTh1.csv`.
    #[must_use]
    pub fn name(&self) -> String {
        let name = self.path.file_name().map(|name| name.to_string_lossy().into_owned());
        let name = name.unwrap_or_default();
        name.strip_suffix(".gz").unwrap_or(&name).to_owned()
    }

    /// An error about these contents.
    #[must_use]
    pub fn error(&self, message: impl Into<String>, hint: Option<&str>) -> Error {
        Error::Data {
            path: self.path.clone(),
            message: message.into(),
            hint: hint.map(str::to_owned),
        }
    }
}

/// Finds a published set below `dirs` and reads it; other contents than the published ones are a
/// warning, not an error.
///
/// # Errors
/// [`Error::Data`] if it is at none of the places, if it is no valid gzip file, or if a directory other
/// than [`DEFAULT_DIR`] does not exist; [`Error::Io`] if it cannot be read.
pub fn read_known(set: &KnownSet, dirs: &[PathBuf]) -> Result<DataFile, Error> {
    check_dirs(dirs)?;
    let places = places(set.file, dirs);
    let Some(path) = places.iter().find(|path| path.is_file()) else {
        let target = dirs.first().map_or_else(|| PathBuf::from(DEFAULT_DIR), PathBuf::clone);
        let name = set.file.rsplit('/').next().unwrap_or(set.file);
        return Err(not_found(
            set.file,
            &places,
            format!(
                "get `{name}` from {} and put it, plain or as .gz, at `{}`, or name its directory \
                 by --data-dir or SSM_DATA",
                set.origin,
                target.join(set.file).display()
            ),
        ));
    };
    let file = read(path)?;
    if let Some(expected) = set.sha256
        && expected != file.sha256
    {
        tracing::warn!(
            "`{}` is not the published {}: expected SHA-256 {expected}, got {}",
            path.display(),
            set.name,
            file.sha256
        );
    }
    Ok(file)
}

/// Finds a file that a user named: as it is (absolute, or from the working directory), then below
/// each of `dirs`.
///
/// # Errors
/// As [`read_known`].
pub fn read_named(name: &str, dirs: &[PathBuf]) -> Result<DataFile, Error> {
    check_dirs(dirs)?;
    let mut candidates = vec![PathBuf::from(name), PathBuf::from(format!("{name}.gz"))];
    if Path::new(name).is_relative() {
        candidates.extend(places(name, dirs));
    }
    match candidates.iter().find(|path| path.is_file()) {
        Some(path) => read(path),
        None => Err(not_found(
            name,
            &candidates,
            "give a path from the working directory, or put the file below a data directory \
             (--data-dir, SSM_DATA or `data`)"
                .to_owned(),
        )),
    }
}

/// Reads one file; gzip is recognised by its first two bytes.
///
/// # Errors
/// [`Error::Io`] if it cannot be read, [`Error::Data`] if it is a damaged gzip file or one that unpacks to
/// more than 4 GiB.
pub fn read(path: &Path) -> Result<DataFile, Error> {
    let mut file = read_unhashed(path)?;
    file.sha256 = Sha256::digest(&file.bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(file)
}

/// The same for a file that is read once an epoch, whose hash would be computed as often for nobody.
pub(crate) fn read_unhashed(path: &Path) -> Result<DataFile, Error> {
    let stored = fs::read(path).map_err(|source| Error::Io {
        path: path.to_owned(),
        action: "read".to_owned(),
        source,
    })?;
    let bytes = if stored.starts_with(&[0x1f, 0x8b]) {
        let wrong = |message: String, hint: &str| Error::Data {
            path: path.to_owned(),
            message,
            hint: Some(hint.to_owned()),
        };
        match read_at_most(MultiGzDecoder::new(stored.as_slice()), UNPACKED_MAX) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => {
                return Err(wrong(
                    format!("unpacks to more than {UNPACKED_MAX} bytes"),
                    "unpack it: plain files may be of any size",
                ));
            }
            Err(reason) => {
                return Err(wrong(
                    format!("not a valid gzip file: {reason}"),
                    "get the file again: a download may have been cut off",
                ));
            }
        }
    } else {
        stored
    };
    Ok(DataFile { path: path.to_owned(), bytes, sha256: String::new() })
}

/// Bytes that a compressed file may unpack to: twenty times the largest published set. A few megabytes
/// can be made to unpack to more than any memory holds.
pub(crate) const UNPACKED_MAX: u64 = 4 << 30;

/// Everything that `reader` has, or nothing if that is more than `limit` bytes.
pub(crate) fn read_at_most(reader: impl Read, limit: u64) -> std::io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    reader.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= limit).then_some(bytes))
}

/// Fails for a data directory that somebody named and that is not there: it was meant to hold
/// something. [`DEFAULT_DIR`] is nobody's choice and may be missing.
fn check_dirs(dirs: &[PathBuf]) -> Result<(), Error> {
    match dirs.iter().find(|dir| *dir != Path::new(DEFAULT_DIR) && !dir.is_dir()) {
        Some(dir) => Err(Error::Data {
            path: dir.clone(),
            message: "data directory not found".to_owned(),
            hint: Some("correct --data-dir or SSM_DATA, whichever names it".to_owned()),
        }),
        None => Ok(()),
    }
}

/// The data directory that is searched when none is named, and after those that are.
pub const DEFAULT_DIR: &str = "data";

/// Every place where `name` may lie, in order of preference.
fn places(name: &str, dirs: &[PathBuf]) -> Vec<PathBuf> {
    let last = name.rsplit('/').next().unwrap_or(name);
    let mut places = Vec::new();
    for dir in dirs {
        for name in [name, last] {
            for place in [dir.join(name), dir.join(format!("{name}.gz"))] {
                if !places.contains(&place) {
                    places.push(place);
                }
            }
        }
    }
    places
}

fn not_found(name: &str, places: &[PathBuf], hint: String) -> Error {
    let places: Vec<String> = places.iter().map(|path| format!("`{}`", path.display())).collect();
    let searched =
        if places.is_empty() { "no data directory".to_owned() } else { places.join(", ") };
    Error::Data {
        path: PathBuf::from(name),
        message: format!("data file not found; searched {searched}"),
        hint: Some(hint),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{Compression, write::GzEncoder};

    use super::*;

    const SET: KnownSet = KnownSet {
        name: "Toy",
        task: "forecasting",
        config: "toy = {}",
        file: "timeseries/toy.csv",
        shape: "1 row",
        licence: "none",
        origin: "https://example.org/toy",
        sha256: None,
    };

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn put(path: &Path, bytes: &[u8]) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::File::create(path).unwrap().write_all(bytes).unwrap();
    }

    #[test]
    fn a_file_is_found_below_either_directory_plain_or_compressed() {
        for place in ["timeseries/toy.csv", "timeseries/toy.csv.gz", "toy.csv", "toy.csv.gz"] {
            let dir = tempfile::tempdir().unwrap();
            let (first, second) = (dir.path().join("first"), dir.path().join("second"));
            fs::create_dir(&first).unwrap();
            let stored = if place.ends_with(".gz") { gzip(b"a,b\n") } else { b"a,b\n".to_vec() };
            put(&second.join(place), &stored);
            let file = read_known(&SET, &[first, second.clone()]).unwrap();
            assert_eq!(file.bytes, b"a,b\n", "{place}");
            assert_eq!(file.path, second.join(place));
            assert_eq!(file.name(), "toy.csv");
            // SHA-256 of the four bytes, the same for every place.
            assert_eq!(
                file.sha256,
                "5be08c9684a1d25efcee09318204824278b08bbfb4aef973ffefd0b9d7478313"
            );
        }
    }

    #[test]
    fn other_contents_than_the_published_ones_are_still_read() {
        let dir = tempfile::tempdir().unwrap();
        put(&dir.path().join("toy.csv"), b"mine");
        let set = KnownSet { sha256: Some("00"), ..SET };
        assert_eq!(read_known(&set, &[dir.path().to_owned()]).unwrap().bytes, b"mine");
    }

    #[test]
    fn the_first_directory_wins() {
        let dir = tempfile::tempdir().unwrap();
        put(&dir.path().join("a/toy.csv.gz"), &gzip(b"first"));
        put(&dir.path().join("b/timeseries/toy.csv"), b"second");
        let dirs = [dir.path().join("a"), dir.path().join("b")];
        assert_eq!(read_known(&SET, &dirs).unwrap().bytes, b"first");
    }

    #[test]
    fn a_missing_file_says_what_to_put_where() {
        let dir = tempfile::tempdir().unwrap();
        let x = dir.path().display();
        // `data` may be missing; tests run in the directory of the package, which has none.
        let dirs = [dir.path().to_owned(), PathBuf::from("data")];
        assert_eq!(
            read_known(&SET, &dirs).unwrap_err().report(),
            format!(
                "error: `timeseries/toy.csv`: data file not found; searched \
                 `{x}/timeseries/toy.csv`, `{x}/timeseries/toy.csv.gz`, `{x}/toy.csv`, \
                 `{x}/toy.csv.gz`, `data/timeseries/toy.csv`, `data/timeseries/toy.csv.gz`, \
                 `data/toy.csv`, `data/toy.csv.gz`\n\
                 hint: get `toy.csv` from https://example.org/toy and put it, plain or as .gz, at \
                 `{x}/timeseries/toy.csv`, or name its directory by --data-dir or SSM_DATA"
            )
        );
    }

    #[test]
    fn a_named_directory_that_does_not_exist_is_refused_wherever_the_file_is() {
        let dir = tempfile::tempdir().unwrap();
        put(&dir.path().join("toy.csv"), b"here");
        let dirs = [PathBuf::from("mistyped"), dir.path().to_owned()];
        let file = dir.path().join("toy.csv");
        for error in [read_known(&SET, &dirs), read_named(file.to_str().unwrap(), &dirs)] {
            assert_eq!(
                error.unwrap_err().report(),
                "error: `mistyped`: data directory not found\n\
                 hint: correct --data-dir or SSM_DATA, whichever names it"
            );
        }
    }

    #[test]
    fn unpacking_stops_at_the_limit() {
        let packed = gzip(&[0; 5000]);
        let unpack = |limit| read_at_most(MultiGzDecoder::new(packed.as_slice()), limit).unwrap();
        assert_eq!(unpack(5000).map(|bytes| bytes.len()), Some(5000));
        assert_eq!(unpack(4999), None);
    }

    #[test]
    fn a_named_file_is_taken_as_it_is_before_the_data_directories() {
        let dir = tempfile::tempdir().unwrap();
        put(&dir.path().join("mine.csv"), b"here");
        let absolute = dir.path().join("mine.csv");
        assert_eq!(read_named(absolute.to_str().unwrap(), &[]).unwrap().bytes, b"here");
        assert_eq!(read_named("mine.csv", &[dir.path().to_owned()]).unwrap().bytes, b"here");
        let error = read_named("mine.csv", &[]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "`mine.csv`: data file not found; searched `mine.csv`, `mine.csv.gz`"
        );
    }

    #[test]
    fn a_damaged_gzip_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("toy.csv.gz");
        let whole = gzip(&[7; 5000]);
        put(&path, &whole[..whole.len() - 6]);
        let error = read(&path).unwrap_err();
        assert!(error.to_string().contains("not a valid gzip file"), "{error}");
    }
}
