//! Several replicas train the model that one would have trained.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use ssm_train::Error;
use tracing::{Event, Metadata, Subscriber, field::Visit, span};

use crate::{
    CHILD, faults,
    toy::{checkpoints, config, put, run, trace},
};

const TWO: &str = "device.replicas=2";

/// With a micro-batch for each, sums are in the order of a single replica: not a bit differs. Dropout
/// is on, the norm is clipped, and the last step of an epoch has a micro-batch for one of the two only.
#[test]
fn replicas_with_a_micro_batch_each_leave_the_bits_of_one() {
    for (accumulate, replicas) in [(2, 2), (3, 3)] {
        let dir = tempfile::tempdir().unwrap();
        let accumulate = format!("train.accumulate={accumulate}");
        let replicas = format!("device.replicas={replicas}");
        let settings = [accumulate.as_str(), "train.clip_norm=0.5", "checkpoint.every_steps=3"];
        let one = config(dir.path(), "one", &settings);
        let several = config(dir.path(), "several", &[&settings[..], &[&replicas]].concat());
        run(&one, false, &[]).unwrap();
        run(&several, false, &[]).unwrap();
        assert_eq!(trace(&several), trace(&one), "{replicas}");
    }
}

#[test]
fn two_replicas_equal_one_with_the_doubled_batch() {
    let dir = tempfile::tempdir().unwrap();
    let settings = ["model.dropout=0.0", "log.every_steps=1"];
    let doubled = config(dir.path(), "one", &[&settings[..], &["train.batch_size=16"]].concat());
    let more = [TWO, "train.accumulate=2"];
    let replicas = config(dir.path(), "two", &[&settings[..], &more].concat());
    run(&doubled, false, &[]).unwrap();
    run(&replicas, false, &[]).unwrap();
    let [doubled, replicas] = [&doubled, &replicas].map(|config| trace(config).rows);
    assert_eq!(doubled.len(), replicas.len());
    for (one, two) in doubled.iter().zip(&replicas) {
        for key in ["loss", "grad_norm", "mse"] {
            let values = [one, two].map(|row| row[key].as_f64());
            let [Some(one), Some(two)] = values else { continue };
            assert!((one - two).abs() <= 1e-4 * one.abs(), "{key}: {one} {two}");
        }
    }
}

/// Four micro-batches over two or three replicas are added up in another order.
#[test]
fn any_number_of_replicas_gives_the_same_curve() {
    let dir = tempfile::tempdir().unwrap();
    let curve = |replicas: usize| {
        let replicas = format!("device.replicas={replicas}");
        let config = config(dir.path(), &replicas[16..], &["train.accumulate=4", &replicas]);
        run(&config, false, &[]).unwrap().result.metrics["mse"]
    };
    let one = curve(1);
    for replicas in [2, 3, 4] {
        let several = curve(replicas);
        assert!((one - several).abs() <= 1e-4 * one, "{replicas}: {several}, not {one}");
    }
}

#[test]
fn a_run_goes_on_with_another_number_of_replicas() {
    let dir = tempfile::tempdir().unwrap();
    let settings = ["train.accumulate=2", "checkpoint.every_steps=3"];
    let [whole, cut] = ["whole", "cut"].map(|name| config(dir.path(), name, &settings));
    let two = config(dir.path(), "cut", &[&settings[..], &[TWO]].concat());
    run(&whole, false, &[]).unwrap();
    run(&two, false, &["fail=8"]).unwrap_err();
    run(&cut, true, &["fail=20"]).unwrap_err();
    run(&two, true, &[]).unwrap();
    assert_eq!(trace(&cut), trace(&whole));
}

/// Micro-batch 5 is the second one of its step, so that of the second replica.
#[test]
fn a_replica_that_is_gone_stops_the_others() {
    let panicked = "training panicked: called `Result::unwrap()` on an `Err` value: Any { .. }";
    for (fault, message) in [("panic=5", panicked), ("fail=5", "`rows`: lost at 5")] {
        let dir = tempfile::tempdir().unwrap();
        let settings = ["train.accumulate=2", "checkpoint.every_steps=1", TWO];
        let [whole, cut] = ["whole", "cut"].map(|name| config(dir.path(), name, &settings));
        run(&whole, false, &[]).unwrap();
        let error = run(&cut, false, &[fault]).unwrap_err();
        assert_eq!(
            error.report(),
            format!(
                "error: replica 1 of 2 is gone (step 2 is saved): {message}\n\
                 hint: continue with `--resume`"
            )
        );
        assert_eq!(error.exit_code(), 1);
        assert_eq!(checkpoints(&cut).steps().unwrap().last(), Some(&2));
        run(&cut, true, &[]).unwrap();
        assert_eq!(trace(&cut), trace(&whole));
    }
}

/// Micro-batch 4 is the first one of step 2, which the leading replica computes, 5 that of the other.
#[test]
fn samples_of_a_loss_that_is_not_finite_are_named_whoever_computed_it() {
    let dir = tempfile::tempdir().unwrap();
    let named = |replicas: usize, fault: &str| {
        let (name, replicas) =
            (format!("{replicas}_{fault}"), format!("device.replicas={replicas}"));
        let config = config(dir.path(), &name, &["train.accumulate=2", &replicas]);
        let error = run(&config, false, &[fault]).unwrap_err().to_string();
        error.split_once(", from ").unwrap().1.to_owned()
    };
    let [fourth, fifth] = ["nan=4", "nan=5"].map(|fault| named(1, fault));
    assert_ne!(fourth, fifth);
    assert!(fourth.ends_with(" and 4 more"), "one micro-batch of eight rows: {fourth}");
    assert_eq!(named(2, "nan=4"), fourth);
    assert_eq!(named(2, "nan=5"), fifth);
}

#[test]
fn more_replicas_than_micro_batches_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let error = run(&config(dir.path(), "x", &[TWO]), false, &[]).unwrap_err();
    assert!(matches!(error, Error::Config { .. }));
    let report = error.report();
    assert!(
        report.contains("`device.replicas`: expected at most `train.accumulate` = 1, got `2`"),
        "{report}"
    );
    assert!(report.contains("hint: replicas share the micro-batches of a step"), "{report}");
    assert!(!dir.path().join("x").exists());
}

/// The system starts no thread for the first follower, the second one, or the one that leads.
#[test]
fn a_replica_that_cannot_be_started_releases_the_others() {
    for (at, rank) in [(1, 1), (2, 2), (3, 0)] {
        let dir = tempfile::tempdir().unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "replicas::child_without_a_thread", "--ignored", "--test-threads=1"])
            .env(CHILD, dir.path())
            .env("LD_PRELOAD", faults::library())
            .env("FAULT_KIND", "thread")
            .env("FAULT_STACK", (8 << 20).to_string())
            .env("FAULT_AT", at.to_string())
            // More would be threads of the replicas' pools, with the same size of stack.
            .env("RAYON_NUM_THREADS", "1")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let started = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            assert!(
                started.elapsed() < Duration::from_secs(60),
                "replicas wait for replica {rank}"
            );
            std::thread::sleep(Duration::from_millis(5));
        };
        let said = std::fs::read_to_string(dir.path().join("error")).unwrap();
        let reason = "Resource temporarily unavailable (os error 11)";
        assert_eq!(said, format!("error: cannot start `replica {rank}`: {reason}"));
        assert_eq!(status.code(), Some(1));
    }
}

#[test]
#[ignore = "run by `a_replica_that_cannot_be_started_releases_the_others` in a process of its own"]
fn child_without_a_thread() {
    let Some(dir) = std::env::var_os(CHILD).map(PathBuf::from) else { return };
    let config = config(&dir, "x", &["train.accumulate=3", "device.replicas=3"]);
    let error = run(&config, false, &[]).unwrap_err();
    // Nobody is left behind.
    let is_replica = |name: String| name.starts_with("replica ");
    let replicas = || {
        let threads = std::fs::read_dir("/proc/self/task").unwrap().flatten();
        let names = threads.flat_map(|thread| std::fs::read_to_string(thread.path().join("comm")));
        names.filter(|name| is_replica(name.clone())).count()
    };
    let started = Instant::now();
    while replicas() > 0 {
        assert!(started.elapsed() < Duration::from_secs(10), "{} replicas are left", replicas());
        std::thread::sleep(Duration::from_millis(5));
    }
    put(&dir.join("error"), error.report().as_bytes()).unwrap();
    std::process::exit(error.exit_code().into());
}

/// Its steps are done, so nothing is wrong with the run, but it is not kept quiet about.
#[test]
fn a_replica_that_panics_at_its_very_end_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let settings = ["train.accumulate=2", TWO];
    let [whole, late] = ["whole", "late"].map(|name| config(dir.path(), name, &settings));
    run(&whole, false, &[]).unwrap();
    let warnings = Warnings::default();
    tracing::subscriber::with_default(warnings.clone(), || {
        run(&late, false, &["panic_at_the_end=1"]).unwrap();
    });
    assert_eq!(trace(&late), trace(&whole));
    let said = warnings.0.lock().unwrap();
    assert_eq!(
        *said,
        [
            "replica 1 failed after its last step: its end panicked: the last thing that a replica does; \
          this changes no result"
        ]
    );
}

/// Warnings of the thread that listens.
#[derive(Clone, Default)]
struct Warnings(Arc<Mutex<Vec<String>>>);

impl Visit for Warnings {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            self.0.lock().unwrap().push(format!("{value:?}"));
        }
    }
}

impl Subscriber for Warnings {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == tracing::Level::WARN
    }

    fn event(&self, event: &Event<'_>) {
        event.record(&mut self.clone());
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}
