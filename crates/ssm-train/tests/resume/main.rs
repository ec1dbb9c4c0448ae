//! A run that is cut and resumed ends with the bits of one that was not.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may fail as the test itself may")]

mod damage;
mod faults;
mod files;
mod replicas;
mod stops;
mod toy;
mod versions;

use std::{
    os::unix::process::ExitStatusExt,
    process::{Command, ExitStatus},
};

use ssm_train::{Error, logging};
use toy::{checkpoints, config, run, trace};

const CHILD: &str = "SSM_TEST_CHILD";

#[test]
fn equal_runs_have_equal_bits() {
    let dir = tempfile::tempdir().unwrap();
    let [first, second] = ["first", "second"].map(|name| config(dir.path(), name, &[]));
    for config in [&first, &second] {
        let summary = run(config, false, &[]).unwrap();
        assert_eq!(summary.metric, "mse");
        assert!(!summary.stopped_early);
        assert_eq!(summary.result.steps, 28);
        assert!(summary.report.exists());
    }
    assert_eq!(trace(&first), trace(&second));
}

#[test]
fn micro_batches_that_are_read_ahead_are_the_same() {
    let dir = tempfile::tempdir().unwrap();
    for overrides in [&[][..], &["train.accumulate=3"]] {
        let name = |place: &str| format!("{place}_{}", overrides.len());
        let [plain, ahead, cut] =
            ["plain", "ahead", "cut"].map(|place| config(dir.path(), &name(place), overrides));
        run(&plain, false, &[]).unwrap();
        run(&ahead, false, &["ahead=1"]).unwrap();
        assert_eq!(trace(&ahead), trace(&plain));
        // It fails at the micro-batch that cannot be read, not at the one before, and goes on there.
        let errors = [&["fail=24"][..], &["ahead=1", "fail=24"]].map(|faults| {
            let config = config(dir.path(), &name(&format!("lost_{}", faults.len())), overrides);
            let error = run(&config, false, faults).unwrap_err().report();
            (error, checkpoints(&config).steps().unwrap())
        });
        assert_eq!(errors[0], errors[1]);
        run(&cut, false, &["ahead=1", "fail=24"]).unwrap_err();
        run(&cut, true, &["ahead=1"]).unwrap();
        assert_eq!(trace(&cut), trace(&plain));
    }
}

/// Byte for byte, but for measured times.
#[test]
fn equal_runs_leave_equal_files() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let files = dirs.each_ref().map(|dir| {
        let config = config(dir.path(), "x", &[]);
        run(&config, false, &[]).unwrap();
        let path = config.run.path();
        let mut files = std::collections::BTreeMap::new();
        for step in checkpoints(&config).steps().unwrap() {
            for name in ["model.bpk", "optimizer.bpk"] {
                let name = format!("checkpoints/step_{step:08}/{name}");
                files.insert(name.clone(), std::fs::read(path.join(name)).unwrap());
            }
        }
        for name in ["checkpoints/last", "checkpoints/best", "result.json"] {
            files.insert(name.to_owned(), std::fs::read(path.join(name)).unwrap());
        }
        files
    });
    assert_eq!(files[0].len(), 2 * 2 + 3);
    for (name, bytes) in &files[0] {
        assert!(*bytes == files[1][name], "`{name}` differs");
    }
}

#[test]
fn training_improves_the_score() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), "x", &["train.epochs=40", "schedule={constant={}}"]);
    run(&config, false, &[]).unwrap();
    let rows = logging::rows(&config.run.path().join("metrics.jsonl")).unwrap();
    let scores: Vec<f64> = rows.iter().filter_map(|row| row["mse"].as_f64()).collect();
    assert_eq!(scores.len(), 40);
    assert!(scores[39] < 0.25 * scores[0], "{scores:?}");
}

/// The process loses what came after its last checkpoint, wherever in the epoch that was.
#[test]
fn a_run_that_fell_over_continues_with_the_same_bits() {
    let settings: [&[&str]; 4] = [
        &["checkpoint.every_steps=3"],
        &["checkpoint.every_steps=1", "checkpoint.keep=100"],
        &["train.accumulate=3", "checkpoint.every_steps=2", "train.clip_norm=0.5"],
        &["train.accumulate=3", "checkpoint.every_steps=2", "train.eval_every_steps=2"],
    ];
    for (case, overrides) in settings.into_iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        let whole = config(dir.path(), "whole", overrides);
        run(&whole, false, &[]).unwrap();
        let expected = trace(&whole);
        for fail in [6, 9, 13, 14, 20] {
            let name = format!("cut_{fail}");
            let cut = config(dir.path(), &name, overrides);
            let error = run(&cut, false, &[&format!("fail={fail}")]).unwrap_err();
            assert_eq!(error.to_string(), format!("`rows`: lost at {fail}"));
            let saved = checkpoints(&cut).steps().unwrap();
            assert!(!saved.is_empty() && saved.iter().all(|step| step % 7 < 7));
            run(&cut, true, &[]).unwrap();
            assert_eq!(trace(&cut), expected, "case {case}, cut at {fail}");
        }
    }
}

#[test]
fn a_run_can_be_cut_again_and_again() {
    let dir = tempfile::tempdir().unwrap();
    let overrides = ["checkpoint.every_steps=1"];
    let whole = config(dir.path(), "whole", &overrides);
    run(&whole, false, &[]).unwrap();
    let cut = config(dir.path(), "cut", &overrides);
    for fail in 2..28 {
        run(&cut, fail > 2, &[&format!("fail={fail}")]).unwrap_err();
    }
    run(&cut, true, &[]).unwrap();
    assert_eq!(trace(&cut), trace(&whole));
}

#[test]
fn what_was_never_saved_starts_from_the_beginning() {
    let dir = tempfile::tempdir().unwrap();
    let [whole, cut] = ["whole", "cut"].map(|name| config(dir.path(), name, &[]));
    run(&whole, false, &[]).unwrap();
    run(&cut, false, &["fail=5"]).unwrap_err();
    run(&cut, true, &[]).unwrap();
    assert_eq!(trace(&cut), trace(&whole));

    let again = config(dir.path(), "again", &[]);
    run(&again, false, &["fail=5"]).unwrap_err();
    run(&again, false, &[]).unwrap();
    assert_eq!(trace(&again), trace(&whole));
}

#[test]
fn a_half_written_line_of_the_log_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let [whole, cut] = ["whole", "cut"].map(|name| config(dir.path(), name, &[]));
    run(&whole, false, &[]).unwrap();
    run(&cut, false, &["fail=16"]).unwrap_err();
    let log = cut.run.path().join("metrics.jsonl");
    let mut text = std::fs::read(&log).unwrap();
    text.extend_from_slice(b"{\"step\":15,\"split\":\"tr");
    overwrite(&log, &text);
    run(&cut, true, &[]).unwrap();
    assert_eq!(trace(&cut), trace(&whole));
}

#[test]
fn a_finished_run_is_concluded_but_not_trained_again() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), "x", &[]);
    let sealed = run(&config, false, &["conclude=0"]).unwrap_err();
    assert_eq!(sealed.to_string(), "`rows`: the test split is sealed");
    let log = std::fs::read(config.run.path().join("metrics.jsonl")).unwrap();

    let first = run(&config, true, &["fail=0"]).unwrap();
    // `result.json` is there now, so the test split stays closed.
    let second = run(&config, true, &["conclude=0"]).unwrap();
    assert_eq!((&first.report, first.tables()), (&second.report, second.tables()));
    let [first_mse, second_mse] = [&first, &second].map(|run| run.result.metrics["mse"]);
    assert!((first_mse - second_mse).abs() <= 1e-12, "JSON may lose the last bit");
    assert_eq!(first.tables()[0].rows.len(), 1);
    assert_eq!(log, std::fs::read(config.run.path().join("metrics.jsonl")).unwrap());
}

#[test]
fn a_finished_run_can_be_made_longer() {
    let dir = tempfile::tempdir().unwrap();
    let short = config(dir.path(), "x", &["schedule={constant={}}"]);
    assert_eq!(run(&short, false, &[]).unwrap().result.steps, 28);
    let long = config(dir.path(), "x", &["schedule={constant={}}", "train.epochs=6"]);
    let error = run(&long, true, &["fail=40"]).unwrap_err();
    assert_eq!(error.to_string(), "`rows`: lost at 40");
    assert!(!long.run.path().join("result.json").exists(), "it has no result for the moment");
    assert_eq!(run(&long, true, &[]).unwrap().result.steps, 42);
    let text = std::fs::read_to_string(long.run.path().join("config.toml")).unwrap();
    assert!(text.contains("epochs = 6"));
}

/// `config.toml` is the one that the run went on with last; what it was before is not lost.
#[test]
fn what_a_run_was_before_it_was_resumed_with_other_settings_is_on_record() {
    let dir = tempfile::tempdir().unwrap();
    let with = |overrides: &[&str]| config(dir.path(), "x", overrides);
    run(&with(&[]), false, &["fail=9"]).unwrap_err();
    run(&with(&["optim.adamw.lr=0.02", "train.steps=30"]), true, &["fail=16"]).unwrap_err();
    // With the same ones nothing is to be said.
    let other = with(&["optim.adamw.lr=0.02", "train.steps=30", "train.clip_norm=1.0"]);
    run(&with(&["optim.adamw.lr=0.02", "train.steps=30"]), true, &["fail=16"]).unwrap_err();
    let summary = run(&other, true, &[]).unwrap();

    let expected = "\
        Changes of the configuration\n\n\
        from step  key              was     is\n\
        ---------  ---------------  ------  ------\n\
        \x20       7  optim.adamw.lr   0.01    0.02\n\
        \x20       7  train.epochs     4       absent\n\
        \x20       7  train.steps      absent  30\n\
        \x20      14  train.clip_norm  absent  1.0\n";
    let table = summary.changes.clone().unwrap();
    assert_eq!(ssm_train::report::text_table(&table), expected);
    assert_eq!(summary.tables().len(), 2);
    let info = ssm_train::run_dir::info(&other.run.path()).unwrap();
    let changes: Vec<usize> = info.sessions.iter().map(|session| session.changes.len()).collect();
    assert_eq!(changes, [0, 3, 0, 1]);
    let page = std::fs::read_to_string(&summary.report).unwrap();
    assert!(page.contains("Changes of the configuration") && page.contains("optim.adamw.lr"));

    let plain = config(dir.path(), "plain", &[]);
    assert_eq!(run(&plain, false, &[]).unwrap().changes, None);
    let (page, tables) =
        ssm_train::overview::compare(&[other.run.path(), plain.run.path()]).unwrap();
    assert!(page.contains("Changes of the configuration"));
    let [.., changes] = &tables[..] else { panic!("no tables") };
    assert_eq!(changes.columns, ["run", "from step", "key", "was", "is"]);
    assert_eq!(changes.rows[3], ["x", "14", "train.clip_norm", "absent", "1.0"]);
}

#[test]
fn an_existing_run_is_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), "x", &[]);
    run(&config, false, &[]).unwrap();
    let error = run(&config, false, &[]).unwrap_err();
    assert_eq!(
        error.report(),
        format!(
            "error: run directory `{}` already holds a run\n\
             hint: continue it with `--resume`, or choose another `run.name`",
            config.run.path().display()
        )
    );
}

#[test]
fn another_model_cannot_continue_a_run() {
    let dir = tempfile::tempdir().unwrap();
    run(&config(dir.path(), "x", &[]), false, &["fail=20"]).unwrap_err();
    for (change, key, old, new) in [
        ("model.width=8", "model.width", "16", "8"),
        ("run.seed=6", "run.seed", "5", "6"),
        ("train.batch_size=9", "train.batch_size", "8", "9"),
        ("train.accumulate=2", "train.accumulate", "1", "2"),
    ] {
        let changed = config(dir.path(), "x", &[change]);
        let error = run(&changed, true, &[]).unwrap_err();
        assert_eq!(
            error.report(),
            format!(
                "error: cannot resume `{}`: `{key}` is {old} in the checkpoint and {new} in the \
                 config\nhint: start a new run directory, or restore the value",
                changed.run.path().display()
            )
        );
    }
}

/// Where a run ends it logs and evaluates in any case; a longer run does not, and so does one that is
/// made longer.
#[test]
fn a_run_that_ended_anywhere_and_was_made_longer_is_the_longer_run() {
    let dir = tempfile::tempdir().unwrap();
    let settings = ["log.every_steps=30", "train.eval_every_steps=20"];
    let to = |name: &str, steps: u64| {
        let steps = format!("train.steps={steps}");
        config(dir.path(), name, &[&settings[..], &[steps.as_str()]].concat())
    };
    run(&to("whole", 100), false, &[]).unwrap();
    let expected = trace(&to("whole", 100));
    assert_eq!(expected.rows.len(), 4 + 5);
    // Both are due at 60; only one of them at 30 and 40; none at 50, whose weights were the best.
    for ends in [&[30][..], &[40], &[50], &[60], &[30, 50, 70]] {
        let name = format!("{ends:?}");
        for (number, &end) in ends.iter().enumerate() {
            let summary = run(&to(&name, end), number > 0, &[]).unwrap();
            assert_eq!((summary.result.steps, summary.best.unwrap().step), (end, end), "{name}");
        }
        // It may fall over before it saves what it took back.
        run(&to(&name, 100), true, &[&format!("fail={}", ends.last().unwrap() + 2)]).unwrap_err();
        run(&to(&name, 100), true, &[]).unwrap();
        assert_eq!(trace(&to(&name, 100)), expected, "{name}");
    }
}

#[test]
fn an_evaluation_that_only_the_end_asked_for_costs_no_patience() {
    let dir = tempfile::tempdir().unwrap();
    // The sessions start from the first score again: 20, 40 and 50, then 60, 80 and 100.
    let scores = "task.toy.scores=[3.0, 2.0, 2.5]";
    let settings = [scores, "train.eval_every_steps=20", "train.patience=2"];
    let to = |steps: &str| config(dir.path(), "x", &[&settings[..], &[steps]].concat());
    let short = run(&to("train.steps=50"), false, &[]).unwrap();
    assert!(!short.stopped_early);
    let long = run(&to("train.steps=100"), true, &[]).unwrap();
    assert_eq!((long.result.steps, long.best.unwrap().step), (80, 40), "3.0 and 2.0 are no better");
    assert!(long.stopped_early);
    // Out of patience at its last step: nothing was left to stop.
    let settings = [scores, "train.eval_every_steps=20", "train.patience=2", "train.steps=80"];
    let whole = run(&config(dir.path(), "y", &settings), false, &[]).unwrap();
    assert!(!whole.stopped_early);
}

#[test]
fn patience_ends_a_run_and_the_best_is_scored() {
    let dir = tempfile::tempdir().unwrap();
    let scores = "task.toy.scores=[3.0, 1.0, 2.0, 1.0, 0.5]";
    let config = config(dir.path(), "x", &[scores, "train.epochs=9", "train.patience=2"]);
    let summary = run(&config, false, &[]).unwrap();
    assert!(summary.stopped_early);
    assert_eq!(summary.result.steps, 28, "the fourth evaluation equals the second");
    assert_eq!(summary.best.unwrap().step, 14);
    assert_eq!(summary.result.scored_step, 14);
    // Not trained further, and not concluded again either.
    let again = run(&config, true, &["fail=28", "conclude=0"]).unwrap();
    assert_eq!((again.best, again.tables()), (summary.best, summary.tables()));
}

#[test]
fn a_loss_that_is_not_finite_never_reaches_the_weights() {
    let dir = tempfile::tempdir().unwrap();
    let [whole, cut] = ["whole", "cut"].map(|name| config(dir.path(), name, &[]));
    run(&whole, false, &[]).unwrap();
    let error = run(&cut, false, &["nan=16"]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the loss NaN (gradient norm NaN) is not finite at step 16 (step 14 is saved), from row 8, \
         row 15, row 29, row 34 and 4 more"
    );
    assert!(matches!(error, Error::NonFinite { step: 16, .. }));
    assert_eq!(checkpoints(&cut).steps().unwrap(), [7, 14]);
    run(&cut, true, &[]).unwrap();
    assert_eq!(trace(&cut), trace(&whole));
}

#[test]
fn a_signal_saves_the_step_and_the_run_continues() {
    let dir = tempfile::tempdir().unwrap();
    let whole = config(dir.path(), "whole", &[]);
    run(&whole, false, &[]).unwrap();
    assert!(child("child_that_gets_a_signal", dir.path()).success());
    let cut = config(dir.path(), "cut", &[]);
    assert_eq!(checkpoints(&cut).steps().unwrap(), [7, 10]);
    run(&cut, true, &[]).unwrap();
    // The run was saved once more often than the other, and all else is equal.
    let [mut cut, whole] = [&cut, &whole].map(trace);
    cut.checkpoints.retain(|(step, ..)| *step != 10);
    assert_eq!(cut, whole);
}

#[test]
#[ignore = "run by `a_signal_saves_the_step_and_the_run_continues` in a process of its own"]
fn child_that_gets_a_signal() {
    let Some(dir) = std::env::var_os(CHILD) else { return };
    let cut = config(dir.as_ref(), "cut", &[]);
    let error = run(&cut, false, &["signal=9"]).unwrap_err();
    assert_eq!(
        error.report(),
        "error: interrupted by signal 15 at step 10\nhint: continue with `--resume`"
    );
    assert_eq!(error.exit_code(), 143);
}

#[test]
fn a_signal_while_a_finished_run_is_opened_is_heard() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), "x", &[]);
    run(&config, false, &["conclude=0"]).unwrap_err();
    assert!(child("child_that_gets_a_signal_at_its_start", dir.path()).success());
    assert!(!config.run.path().join("result.json").exists());
}

#[test]
#[ignore = "run by `a_signal_while_a_finished_run_is_opened_is_heard` in a process of its own"]
fn child_that_gets_a_signal_at_its_start() {
    let Some(dir) = std::env::var_os(CHILD) else { return };
    let error = run(&config(dir.as_ref(), "x", &[]), true, &["signal_at_start=0"]).unwrap_err();
    assert_eq!(error.to_string(), "interrupted by signal 15 at step 28");
}

/// A program may do something else after it has trained.
#[test]
fn after_training_a_signal_ends_the_process_again() {
    let dir = tempfile::tempdir().unwrap();
    let status = child("child_that_has_trained", dir.path());
    assert_eq!(status.signal(), Some(signal_hook::consts::SIGTERM), "{status}");
}

#[test]
#[ignore = "run by `after_training_a_signal_ends_the_process_again` in a process of its own"]
fn child_that_has_trained() {
    let Some(dir) = std::env::var_os(CHILD) else { return };
    let config = config(dir.as_ref(), "x", &[]);
    // A signal during the first session does not end the second one.
    run(&config, false, &["signal=9"]).unwrap_err();
    run(&config, true, &[]).unwrap();
    signal_hook::low_level::raise(signal_hook::consts::SIGTERM).unwrap();
    std::thread::sleep(std::time::Duration::from_secs(60));
}

/// Runs an ignored test in a process of its own.
fn child(test: &str, dir: &std::path::Path) -> ExitStatus {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--test-threads=1"])
        .env(CHILD, dir)
        .status()
        .unwrap()
}

fn overwrite(path: &std::path::Path, bytes: &[u8]) {
    #[expect(
        clippy::disallowed_methods,
        reason = "tests play the part of a crash and of a bad disk"
    )]
    std::fs::write(path, bytes).unwrap();
}

/// Five thousand steps take no more memory than the first thousand.
#[test]
fn a_soak_of_five_thousand_steps_holds_memory_flat() {
    let dir = tempfile::tempdir().unwrap();
    let run_to = |steps: u64| {
        let steps = format!("train.steps={steps}");
        let more = ["train.eval_every_steps=100", "checkpoint.every_steps=100", &steps];
        let config = config(dir.path(), "x", &[&more[..], &["model.width=256"]].concat());
        run(&config, steps != "train.steps=1000", &[]).unwrap();
        ssm_train::machine::resident().unwrap()
    };
    let resident: Vec<u64> = (1..=5).map(|thousand| run_to(thousand * 1000)).collect();
    let grown = resident[4].saturating_sub(resident[0]);
    assert!(grown < 8 << 20, "{resident:?}");
}
