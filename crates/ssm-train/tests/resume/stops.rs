//! Signals and panics in any phase of a step, and directories that vanish, have odd names or are links.

use std::{
    fs,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
};

use signal_hook::consts::SIGTERM;

use crate::{
    CHILD,
    faults::{config, said},
    toy::{self, checkpoints, run, trace},
};

/// A signal while data is read, while the loss is computed, and while the model is evaluated: the step
/// is finished, saved and named.
#[test]
fn a_signal_in_any_phase_of_a_step_saves_the_step() {
    let whole = tempfile::tempdir().unwrap();
    run(&config(whole.path(), "x"), false, &[]).unwrap();
    // The evaluation at the end of the first epoch comes after micro-batch 6.
    for (fault, step) in [("signal=4", 5), ("signal_in_loss=4", 5), ("signal_in_evaluation=6", 7)] {
        let dir = tempfile::tempdir().unwrap();
        let status = with_fault(dir.path(), fault);
        assert_eq!(status.code(), Some(128 + SIGTERM), "{fault}: {status}");
        let report = format!(
            "error: interrupted by signal 15 at step {step}\nhint: continue with `--resume`"
        );
        assert_eq!(said(dir.path()), report);
        let config = config(dir.path(), "x");
        assert_eq!(checkpoints(&config).steps().unwrap().last(), Some(&step));
        run(&config, true, &[]).unwrap();
        assert_eq!(trace(&config), trace(&self::config(whole.path(), "x")), "{fault}");
    }
    // Read ahead of the step that needs it: while the one before it goes on, or has just ended.
    let dir = tempfile::tempdir().unwrap();
    let status = with_fault(dir.path(), "ahead=1 signal=4");
    assert_eq!(status.code(), Some(128 + SIGTERM), "{status}");
    let config = config(dir.path(), "x");
    let step = *checkpoints(&config).steps().unwrap().last().unwrap();
    assert!((4..=5).contains(&step), "step {step}");
    let report =
        format!("error: interrupted by signal 15 at step {step}\nhint: continue with `--resume`");
    assert_eq!(said(dir.path()), report);
    run(&config, true, &["ahead=1"]).unwrap();
    assert_eq!(trace(&config), trace(&self::config(whole.path(), "x")));

    let dir = tempfile::tempdir().unwrap();
    let status = with_fault(dir.path(), "two_signals=4");
    assert_eq!(status.signal(), Some(SIGTERM), "the second signal does not wait");
}

fn with_fault(dir: &Path, fault: &str) -> ExitStatus {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "stops::child_with_a_fault", "--ignored", "--test-threads=1"])
        .env(CHILD, dir)
        .env("FAULT", fault)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap()
}

#[test]
#[ignore = "run by `a_signal_in_any_phase_of_a_step_saves_the_step` in a process of its own"]
fn child_with_a_fault() {
    let Some(dir) = std::env::var_os(CHILD) else { return };
    let fault = std::env::var("FAULT").unwrap();
    let faults: Vec<&str> = fault.split(' ').collect();
    let error = run(&config(dir.as_ref(), "x"), false, &faults).unwrap_err();
    toy::put(&PathBuf::from(&dir).join("error"), error.report().as_bytes()).unwrap();
    std::process::exit(error.exit_code().into());
}

/// On the thread that trains, and on the one that reads ahead of it.
#[test]
fn a_worker_that_panics_ends_the_run_and_does_not_hang_it() {
    let dir = tempfile::tempdir().unwrap();
    let whole = config(dir.path(), "whole");
    run(&whole, false, &[]).unwrap();
    for faults in [&["panic=8"][..], &["ahead=1", "panic=8"]] {
        let cut = config(dir.path(), &format!("cut_{}", faults.len()));
        let error = run(&cut, false, faults).unwrap_err();
        let start =
            "error: training panicked (step 7 is saved): called `Result::unwrap()` on an `Err`";
        assert!(error.report().starts_with(start), "{}", error.report());
        assert_eq!(error.exit_code(), 1);
        assert_eq!(checkpoints(&cut).steps().unwrap().last(), Some(&7));
        // Nothing is locked any more.
        run(&cut, true, &[]).unwrap();
        assert_eq!(trace(&cut), trace(&whole), "{faults:?}");
    }
}

/// Where a device fails Burn panics: in a step, in an evaluation, and when the test split is scored. What
/// it panics at here are shapes that do not fit.
#[test]
fn a_panic_of_burn_ends_the_run_where_it_can_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let whole = config(dir.path(), "whole");
    run(&whole, false, &[]).unwrap();
    for (fault, what, saved) in [
        ("device_in_loss=8", "training", 7),
        // At the end of the second epoch, before its last step is saved.
        ("device_in_evaluation=13", "training", 12),
        ("device_in_conclusion=0", "the final evaluation", 14),
    ] {
        let cut = config(dir.path(), &fault.replace('=', "_"));
        let error = run(&cut, false, &[fault]).unwrap_err();
        let report = error.report();
        assert_eq!(
            report,
            format!(
                "error: {what} panicked (step {saved} is saved): === Tensor Operation Error === \
                 Operation: 'Matmul' Reason: 1. The inner dimension of matmul should be the same, \
                 but got 3 and 2. Lhs shape Shape {{ dims: [2, 3] }}, rhs shape Shape {{ dims: \
                 [2, 3] }}.\nhint: continue with `--resume`"
            ),
            "{fault}"
        );
        assert_eq!(error.exit_code(), 1);
        let newest = checkpoints(&cut).load_newest().unwrap().unwrap();
        assert_eq!(newest.position().step, saved, "{fault}");
        run(&cut, true, &[]).unwrap();
        assert_eq!(trace(&cut), trace(&whole), "{fault}");
    }
}

#[test]
fn a_panic_at_the_start_is_an_error_too() {
    let dir = tempfile::tempdir().unwrap();
    let [whole, cut] = ["whole", "x"].map(|name| config(dir.path(), name));
    run(&whole, false, &[]).unwrap();
    run(&cut, false, &["fail=8"]).unwrap_err();
    let error = run(&cut, true, &["device_at_start=0"]).unwrap_err();
    let start = "error: the start panicked: === Tensor Operation Error === Operation: 'Matmul'";
    assert!(error.report().starts_with(start), "{}", error.report());
    assert_eq!(error.exit_code(), 1);
    // Nothing is locked any more.
    run(&cut, true, &[]).unwrap();
    assert_eq!(trace(&cut), trace(&whole));
}

#[test]
fn a_run_directory_that_vanishes_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), "x");
    let path = config.run.path();
    let error =
        run(&config, false, &["vanish=7", &format!("run_dir:{}", path.display())]).unwrap_err();
    let report = error.report();
    let start = format!("error: cannot create the directory `{}", path.display());
    assert!(report.starts_with(&start), "{report}");
    assert_eq!(error.exit_code(), 3);
}

#[test]
fn directories_may_have_any_name_and_be_links() {
    let dir = tempfile::tempdir().unwrap();
    let strange = dir.path().join("läufe mit  Leerzeichen ☃");
    fs::create_dir(&strange).unwrap();
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&strange, &link).unwrap();
    let config = config(&link, "ein lauf");
    run(&config, false, &["fail=8"]).unwrap_err();
    run(&config, true, &[]).unwrap();
    assert!(strange.join("ein lauf/report.html").is_file());
}
