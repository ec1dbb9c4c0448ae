//! Values of the wrong type or length.

use crate::toy::{edited, rejects};

#[test]
fn a_string_for_a_number_is_refused() {
    rejects(
        &edited("width = 4", "width = \"four\""),
        &[],
        r#"
error: wrong type of `task.toy.width`
 --> configs/x.toml:6:9
  |
6 | width = "four"
  |         ^^^^^^
  = expected a non-negative integer, got the string `four`
"#,
    );
}

#[test]
fn a_fraction_for_a_count_is_refused() {
    rejects(
        &edited("width = 4", "width = 4.5"),
        &[],
        r#"
error: wrong type of `task.toy.width`
 --> configs/x.toml:6:9
  |
6 | width = 4.5
  |         ^^^
  = expected a non-negative integer, got the float `4.5`
"#,
    );
}

#[test]
fn a_negative_count_is_refused() {
    rejects(
        &edited("width = 4", "width = -4"),
        &[],
        r#"
error: value out of range for `task.toy.width`
 --> configs/x.toml:6:9
  |
6 | width = -4
  |         ^^
  = expected a non-negative integer, got the integer `-4`
"#,
    );
}

#[test]
fn an_integer_beyond_its_type_is_refused() {
    rejects(
        &edited("n_layer = 2", "n_layer = 5000000000"),
        &[],
        r#"
error: value out of range for `model.stack.n_layer`
  --> configs/x.toml:12:11
   |
12 | n_layer = 5000000000
   |           ^^^^^^^^^^
   = expected an integer from 0 to 4294967295, got the integer `5000000000`
"#,
    );
}

#[test]
fn an_integer_beyond_all_types_is_refused() {
    rejects(
        &edited("width = 4", "width = 99999999999999999999999999"),
        &[],
        r#"
error: value out of range for `task.toy.width`
 --> configs/x.toml:6:9
  |
6 | width = 99999999999999999999999999
  |         ^^^^^^^^^^^^^^^^^^^^^^^^^^
  = expected a non-negative integer, got the integer `99999999999999999999999999`
"#,
    );
}

#[test]
fn a_number_for_a_string_is_refused() {
    rejects(
        &edited("seed = 7", "name = 2024"),
        &[],
        r#"
error: wrong type of `run.name`
 --> configs/x.toml:3:8
  |
3 | name = 2024
  |        ^^^^
  = expected a string, got the integer `2024`
hint: write `"2024"` if it is text
"#,
    );
}

#[test]
fn a_number_for_a_table_is_refused() {
    rejects(
        &edited("[model.stack.mixer.scan]\nd_state = 2", "mixer.scan = 3"),
        &[],
        r#"
error: wrong type of `model.stack.mixer.scan`
  --> configs/x.toml:13:14
   |
13 | mixer.scan = 3
   |              ^
   = expected a table, got the integer `3`
"#,
    );
}

#[test]
fn a_table_for_a_number_is_refused() {
    rejects(
        &edited("width = 4", "width = { a = 1 }"),
        &[],
        r#"
error: wrong type of `task.toy.width`
 --> configs/x.toml:6:9
  |
6 | width = { a = 1 }
  |         ^^^^^^^^^
  = expected a non-negative integer, got a table
"#,
    );
}

#[test]
fn a_string_for_a_section_becomes_a_header() {
    rejects(
        &edited(
            "# A run.\n[run]\nseed = 7\n\n[task.toy]\nwidth = 4\n\n[data.csv]\n\
             path = \"series.csv\"\n",
            "data = \"ett\"\n[task.toy]\n",
        ),
        &[],
        r#"
error: wrong type of `data`
 --> configs/x.toml:1:8
  |
1 | data = "ett"
  |        ^^^^^
  = expected a table, got the string `ett`
hint: write `[data.ett]` with its keys below
"#,
    );
}

#[test]
fn a_string_for_a_table_becomes_a_header() {
    rejects(
        &edited("[model.stack.mixer.scan]\nd_state = 2", "mixer = \"scan\""),
        &[],
        r#"
error: wrong type of `model.stack.mixer`
  --> configs/x.toml:13:9
   |
13 | mixer = "scan"
   |         ^^^^^^
   = expected a table, got the string `scan`
hint: write `[model.stack.mixer.scan]` with its keys below
"#,
    );
}

#[test]
fn an_array_of_tables_is_no_section() {
    rejects(
        &edited("[train]", "[[train]]"),
        &[],
        r#"
error: wrong type of `train`
  --> configs/x.toml:22:1
   |
22 | [[train]]
   | ^^^^^^^^^
   = expected a table, got an array
hint: write `[train]` with its keys below
"#,
    );
}

#[test]
fn a_short_array_is_refused() {
    rejects(
        &edited("lr = 7e-5", "betas = [0.9]"),
        &[],
        r#"
error: wrong length of `optim.adam.betas`
  --> configs/x.toml:17:9
   |
17 | betas = [0.9]
   |         ^^^^^
   = expected an array of length 2, got length `1`
"#,
    );
}

#[test]
fn a_long_array_is_refused() {
    rejects(
        &edited("lr = 7e-5", "betas = [0.9, 0.99, 0.999]"),
        &[],
        r#"
error: `optim.adam.betas`: expected an array of length 2, got length `3`
  --> configs/x.toml:17:9
   |
17 | betas = [0.9, 0.99, 0.999]
   |         ^^^^^^^^^^^^^^^^^^
"#,
    );
}

#[test]
fn an_element_of_an_array_is_named() {
    rejects(
        &edited("lr = 7e-5", "betas = [0.9, \"0.999\"]"),
        &[],
        r#"
error: wrong type of `optim.adam.betas[1]`
  --> configs/x.toml:17:15
   |
17 | betas = [0.9, "0.999"]
   |               ^^^^^^^
   = expected a number, got the string `0.999`
"#,
    );
}
