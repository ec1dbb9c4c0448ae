//! The binary in a process of its own, with a directory for what it writes.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;
use tempfile::TempDir;

/// A small S-Mamba on the data of the repository.
pub(crate) const DEBUG: &str = "configs/forecasting/debug.toml";

/// What a process left: exit code, standard output, standard error.
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// A directory that is removed with the test.
pub(crate) struct Desk {
    dir: TempDir,
}

impl Desk {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    /// The directory itself.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn put(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        #[expect(clippy::disallowed_methods, reason = "a test makes its own input")]
        fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    /// `debug.toml` with some of its text replaced, as a file of this directory.
    pub(crate) fn config(&self, name: &str, changes: &[(&str, &str)]) -> String {
        let mut text = fs::read_to_string(root().join(DEBUG)).unwrap();
        for (old, new) in changes {
            assert!(text.contains(old), "{DEBUG} has no `{old}`");
            text = text.replace(old, new);
        }
        self.put(name, &text)
    }

    /// Runs `ssm` with `arguments` in the root of the repository, without data directories.
    pub(crate) fn ssm(&self, arguments: &[&str]) -> Ended {
        self.ssm_in(root(), arguments)
    }

    /// As [`Desk::ssm`], in another directory.
    pub(crate) fn ssm_in(&self, dir: &Path, arguments: &[&str]) -> Ended {
        let output = Command::new(env!("CARGO_BIN_EXE_ssm"))
            .args(arguments)
            .current_dir(dir)
            .env_remove("SSM_DATA")
            // Compiled kernels of a card.
            .env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR"))
            .env("NO_COLOR", "1")
            .output()
            .unwrap();
        Ended {
            code: output.status.code().unwrap(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// `ssm train` with the run directory below this directory.
    pub(crate) fn train(&self, config: &str, arguments: &[&str]) -> Ended {
        let dir = format!("run.dir={}", self.dir.path().display());
        self.ssm(&[&["train", config, "--set", &dir], arguments].concat())
    }

    /// As [`Desk::train`]; fails unless the run succeeds.
    pub(crate) fn trained(&self, config: &str, arguments: &[&str]) -> Ended {
        let ended = self.train(config, arguments);
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        ended
    }
}

/// The root of the repository.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A directory with published data: `SSM_DATA`, or the one beside the repository where there is one.
pub(crate) fn published_data() -> Option<PathBuf> {
    let named = std::env::var_os("SSM_DATA").map(PathBuf::from);
    let dir = named.unwrap_or_else(|| root().join("../shared/data"));
    dir.join("timeseries/ETTh1.csv.gz").is_file().then_some(dir)
}

/// The first `n_rows` hours of the repository's data as CSV.
pub(crate) fn known_hours(n_rows: usize) -> String {
    let bytes = fs::read(root().join("examples/data/nyc_airports.csv.gz")).unwrap();
    let mut text = String::new();
    std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(&*bytes), &mut text).unwrap();
    text.lines().take(1 + n_rows).map(|line| format!("{line}\n")).collect()
}

/// `metrics.jsonl` without measured times.
pub(crate) fn rows(run: &Path) -> Vec<Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let row = |line: &str| {
        let mut row: Value = serde_json::from_str(line).unwrap();
        for measured in ["elapsed_secs", "samples_per_sec", "tokens_per_sec", "mfu"] {
            row.as_object_mut().unwrap().remove(measured);
        }
        row
    };
    text.lines().map(row).collect()
}
