//! The one error type of the engine: what went wrong, where, what to do about it, and how to exit.

use std::{
    any::Any,
    error::Error as StdError,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
};

use crate::config::{Diagnostic, Issue};

/// Everything that can stop a run.
///
/// `Display` is one sentence: lower case, no full stop, user values in backticks. The remedy is
/// apart, in [`Error::hint`]; [`Error::report`] writes both as the binary prints them.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A configuration that cannot be used; every diagnostic has its own place and hint.
    #[error("{}", join(.diagnostics))]
    Config {
        /// At least one, in the order of the file.
        diagnostics: Vec<Diagnostic>,
    },
    /// A command that makes no sense as it was typed.
    #[error("{message}")]
    Usage {
        /// What is wrong.
        message: String,
        /// What to do instead.
        hint: Option<String>,
    },
    /// A data file that is missing or does not hold what it should.
    #[error("`{}`: {message}", path.display())]
    Data {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong: expected and got.
        message: String,
        /// What to put where.
        hint: Option<String>,
    },
    /// A file that cannot be read, listed or opened.
    #[error("cannot {action} `{}`", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// A verb: `read`, `create the directory`.
        action: String,
        /// What the system said.
        source: io::Error,
    },
    /// A file of the run that cannot be written; the disk is full more often than not.
    #[error("cannot {action} `{}`{}", path.display(), after_step(.saved))]
    Save {
        /// The file or directory.
        path: PathBuf,
        /// A verb: `write`, `rename`.
        action: String,
        /// What the system said.
        source: io::Error,
        /// Step of the newest checkpoint, once the run has begun to train.
        saved: Option<u64>,
    },
    /// A checkpoint that is incomplete, damaged or of another format.
    #[error("checkpoint `{}`: {message}", path.display())]
    Checkpoint {
        /// The directory of the checkpoint.
        path: PathBuf,
        /// What is wrong: expected and got.
        message: String,
        /// What to do.
        hint: Option<String>,
    },
    /// A fresh run was asked for where a run already is.
    #[error("run directory `{}` already holds a run", dir.display())]
    RunExists {
        /// The run directory.
        dir: PathBuf,
    },
    /// Another process works in the run directory.
    #[error("run directory `{}` is in use{}", dir.display(), by_process(.pid))]
    RunInUse {
        /// The run directory.
        dir: PathBuf,
        /// The other process, where it is known.
        pid: Option<u32>,
    },
    /// The configuration of a resumed run differs from the one that the run was started with.
    #[error(
        "cannot resume `{}`: `{key}` is {checkpoint} in the checkpoint and {config} in the config",
        dir.display()
    )]
    ResumeMismatch {
        /// The run directory.
        dir: PathBuf,
        /// Path of the key, as `model.n_layer`.
        key: String,
        /// The value that the run was started with, as TOML, or `absent`.
        checkpoint: String,
        /// The value asked for now, as TOML, or `absent`.
        config: String,
    },
    /// A device that does not exist, is not compiled in or failed.
    #[error("device `{device}`: {message}")]
    Device {
        /// As in `[device]`: `flex`, `cuda:1`.
        device: String,
        /// What is wrong.
        message: String,
        /// What to do.
        hint: Option<String>,
    },
    /// A panic, as Burn panics where a device fails; what was saved is intact.
    #[error("{what} panicked{}: {message}", after_step(.saved))]
    Panic {
        /// What the program was doing.
        what: &'static str,
        /// What the panic said.
        message: String,
        /// Step of the newest checkpoint of the run that was in training.
        saved: Option<u64>,
    },
    /// A loss or gradient that is NaN or infinite; the weights were not touched by it.
    #[error("{what} is not finite at step {step}{}{}", after_step(.saved), from(.samples))]
    NonFinite {
        /// Optimiser step, counted from 0.
        step: u64,
        /// `the loss`, or the gradient of a named parameter.
        what: String,
        /// What it was computed from, where the task has names for it.
        samples: Vec<String>,
        /// What to try.
        hint: Option<String>,
        /// Step of the newest checkpoint.
        saved: Option<u64>,
    },
    /// Another replica of the run stopped or lost its connection.
    #[error("replica {rank} of {size} is gone{}: {message}", after_step(.saved))]
    Replica {
        /// Which one, counted from 0.
        rank: usize,
        /// Number of replicas.
        size: usize,
        /// Why, as far as it is known.
        message: String,
        /// Step of the newest checkpoint, where the run had begun to train.
        saved: Option<u64>,
    },
    /// The user or the system asked the process to stop; the run was saved and can be resumed.
    #[error("interrupted by signal {signal} at step {step}")]
    Interrupted {
        /// Number of the signal: 2 is SIGINT, 15 is SIGTERM.
        signal: i32,
        /// Optimiser steps done.
        step: u64,
    },
}

impl Error {
    /// A configuration error of `issues` that only show once a task has read its data, without a line.
    ///
    /// `origin` names what was read.
    #[must_use]
    pub fn issues(origin: &str, issues: Vec<Issue>) -> Self {
        let diagnostics = issues.into_iter().map(|issue| Diagnostic::unplaced(origin, issue));
        Self::Config { diagnostics: diagnostics.collect() }
    }

    /// The same with the step that the run can go on from, where something failed while it trained.
    #[must_use]
    pub(crate) fn after(mut self, step: Option<u64>) -> Self {
        match &mut self {
            Self::Save { saved, .. }
            | Self::Panic { saved, .. }
            | Self::NonFinite { saved, .. }
            | Self::Replica { saved, .. } => *saved = step,
            // Most of them have nothing to do with a run.
            Self::Device { message, .. } => message.push_str(&after_step(&step)),
            _ => {}
        }
        self
    }

    /// What the user can do about it, as one line without `hint:`.
    ///
    /// [`Error::Config`] has none here: each of its diagnostics carries its own.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Config { .. } => None,
            Self::Usage { hint, .. }
            | Self::Data { hint, .. }
            | Self::Checkpoint { hint, .. }
            | Self::Device { hint, .. }
            | Self::NonFinite { hint, .. } => hint.clone(),
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied => {
                    Some("check the owner and the permissions of the path".into())
                }
                _ => None,
            },
            Self::Save { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    Some("free some space, then continue with `--resume`".into())
                }
                io::ErrorKind::PermissionDenied => {
                    Some("check the owner and the permissions of the path".into())
                }
                _ => None,
            },
            Self::RunExists { .. } => {
                Some("continue it with `--resume`, or choose another `run.name`".into())
            }
            Self::RunInUse { .. } => {
                Some("wait for the other process, or choose another `run.name`".into())
            }
            Self::ResumeMismatch { .. } => {
                Some("start a new run directory, or restore the value".into())
            }
            Self::Panic { saved: None, .. } => Some(
                "test the devices with `ssm doctor`: most panics come from one that fails".into(),
            ),
            Self::Interrupted { .. } | Self::Replica { .. } | Self::Panic { .. } => {
                Some("continue with `--resume`".into())
            }
        }
    }

    /// Exit code of the process: 2 for what the user wrote (command, configuration, data), 3 for
    /// a failed save, 128 + signal for an interruption, 1 for the rest.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config { .. }
            | Self::Usage { .. }
            | Self::Data { .. }
            | Self::RunExists { .. }
            | Self::ResumeMismatch { .. } => 2,
            Self::Save { .. } => 3,
            Self::Interrupted { signal, .. } => {
                u8::try_from(*signal).map_or(1, |signal| signal.saturating_add(128))
            }
            Self::Io { .. }
            | Self::Checkpoint { .. }
            | Self::RunInUse { .. }
            | Self::Device { .. }
            | Self::Replica { .. }
            | Self::Panic { .. }
            | Self::NonFinite { .. } => 1,
        }
    }

    /// The whole text for the terminal: `error:`, its causes, and `hint:`; no final newline.
    #[must_use]
    pub fn report(&self) -> String {
        let mut text = format!("error: {self}");
        let mut cause = self.source();
        while let Some(source) = cause {
            text.push_str(&format!(": {source}"));
            cause = source.source();
        }
        if let Some(hint) = self.hint() {
            text.push_str(&format!("\nhint: {hint}"));
        }
        text
    }
}

/// What `work` returns, or its panic as an error: Burn panics where a device fails.
///
/// # Errors
/// That of `work`, and [`Error::Panic`].
pub fn caught<R>(what: &'static str, work: impl FnOnce() -> Result<R, Error>) -> Result<R, Error> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|panic| Err(Error::Panic { what, message: text_of(&*panic), saved: None }))
}

/// What a panic said, on one line.
fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no reason given").split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Diagnostics one below the other. The first comes without its `error: `, which the caller writes
/// as for any other error.
fn join(diagnostics: &[Diagnostic]) -> String {
    let texts: Vec<String> = diagnostics.iter().map(Diagnostic::to_string).collect();
    texts.join("\n\nerror: ")
}

fn after_step(saved: &Option<u64>) -> String {
    saved.map(|step| format!(" (step {step} is saved)")).unwrap_or_default()
}

/// A few of the samples by name, and how many there are besides.
fn from(samples: &[String]) -> String {
    let (named, others) = samples.split_at(samples.len().min(4));
    match (named.join(", "), others.len()) {
        (_, 0) if named.is_empty() => String::new(),
        (named, 0) => format!(", from {named}"),
        (named, others) => format!(", from {named} and {others} more"),
    }
}

fn by_process(pid: &Option<u32>) -> String {
    pid.map(|pid| format!(" by process {pid}")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_hold_the_message_the_cause_and_the_hint() {
        let full = io::Error::from(io::ErrorKind::StorageFull);
        let path = PathBuf::from("runs/x/model.bin");
        let error = Error::Save { path, action: "write".into(), source: full, saved: None };
        assert_eq!(
            error.report(),
            "error: cannot write `runs/x/model.bin`: no storage space\n\
             hint: free some space, then continue with `--resume`"
        );
        assert_eq!(error.exit_code(), 3);
        let first = "error: cannot write `runs/x/model.bin` (step 14 is saved): no storage space";
        assert_eq!(error.after(Some(14)).report().lines().next(), Some(first));

        let error = Error::ResumeMismatch {
            dir: "runs/ettm1".into(),
            key: "model.n_layer".into(),
            checkpoint: "4".into(),
            config: "2".into(),
        };
        assert_eq!(
            error.report(),
            "error: cannot resume `runs/ettm1`: `model.n_layer` is 4 in the checkpoint and 2 in \
             the config\nhint: start a new run directory, or restore the value"
        );
        assert_eq!(error.exit_code(), 2);

        let error = Error::RunInUse { dir: "runs/x".into(), pid: Some(42) };
        assert_eq!(
            error.report(),
            "error: run directory `runs/x` is in use by process 42\n\
             hint: wait for the other process, or choose another `run.name`"
        );
        assert_eq!(error.exit_code(), 1);
    }

    #[test]
    fn a_panic_is_an_error_like_others() {
        let error = caught("the command", || -> Result<(), _> { panic!("out of\n  memory") });
        let error = error.unwrap_err();
        assert_eq!(
            error.report(),
            "error: the command panicked: out of memory\n\
             hint: test the devices with `ssm doctor`: most panics come from one that fails"
        );
        assert_eq!(error.exit_code(), 1);
        assert_eq!(
            error.after(Some(7)).report(),
            "error: the command panicked (step 7 is saved): out of memory\n\
             hint: continue with `--resume`"
        );
    }

    #[test]
    fn what_fails_in_training_names_the_step_that_is_saved() {
        let device = Error::Device {
            device: "cuda".into(),
            message: "failed at step 9: out of memory".into(),
            hint: None,
        };
        let replica = Error::Replica { rank: 1, size: 2, message: "lost".into(), saved: None };
        let what = "the loss NaN".to_owned();
        let samples = ["a", "b", "c", "d", "e", "f"].map(str::to_owned).to_vec();
        let loss = Error::NonFinite { step: 9, what, samples, hint: None, saved: None };
        for (error, before, after) in [
            (
                device,
                "device `cuda`: failed at step 9: out of memory",
                "device `cuda`: failed at step 9: out of memory (step 7 is saved)",
            ),
            (
                replica,
                "replica 1 of 2 is gone: lost",
                "replica 1 of 2 is gone (step 7 is saved): lost",
            ),
            (
                loss,
                "the loss NaN is not finite at step 9, from a, b, c, d and 2 more",
                "the loss NaN is not finite at step 9 (step 7 is saved), from a, b, c, d and 2 more",
            ),
        ] {
            assert_eq!(error.to_string(), before);
            assert_eq!(error.after(Some(7)).to_string(), after);
        }
    }

    #[test]
    fn interruptions_exit_as_shells_expect() {
        for (signal, code) in [(2, 130), (15, 143), (-1, 1)] {
            assert_eq!(Error::Interrupted { signal, step: 7 }.exit_code(), code);
        }
    }
}
