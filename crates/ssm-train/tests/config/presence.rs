//! What is missing, and what is there twice.

use crate::toy::{edited, rejects};

#[test]
fn a_missing_key_is_named_at_its_table() {
    rejects(
        &edited("n_layer = 2\n", ""),
        &[],
        r#"
error: missing key `n_layer` in `model.stack`
  --> configs/x.toml:11:1
   |
11 | [model.stack]
   | ^^^^^^^^^^^^^
   = expected `n_layer`, which has no default
"#,
    );
}

#[test]
fn a_missing_table_is_named_at_its_parent() {
    rejects(
        &edited("[model.stack.mixer.scan]\nd_state = 2\n", ""),
        &[],
        r#"
error: missing key `mixer` in `model.stack`
  --> configs/x.toml:11:1
   |
11 | [model.stack]
   | ^^^^^^^^^^^^^
   = expected `mixer`, which has no default
"#,
    );
}

#[test]
fn a_missing_section_lists_its_variants() {
    rejects(
        &edited("[optim.adam]\nlr = 7e-5\n", ""),
        &[],
        r#"
error: missing section `[optim]`
 --> configs/x.toml
  = expected `[optim.adam]` or `[optim.adamw]`
"#,
    );
}

#[test]
fn a_missing_task_names_it() {
    rejects(
        &edited("[task.toy]\nwidth = 4\n", ""),
        &[],
        r#"
error: missing section `[task]`
 --> configs/x.toml
  = expected `[task.toy]`
"#,
    );
}

#[test]
fn an_empty_section_lists_its_variants() {
    rejects(
        &edited("[optim.adam]\nlr = 7e-5\n", "[optim]\n"),
        &[],
        r#"
error: `optim` is empty
  --> configs/x.toml:16:1
   |
16 | [optim]
   | ^^^^^^^
   = expected exactly one of `adam`, `adamw`
"#,
    );
}

#[test]
fn an_empty_table_lists_its_variants() {
    rejects(
        &edited("[model.stack.mixer.scan]\nd_state = 2", "[model.stack.mixer]"),
        &[],
        r#"
error: `model.stack.mixer` is empty
  --> configs/x.toml:13:1
   |
13 | [model.stack.mixer]
   | ^^^^^^^^^^^^^^^^^^^
   = expected exactly one of `scan`, `mean`
"#,
    );
}

#[test]
fn two_variants_are_one_too_many() {
    rejects(
        &edited("lr = 7e-5", "lr = 7e-5\n[optim.adamw]"),
        &[],
        r#"
error: `optim` holds several variants: `adam`, `adamw`
  --> configs/x.toml:18:8
   |
18 | [optim.adamw]
   |        ^^^^^
   = expected exactly one of `adam`, `adamw`
"#,
    );
}

#[test]
fn two_mixers_are_one_too_many() {
    rejects(
        &edited("d_state = 2", "[model.stack.mixer.mean]"),
        &[],
        r#"
error: `model.stack.mixer` holds several variants: `mean`, `scan`
  --> configs/x.toml:14:20
   |
14 | [model.stack.mixer.mean]
   |                    ^^^^
   = expected exactly one of `scan`, `mean`
"#,
    );
}

#[test]
fn two_tasks_are_one_too_many() {
    rejects(
        &edited("width = 4", "width = 4\n[task.lm]"),
        &[],
        r#"
error: `task` holds several tasks: `toy`, `lm`
 --> configs/x.toml:7:7
  |
7 | [task.lm]
  |       ^^
  = expected `[task.toy]`
"#,
    );
}

#[test]
fn an_empty_file_misses_every_section_without_default() {
    rejects(
        "",
        &[],
        r#"
error: missing section `[task]`
 --> configs/x.toml
  = expected `[task.toy]`

error: missing section `[data]`
 --> configs/x.toml
  = expected `[data.csv]` or `[data.ett]`

error: missing section `[model]`
 --> configs/x.toml
  = expected `[model.stack]` or `[model.linear]`

error: missing section `[optim]`
 --> configs/x.toml
  = expected `[optim.adam]` or `[optim.adamw]`
"#,
    );
}

#[test]
fn epochs_and_steps_exclude_each_other() {
    rejects(
        &edited("epochs = 3", "epochs = 3\nsteps = 100"),
        &[],
        r#"
error: `train.steps`: expected one of `epochs` and `steps`, got both
  --> configs/x.toml:24:9
   |
24 | steps = 100
   |         ^^^
hint: remove one of the two
"#,
    );
}

#[test]
fn epochs_or_steps_must_be_set() {
    rejects(
        &edited("epochs = 3\n", ""),
        &[],
        r#"
error: `train`: expected one of `epochs` and `steps`, got neither
  --> configs/x.toml:22:1
   |
22 | [train]
   | ^^^^^^^
hint: say how long to train, as `epochs = 10` or `steps = 2000`
"#,
    );
}

#[test]
fn a_missing_train_section_says_what_to_write() {
    rejects(
        &edited("[train]\nepochs = 3\nbatch_size = 16\n", ""),
        &[],
        r#"
error: `train`: expected one of `epochs` and `steps`, got neither
 --> configs/x.toml
hint: say how long to train, as `epochs = 10` or `steps = 2000`
"#,
    );
}
