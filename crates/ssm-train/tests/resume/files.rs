//! Every file of a checkpoint, broken anywhere.

use std::fs;

use ssm_train::Error;

use crate::{
    faults::config,
    toy::{self, checkpoints, run, trace},
};

/// A file cut, emptied, too long, and with the bytes at `places` flipped, with what was done to it.
fn damaged(bytes: &[u8], places: impl Iterator<Item = usize>) -> Vec<(String, Vec<u8>)> {
    let mut broken = vec![
        ("empty".into(), Vec::new()),
        ("one byte short".into(), bytes[..bytes.len() - 1].to_vec()),
        ("one byte long".into(), [bytes, b"x"].concat()),
    ];
    for at in places {
        for flip in [1, 0x80, 0xff] {
            let mut flipped = bytes.to_vec();
            flipped[at] ^= flip;
            broken.push((format!("byte {at} ^ {flip}"), flipped));
        }
    }
    broken
}

/// Every file of a checkpoint, cut, emptied, removed, and with bytes flipped anywhere.
#[test]
fn whatever_is_wrong_with_a_file_of_a_checkpoint_is_found_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), "x");
    run(&config, false, &[]).unwrap();
    let all = checkpoints(&config);
    let step = *all.steps().unwrap().last().unwrap();
    let path = config.run.path().join(format!("checkpoints/step_{step:08}"));
    let files = ["manifest.json", "model.bpk", "optimizer.bpk", "state.json"];
    let mut found: Vec<String> = fs::read_dir(&path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    found.sort();
    assert_eq!(found, files);
    for name in files {
        let file = path.join(name);
        let bytes = fs::read(&file).unwrap();
        // Every byte of the manifest, on which all depends.
        let n_places = if name == "manifest.json" { bytes.len() } else { 40 };
        let places = (0..n_places).map(|part| part * (bytes.len() - 1) / (n_places - 1));
        for (what, bytes) in damaged(&bytes, places) {
            toy::put(&file, &bytes).unwrap();
            match all.load(step) {
                Err(Error::Checkpoint { message, .. }) => {
                    let is_named = ["has ", "cannot be understood: "]
                        .iter()
                        .any(|problem| message.starts_with(&format!("`{name}` {problem}")));
                    assert!(is_named, "{what}: {message}");
                }
                Err(error) => panic!("{name}, {what}: {error}"),
                Ok(_) => panic!("{name}, {what}: not found"),
            }
        }
        fs::remove_file(&file).unwrap();
        let error = all.load(step).err().unwrap().to_string();
        assert!(error.ends_with(&format!(": `{name}` is missing")), "{error}");
        toy::put(&file, &bytes).unwrap();
    }
    all.load(step).unwrap();
}

/// One that names another checkpoint would have it scored in silence.
#[test]
fn whatever_is_wrong_with_the_names_of_the_last_and_the_best_checkpoint_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), "x");
    run(&config, false, &[]).unwrap();
    let all = checkpoints(&config);
    let [last, best] = [all.last(), all.best()].map(|step| step.unwrap().unwrap());
    for name in ["last", "best"] {
        let file = config.run.path().join("checkpoints").join(name);
        let bytes = fs::read(&file).unwrap();
        for (what, bytes) in damaged(&bytes, 0..bytes.len()) {
            toy::put(&file, &bytes).unwrap();
            let read = if name == "last" { all.last() } else { all.best() };
            let Err(error) = read else { panic!("{name}, {what}: not found") };
            let start = format!(
                "error: checkpoint `{}`: expected the name of a checkpoint and its SHA-256, got `",
                file.display()
            );
            let end = "`\nhint: continue the run with `--resume`, which writes it anew";
            let report = error.report();
            assert!(report.starts_with(&start) && report.ends_with(end), "{what}: {report}");
            let scored = all.load_best();
            assert_eq!(scored.is_err(), name == "best", "{name}, {what}");
        }
        // As older versions wrote it.
        let first_line = bytes.split_inclusive(|byte| *byte == b'\n').next().unwrap();
        toy::put(&file, first_line).unwrap();
        assert_eq!((all.last().unwrap(), all.best().unwrap()), (Some(last), Some(best)));
    }
    for name in ["last", "best"] {
        let file = config.run.path().join("checkpoints").join(name);
        toy::put(&file, b"step_00000007\n0\n").unwrap();
    }
    // What goes on knows both.
    run(&config, true, &[]).unwrap();
    assert_eq!((all.last().unwrap(), all.best().unwrap()), (Some(last), Some(best)));
}

/// What cannot be read at the moment is not damaged: nothing is set aside, nothing is trained again.
#[test]
fn a_checkpoint_that_cannot_be_read_stops_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let [whole, cut] = ["whole", "x"].map(|name| config(dir.path(), name));
    run(&whole, false, &[]).unwrap();
    run(&cut, false, &["fail=13"]).unwrap_err();
    let all = checkpoints(&cut);
    let step = *all.steps().unwrap().last().unwrap();
    let file = cut.run.path().join(format!("checkpoints/step_{step:08}/model.bpk"));
    let away = dir.path().join("away");
    fs::copy(&file, &away).unwrap();
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    let report = run(&cut, true, &[]).unwrap_err().report();
    assert!(report.starts_with(&format!("error: cannot read `{}`: ", file.display())), "{report}");
    assert_eq!(all.steps().unwrap().last(), Some(&step), "nothing was set aside");
    fs::remove_dir(&file).unwrap();
    fs::copy(&away, &file).unwrap();
    run(&cut, true, &[]).unwrap();
    assert_eq!(trace(&cut), trace(&whole));
}
