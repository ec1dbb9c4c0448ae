//! Files that the user names: those to read are there, those to write are written whole.

use std::{
    fs::{self, File, Permissions},
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::Path,
};

use ssm_train::Error;
use tempfile::Builder;

/// Refuses a path that does not exist, before any work.
pub(crate) fn present(path: &Path) -> Result<(), Error> {
    if path.exists() {
        return Ok(());
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.exists());
    let hint = folder.map(|folder| format!("the directory `{}` does not exist", folder.display()));
    Err(Error::Usage { message: format!("there is no file `{}`", path.display()), hint })
}

/// Writes a file whole or not at all: what was there before may be what the bytes were made of.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    replace(path, bytes).map_err(failed(path))
}

/// Writes a file that must not be there yet.
pub(crate) fn create(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    match File::create_new(path).and_then(|mut file| file.write_all(bytes)) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(Error::Usage {
            message: format!("`{}` is there already", path.display()),
            hint: Some("remove it, or choose another name with --output".into()),
        }),
        written => written.map_err(failed(path)),
    }
}

/// A directory, with those above it.
pub(crate) fn folder(path: &Path) -> Result<(), Error> {
    fs::create_dir_all(path).map_err(|source| Error::Io {
        path: path.to_owned(),
        action: "create the directory".into(),
        source,
    })
}

/// A file that is written little by little.
pub(crate) fn open(path: &Path) -> Result<File, Error> {
    File::create(path).map_err(failed(path))
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::Io { path, action: "write".into(), source }
}

fn replace(output: &Path, bytes: &[u8]) -> io::Result<()> {
    // A link goes on pointing to the file that it names.
    let path = fs::canonicalize(output).unwrap_or_else(|_| output.to_owned());
    if path.exists() && !path.is_file() {
        // A pipe or a terminal has no name to give away.
        return File::create(&path)?.write_all(bytes);
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    // Asked first, as the error of `tempfile` names a file that nobody knows of.
    fs::metadata(folder)?;
    let mut file = Builder::new()
        .prefix(".ssm-")
        // As any new file: the umask takes away what it should.
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    // Dropped unfinished, for whatever reason, it removes itself.
    file.persist(&path).map_err(|error| error.error)?;
    Ok(())
}
