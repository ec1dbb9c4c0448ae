//! Files that are there whole or not at all, also after a power cut.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use crate::error::Error;

/// Ending of the names that unfinished files and directories have.
pub(crate) const UNFINISHED: &str = ".tmp";

/// Replaces `path` by a file with these bytes; other processes may do so at the same time.
///
/// The unfinished file has a name that no other has, and a lock while it is written: by that [`sweep`]
/// tells it from what a process that was killed left behind.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let mut name: OsString = path.as_os_str().to_owned();
    name.push(format!(".{}.{number}{UNFINISHED}", std::process::id()));
    let temporary = PathBuf::from(name);
    let mut file = create_locked(&temporary)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    let replaced =
        written.map_err(save("write", &temporary)).and_then(|()| rename(&temporary, path));
    if replaced.is_err() {
        // What went wrong is said; if this goes wrong too, the next process sweeps.
        let _ = fs::remove_file(&temporary);
    }
    replaced
}

/// A new file that nobody sweeps away while it is open.
fn create_locked(path: &Path) -> Result<File, Error> {
    loop {
        let file = File::create(path).map_err(save("write", path))?;
        file.lock().map_err(save("lock", path))?;
        // Between the two calls it belonged to nobody.
        if path.exists() {
            return Ok(file);
        }
    }
}

/// Whether [`replace`] made up the name: the file's own, process, number.
fn is_of_replace(name: &str) -> bool {
    let Some(name) = name.strip_suffix(UNFINISHED) else { return false };
    let mut parts = name.rsplitn(3, '.');
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let numbers = parts.by_ref().take(2).filter(|part| is_number(part)).count();
    numbers == 2 && parts.next().is_some_and(|file| !file.is_empty())
}

/// Removes the unfinished files of [`replace`] in a directory that no living process writes; what else is
/// in it belongs to others.
pub(crate) fn sweep(dir: &Path) -> Result<(), Error> {
    for entry in fs::read_dir(dir).map_err(read("list", dir))? {
        let path = entry.map_err(read("list", dir))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if !is_of_replace(&name) || !path.is_file() {
            continue;
        }
        // One that is gone by now has got its name, or was swept by another process.
        let Ok(file) = File::open(&path) else { continue };
        if file.try_lock().is_ok()
            && let Err(error) = fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(save("remove", &path)(error));
        }
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let name =
            |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
        let mut names: Vec<String> = fs::read_dir(dir).unwrap().map(name).collect();
        names.sort();
        names
    }

    #[test]
    fn what_nobody_writes_any_more_is_swept_away() {
        let dir = tempfile::tempdir().unwrap();
        let of_others = ["notes.tmp.txt", "of_the_user.1.tmp", "report.html", "report.html.tmp"];
        for name in of_others.iter().chain(&["report.html.4711.0.tmp"]) {
            write(&dir.path().join(name), b"half").unwrap();
        }
        fs::create_dir(dir.path().join("of_the_user.4711.0.tmp")).unwrap();
        let written = create_locked(&dir.path().join("run.json.4712.3.tmp")).unwrap();
        sweep(dir.path()).unwrap();
        let mut kept = of_others.to_vec();
        kept.push("of_the_user.4711.0.tmp");
        kept.sort_unstable();
        assert_eq!(names(dir.path()), [&kept[..], &["run.json.4712.3.tmp"]].concat());
        drop(written);
        sweep(dir.path()).unwrap();
        assert_eq!(names(dir.path()), kept);
    }

    /// Others look for what was left behind all the time.
    #[test]
    fn a_file_that_is_written_is_never_swept_away() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report.html");
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for _ in 0..300 {
                    replace(&path, b"a page").unwrap();
                }
            });
            while !writer.is_finished() {
                sweep(dir.path()).unwrap();
            }
        });
        assert_eq!(names(dir.path()), ["report.html"]);
    }
}
