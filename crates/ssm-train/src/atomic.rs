//! Files that are there whole or not at all, also after a power cut.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use crate::error::Error;

/// Ending of the names that unfinished files and directories have.
pub(crate) const UNFINISHED: &str = ".tmp";

/// Replaces `path` by a file with these bytes.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let temporary = unfinished(path);
    write(&temporary, bytes)?;
    rename(&temporary, path)
}

/// As [`replace`], where other processes may do so at the same time.
pub(crate) fn replace_among_others(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let mut name: OsString = path.as_os_str().to_owned();
    name.push(format!(".{}{UNFINISHED}", std::process::id()));
    let temporary = PathBuf::from(name);
    write(&temporary, bytes)?;
    rename(&temporary, path)
}

/// Writes a file and waits until the disk has it.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let written = File::create(path).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    written.map_err(save("write", path))
}

/// Renames within a directory and waits until the disk has the new name.
///
/// A file at `to` is replaced, a directory there is an error.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<(), Error> {
    #[expect(clippy::disallowed_methods, reason = "this is the one place that renames")]
    fs::rename(from, to).map_err(save("rename", from))?;
    sync_dir(to.parent().unwrap_or(Path::new(".")))
}

/// Creates a directory with all that are missing above it, and waits until the disk has their names.
pub(crate) fn create_dir(path: &Path) -> Result<(), Error> {
    let is_missing = |dir: &&Path| !dir.as_os_str().is_empty() && !dir.exists();
    let missing: Vec<&Path> = path.ancestors().take_while(is_missing).collect();
    fs::create_dir_all(path).map_err(save("create the directory", path))?;
    missing.iter().filter_map(|dir| dir.parent()).try_for_each(sync_dir)
}

/// Waits until the disk has the names in a directory.
pub(crate) fn sync_dir(dir: &Path) -> Result<(), Error> {
    // The parent of a bare file name is the empty path.
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(save("write the directory", dir))
}

/// `path` with [`UNFINISHED`] added to its name.
pub(crate) fn unfinished(path: &Path) -> PathBuf {
    let mut name: OsString = path.as_os_str().to_owned();
    name.push(UNFINISHED);
    PathBuf::from(name)
}

/// To be used with `map_err` on an operation that writes.
pub(crate) fn save(action: &str, path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
    let (action, path) = (action.to_owned(), path.to_owned());
    move |source| Error::Save { path, action, source, saved: None }
}

/// To be used with `map_err` on an operation that reads.
pub(crate) fn read(action: &str, path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
    let (action, path) = (action.to_owned(), path.to_owned());
    move |source| Error::Io { path, action, source }
}
