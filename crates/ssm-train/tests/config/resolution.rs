//! Defaults, then the file, then overrides; and what the result looks like.

use std::path::Path;

use ssm_train::{
    config::{Config, Optim, Precision, Schedule, Settings},
    plan::Plan,
};

use crate::toy::{
    Data, FILE, Features, Mixer, Model, Scan, Stack, Toy, assert_report, edited, parse, with,
};

#[test]
fn defaults_fill_what_the_file_leaves_out() {
    let config = with(&[]);
    let expected = r#"[run]
name = "x"
dir = "runs"
seed = 7

[device]
backend = "auto"
index = 0
replicas = 1
record_steps = true

[task.toy]
width = 4
features = "M"
rates = [0.1, 0.2]

[data.csv]
path = "series.csv"

[model.stack]
n_layer = 2

[model.stack.mixer.scan]
d_state = 2
d_conv = 4
expand = 2

[optim.adam]
lr = 0.00007
betas = [0.9, 0.999]
eps = 0.00000001
weight_decay = 0.0

[schedule.cosine]
warmup_steps = 10
min_factor = 0.0

[train]
epochs = 3
batch_size = 16
eval_batch_size = 16
accumulate = 1
precision = "f32"

[checkpoint]
keep = 2

[log]
every_steps = 50
tensorboard = false
"#;
    assert_eq!(config.to_toml(), expected);
    assert_eq!(config.run.path(), Path::new("runs/x"));
    let settings = config.settings(vec!["data".into()]);
    let expected = Settings {
        seed: 7,
        batch_size: 16,
        eval_batch_size: 16,
        accumulate: 1,
        recompute: None,
        precision: Precision::F32,
        fold: 0,
        data_dirs: vec!["data".into()],
    };
    assert_eq!(settings, expected);
}

#[test]
fn absent_optional_sections_have_defaults() {
    let text = FILE.split("[schedule").next().unwrap().replace("[run]\nseed = 7", "");
    let config = parse(&format!("{text}[train]\nsteps = 5\n"), &[]).unwrap();
    assert_eq!(config.schedule, Schedule::Constant {});
    assert_eq!((config.run.seed, config.run.name.as_str()), (0, "x"));
    assert_eq!((config.train.batch_size, config.train.eval_batch_size), (32, 32));
}

#[test]
fn the_resolved_configuration_loads_to_an_equal_value() {
    let variants: [&[&str]; 6] = [
        &[],
        &["schedule.constant={}", "optim.adamw={}"],
        &["schedule.wsd={decay_steps=7, min_factor=0.1}", "train.steps=100"],
        &["schedule.epoch_decay={}", "train.clip_norm=0.1", "train.patience=3"],
        &["run.seed=9223372036854775807", "run.name=\"ein Lauf\"", "optim.adam.lr=1.1e-300"],
        &["model.linear={}", "checkpoint.every_steps=5", "train.eval_every_steps=7"],
    ];
    for overrides in variants {
        let config = with(overrides);
        let text = config.to_toml();
        let again = Config::<Toy>::parse(&text, "runs/another/config.toml", &[]).unwrap();
        assert_eq!(again.run, config.run);
        assert_eq!(again.device, config.device);
        assert_eq!(again.task, config.task);
        assert_eq!(again.data, config.data);
        assert_eq!(again.model, config.model);
        assert_eq!(again.optim, config.optim);
        assert_eq!(again.schedule, config.schedule);
        assert_eq!(again.train, config.train);
        assert_eq!(again.checkpoint, config.checkpoint);
        assert_eq!(again.log, config.log);
        assert_eq!(again.to_toml(), text);
    }
}

#[test]
fn the_defaults_of_the_optimisers_are_those_of_torch() {
    let adam = Optim::Adam { lr: 1e-3, betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.0 };
    let adamw = Optim::AdamW { lr: 1e-3, betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.01 };
    assert_eq!(with(&["optim.adam={}"]).optim, adam);
    assert_eq!(with(&["optim.adamw={}"]).optim, adamw);
    assert_eq!((adamw.name(), adamw.lr()), ("adamw", 1e-3));
}

#[test]
fn overrides_are_toml_or_plain_text() {
    let config = with(&[
        "run.name = night run",
        "run.dir=out/a=b",
        "train.batch_size=8",
        "optim.adam.lr=1e-4",
        "optim.adam.betas=[0.8, 0.9]",
        "task.toy.features=\"S\"",
        "model.stack.mixer.scan.expand = 3",
    ]);
    assert_eq!(config.run.path(), Path::new("out/a=b/night run"));
    assert_eq!((config.train.batch_size, config.train.eval_batch_size), (8, 8));
    let optim = Optim::Adam { lr: 1e-4, betas: [0.8, 0.9], eps: 1e-8, weight_decay: 0.0 };
    assert_eq!(config.optim, optim);
    assert_eq!(config.task.features, Features::S);
    let scan = Scan { d_state: 2, d_conv: 4, expand: 3 };
    assert_eq!(config.model, Model::Stack(Stack { n_layer: 2, mixer: Mixer::Scan(scan) }));
}

#[test]
fn the_last_override_of_a_key_holds() {
    assert_eq!(with(&["run.seed=1", "run.seed=2"]).run.seed, 2);
}

#[test]
fn overrides_switch_variants() {
    let config = with(&[
        "schedule.constant={}",
        "model.stack.mixer.mean={}",
        "data.ett.variant=h2",
        "optim.adamw.lr=0.1",
        "optim.adamw.eps=1e-6",
    ]);
    assert_eq!(config.schedule, Schedule::Constant {});
    assert_eq!(config.model, Model::Stack(Stack { n_layer: 2, mixer: Mixer::Mean {} }));
    assert_eq!(config.data, Data::Ett { variant: "h2".into() });
    let optim = Optim::AdamW { lr: 0.1, betas: [0.9, 0.999], eps: 1e-6, weight_decay: 0.01 };
    assert_eq!(config.optim, optim);
    assert_eq!(with(&["model.linear={}"]).model, Model::Linear {});
}

#[test]
fn overrides_switch_between_epochs_and_steps() {
    let train = with(&["train.steps=500"]).train;
    assert_eq!((train.epochs, train.steps), (None, Some(500)));
    let text = edited("epochs = 3", "steps = 100");
    let train = parse(&text, &["train.epochs=1"]).unwrap().train;
    assert_eq!((train.epochs, train.steps), (Some(1), None));
}

#[test]
fn an_override_without_value_removes_a_key() {
    let text = edited("epochs = 3", "epochs = 3\nclip_norm = 1.0");
    assert_eq!(parse(&text, &[]).unwrap().train.clip_norm, Some(1.0));
    assert_eq!(parse(&text, &["train.clip_norm="]).unwrap().train.clip_norm, None);
}

#[test]
fn an_override_can_repair_the_file() {
    assert_eq!(
        parse(&edited("width = 4", "width = 0"), &["task.toy.width=3"]).unwrap().task.width,
        3
    );
}

#[test]
fn what_shows_with_the_data_is_placed_in_the_file_too() {
    let refused = |config: &Config<Toy>, batches| Plan::of(config, batches).unwrap_err();
    // Three epochs of three batches are shorter than the warm-up of ten steps.
    assert_report(
        &refused(&with(&[]), 3),
        r"
error: `schedule.cosine`: warm-up and decay take 10 steps, the run has 9
  --> configs/x.toml:19:1
   |
19 | [schedule.cosine]
   | ^^^^^^^^^^^^^^^^^
",
    );
    assert_report(
        &refused(&with(&["train.batch_size=99"]), 0),
        r"
error: `train.batch_size`: the training split has no batch of 99
 --> --set:1:18
  |
1 | train.batch_size=99
  |                  ^^
",
    );
}
