//! Names that do not exist.

use ssm_train::config::task_name;

use crate::toy::{assert_report, edited, rejects};

#[test]
fn an_unknown_key_names_the_nearest() {
    rejects(
        &edited("d_state", "d_sate"),
        &[],
        r#"
error: unknown key `d_sate` in `model.stack.mixer.scan`
  --> configs/x.toml:14:1
   |
14 | d_sate = 2
   | ^^^^^^
   = expected one of `d_state`, `d_conv`, `expand`
hint: did you mean `d_state`?
"#,
    );
}

#[test]
fn an_unknown_key_of_another_section_names_its_home() {
    rejects(
        &edited("epochs = 3", "epochs = 3\nlr = 0.1"),
        &[],
        r#"
error: unknown key `lr` in `train`
  --> configs/x.toml:24:1
   |
24 | lr = 0.1
   | ^^
   = expected one of `epochs`, `steps`, `batch_size`, `eval_batch_size`, `accumulate`, `clip_norm`, `patience`, `eval_every_steps`, `recompute`, `precision`
hint: `lr` is a key of `[optim.adam]`
"#,
    );
}

#[test]
fn an_unknown_key_of_a_variant_lists_its_keys() {
    rejects(
        &edited("lr = 7e-5", "momentum = 0.9"),
        &[],
        r#"
error: unknown key `momentum` in `optim.adam`
  --> configs/x.toml:17:1
   |
17 | momentum = 0.9
   | ^^^^^^^^
   = expected one of `lr`, `betas`, `eps`, `weight_decay`
"#,
    );
}

#[test]
fn an_unknown_section_names_the_nearest() {
    rejects(
        &edited("[train]", "[trian]"),
        &[],
        r#"
error: unknown section `trian`
  --> configs/x.toml:22:2
   |
22 | [trian]
   |  ^^^^^
   = expected a section, one of `run`, `device`, `task`, `data`, `model`, `optim`, `schedule`, `train`, `checkpoint`, `log`
hint: did you mean `train`?
"#,
    );
}

#[test]
fn a_key_before_all_sections_names_its_home() {
    rejects(
        &edited("# A run.", "batch_size = 16"),
        &[],
        r#"
error: unknown key `batch_size` outside of all sections
 --> configs/x.toml:1:1
  |
1 | batch_size = 16
  | ^^^^^^^^^^
  = expected a section, one of `run`, `device`, `task`, `data`, `model`, `optim`, `schedule`, `train`, `checkpoint`, `log`
hint: `batch_size` is a key of `[train]`
"#,
    );
}

#[test]
fn an_unknown_variant_of_a_table_names_the_nearest() {
    rejects(
        &edited("[model.stack.mixer.scan]", "[model.stack.mixer.scna]"),
        &[],
        r#"
error: unknown variant `scna` of `model.stack.mixer`
  --> configs/x.toml:13:20
   |
13 | [model.stack.mixer.scna]
   |                    ^^^^
   = expected `scan` or `mean`
hint: did you mean `scan`?
"#,
    );
}

#[test]
fn an_unknown_variant_far_from_all_lists_them() {
    rejects(
        &edited("[optim.adam]", "[optim.sgd]"),
        &[],
        r#"
error: unknown variant `sgd` of `optim`
  --> configs/x.toml:16:8
   |
16 | [optim.sgd]
   |        ^^^
   = expected `adam` or `adamw`
"#,
    );
}

#[test]
fn an_unknown_variant_of_a_string_names_the_nearest() {
    rejects(
        &edited("width = 4", "features = \"ms\""),
        &[],
        r#"
error: unknown variant `ms` of `task.toy.features`
 --> configs/x.toml:6:12
  |
6 | features = "ms"
  |            ^^^^
  = expected one of `M`, `S`, `MS`
hint: did you mean `MS`?
"#,
    );
}

#[test]
fn an_unknown_task_names_the_nearest() {
    rejects(
        &edited("[task.toy]", "[task.tyo]"),
        &[],
        r#"
error: unknown task `tyo`
 --> configs/x.toml:5:7
  |
5 | [task.tyo]
  |       ^^^
  = expected `[task.toy]`
hint: did you mean `toy`?
"#,
    );
}

#[test]
fn an_unknown_backend_names_the_nearest() {
    rejects(
        &edited("seed = 7", "[device]\nbackend = \"felx\""),
        &[],
        r#"
error: `device.backend`: unknown backend, expected one of `auto`, `flex`, `ndarray`, `cuda`, `vulkan`, `webgpu`
 --> configs/x.toml:4:11
  |
4 | backend = "felx"
  |           ^^^^^^
hint: did you mean `flex`?
"#,
    );
}

#[test]
#[cfg(all(feature = "flex", feature = "ndarray"))]
fn a_backend_that_is_not_compiled_in_names_its_feature() {
    rejects(
        &edited("seed = 7", "[device]\nbackend = \"cuda\""),
        &[],
        r#"
error: `device.backend`: not compiled into this binary, which holds `flex`, `ndarray`
 --> configs/x.toml:4:11
  |
4 | backend = "cuda"
  |           ^^^^^^
hint: build with `--features cuda`, or use `auto`
"#,
    );
}

#[test]
fn mistakes_in_several_sections_come_together() {
    rejects(
        &edited("d_state", "d_sate").replace("batch_size", "batchsize"),
        &[],
        r#"
error: unknown key `d_sate` in `model.stack.mixer.scan`
  --> configs/x.toml:14:1
   |
14 | d_sate = 2
   | ^^^^^^
   = expected one of `d_state`, `d_conv`, `expand`
hint: did you mean `d_state`?

error: unknown key `batchsize` in `train`
  --> configs/x.toml:24:1
   |
24 | batchsize = 16
   | ^^^^^^^^^
   = expected one of `epochs`, `steps`, `batch_size`, `eval_batch_size`, `accumulate`, `clip_norm`, `patience`, `eval_every_steps`, `recompute`, `precision`
hint: did you mean `batch_size`?
"#,
    );
}

#[test]
fn the_task_is_known_before_its_sections_are() {
    let text = "[task.forecasting]\nany = 1\n[model]\nanything = true";
    assert_eq!(task_name(text, "x.toml", &["lm", "forecasting"]).unwrap(), "forecasting");
    assert_eq!(task_name(text, "x.toml", &[]).unwrap(), "forecasting");
}

#[test]
fn unknown_tasks_list_the_known_ones() {
    let known = ["lm", "forecasting", "mil"];
    assert_report(
        &task_name("[task.forcasting]", "x.toml", &known).unwrap_err(),
        r"
error: unknown task `forcasting`
 --> x.toml:1:7
  |
1 | [task.forcasting]
  |       ^^^^^^^^^^
  = expected one of `[task.lm]`, `[task.forecasting]`, `[task.mil]`
hint: did you mean `forecasting`?
",
    );
    assert_report(
        &task_name("[run]\n", "x.toml", &known).unwrap_err(),
        r"
error: missing section `[task]`
 --> x.toml
  = expected one of `[task.lm]`, `[task.forecasting]`, `[task.mil]`
",
    );
}
