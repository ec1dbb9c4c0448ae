//! Text that is no TOML.

use crate::toy::{edited, rejects};

#[test]
fn a_duplicate_key_is_refused() {
    rejects(
        &edited("lr = 7e-5", "lr = 7e-5\nlr = 1e-3"),
        &[],
        r#"
error: duplicate key `lr`
  --> configs/x.toml:18:1
   |
18 | lr = 1e-3
   | ^^
   = expected every key and every table once
"#,
    );
}

#[test]
fn a_duplicate_table_is_refused() {
    rejects(
        &edited("[schedule.cosine]\n", "[optim.adam]\n"),
        &[],
        r#"
error: duplicate key `adam`
  --> configs/x.toml:19:8
   |
19 | [optim.adam]
   |        ^^^^
   = expected every key and every table once
"#,
    );
}

#[test]
fn an_open_string_is_refused() {
    rejects(
        &edited("\"series.csv\"", "\"series.csv"),
        &[],
        r#"
error: syntax error: invalid basic string
 --> configs/x.toml:9:19
  |
9 | path = "series.csv
  |                   ^
  = expected `"`
"#,
    );
}

#[test]
fn an_open_header_is_refused() {
    rejects(
        &edited("[train]", "[train"),
        &[],
        r#"
error: syntax error: unclosed table
  --> configs/x.toml:22:7
   |
22 | [train
   |       ^
   = expected `]`
"#,
    );
}

#[test]
fn a_key_without_value_is_refused() {
    rejects(
        &edited("lr = 7e-5", "lr ="),
        &[],
        r#"
error: syntax error: missing value
  --> configs/x.toml:17:5
   |
17 | lr =
   |     ^
   = expected a value
"#,
    );
}

#[test]
fn a_colon_is_no_equals_sign() {
    rejects(
        &edited("lr = 7e-5", "lr: 7e-5"),
        &[],
        r#"
error: syntax error: key with no value
  --> configs/x.toml:17:5
   |
17 | lr: 7e-5
   |     ^
   = expected `=`
"#,
    );
}

#[test]
fn a_decimal_comma_is_refused() {
    rejects(
        &edited("lr = 7e-5", "lr = 0,1"),
        &[],
        r#"
error: syntax error: unexpected key or value
  --> configs/x.toml:17:7
   |
17 | lr = 0,1
   |       ^
   = expected newline, `#`
"#,
    );
}

#[test]
fn text_needs_quotes() {
    rejects(
        &edited("\"series.csv\"", "series.csv"),
        &[],
        r#"
error: syntax error: `series.csv` is not a value
 --> configs/x.toml:9:8
  |
9 | path = series.csv
  |        ^^^^^^^^^^
  = expected a number, `true`, `false`, or text in quotes
hint: write `"series.csv"` if it is text
"#,
    );
}

#[test]
fn true_is_lower_case() {
    rejects(
        &edited("width = 4", "width = True"),
        &[],
        r#"
error: syntax error: `True` is not a value
 --> configs/x.toml:6:9
  |
6 | width = True
  |         ^^^^
  = expected a number, `true`, `false`, or text in quotes
hint: did you mean `true`?
"#,
    );
}

#[test]
fn backslashes_in_paths_name_the_way_out() {
    rejects(
        &edited("series.csv", "C:\\data"),
        &[],
        r#"
error: syntax error: missing escaped value
 --> configs/x.toml:9:12
  |
9 | path = "C:\data"
  |            ^
  = expected `b`, `e`, `f`, `n`, `r`, `\`, `"`, `x`, `u`, `U`
hint: in a path write `/`, or put the text in single quotes
"#,
    );
}
