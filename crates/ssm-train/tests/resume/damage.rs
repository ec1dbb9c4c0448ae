//! What is broken is noticed, named and survived.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use burn::tensor::Device;
use ssm_train::{
    Config, Error, Task, config::DeviceSection, evaluate, load_model, loading::restore_model,
    task::Split,
};

use crate::{
    CHILD, overwrite,
    toy::{self, N_TRAIN, Toy, ToyConfig, alone, checkpoints, config, run, trace, weights},
};

fn flip_a_bit(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    overwrite(path, &bytes);
}

#[test]
fn a_damaged_checkpoint_is_refused_by_file() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), "x", &["checkpoint.keep=9"]);
    run(&config, false, &[]).unwrap();
    let all = checkpoints(&config);
    let path = |step: u64| config.run.path().join(format!("checkpoints/step_{step:08}"));
    let message = |step: u64| match all.load(step) {
        Err(Error::Checkpoint { path: named, message, .. }) => {
            assert_eq!(named, path(step));
            message
        }
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("step {step} is damaged"),
    };

    flip_a_bit(&path(7).join("model.bpk"));
    let hash = "`model.bpk` has the SHA-256 ";
    assert!(message(7).starts_with(hash) && message(7).contains(", not "), "{}", message(7));

    let optimizer = fs::read(path(14).join("optimizer.bpk")).unwrap();
    overwrite(&path(14).join("optimizer.bpk"), &optimizer[..100]);
    let size = optimizer.len();
    assert_eq!(message(14), format!("`optimizer.bpk` has 100 bytes, not {size}"));

    fs::remove_file(path(21).join("state.json")).unwrap();
    assert_eq!(message(21), "`state.json` is missing");

    overwrite(&path(28).join("manifest.json"), b"{\"format\": 1, \"files\": {}}");
    assert_eq!(message(28), "`manifest.json` does not list `state.json`");
    overwrite(&path(28).join("manifest.json"), b"{\"format\": 2, \"files\": {}}");
    assert_eq!(message(28), "`manifest.json` has format 2, this program reads format 1");
    overwrite(&path(28).join("manifest.json"), b"{");
    let start = "`manifest.json` cannot be understood: EOF";
    assert!(message(28).starts_with(start), "{}", message(28));

    let error = all.load_newest().err().unwrap();
    assert!(error.to_string().contains("step_00000028"), "the newest is the one reported: {error}");
}

#[test]
fn a_damaged_newest_checkpoint_falls_back_to_the_one_before() {
    let dir = tempfile::tempdir().unwrap();
    let [whole, cut] = ["whole", "cut"].map(|name| config(dir.path(), name, &[]));
    run(&whole, false, &[]).unwrap();
    run(&cut, false, &["fail=24"]).unwrap_err();
    let newest = cut.run.path().join("checkpoints/step_00000021");
    flip_a_bit(&newest.join("optimizer.bpk"));
    assert_eq!(checkpoints(&cut).load_newest().unwrap().unwrap().position().step, 14);
    run(&cut, true, &[]).unwrap();
    assert_eq!(trace(&cut), trace(&whole));
}

/// What is damaged must not push out what is intact.
#[test]
fn what_is_saved_after_a_fall_back_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let with = |more: &[&str]| {
        let scores = "task.toy.scores=[3.0, 1.0, 2.0]";
        config(dir.path(), "x", &[&[scores], more].concat())
    };
    let cut = with(&[]);
    run(&cut, false, &["fail=24"]).unwrap_err();
    assert_eq!(checkpoints(&cut).steps().unwrap(), [14, 21]);
    let newest = cut.run.path().join("checkpoints/step_00000021");
    flip_a_bit(&newest.join("state.json"));
    let every = with(&["checkpoint.every_steps=1", "checkpoint.keep=1"]);
    run(&every, true, &["fail=17"]).unwrap_err();
    assert_eq!(checkpoints(&cut).steps().unwrap(), [14, 17], "the best and the newest");
    assert!(newest.with_extension("damaged").join("state.json").exists());
    run(&every, true, &[]).unwrap();
}

#[test]
fn unfinished_saves_are_swept_away() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), "x", &[]);
    run(&config, false, &["fail=24"]).unwrap_err();
    let unfinished = config.run.path().join("checkpoints/step_00000022.tmp");
    fs::create_dir(&unfinished).unwrap();
    overwrite(&unfinished.join("model.bpk"), b"half of i");
    // As `ssm report` leaves it where it is killed.
    let page = config.run.path().join("report.html.4711.0.tmp");
    overwrite(&page, b"<html>");
    assert_eq!(checkpoints(&config).steps().unwrap().last(), Some(&21));
    run(&config, true, &[]).unwrap();
    assert!(!unfinished.exists() && !page.exists());
}

#[test]
fn pruning_keeps_the_newest_and_the_best() {
    let dir = tempfile::tempdir().unwrap();
    let scores = "task.toy.scores=[3.0, 1.0, 2.0, 2.0, 2.0, 2.0]";
    let config = config(dir.path(), "x", &[scores, "train.epochs=6"]);
    run(&config, false, &[]).unwrap();
    assert_eq!(checkpoints(&config).steps().unwrap(), [14, 35, 42]);
    let named =
        |name: &str| fs::read_to_string(config.run.path().join("checkpoints").join(name)).unwrap();
    let sha256 = "fc4070b77b98283ae3ceb049bbea53effe2298ab9aa0ac9b156fbcb8fa93884f";
    assert_eq!(named("last"), format!("step_00000042\n{sha256}\n"));
    let sha256 = "5edb87a15c41381ba82f08b9cbd1659a9b300d6bfa47b30b4609c5ecc8a6dda8";
    assert_eq!(named("best"), format!("step_00000014\n{sha256}\n"));
}

#[test]
fn a_best_checkpoint_that_is_gone_is_searched_anew() {
    let dir = tempfile::tempdir().unwrap();
    let scores = "task.toy.scores=[0.0, 1.0]";
    let config = config(dir.path(), "x", &[scores]);
    run(&config, false, &["fail=20"]).unwrap_err();
    fs::remove_dir_all(config.run.path().join("checkpoints/step_00000007")).unwrap();
    assert!(run(&config, true, &[]).unwrap().best.unwrap().step > 14);
}

#[test]
fn a_best_checkpoint_that_is_damaged_is_searched_anew() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), "x", &["task.toy.scores=[0.0, 1.0]"]);
    run(&config, false, &["fail=20"]).unwrap_err();
    flip_a_bit(&config.run.path().join("checkpoints/step_00000007/model.bpk"));
    run(&config, true, &["fail=16"]).unwrap_err();
    // Nothing points to it any more, so whoever scores the run now takes the newest weights.
    assert!(!config.run.path().join("checkpoints/best").exists());
    assert_eq!(checkpoints(&config).load_best().unwrap().position().step, 14);
    assert!(run(&config, true, &[]).unwrap().best.unwrap().step > 14);
}

#[test]
fn results_without_checkpoints_are_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let [done, cut] = ["done", "cut"].map(|name| config(dir.path(), name, &[]));
    run(&done, false, &[]).unwrap();
    run(&cut, false, &["fail=16"]).unwrap_err();
    for config in [&done, &cut] {
        let path = config.run.path();
        let log = fs::read(path.join("metrics.jsonl")).unwrap();
        fs::remove_dir_all(path.join("checkpoints")).unwrap();
        for resume in [false, true] {
            let shown = path.display();
            assert_eq!(
                run(config, resume, &[]).unwrap_err().report(),
                format!(
                    "error: `{shown}` holds a run without its checkpoints\n\
                     hint: put `{shown}/checkpoints` back, choose another `run.name`, or remove the \
                     directory with its results"
                )
            );
        }
        assert_eq!(fs::read(path.join("metrics.jsonl")).unwrap(), log);
    }
    assert!(done.run.path().join("result.json").exists());
}

/// Without `run.json` nobody knows which data the run was trained on.
#[test]
fn a_lost_origin_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), "x", &[]);
    run(&config, false, &["fail=16"]).unwrap_err();
    let path = config.run.path();
    let report = |problem: &str| {
        format!(
            "error: checkpoint `{}`: its `run.json` {problem}\n\
             hint: restore the file: it says which data the run was trained on",
            path.display()
        )
    };
    overwrite(&path.join("run.json"), b"{");
    let problem = "cannot be understood: EOF while parsing an object at line 1 column 1";
    assert_eq!(run(&config, true, &["other_data=0"]).unwrap_err().report(), report(problem));
    fs::remove_file(path.join("run.json")).unwrap();
    assert_eq!(run(&config, true, &[]).unwrap_err().report(), report("is missing"));
    let error = load_model::<Toy>(&path, None, Vec::new()).err().unwrap();
    assert_eq!(error.report(), report("is missing"));
}

#[test]
fn a_run_is_not_scored_on_other_data() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), "x", &["train.epochs=1"]);
    run(&config, false, &[]).unwrap();
    let path = config.run.path();
    let other = vec!["other_data=0".into()];
    let _guard = alone();
    let error = evaluate::<Toy>(&path, None, other, Split::Valid).unwrap_err();
    assert_eq!(
        error.report(),
        format!(
            "error: `rows`: `{}` was trained on the SHA-256 00, the file has 11\n\
             hint: restore the file, or train a new run on the other one",
            path.display()
        )
    );
    assert_eq!(error.exit_code(), 2);
}

#[test]
fn finished_runs_can_be_loaded_and_scored_again() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), "x", &[]);
    let summary = run(&config, false, &[]).unwrap();
    let path = config.run.path();
    let _guard = alone();
    let (loaded, ..) = load_model::<Toy>(&path, None, Vec::new()).unwrap();
    assert_eq!(loaded, config);
    // Scores only: what `conclude` does besides is not done again.
    let sealed = vec!["conclude=0".into()];
    let again = evaluate::<Toy>(&path, None, sealed, Split::Test).unwrap();
    assert_eq!(again, summary.result.metrics);
    let device = DeviceSection { backend: "ndarray".into(), ..DeviceSection::default() };
    let valid = evaluate::<Toy>(&path, Some(&device), Vec::new(), Split::Valid).unwrap();
    let best = summary.best.unwrap().value;
    assert!((valid["mse"] - best).abs() <= 1e-6 * best);

    let build = |config: &Config<ToyConfig>, _: &serde_json::Value, device: &Device| {
        let settings = config.settings(Vec::new());
        Ok(Toy::new(&config.task, &config.data, &config.model, &settings, device)?.1)
    };
    let (_, artifacts, restored) = restore_model(&path, None, build).unwrap();
    assert_eq!(artifacts["rows"], N_TRAIN);
    let (.., model) = load_model::<Toy>(&path, None, Vec::new()).unwrap();
    assert_eq!(weights(&restored), weights(&model));

    let error = load_model::<Toy>(dir.path(), None, Vec::new()).err().unwrap();
    assert_eq!(
        error.report(),
        format!(
            "error: `{}` is no run directory: it has no `config.toml`\n\
             hint: runs are in `<run.dir>/<run.name>`, by default `runs/<name>`",
            dir.path().display()
        )
    );
}

#[test]
fn devices_of_the_second_cpu_backend_train_too() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), "x", &["device.backend=ndarray", "train.epochs=1"]);
    assert_eq!(run(&config, false, &[]).unwrap().result.steps, 7);
}

/// Two hundred times, or as often as SSM_KILL_ROUNDS says, a process is killed wherever it happens to be in its loop of saves.
#[test]
fn a_kill_at_any_moment_leaves_whole_checkpoints() {
    let dir = tempfile::tempdir().unwrap();
    let overrides = ["checkpoint.every_steps=1", "checkpoint.keep=3", "train.epochs=40000"];
    let config = config(dir.path(), "x", &overrides);
    let all = checkpoints(&config);
    let mut newest = 0;
    let rounds = std::env::var("SSM_KILL_ROUNDS").ok().and_then(|text| text.parse().ok());
    for round in 0..rounds.unwrap_or(200u64) {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "damage::child_that_is_killed", "--ignored", "--test-threads=1"])
            .env(CHILD, dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Until it saves; then for a time that differs from round to round.
        while all.steps().unwrap().last().is_none_or(|step| *step <= newest) {
            assert!(child.try_wait().unwrap().is_none(), "the child ended by itself");
            std::thread::sleep(Duration::from_millis(1));
        }
        if round == 0 {
            let error = run(&config, true, &[]).unwrap_err();
            let pid = child.id();
            assert!(matches!(error, Error::RunInUse { pid: Some(other), .. } if other == pid));
        }
        std::thread::sleep(Duration::from_micros(round * 2718 % 20_000));
        child.kill().unwrap();
        child.wait().unwrap();

        let steps = all.steps().unwrap();
        assert!(!steps.is_empty());
        for step in &steps {
            if let Err(error) = all.load(*step) {
                panic!("round {round}: {error}");
            }
        }
        let last = *steps.last().unwrap();
        assert!(last > newest, "round {round} made progress");
        newest = last;
        assert_eq!(all.load_newest().unwrap().unwrap().position().step, newest);
        all.load_best().unwrap();
    }

    // All the killed processes together did what one undisturbed process does.
    let steps = format!("train.steps={}", newest + 2);
    let overrides = ["checkpoint.every_steps=1", "checkpoint.keep=3", &steps];
    let [cut, whole] = ["x", "whole"].map(|name| toy::config(dir.path(), name, &overrides));
    run(&cut, true, &[]).unwrap();
    run(&whole, false, &[]).unwrap();
    assert_eq!(trace(&cut), trace(&whole));
    // No line twice, none lost.
    let lines: Vec<_> =
        trace(&cut).rows.iter().map(|row| (row["step"].clone(), row["split"].clone())).collect();
    let distinct: std::collections::HashSet<String> =
        lines.iter().map(|line| format!("{line:?}")).collect();
    assert_eq!(distinct.len(), lines.len());
}

#[test]
#[ignore = "run by `a_kill_at_any_moment_leaves_whole_checkpoints` in a process of its own"]
fn child_that_is_killed() {
    let Some(dir) = std::env::var_os(CHILD) else { return };
    let overrides = ["checkpoint.every_steps=1", "checkpoint.keep=3", "train.epochs=40000"];
    let config = config(dir.as_ref(), "x", &overrides);
    let resume = !checkpoints(&config).steps().unwrap().is_empty();
    let _ = run(&config, resume, &[]);
}
