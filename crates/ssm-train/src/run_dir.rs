//! The directory of a run: who may write into it and what it says of its origin.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions, TryLockError},
    io::Write,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use crate::{atomic, checkpoint::Checkpoints, error::Error};

/// The Burn release that this crate is built on, as pinned in the workspace.
pub const BURN_VERSION: &str = "0.22.1";

const CONFIG: &str = "config.toml";
const LOCK: &str = "lock";
const RUN: &str = "run.json";
pub(crate) const METRICS: &str = "metrics.jsonl";
pub(crate) const RESULT: &str = "result.json";
pub(crate) const REPORT: &str = "report.html";

/// How long a lock may be another's before it is that of a run: [`holder`] takes it for an instant,
/// and the number in the file is then that of a process long gone.
const LOOK: Duration = Duration::from_millis(200);

/// A run directory that belongs to this process until it is dropped.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    /// Holds the lock; the system gives it up with the process, however that ends.
    lock: File,
}

/// `run.json`: what the results of the run depend on besides its configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunInfo {
    /// `run.seed`.
    pub seed: u64,
    /// Numbers in the model.
    pub parameters: usize,
    /// What the task says of its data.
    pub data: String,
    /// SHA-256 of every data file, by file name.
    pub data_hashes: BTreeMap<String, String>,
    /// What the task keeps for later uses of the model; see [`Task::artifacts`](crate::task::Task).
    pub artifacts: serde_json::Value,
    /// Parameters that weight decay applies to, where the configuration asks for it.
    pub decayed_parameters: Vec<String>,
    /// The processes that worked on the run, in order.
    pub sessions: Vec<Session>,
}

/// A process that worked on a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Session {
    /// When it started, in UTC.
    pub started: String,
    /// Optimiser steps that were done by then.
    pub from_step: u64,
    /// What its configuration differs in from that of the process before it. Where an older version
    /// wrote it, nothing is known of that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<Change>,
    /// Version of this crate.
    pub version: String,
    /// Version of Burn.
    pub burn: String,
    /// Commit that was checked out when the program was built; changes that were not committed do not
    /// show. None for a build outside of a git checkout, and where an older version wrote it, which
    /// took the commit of the directory that the process was started in.
    #[serde(default)]
    pub build_commit: Option<String>,
    /// Backend in use, never `auto`.
    pub backend: String,
    /// Which of several equal devices.
    pub device_index: usize,
    /// Replicas that trained together. One where an older version did not write it.
    #[serde(default = "one")]
    pub replicas: usize,
    /// How their gradients were added up: `host memory`, `NCCL`, `MPI`; empty for a single replica.
    #[serde(default)]
    pub gradients: String,
    /// Processors that it may use.
    pub cpus: usize,
    /// Instructions that the CPU kernels chose, with the architecture: `x86_64 V4`. Sums are added
    /// up in another order on another one. Empty where an older version did not write it.
    #[serde(default)]
    pub simd: String,
}

/// A key of the configuration with another value than before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// With all tables that it is in: `optim.adam.lr`.
    pub key: String,
    /// The value before, as TOML, or `absent`.
    pub was: String,
    /// The value from then on.
    pub is: String,
}

fn one() -> usize {
    1
}

impl Session {
    /// The session of this process, of a single replica, of a program that says nothing of its commit.
    #[must_use]
    pub fn here(from_step: u64, backend: &str, device_index: usize) -> Self {
        Self {
            started: jiff::Timestamp::now().to_string(),
            from_step,
            changes: Vec::new(),
            version: env!("CARGO_PKG_VERSION").into(),
            burn: BURN_VERSION.into(),
            build_commit: None,
            backend: backend.into(),
            device_index,
            replicas: 1,
            gradients: String::new(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            simd: simd(),
        }
    }
}

impl RunDir {
    /// Creates the directory and takes it for this process.
    ///
    /// # Errors
    /// As [`RunDir::check`], [`Error::RunInUse`], and [`Error::Save`] for a directory that cannot be
    /// written.
    pub fn open(path: &Path, resume: bool) -> Result<Self, Error> {
        Self::check(path, resume)?;
        atomic::create_dir(path)?;
        let lock = lock(path)?;
        // Again, now that nobody else can change the answer.
        Self::check(path, resume)?;
        atomic::sweep(path)?;
        Checkpoints::of_run(path).prepare()?;
        Ok(Self { path: path.to_owned(), lock })
    }

    /// Whether a run can start or go on in the directory; nothing is touched.
    ///
    /// With `resume` the directory has to hold a run, without it must not hold one that was saved.
    /// Neither goes over the results of a run whose checkpoints were deleted.
    ///
    /// # Errors
    /// [`Error::RunExists`], and [`Error::Usage`] for the other cases.
    pub fn check(path: &Path, resume: bool) -> Result<(), Error> {
        if resume && !path.join(CONFIG).exists() {
            return Err(Error::Usage {
                message: format!("nothing to resume in `{}`", path.display()),
                hint: Some("start the run without `--resume`, or check `run.name`".into()),
            });
        }
        if !path.is_dir() {
            return Ok(());
        }
        let checkpoints = Checkpoints::of_run(path);
        if checkpoints.steps()?.is_empty() {
            let is_log_empty = fs::metadata(path.join(METRICS)).map_or(true, |log| log.len() == 0);
            let was_saved = path.join(RESULT).exists() || checkpoints.were_deleted(!is_log_empty);
            if was_saved {
                let shown = path.display();
                return Err(Error::Usage {
                    message: format!("`{shown}` holds a run without its checkpoints"),
                    hint: Some(format!(
                        "put `{shown}/checkpoints` back, choose another `run.name`, or remove the \
                         directory with its results"
                    )),
                });
            }
        } else if !resume {
            return Err(Error::RunExists { dir: path.to_owned() });
        }
        Ok(())
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its `metrics.jsonl`.
    #[must_use]
    pub fn metrics(&self) -> PathBuf {
        self.path.join(METRICS)
    }

    /// Its `report.html`.
    #[must_use]
    pub fn report(&self) -> PathBuf {
        self.path.join(REPORT)
    }

    /// Its `result.json`.
    #[must_use]
    pub fn result(&self) -> PathBuf {
        self.path.join(RESULT)
    }

    /// Its checkpoints.
    #[must_use]
    pub fn checkpoints(&self) -> Checkpoints {
        Checkpoints::of_run(&self.path)
    }

    /// Removes what an earlier end of the run left: it goes on, so it has no result now.
    ///
    /// # Errors
    /// [`Error::Save`].
    pub fn remove_results(&self) -> Result<(), Error> {
        for path in [self.result(), self.report()] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(atomic::save("remove", &path)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Writes the resolved configuration and the origin of the run.
    ///
    /// # Errors
    /// [`Error::Save`].
    pub fn describe(&self, config: &str, info: &RunInfo) -> Result<(), Error> {
        let path = self.path.join(RUN);
        let text = serde_json::to_string_pretty(info).map_err(std::io::Error::from);
        atomic::replace(&path, (text.map_err(atomic::save("write", &path))? + "\n").as_bytes())?;
        // Last: what it no longer says of the sessions before is in the other file by then.
        atomic::replace(&self.path.join(CONFIG), config.as_bytes())
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        // Closing the file is not enough while a child process that is being started still has it.
        // Should it fail, the end of this process unlocks.
        let _ = self.lock.unlock();
    }
}

/// The resolved configuration that is written in a run directory.
///
/// # Errors
/// [`Error::Usage`] if there is none.
pub fn config_text(run_dir: &Path) -> Result<String, Error> {
    let path = run_dir.join(CONFIG);
    fs::read_to_string(&path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Error::Usage {
            message: format!("`{}` is no run directory: it has no `{CONFIG}`", run_dir.display()),
            hint: Some("runs are in `<run.dir>/<run.name>`, by default `runs/<name>`".into()),
        },
        _ => atomic::read("read", &path)(error),
    })
}

/// The origin of the run in a directory.
///
/// # Errors
/// [`Error::Checkpoint`] if its `run.json` is missing or damaged: without it nobody knows which data
/// the run was trained on. [`Error::Usage`] for a cross-validation, whose folds are runs.
pub fn info(run_dir: &Path) -> Result<RunInfo, Error> {
    let path = run_dir.join(RUN);
    let fold = run_dir.join("fold_00");
    if !path.exists() && fold.join(RUN).exists() {
        return Err(Error::Usage {
            message: format!("`{}` is a cross-validation, a run for each fold", run_dir.display()),
            hint: Some(format!("name one of them, as in `{}`", fold.display())),
        });
    }
    let broken = |problem: String| Error::Checkpoint {
        path: run_dir.to_owned(),
        message: format!("its `{RUN}` {problem}"),
        hint: Some("restore the file: it says which data the run was trained on".into()),
    };
    let bytes = fs::read(&path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => broken("is missing".into()),
        _ => atomic::read("read", &path)(error),
    })?;
    serde_json::from_slice(&bytes).map_err(|error| broken(format!("cannot be understood: {error}")))
}

/// Who works on a run.
pub(crate) enum Holder {
    Nobody,
    /// A process, with its number where it is known.
    Process(Option<u32>),
}

/// Who works on the run in a directory; nothing is created.
pub(crate) fn holder(dir: &Path) -> Holder {
    let path = dir.join(LOCK);
    let Ok(file) = File::open(&path) else { return Holder::Nobody };
    // A shared lock: two who look at the same time do not take each other for a run.
    match file.try_lock_shared() {
        Err(TryLockError::WouldBlock) => Holder::Process(
            fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok()),
        ),
        _ => Holder::Nobody,
    }
}

/// Directories in a directory, by name.
///
/// # Errors
/// [`Error::Usage`] if it is not there, [`Error::Io`] if it cannot be listed.
pub(crate) fn below(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = fs::read_dir(dir).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Error::Usage {
            message: format!("there is no directory `{}`", dir.display()),
            hint: Some("runs are in `<run.dir>/<run.name>`, by default `runs/<name>`".into()),
        },
        _ => atomic::read("list", dir)(error),
    })?;
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(atomic::read("list", dir))?.path();
        if path.is_dir() {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// The route of the CPU kernels: `pulp` looks at the processor once and chooses for all of them.
fn simd() -> String {
    let route = format!("{:?}", pulp::Arch::new());
    // The name of the variant, without what it holds.
    let name = route.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
    format!("{} {name}", std::env::consts::ARCH)
}

/// Locks `<run>/lock` and writes the number of this process into it.
fn lock(dir: &Path) -> Result<File, Error> {
    let path = dir.join(LOCK);
    let mut options = OpenOptions::new();
    // Not truncated: until the lock is ours, the number in the file is another's.
    let opened = options.create(true).truncate(false).write(true).open(&path);
    let mut file = opened.map_err(atomic::save("write", &path))?;
    let start = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) if start.elapsed() < LOOK => {
                std::thread::sleep(LOOK / 20);
            }
            Err(TryLockError::WouldBlock) => {
                let pid = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok());
                return Err(Error::RunInUse { dir: dir.to_owned(), pid });
            }
            Err(TryLockError::Error(error)) => return Err(atomic::save("lock", &path)(error)),
        }
    }
    let written = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
    written.map_err(atomic::save("write", &path))?;
    Ok(file)
}

/// Waits until no other process writes what the folds in a directory have in common; it is over with
/// the file.
pub(crate) fn turn(dir: &Path) -> Result<File, Error> {
    let path = dir.join(LOCK);
    let opened = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = opened.map_err(atomic::save("write", &path))?;
    file.lock().map_err(atomic::save("lock", &path))?;
    atomic::sweep(dir)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_burn_version_is_the_pinned_one() {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../Cargo.toml");
        let manifest: toml::Table = fs::read_to_string(manifest).unwrap().parse().unwrap();
        let pinned = &manifest["workspace"]["dependencies"]["burn"]["version"];
        assert_eq!(pinned.as_str().unwrap(), format!("={BURN_VERSION}"));
    }

    #[test]
    fn those_who_wait_for_their_turn_do_not_meet() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("result.json");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let _turn = turn(dir.path()).unwrap();
                        // Two at once take each other's unfinished file away.
                        atomic::replace(&path, b"{}").unwrap();
                    }
                });
            }
        });
        assert!(matches!(holder(dir.path()), Holder::Nobody));
    }

    #[test]
    fn who_only_looks_does_not_keep_a_run_from_starting() {
        let dir = tempfile::tempdir().unwrap();
        drop(RunDir::open(dir.path(), false).unwrap());
        let looking = File::open(dir.path().join(LOCK)).unwrap();
        looking.lock_shared().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(LOOK / 4);
                looking.unlock().unwrap();
            });
            RunDir::open(dir.path(), false).unwrap();
        });
        // One that stays is taken for a run.
        looking.lock_shared().unwrap();
        assert!(matches!(RunDir::open(dir.path(), false), Err(Error::RunInUse { .. })));
    }

    #[test]
    fn a_second_holder_is_refused_with_the_process_of_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let first = RunDir::open(dir.path(), false).unwrap();
        let error = RunDir::open(dir.path(), false).unwrap_err();
        assert_eq!(
            error.report(),
            format!(
                "error: run directory `{}` is in use by process {}\n\
                 hint: wait for the other process, or choose another `run.name`",
                dir.path().display(),
                std::process::id()
            )
        );
        drop(first);
        RunDir::open(dir.path(), false).unwrap();
    }

    #[test]
    fn an_impossible_directory_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        atomic::write(&file, b"").unwrap();
        let error = RunDir::open(&file.join("run"), false).unwrap_err();
        let path = file.join("run");
        let start = format!("error: cannot create the directory `{}`: ", path.display());
        assert!(error.report().starts_with(&start), "{}", error.report());
        assert_eq!(error.exit_code(), 3);
    }

    #[test]
    fn resuming_nothing_is_an_error_that_creates_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("typo");
        let error = RunDir::open(&path, true).unwrap_err();
        assert_eq!(
            error.report(),
            format!(
                "error: nothing to resume in `{}`\n\
                 hint: start the run without `--resume`, or check `run.name`",
                path.display()
            )
        );
        assert!(!path.exists());
    }
}
