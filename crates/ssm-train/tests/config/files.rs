//! Files that are no configuration, and how lines of them are shown.

use std::{fs, io::Write, path::Path};

use ssm_train::config::{Config, read};

use crate::toy::{FILE, Toy, edited, parse, rejects};

#[track_caller]
fn unreadable(path: &Path, expected: &str) {
    let error = Config::<Toy>::load(path, &[]).expect_err("the file cannot be read");
    assert_eq!(error.exit_code(), 2);
    let dir = path.parent().and_then(Path::to_str).expect("a path of the test");
    let got = error.report().replace(dir, "DIR");
    assert!(got == expected.trim(), "got\n{got}\n\nexpected\n{}", expected.trim());
}

fn files(names: &[&str]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory for the test");
    for name in names {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().expect("inside of the directory")).expect("a directory");
        fs::File::create(path).expect("an empty file");
    }
    dir
}

fn file(bytes: &[u8]) -> tempfile::TempDir {
    let dir = files(&[]);
    let mut file = fs::File::create(dir.path().join("x.toml")).expect("a file for the test");
    file.write_all(bytes).expect("its content");
    dir
}

#[test]
fn a_missing_file_names_the_nearest() {
    let dir = files(&["etth1_96.toml", "etth2_96.toml", "notes.md"]);
    unreadable(
        &dir.path().join("eth1_96.toml"),
        r"
error: there is no file `DIR/eth1_96.toml`
hint: did you mean `DIR/etth1_96.toml`?
",
    );
    unreadable(
        &dir.path().join("etth2_96"),
        r"
error: there is no file `DIR/etth2_96`
hint: did you mean `DIR/etth2_96.toml`?
",
    );
}

#[test]
fn a_missing_file_far_from_all_lists_what_is_there() {
    let names = ["a.toml", "b.toml", "c.toml", "d.toml", "forecasting/e.toml", "z.toml", ".hid"];
    let dir = files(&names);
    unreadable(
        &dir.path().join("something_else.toml"),
        r"
error: there is no file `DIR/something_else.toml`
hint: `DIR` holds `a.toml`, `b.toml`, `c.toml`, `d.toml`, `forecasting/` and 1 more
",
    );
}

#[test]
fn a_missing_directory_is_named() {
    let dir = files(&[]);
    unreadable(
        &dir.path().join("nowhere").join("x.toml"),
        r"
error: there is no file `DIR/x.toml`
hint: the directory `DIR` does not exist
",
    );
}

#[test]
fn a_directory_is_no_file() {
    let dir = files(&["forecasting/etth1_96.toml"]);
    unreadable(
        &dir.path().join("forecasting"),
        r"
error: `DIR/forecasting` is a directory, expected a TOML file
hint: `DIR/forecasting` holds `etth1_96.toml`
",
    );
}

#[test]
fn a_large_file_is_no_configuration() {
    let dir = file(&vec![b'#'; (1 << 20) + 1]);
    unreadable(
        &dir.path().join("x.toml"),
        r"
error: `DIR/x.toml` is too large, expected at most 1 MiB
hint: a configuration names its data under `[data]` and does not hold it
",
    );
}

#[test]
fn a_file_that_is_not_utf8_shows_the_byte() {
    let dir = file(b"[run]\nname = \"caf\xe9\" # latin-1\n");
    unreadable(
        &dir.path().join("x.toml"),
        "
error: invalid byte `0xe9`, expected UTF-8 text
 --> DIR/x.toml:2:12
  |
2 | name = \"caf\u{fffd}\" # latin-1
  |            ^
hint: save the file as UTF-8
",
    );
}

#[test]
fn an_invalid_byte_is_marked_behind_a_byte_order_mark() {
    // The sign after it is of several bytes: a mark that is off would begin or end inside of it.
    let dir = file(b"\xef\xbb\xbfa\xe9b\xe2\x82\xac\n");
    unreadable(
        &dir.path().join("x.toml"),
        "
error: invalid byte `0xe9`, expected UTF-8 text
 --> DIR/x.toml:1:2
  |
1 | a\u{fffd}b\u{20ac}
  |  ^
hint: save the file as UTF-8
",
    );
}

#[test]
fn a_byte_order_mark_and_windows_line_ends_just_work() {
    let windows = format!("\u{feff}{}", FILE.replace('\n', "\r\n"));
    assert_eq!(parse(&windows, &[]).unwrap(), parse(FILE, &[]).unwrap());
    let dir = file(windows.as_bytes());
    let path = dir.path().join("x.toml");
    assert_eq!(read(&path).unwrap(), windows);
    assert_eq!(Config::<Toy>::load(&path, &[]).unwrap(), parse(FILE, &[]).unwrap());
}

#[test]
fn places_are_right_behind_a_byte_order_mark_and_windows_line_ends() {
    rejects(
        &format!("\u{feff}{}", edited("d_state", "d_sate").replace('\n', "\r\n")),
        &[],
        r"
error: unknown key `d_sate` in `model.stack.mixer.scan`
  --> configs/x.toml:14:1
   |
14 | d_sate = 2
   | ^^^^^^
   = expected one of `d_state`, `d_conv`, `expand`
hint: did you mean `d_state`?
",
    );
}

#[test]
fn columns_count_characters_and_tabs_stay_tabs() {
    rejects(
        &edited("width = 4", "\tfeatures = \"é\"# é"),
        &[],
        "
error: unknown variant `é` of `task.toy.features`
 --> configs/x.toml:6:13
  |
6 | \tfeatures = \"é\"# é
  | \t           ^^^
  = expected one of `M`, `S`, `MS`
",
    );
}

#[test]
fn a_long_line_is_cut_around_the_mistake() {
    let long = format!("data = {{ csv = {{ path = \"{}\", pth = 1 }} }}", "x".repeat(500));
    let text = edited("[data.csv]\npath = \"series.csv\"\n", "").replace("# A run.", &long);
    rejects(
        &text,
        &[],
        r#"
error: unknown key `pth` in `data.csv`
 --> configs/x.toml:1:529
  |
1 | ...xxxxxxxxxxxxxxxxxxxxxx", pth = 1 } }
  |                             ^^^
  = expected `path`
hint: did you mean `path`?
"#,
    );
}

#[test]
fn text_that_steers_terminals_is_made_visible() {
    rejects(
        &edited("width = 4", "\"\\u001b[2J\" = 4"),
        &[],
        "
error: unknown key `\u{fffd}[2J` in `task.toy`
 --> configs/x.toml:6:1
  |
6 | \"\\u001b[2J\" = 4
  | ^^^^^^^^^^^
  = expected one of `width`, `features`, `rates`
",
    );
}

#[test]
fn no_damage_to_a_file_is_a_panic() {
    for at in (0..FILE.len()).filter(|at| FILE.is_char_boundary(*at)) {
        let outcomes = [
            parse(&FILE[..at], &[]),
            parse(&FILE[at..], &["train.steps=3"]),
            parse(&format!("{}{}", &FILE[..at], &FILE[at + 1..]), &["schedule.constant={}"]),
            parse(&format!("{}[{}", &FILE[..at], &FILE[at..]), &[]),
            parse(&format!("{}\"{}", &FILE[..at], &FILE[at..]), &[]),
        ];
        for outcome in outcomes {
            match outcome {
                Ok(config) => assert_eq!(parse(&config.to_toml(), &[]).unwrap(), config),
                Err(error) => assert!(error.report().starts_with("error: ")),
            }
        }
    }
}
