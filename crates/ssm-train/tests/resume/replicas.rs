//! Several replicas train the model that one would have trained.

use ssm_train::Error;

use crate::toy::{checkpoints, config, run, trace};

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
    for (fault, message) in [("panic=5", "it panicked"), ("fail=5", "`rows`: lost at 5")] {
        let dir = tempfile::tempdir().unwrap();
        let settings = ["train.accumulate=2", "checkpoint.every_steps=1", TWO];
        let [whole, cut] = ["whole", "cut"].map(|name| config(dir.path(), name, &settings));
        run(&whole, false, &[]).unwrap();
        let error = run(&cut, false, &[fault]).unwrap_err();
        assert_eq!(
            error.report(),
            format!("error: replica 1 of 2 is gone: {message}\nhint: continue with `--resume`")
        );
        assert_eq!(error.exit_code(), 1);
        assert_eq!(checkpoints(&cut).steps().unwrap().last(), Some(&2));
        run(&cut, true, &[]).unwrap();
        assert_eq!(trace(&cut), trace(&whole));
    }
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
