//! Runs on the device that the variable `SSM_TEST_DEVICE` names, else on that of the configuration: recorded
//! losses of every task, and of steps that are replayed the bits, in one session and in two.

use std::fs;

use serde_json::Value;

use crate::support::{Desk, root, rows};

/// The device as `--device` takes it: a processor that plays a card is taken where there is nothing else.
fn card() -> Option<String> {
    let name = std::env::var("SSM_TEST_DEVICE").ok()?;
    Some(name.trim_end_matches(":cpu").to_owned())
}

/// Whether that is a processor that plays a card.
fn is_played() -> bool {
    std::env::var("SSM_TEST_DEVICE").is_ok_and(|name| name.ends_with(":cpu"))
}

/// Recorded by version 0.1.0. Another device adds up in another order, which changes the last digits;
/// an operation, an initial value or an order of samples that changed is seen by far.
#[test]
fn losses_are_the_recorded_ones() {
    let recorded = fs::read_to_string(root().join("tests/golden/losses.json")).unwrap();
    let recorded: Value = serde_json::from_str(&recorded).unwrap();
    let steps = ["--set", "train.steps=50", "--set", "train.eval_every_steps=50"];
    let epochs = ["--set", "train.epochs=2", "--set", "run.fold=0"];
    let card = card();
    let device: Vec<&str> = card.iter().flat_map(|name| ["--device", name]).collect();
    for (task, length, run) in
        [("forecasting", steps, "x"), ("lm", steps, "x"), ("mil", epochs, "x/fold_00")]
    {
        let desk = Desk::new();
        let more = ["--set", "run.name=x", "--set", "log.every_steps=10"];
        let config = format!("configs/{task}/debug.toml");
        desk.trained(&config, &[&length[..], &more, &device].concat());
        let rows = rows(&desk.path(run));
        let losses: Vec<(u64, f64)> = rows
            .iter()
            .filter(|row| row["split"] == "train")
            .map(|row| (row["step"].as_u64().unwrap(), row["loss"].as_f64().unwrap()))
            .collect();
        let expected: Vec<(u64, f64)> = serde_json::from_value(recorded[task].clone()).unwrap();
        assert_eq!(losses.len(), expected.len(), "{task}");
        for (got, expected) in losses.iter().zip(&expected) {
            assert_eq!(got.0, expected.0, "{task}");
            let error = (got.1 - expected.1).abs() / expected.1;
            assert!(error < 5e-3, "{task}: {got:?}, recorded {expected:?}");
        }
    }
}

/// In WGSL they are not kept; elsewhere another run may have compiled them.
#[test]
#[cfg(all(feature = "webgpu", not(feature = "vulkan")))]
fn that_kernels_are_compiled_is_announced() {
    let Some(card) = card() else { return };
    let desk = Desk::new();
    let steps = ["--set", "train.steps=20", "--set", "train.eval_every_steps=20"];
    let ended = desk.trained("configs/lm/debug.toml", &[&steps[..], &["--device", &card]].concat());
    let said = "compiling kernels, which this device does not keep: every start waits for them";
    assert_eq!(ended.stderr.matches(said).count(), 1, "{}", ended.stderr);
}

/// Small models, as only short steps are replayed.
#[test]
fn steps_that_are_replayed_have_the_bits_of_launched_ones() {
    let Some(card) = card() else { return };
    let language = ["model.d_model=8", "model.n_layer=1", "model.dropout=0.1"];
    replay(&card, "lm", &language);
    // As many launches take a processor too long.
    if !is_played() {
        replay(&card, "forecasting", &["model.s_mamba.d_model=8", "model.s_mamba.d_ff=8"]);
    }
}

const EVAL_EVERY: u32 = 20;

/// Trains a model with steps that are launched one by one, replayed, and replayed in two sessions.
fn replay(card: &str, task: &str, model: &[&str]) {
    let desk = Desk::new();
    let config = format!("configs/{task}/debug.toml");
    let train = |name: &str, steps: u32, more: &[&str]| {
        let [run, length] = [format!("run.name={name}"), format!("train.steps={steps}")];
        let evaluations = format!("train.eval_every_steps={EVAL_EVERY}");
        let settings = [
            &*run,
            &length,
            "train.batch_size=2",
            &evaluations,
            "log.every_steps=1",
            "schedule={constant={}}",
        ];
        let settings = settings.iter().chain(model).flat_map(|setting| ["--set", setting]);
        let arguments: Vec<&str> = settings.chain(["--device", card]).collect();
        let ended = desk.trained(&config, &[&arguments, more].concat());
        let is_replayed = ended.stderr.contains("are recorded and replayed from here on");
        (rows(&desk.path(name)), is_replayed)
    };
    let (launched, is_replayed) = train("launched", 40, &["--set", "device.record_steps=false"]);
    assert_eq!((launched.len(), is_replayed), (40 + 40 / EVAL_EVERY as usize, false), "{task}");
    for (name, stops) in [("whole", &[40][..]), ("parts", &[20, 40])] {
        for (session, steps) in stops.iter().enumerate() {
            let resume = if session == 0 { &[][..] } else { &["--resume"] };
            let (rows, is_replayed) = train(name, *steps, resume);
            assert!(is_replayed, "{task}, {name}, {steps} steps");
            let n_rows = (steps + steps / EVAL_EVERY) as usize;
            assert!(rows == launched[..n_rows], "{task}, {name}: {rows:?}, not {launched:?}");
        }
    }
}
