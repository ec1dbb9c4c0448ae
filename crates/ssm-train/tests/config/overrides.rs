//! Mistakes on the command line.

use crate::toy::{FILE, rejects};

#[test]
fn an_override_needs_an_equals_sign() {
    rejects(
        FILE,
        &["train.batch_size"],
        r#"
error: override without `=`
 --> --set:1:1
  |
1 | train.batch_size
  | ^^^^^^^^^^^^^^^^
  = expected `section.key=value`
"#,
    );
}

#[test]
fn an_override_needs_a_key() {
    rejects(
        FILE,
        &["train..x=1"],
        r#"
error: `` in an override is not a key
 --> --set:1:7
  |
1 | train..x=1
  |       ^
  = expected `section.key=value`
"#,
    );
}

#[test]
fn an_override_has_no_spaces_in_keys() {
    rejects(
        FILE,
        &["train.batch size=1"],
        r#"
error: `batch size` in an override is not a key
 --> --set:1:7
  |
1 | train.batch size=1
  |       ^^^^^^^^^^
  = expected `section.key=value`
"#,
    );
}

#[test]
fn an_override_of_an_unknown_key_names_the_nearest() {
    rejects(
        FILE,
        &["run.seed=1", "train.batchsize=3"],
        r#"
error: unknown key `batchsize` in `train`
 --> --set:1:7
  |
1 | train.batchsize=3
  |       ^^^^^^^^^
  = expected one of `epochs`, `steps`, `batch_size`, `eval_batch_size`, `accumulate`, `clip_norm`, `patience`, `eval_every_steps`, `recompute`, `precision`
hint: did you mean `batch_size`?
"#,
    );
}

#[test]
fn an_override_of_an_unknown_section_names_the_nearest() {
    rejects(
        FILE,
        &["trian.steps=3"],
        r#"
error: unknown section `trian`
 --> --set:1:1
  |
1 | trian.steps=3
  | ^^^^^
  = expected a section, one of `run`, `device`, `task`, `data`, `model`, `optim`, `schedule`, `train`, `checkpoint`, `log`
hint: did you mean `train`?
"#,
    );
}

#[test]
fn an_override_of_the_wrong_type_is_shown() {
    rejects(
        FILE,
        &["train.batch_size=many"],
        r#"
error: wrong type of `train.batch_size`
 --> --set:1:18
  |
1 | train.batch_size=many
  |                  ^^^^
  = expected a non-negative integer, got the string `many`
"#,
    );
}

#[test]
fn an_override_with_a_number_for_a_string_shows_the_quotes() {
    rejects(
        FILE,
        &["run.name=2024"],
        r#"
error: wrong type of `run.name`
 --> --set:1:10
  |
1 | run.name=2024
  |          ^^^^
  = expected a string, got the integer `2024`
hint: write `--set 'run.name="2024"'` if it is text
"#,
    );
}

#[test]
fn an_override_with_broken_toml_is_shown() {
    rejects(
        FILE,
        &["optim.adam.betas=[0.9, 0.99"],
        r#"
error: syntax error: unclosed array
 --> --set:1:28
  |
1 | optim.adam.betas=[0.9, 0.99
  |                            ^
  = expected `]`
"#,
    );
}

#[test]
fn an_override_out_of_range_is_shown() {
    rejects(
        FILE,
        &["train.accumulate=0"],
        r#"
error: `train.accumulate`: expected at least 1, got `0`
 --> --set:1:18
  |
1 | train.accumulate=0
  |                  ^
"#,
    );
}

#[test]
fn an_override_cannot_go_below_a_value() {
    rejects(
        FILE,
        &["run.seed.x=1"],
        r#"
error: `run.seed` holds one integer and no keys
 --> --set:1:5
  |
1 | run.seed.x=1
  |     ^^^^
"#,
    );
}

#[test]
fn an_override_removes_only_what_is_set() {
    rejects(
        FILE,
        &["train.clip_norm="],
        r#"
error: nothing to remove: `train.clip_norm` is not set
 --> --set:1:1
  |
1 | train.clip_norm=
  | ^^^^^^^^^^^^^^^
hint: an override without a value removes a key of the file
"#,
    );
}

#[test]
fn an_override_names_a_variant_by_a_table() {
    rejects(
        FILE,
        &["optim=adamw"],
        r#"
error: wrong type of `optim`
 --> --set:1:7
  |
1 | optim=adamw
  |       ^^^^^
  = expected a table, got the string `adamw`
hint: write `--set optim.adamw={}`, or set its keys
"#,
    );
}

#[test]
fn a_mistake_deep_in_an_override_is_marked() {
    rejects(
        FILE,
        &["model.stack.mixer.scan={d_conv=2, d_sate=1}"],
        r#"
error: unknown key `d_sate` in `model.stack.mixer.scan`
 --> --set:1:35
  |
1 | model.stack.mixer.scan={d_conv=2, d_sate=1}
  |                                   ^^^^^^
  = expected one of `d_state`, `d_conv`, `expand`
hint: did you mean `d_state`?
"#,
    );
}

#[test]
fn overrides_cannot_choose_two_variants() {
    rejects(
        FILE,
        &["optim.adamw.lr=0.1", "optim.adam.lr=0.1"],
        r#"
error: `optim` holds several variants: `adam`, `adamw`
 --> --set:1:7
  |
1 | optim.adam.lr=0.1
  |       ^^^^
  = expected exactly one of `adam`, `adamw`
"#,
    );
}

#[test]
fn overrides_cannot_set_epochs_and_steps() {
    rejects(
        FILE,
        &["train.epochs=5", "train.steps=10"],
        r#"
error: `train.steps`: expected one of `epochs` and `steps`, got both
 --> --set:1:13
  |
1 | train.steps=10
  |             ^^
hint: remove one of the two
"#,
    );
}

#[test]
fn all_broken_overrides_are_listed() {
    rejects(
        FILE,
        &["seed", "train.x.y="],
        r#"
error: override without `=`
 --> --set:1:1
  |
1 | seed
  | ^^^^
  = expected `section.key=value`

error: nothing to remove: `train.x` is not set
 --> --set:1:1
  |
1 | train.x.y=
  | ^^^^^^^
hint: an override without a value removes a key of the file
"#,
    );
}
