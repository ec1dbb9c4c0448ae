//! Runs that an older version left go on.

use std::{fs, path::Path, process::Command};

use crate::toy::{self, checkpoints, run};

/// A run as version 0.1.0 left it after ten of its fourteen steps; later versions go on with it.
const RECORDED: &str = "tests/resume/fixtures/v0.1.0";
const RECORDED_SETTINGS: [&str; 3] =
    ["train.epochs=2", "checkpoint.every_steps=5", "model.width=4"];

#[test]
fn a_run_of_an_older_version_goes_on() {
    let recorded = Path::new(env!("CARGO_MANIFEST_DIR")).join(RECORDED);
    let dir = tempfile::tempdir().unwrap();
    let copied = Command::new("cp").arg("-r").arg(&recorded).arg(dir.path().join("x")).status();
    assert!(copied.unwrap().success());
    let [old, whole] = ["x", "whole"].map(|name| toy::config(dir.path(), name, &RECORDED_SETTINGS));
    // A version that did not know a key yet did what is its default now.
    let stored = old.run.path().join("config.toml");
    let text = fs::read_to_string(&stored).unwrap();
    assert!(text.contains("accumulate = 1\n"));
    let without = text.replace("accumulate = 1\n", "");
    toy::put(&stored, without.as_bytes()).unwrap();
    let all = checkpoints(&old);
    assert_eq!(all.steps().unwrap(), [7, 10]);
    // Without the hashes that later versions write into both.
    assert_eq!((all.last().unwrap(), all.best().unwrap()), (Some(10), Some(7)));
    all.load(7).unwrap();
    let resumed = run(&old, true, &[]).unwrap();
    let fresh = run(&whole, false, &[]).unwrap();
    assert_eq!(resumed.result.steps, 14);
    // Another processor adds up in another order.
    let [resumed, fresh] = [resumed, fresh].map(|summary| summary.result.metrics["mse"]);
    assert!((resumed - fresh).abs() < 1e-4 * fresh, "{resumed} and {fresh}");
}

#[test]
#[ignore = "records the run of `a_run_of_an_older_version_goes_on`, once for a version"]
fn record_a_run_of_this_version() {
    let recorded = Path::new(env!("CARGO_MANIFEST_DIR")).join(RECORDED);
    let dir = tempfile::tempdir().unwrap();
    let config = toy::config(dir.path(), "x", &RECORDED_SETTINGS);
    run(&config, false, &["fail=11"]).unwrap_err();
    fs::remove_file(config.run.path().join("lock")).unwrap();
    fs::create_dir_all(recorded.parent().unwrap()).unwrap();
    let copied = Command::new("cp").arg("-r").arg(config.run.path()).arg(&recorded).status();
    assert!(copied.unwrap().success());
}
