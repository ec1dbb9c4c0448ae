//! Values that make no sense.

use crate::toy::{edited, parse, rejects};

#[test]
fn every_value_out_of_range_is_listed_in_the_order_of_the_file() {
    rejects(
        &edited("lr = 7e-5", "lr = 0.0\nbetas = [0.9, 1.0]\neps = nan\nweight_decay = -1")
            .replace("width = 4", "width = 0")
            .replace("warmup_steps = 10", "min_factor = 1.5")
            .replace("batch_size = 16", "batch_size = 0\naccumulate = 0\nclip_norm = 0")
            .replace("epochs = 3", "epochs = 0")
            .replace("seed = 7", "seed = 9223372036854775808"),
        &[],
        r#"
error: `run.seed`: expected at most 9223372036854775807, got `9223372036854775808`
 --> configs/x.toml:3:8
  |
3 | seed = 9223372036854775808
  |        ^^^^^^^^^^^^^^^^^^^

error: `task.toy.width`: expected at least 1, got `0`
 --> configs/x.toml:6:9
  |
6 | width = 0
  |         ^
hint: a width of 1 is the smallest

error: `optim.adam.lr`: expected a number above 0, got `0`
  --> configs/x.toml:17:6
   |
17 | lr = 0.0
   |      ^^^

error: `optim.adam.betas`: expected two numbers in [0, 1), got `[0.9, 1]`
  --> configs/x.toml:18:9
   |
18 | betas = [0.9, 1.0]
   |         ^^^^^^^^^^

error: `optim.adam.eps`: expected a number above 0, got `NaN`
  --> configs/x.toml:19:7
   |
19 | eps = nan
   |       ^^^

error: `optim.adam.weight_decay`: expected a number of at least 0, got `-1`
  --> configs/x.toml:20:16
   |
20 | weight_decay = -1
   |                ^^

error: `schedule.cosine.min_factor`: expected a number in [0, 1], got `1.5`
  --> configs/x.toml:23:14
   |
23 | min_factor = 1.5
   |              ^^^

error: `train.epochs`: expected at least 1, got `0`
  --> configs/x.toml:26:10
   |
26 | epochs = 0
   |          ^

error: `train.batch_size`: expected at least 1, got `0`
  --> configs/x.toml:27:14
   |
27 | batch_size = 0
   |              ^

error: `train.accumulate`: expected at least 1, got `0`
  --> configs/x.toml:28:14
   |
28 | accumulate = 0
   |              ^

error: `train.clip_norm`: expected a number above 0, got `0`
  --> configs/x.toml:29:13
   |
29 | clip_norm = 0
   |             ^
"#,
    );
}

#[test]
fn every_counter_starts_at_one() {
    rejects(
        &edited(
            "batch_size = 16",
            "eval_batch_size = 0\npatience = 0\neval_every_steps = 0\n\
             [checkpoint]\nevery_steps = 0\nkeep = 0\n[log]\nevery_steps = 0",
        ),
        &[],
        r#"
error: `train.eval_batch_size`: expected at least 1, got `0`
  --> configs/x.toml:24:19
   |
24 | eval_batch_size = 0
   |                   ^

error: `train.patience`: expected at least 1, got `0`
  --> configs/x.toml:25:12
   |
25 | patience = 0
   |            ^

error: `train.eval_every_steps`: expected at least 1, got `0`
  --> configs/x.toml:26:20
   |
26 | eval_every_steps = 0
   |                    ^

error: `checkpoint.every_steps`: expected at least 1, got `0`
  --> configs/x.toml:28:15
   |
28 | every_steps = 0
   |               ^

error: `checkpoint.keep`: expected at least 1, got `0`
  --> configs/x.toml:29:8
   |
29 | keep = 0
   |        ^

error: `log.every_steps`: expected at least 1, got `0`
  --> configs/x.toml:31:15
   |
31 | every_steps = 0
   |               ^
"#,
    );
}

#[test]
fn the_ranges_of_wsd_hold() {
    rejects(
        &edited(
            "[schedule.cosine]\nwarmup_steps = 10",
            "[schedule.wsd]\ndecay_steps = 0\nmin_factor = -0.1",
        ),
        &[],
        r#"
error: `schedule.wsd.decay_steps`: expected at least 1, got `0`
  --> configs/x.toml:20:15
   |
20 | decay_steps = 0
   |               ^

error: `schedule.wsd.min_factor`: expected a number in [0, 1], got `-0.1`
  --> configs/x.toml:21:14
   |
21 | min_factor = -0.1
   |              ^^^^
"#,
    );
}

#[test]
fn the_ranges_of_epoch_decay_hold() {
    rejects(
        &edited(
            "[schedule.cosine]\nwarmup_steps = 10",
            "[schedule.epoch_decay]\ngamma = 0.0\nhold_epochs = 0",
        ),
        &[],
        r#"
error: `schedule.epoch_decay.gamma`: expected a number in (0, 1], got `0`
  --> configs/x.toml:20:9
   |
20 | gamma = 0.0
   |         ^^^

error: `schedule.epoch_decay.hold_epochs`: expected at least 1, got `0`
  --> configs/x.toml:21:15
   |
21 | hold_epochs = 0
   |               ^
"#,
    );
}

#[test]
fn a_schedule_must_fit_into_the_run() {
    rejects(
        &edited("epochs = 3", "steps = 5"),
        &[],
        r#"
error: `schedule.cosine`: warm-up and decay take 10 steps, `train.steps` is `5`
  --> configs/x.toml:19:1
   |
19 | [schedule.cosine]
   | ^^^^^^^^^^^^^^^^^
"#,
    );
}

#[test]
fn a_run_name_is_one_part_of_a_path() {
    rejects(
        &edited("seed = 7", "name = \"../x\"\ndir = \"\""),
        &[],
        r#"
error: `run.name`: expected the name of a directory, got `../x`
 --> configs/x.toml:3:8
  |
3 | name = "../x"
  |        ^^^^^^
hint: the place of the run is `run.dir`; the name is one part of a path

error: `run.dir`: expected a directory, got ``
 --> configs/x.toml:4:7
  |
4 | dir = ""
  |       ^^
hint: `.` is the working directory
"#,
    );
}

#[test]
#[cfg(all(feature = "flex", feature = "ndarray"))]
fn a_cpu_backend_has_one_device() {
    rejects(
        &edited("seed = 7", "[device]\nbackend = \"flex\"\nindex = 1"),
        &[],
        r#"
error: `device.index`: the backend `flex` has one device, got index 1
 --> configs/x.toml:5:9
  |
5 | index = 1
  |         ^
hint: leave `device.index` at 0
"#,
    );
}

#[test]
fn a_bad_default_says_that_it_is_one() {
    rejects(
        &edited("width = 4\n", "").replace("scan]\nd_state = 2", "mean]"),
        &[],
        r#"
error: `task.toy.width`: `mean` needs a width other than 8
 --> configs/x.toml
  = the value is the default, the key is not set
"#,
    );
}

#[test]
fn a_precision_that_a_model_or_a_device_cannot_compute_in_is_refused() {
    rejects(
        &edited("epochs = 3", "epochs = 3\nprecision = \"bf16\""),
        &[],
        r#"
error: `train.precision`: the chosen model computes in `f32` only, got `bf16`
  --> configs/x.toml:24:13
   |
24 | precision = "bf16"
   |             ^^^^^^
hint: leave `train.precision` at `f32`
"#,
    );
    let text = edited("epochs = 3", "epochs = 3\nprecision = \"bf16\"");
    let error = parse(&text, &["device.backend=ndarray"]).expect_err("no bf16 there");
    let expected = r#"
error: `train.precision`: expected `f32` on the backend `ndarray`, got `bf16`
  --> configs/x.toml:24:13
   |
24 | precision = "bf16"
   |             ^^^^^^
hint: `flex` and `cuda` compute in bf16; f32 runs everywhere
"#;
    assert!(error.report().starts_with(expected.trim()), "{}", error.report());
    rejects(
        &edited("epochs = 3", "epochs = 3\nprecision = \"fp16\""),
        &[],
        r#"
error: unknown variant `fp16` of `train.precision`
  --> configs/x.toml:24:13
   |
24 | precision = "fp16"
   |             ^^^^^^
   = expected `f32` or `bf16`
"#,
    );
}

#[test]
fn layers_are_not_computed_again_where_there_are_none() {
    rejects(
        &edited("epochs = 3", "epochs = 3\nrecompute = \"layer\""),
        &[],
        r#"
error: `train.recompute`: the chosen model has no layers that could be computed again
  --> configs/x.toml:24:13
   |
24 | recompute = "layer"
   |             ^^^^^^^
"#,
    );
}
