//! Every call that changes a file of a run, made to go wrong in a process of its own.
//!
//! `faults.c` is loaded in front of the C library and counts the calls of one process below its run
//! directory: `create`, `write`, `fsync`, `rename`, `mkdir`, `unlink` and their like. The tests then go
//! through them one by one.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    time::SystemTime,
};

use signal_hook::consts::{SIGKILL, SIGTERM};
use ssm_train::{Config, Error, TrainOptions, logging, train};

use crate::{
    CHILD,
    toy::{self, Toy, ToyConfig, checkpoints, run, trace},
};

/// Saves every third step, prunes, has a best and a last, ends and concludes.
const SETTINGS: [&str; 4] =
    ["train.epochs=2", "checkpoint.every_steps=3", "checkpoint.keep=1", "log.every_steps=2"];

pub(crate) fn config(dir: &Path, name: &str) -> Config<ToyConfig> {
    toy::config(dir, name, &SETTINGS)
}

/// The library, compiled once for the process.
pub(crate) fn library() -> &'static Path {
    static LIBRARY: std::sync::LazyLock<(tempfile::TempDir, PathBuf)> =
        std::sync::LazyLock::new(|| {
            let dir = tempfile::tempdir().unwrap();
            let library = dir.path().join("faults.so");
            let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/resume/faults.c");
            let mut compiler = Command::new("cc");
            compiler.args(["-shared", "-fPIC", "-O1", "-w", "-o"]).arg(&library).arg(source);
            assert!(compiler.arg("-ldl").status().unwrap().success(), "cc failed");
            (dir, library)
        });
    &LIBRARY.1
}

/// A process that trains `x` in `dir`, with the fault `kind` in its call number `at`.
fn train_with(dir: &Path, kind: &str, at: usize) -> ExitStatus {
    child_with("faults::child_that_trains", dir, kind, at).status().unwrap()
}

fn child_with(test: &str, dir: &Path, kind: &str, at: usize) -> Command {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child
        .args(["--exact", test, "--ignored", "--test-threads=1"])
        .env(CHILD, dir)
        .env("LD_PRELOAD", library())
        .env("FAULT_DIR", dir.join("x"))
        .env("FAULT_LOG", dir.join("calls"))
        .env("FAULT_KIND", kind)
        .env("FAULT_AT", at.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    child
}

#[test]
#[ignore = "run by the other tests of this file in a process of its own"]
fn child_that_trains() {
    let Some(dir) = std::env::var_os(CHILD) else { return };
    let config = config(dir.as_ref(), "x");
    let code = match run(&config, false, &[]) {
        Ok(_) => 0,
        Err(error) => {
            let _ = toy::put(&PathBuf::from(&dir).join("error"), error.report().as_bytes());
            error.exit_code()
        }
    };
    std::process::exit(code.into());
}

/// All that could explain a failure afterwards: what the process said and did, what it left, and who holds
/// a lock.
fn evidence(dir: &Path) -> String {
    let mut text = format!("said: {:?}\n", said(dir));
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let Ok(about) = entry.metadata() else { continue };
            if about.is_dir() {
                folders.push(entry.path());
            }
            text += &format!("{} {} bytes\n", entry.path().display(), about.len());
        }
    }
    for file in ["calls", "x/lock", "x/run.json", "x/metrics.jsonl", "x/checkpoints/last"] {
        let held = fs::read_to_string(dir.join(file));
        text += &format!("{file}: {}\n", held.unwrap_or_else(|error| error.to_string()));
    }
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    text + &format!("this process is {}; locks:\n{locks}", std::process::id())
}

/// What the process would say to its user.
pub(crate) fn said(dir: &Path) -> String {
    fs::read_to_string(dir.join("error")).unwrap_or_default()
}

/// The calls of an undisturbed process, by name.
fn calls() -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    assert!(train_with(dir.path(), "none", 0).success());
    let log = fs::read_to_string(dir.path().join("calls")).unwrap();
    log.lines().map(|line| line.split(' ').nth(1).unwrap().to_owned()).collect()
}

/// Which calls a test goes through: all of them, or every n-th from a place that differs for each kind,
/// so that all tests together stay quick.
fn points(n_calls: usize, kind: &str) -> Vec<usize> {
    let stride = std::env::var("SSM_FAULT_STRIDE").ok().and_then(|text| text.parse().ok());
    let stride = stride.unwrap_or(if kind == "kill" { 1 } else { 4 });
    (1 + kind.len() % stride..=n_calls).step_by(stride).collect()
}

/// Goes through the calls, lets `check` look at how the process ended, then resumes the run: whatever
/// happened, it ends as an undisturbed one.
fn at_every_call(kind: &str, check: impl Fn(usize, ExitStatus, &Path)) {
    let calls = calls();
    let names: BTreeSet<&str> = calls.iter().map(String::as_str).collect();
    for name in ["create", "write", "fsync", "fdatasync", "rename", "mkdir", "unlinkat"] {
        assert!(names.contains(name), "no `{name}` among {names:?}");
    }
    assert!(calls.len() > 100, "{} calls", calls.len());

    let whole = tempfile::tempdir().unwrap();
    run(&config(whole.path(), "x"), false, &[]).unwrap();
    let expected = trace(&config(whole.path(), "x"));
    for at in points(calls.len(), kind) {
        let what = format!("{kind} at call {at}, `{}`", calls[at - 1]);
        let dir = tempfile::tempdir().unwrap();
        check(at, train_with(dir.path(), kind, at), dir.path());

        let config = config(dir.path(), "x");
        let all = checkpoints(&config);
        let steps = all.steps().unwrap();
        for step in &steps {
            if let Err(error) = all.load(*step) {
                panic!("{what}: {error}");
            }
        }
        let newest = all.load_newest().unwrap().map(|checkpoint| checkpoint.position().step);
        assert_eq!(newest, steps.last().copied(), "{what}");
        let resume = config.run.path().join("config.toml").exists();
        let before = evidence(dir.path());
        if let Err(error) = run(&config, resume, &[]) {
            panic!("{what}, resume = {resume}: {}\nthe process had left\n{before}", error.report());
        }
        let resumed = trace(&config);
        assert!(
            resumed == expected,
            "{what}, resume = {resume}: expected {expected:#?}\ngot {resumed:#?}\nthe process had \
             left\n{before}\nand there is now\n{}",
            evidence(dir.path())
        );
        let left: Vec<String> = ["", "checkpoints"]
            .iter()
            .flat_map(|folder| fs::read_dir(config.run.path().join(folder)).unwrap())
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.ends_with(".tmp"))
            .collect();
        assert_eq!(left, [""; 0], "{what}");
    }
}

#[test]
fn a_kill_at_every_call_that_changes_a_file_loses_nothing_that_was_saved() {
    at_every_call("kill", |at, status, _| {
        assert_eq!(status.signal(), Some(SIGKILL), "call {at}: {status}");
    });
}

#[test]
fn a_full_disk_stops_the_run_and_leaves_what_was_saved() {
    at_every_call("full", |at, status, dir| {
        // The last calls of a run need no space.
        if status.success() {
            return;
        }
        assert_eq!(status.code(), Some(3), "call {at}: {}", said(dir));
        let said = said(dir);
        assert!(said.contains("No space left on device"), "{said}");
        let hint = "\nhint: free some space, then continue with `--resume`";
        assert!(said.ends_with(hint), "{said}");
        let saved = checkpoints(&config(dir, "x")).steps().unwrap();
        if let (Some(step), true) = (saved.last(), said.contains("checkpoints/step_")) {
            assert!(said.contains(&format!(" (step {step} is saved): ")), "{said}");
        }
    });
}

#[test]
fn a_disk_that_fails_once_stops_the_run() {
    at_every_call("fail", |at, status, dir| {
        assert_eq!(status.code(), Some(3), "call {at}: {}", said(dir));
        let said = said(dir);
        assert!(said.contains("error: cannot ") && said.contains("Input/output error"), "{said}");
    });
}

#[test]
fn a_signal_in_any_phase_of_a_save_ends_the_run_where_it_can_go_on() {
    at_every_call("term", |at, status, dir| {
        // While the test split is scored nothing is lost by ending at once.
        if status.signal() == Some(SIGTERM) {
            return;
        }
        assert_eq!(status.code(), Some(128 + SIGTERM), "call {at}: {}", said(dir));
        let said = said(dir);
        assert!(said.starts_with("error: interrupted by signal 15 at step "), "{said}");
        assert!(said.ends_with("\nhint: continue with `--resume`"), "{said}");
    });
}

/// A real full file system of a mebibyte, where the system lets a test mount one.
#[test]
fn a_full_file_system_stops_the_run_with_the_step_that_is_saved() {
    let dir = tempfile::tempdir().unwrap();
    let script = "mount -t tmpfs -o size=1m none \"$FAULT_MOUNT\" && \
                  \"$@\"; code=$?; ls \"$FAULT_MOUNT/x/checkpoints\" > \"$FAULT_SEEN\"; exit $code";
    let mount = dir.path().join("disk");
    fs::create_dir(&mount).unwrap();
    let status = Command::new("unshare")
        .args(["-rm", "sh", "-c", script, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "faults::child_on_a_small_disk", "--ignored", "--test-threads=1"])
        .env(CHILD, &mount)
        .env("FAULT_MOUNT", &mount)
        .env("FAULT_SEEN", dir.path().join("seen"))
        .env("FAULT_REPORT", dir.path().join("report"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    let Ok(said) = fs::read_to_string(dir.path().join("report")) else {
        // The other tests of this file fake the same; here only a real disk is missing.
        assert!(!status.is_ok_and(|status| status.code() == Some(3)), "no report");
        return;
    };
    assert_eq!(status.unwrap().code(), Some(3), "{said}");
    let seen = fs::read_to_string(dir.path().join("seen")).unwrap();
    let newest = seen.lines().filter_map(|line| line.strip_prefix("step_")?.parse::<u64>().ok());
    let saved = format!(" (step {} is saved): No space left on device", newest.max().unwrap());
    assert!(said.contains(&saved), "{said}\n{seen}");
    assert!(said.ends_with("\nhint: free some space, then continue with `--resume`"), "{said}");
}

#[test]
#[ignore = "run by `a_full_file_system_stops_the_run_with_the_step_that_is_saved` on a disk of its own"]
fn child_on_a_small_disk() {
    let Some(dir) = std::env::var_os(CHILD) else { return };
    let more = ["model.width=1024", "checkpoint.every_steps=1", "checkpoint.keep=100"];
    let config = toy::config(dir.as_ref(), "x", &more);
    let error = run(&config, false, &[]).unwrap_err();
    // The report goes to another disk.
    toy::put(Path::new(&std::env::var_os("FAULT_REPORT").unwrap()), error.report().as_bytes())
        .unwrap();
    let again = checkpoints(&config).load_newest().unwrap().unwrap();
    assert!(
        matches!(error, Error::Save { saved: Some(step), .. } if step == again.position().step)
    );
    std::process::exit(error.exit_code().into());
}

/// The clock and the language of the system are no input.
#[test]
fn time_zone_and_language_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let child = |zone: &str, language: &str| {
        let dir = dir.path().join(zone.replace('/', "_"));
        fs::create_dir(&dir).unwrap();
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "faults::child_that_trains", "--ignored", "--test-threads=1"])
            .env(CHILD, &dir)
            .env("TZ", zone)
            .env("LC_ALL", language)
            .stdout(Stdio::null())
            .status();
        assert!(status.unwrap().success());
        trace(&config(&dir, "x"))
    };
    assert_eq!(child("Pacific/Kiritimati", "de_DE.UTF-8"), child("Pacific/Niue", "C"));
}

/// The clock is set back by an hour, or forward by a day, in the middle of a run: nothing that is measured
/// is taken from it, so neither a number nor a wait is.
#[test]
fn a_clock_that_jumps_changes_nothing() {
    let whole = tempfile::tempdir().unwrap();
    run(&config(whole.path(), "x"), false, &[]).unwrap();
    let expected = trace(&config(whole.path(), "x"));
    let middle = calls().len() / 2;
    for shift in [-3600, 86_400] {
        let dir = tempfile::tempdir().unwrap();
        let test = "faults::child_whose_clock_jumps";
        let mut child = child_with(test, dir.path(), "clock", middle);
        let status = child.env("FAULT_SHIFT", shift.to_string()).status().unwrap();
        assert!(status.success(), "{shift}: {}", said(dir.path()));
        let config = config(dir.path(), "x");
        assert_eq!(trace(&config), expected, "{shift}");

        let log = logging::rows(&config.run.path().join("metrics.jsonl")).unwrap();
        let elapsed: Vec<f64> =
            log.iter().map(|row| row["elapsed_secs"].as_f64().unwrap()).collect();
        assert!(elapsed[0] >= 0.0 && elapsed.is_sorted(), "{shift}: {elapsed:?}");
        assert!(*elapsed.last().unwrap() < 600.0, "{shift}: {elapsed:?}");
        let paces = log.iter().filter_map(|row| row.get("samples_per_sec")?.as_f64());
        assert!(paces.into_iter().all(|pace| pace > 1.0), "{shift}: {log:?}");
        // It jumped indeed.
        let seen: i64 = fs::read_to_string(dir.path().join("jump")).unwrap().parse().unwrap();
        assert!((shift..shift + 600).contains(&seen), "{shift}: {seen}");
        // The next session may seem to begin before the first one.
        run(&config, true, &[]).unwrap();
    }
}

#[test]
#[ignore = "run by `a_clock_that_jumps_changes_nothing` in a process of its own"]
fn child_whose_clock_jumps() {
    let Some(dir) = std::env::var_os(CHILD) else { return };
    let now = || match SystemTime::now().duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => since.as_secs() as i64,
        Err(error) => panic!("{error}"),
    };
    let before = now();
    let config = config(dir.as_ref(), "x");
    // With the bar, whose rate and remaining time come from a clock too.
    train::<Toy>(&config, &TrainOptions::default()).unwrap();
    let jump = (now() - before).to_string();
    toy::put(&PathBuf::from(&dir).join("jump"), jump.as_bytes()).unwrap();
}
