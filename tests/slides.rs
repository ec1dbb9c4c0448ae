//! Slides as a clinic has them: a table beside feature files, from the audit to the heatmap.

use std::{fs, path::PathBuf};

use crate::support::{Desk, root};

const D: usize = 3;

/// A `.npy` file of `n` instances; class 1 has a larger first feature.
fn npy(n: usize, width: usize, value: impl Fn(usize, usize) -> f32) -> Vec<u8> {
    let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({n}, {width}), }}\n");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    for i in 0..n {
        (0..width).for_each(|j| bytes.extend(value(i, j).to_le_bytes()));
    }
    bytes
}

/// A table, features and a configuration.
struct Clinic {
    desk: Desk,
}

const CONFIG: &str = r#"
[task.mil]
standardise = true
bootstrap = 100
[task.mil.split]
folds = 3
valid = 0.3
[data.slides]
table = "TABLE"
features = "features"
label_column = "label"
[model.abmil]
d_attention = 4
embedder = { hidden = [8] }
[optim.adam]
lr = 1e-2
[train]
epochs = 4
batch_size = 1
"#;

impl Clinic {
    /// 24 slides of 12 patients, every second patient with a tumour.
    fn new() -> Self {
        let clinic = Self { desk: Desk::new() };
        fs::create_dir(clinic.desk.path("features")).unwrap();
        fs::create_dir(clinic.desk.path("runs")).unwrap();
        let mut table = "slide_id,case_id,label,time,event,split\n".to_owned();
        for slide in 0..24 {
            let (case, class) = (slide / 2, slide / 2 % 2);
            let label = ["normal", "tumour"][class];
            let split = ["train", "train", "train", "valid", "test", "test"][slide / 4];
            let (time, event) = (slide + 1, usize::from(slide % 3 > 0));
            table += &format!("s{slide},p{case},{label},{time}.5,{event},{split}\n");
            let value = |i: usize, j: usize| {
                ((slide * 31 + i * 17 + j * 7) % 13) as f32 / 13.0
                    + (class * 2 * (j == 0) as usize) as f32
            };
            clinic.features(&format!("s{slide}.npy"), &npy(3 + slide % 5, D, value));
        }
        clinic.desk.put("table.csv", &table);
        clinic.desk.put("config.toml", &CONFIG.replace("TABLE", &clinic.path("table.csv")));
        clinic
    }

    fn path(&self, name: &str) -> String {
        self.desk.path(name).display().to_string()
    }

    fn features(&self, name: &str, bytes: &[u8]) {
        #[expect(clippy::disallowed_methods, reason = "a test makes its own input")]
        fs::write(self.desk.path("features").join(name), bytes).unwrap();
    }

    /// Replaces text of a file.
    fn change(&self, file: &str, old: &str, new: &str) {
        let text = fs::read_to_string(self.desk.path(file)).unwrap();
        assert!(text.contains(old), "{file} has no `{old}`");
        self.desk.put(file, &text.replace(old, new));
    }

    fn train(&self, arguments: &[&str]) -> crate::support::Ended {
        let dir = format!("run.dir={}", self.path("runs"));
        let config = self.path("config.toml");
        self.desk.ssm(&[&["train", &config, "--set", &dir, "-q"], arguments].concat())
    }

    /// Everything below the directory, with sizes.
    fn listing(&self) -> Vec<(PathBuf, u64)> {
        let mut found = Vec::new();
        let mut folders = vec![self.desk.path("")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                found.push((
                    path.clone(),
                    if path.is_dir() { 0 } else { path.metadata().unwrap().len() },
                ));
                if path.is_dir() {
                    folders.push(path);
                }
            }
        }
        found.sort();
        found
    }

    /// Fails to train with this text, and leaves everything as it was.
    fn refuses(&self, arguments: &[&str], expected: &str) {
        let before = self.listing();
        let ended = self.train(arguments);
        let text = ended.stderr.replace(&self.desk.path("").display().to_string(), "DIR/");
        assert!(text.contains(expected), "expected {expected}\ngot {text}");
        assert_eq!(ended.code, 2, "{text}");
        assert_eq!(self.listing(), before, "{expected}");
    }
}

#[test]
fn every_mistake_in_a_table_is_an_error_that_changes_nothing() {
    let mistakes = [
        (
            "case_id,label",
            "patient,label",
            "`DIR/table.csv`: expected a column `case_id`, got `slide_id`, `patient`, `label`, `time`, `event`, `split`",
        ),
        ("slide_id,case", "slide,case", "expected a column `slide_id`"),
        ("label,time", "class,time", "expected a column `label`"),
        ("s3,p1,", "s2,p1,", "`DIR/table.csv`: line 5: slide `s2` stands in line 4 already"),
        ("s3,p1,", ",p1,", "line 5: expected a slide and a patient, got an empty cell"),
        ("s3,p1,", "s3,,", "line 5: expected a slide and a patient, got an empty cell"),
        (
            "s3,p1,",
            "s99,p1,",
            "1 of 24 slides have no file of features: `s99`\nhint: expected `s99.h5` or another ending of h5, hdf5, pt, pth, safetensors, npz, npy, or drop the rows of the table",
        ),
        ("s3,p1,tumour,4.5,0,train", "s3,p1,tumour", "not CSV"),
        ("tumour", "normal", "expected at least two classes in `label`, got 1"),
    ];
    for (old, new, expected) in mistakes {
        let clinic = Clinic::new();
        clinic.change("table.csv", old, new);
        clinic.refuses(&[], expected);
    }
}

#[test]
fn every_mistake_in_a_configuration_is_an_error_that_changes_nothing() {
    let survival = "time_column = \"time\"\nevent_column = \"event\"";
    let given = "label_column = \"label\"\nsplit_columns = [\"split\"]";
    let label = "label_column = \"label\"";
    let clinic = Clinic::new();
    let mistakes: Vec<(&str, &str, String, &str)> = vec![
        (
            "",
            "",
            format!("{label}\nclasses = [\"normal\", \"tumor\"]"),
            "`DIR/table.csv`: line 4, column `label`: expected one of `normal`, `tumor`, got `tumour`\nhint: did you mean `tumor`?",
        ),
        (
            "4.5,0",
            "soon,0",
            survival.to_owned(),
            "line 5, column `time`: expected a time above 0, got `soon`",
        ),
        (
            "4.5,0",
            "0,0",
            survival.to_owned(),
            "line 5, column `time`: expected a time above 0, got `0`",
        ),
        (
            "4.5,0",
            "4.5,yes",
            survival.to_owned(),
            "line 5, column `event`: expected 1 (seen) or 0 (censored), got `yes`",
        ),
        (
            "4.5,0,train",
            "4.5,0,trian",
            given.to_owned(),
            "line 5, column `split`: expected `train`, `valid`, `test` or nothing, got `trian`",
        ),
        (
            "s0,p0,normal,1.5,0,train",
            "s0,p0,normal,1.5,0,test",
            given.to_owned(),
            "`task.mil.split`: expected every patient on one side of the split, got 1 on several: `p0`",
        ),
        (",test\n", ",train\n", given.to_owned(), "`task.mil.split`: no test slide"),
        (
            "",
            "",
            format!("{label}\n{survival}"),
            "expected either `label_column`, or `time_column` and `event_column`",
        ),
        (
            "",
            "",
            String::new(),
            "expected either `label_column`, or `time_column` and `event_column`",
        ),
        ("", "", format!("{label}\ncolour = 1"), "unknown key `colour` in `data.slides`"),
    ];
    for (old, new, section, expected) in &mistakes {
        let clinic = Clinic::new();
        if !old.is_empty() {
            clinic.change("table.csv", old, new);
        }
        clinic.change("config.toml", label, section);
        clinic.refuses(&[], expected);
    }
    for (setting, expected) in [
        ("data.slides.table=none.csv", "`none.csv`: data file not found"),
        ("data.slides.features=none", "`none`: no such directory of features; searched `none`"),
        (
            "task.mil.split.folds=13",
            "expected at least as many patients as folds, got 12 patients and 13 folds",
        ),
        ("task.mil.select=c_index", "expected `loss` or `auc` for classes, got `c_index`"),
        ("run.fold=3", "`run.fold`: expected less than 3, the folds, got `3`"),
    ] {
        clinic.refuses(&["--set", setting], expected);
    }
}

#[test]
fn every_broken_file_of_features_is_an_error_that_changes_nothing() {
    let fixture = |name: &str| {
        fs::read(root().join("crates/ssm-tasks/tests/fixtures/mil").join(name)).unwrap()
    };
    let whole = fixture("clam_latest.h5");
    let files: [(&str, Vec<u8>, &str); 7] = [
        (
            "s0.h5",
            whole[..whole.len() / 2].to_vec(),
            "`DIR/features/s0.h5`: not a HDF5 file that can be read: ",
        ),
        (
            "s0.h5",
            fixture("no_features.h5"),
            "`DIR/features/s0.h5`: expected features under `features` or `feats`, got `coords`, `embedding`",
        ),
        (
            "s0.h5",
            b"not at all".to_vec(),
            "`DIR/features/s0.h5`: not a HDF5 file that can be read: ",
        ),
        (
            "s5.npy",
            npy(4, D + 1, |_, _| 0.0),
            "`DIR/features/s5.npy`: expected features of width 3, got 4\nhint: extract all slides with the same encoder",
        ),
        (
            "s5.npy",
            npy(4, D, |i, j| if i + j == 3 { f32::NAN } else { 0.0 }),
            "`DIR/features/s5.npy`: feature 2 of instance 1 is NaN\nhint: `ssm check` lists every slide with such values",
        ),
        (
            "s5.npy",
            npy(0, D, |_, _| 0.0),
            "`DIR/features/s5.npy`: expected at least one instance, got the shape [0, 3]",
        ),
        (
            "s5.npy",
            npy(4, D, |_, _| 0.0)[..40].to_vec(),
            "`DIR/features/s5.npy`: the header is cut off",
        ),
    ];
    for (name, bytes, expected) in files {
        let clinic = Clinic::new();
        clinic.features(name, &bytes);
        clinic.refuses(&[], expected);
        let config = clinic.path("config.toml");
        let checked = clinic.desk.ssm(&["check", &config]);
        assert_eq!(checked.code, 2, "{}", checked.stdout);
    }
}

/// Slides are read ahead, on another thread.
#[test]
fn a_file_that_turns_out_broken_in_training_is_named_once() {
    let clinic = Clinic::new();
    clinic.features("s5.npy", &npy(4, D, |i, j| if i + j == 3 { f32::NAN } else { 0.0 }));
    // Nothing reads all slides before the first step then.
    let ended = clinic.train(&["--set", "task.mil.standardise=false"]);
    assert_eq!(ended.code, 2, "{}", ended.stderr);
    assert_eq!(ended.stderr.matches("s5.npy`: feature 2 of instance 1 is NaN").count(), 1);
}

#[test]
fn the_audit_lists_what_it_finds_and_passes_what_is_whole() {
    let clinic = Clinic::new();
    let config = clinic.path("config.toml");
    let checked = clinic.desk.ssm(&["check", &config]);
    assert_eq!(checked.code, 0, "{}", checked.stderr);
    for line in ["slides", "patients", "median bag", "slides of `tumour`", "Nothing was found."] {
        assert!(checked.stdout.contains(line), "{}", checked.stdout);
    }
    clinic.features("s5.npy", &npy(4, D, |_, _| f32::INFINITY));
    clinic.features("s7.npy", &npy(4, D + 2, |_, _| 0.0));
    let checked = clinic.desk.ssm(&["check", &config]);
    assert_eq!(checked.code, 2);
    for line in [
        "slide `s5`: 12 features are not finite",
        "slide `s7`: expected features of width 3, got 5",
    ] {
        assert!(checked.stdout.contains(line), "{}", checked.stdout);
    }
    assert!(
        checked.stderr.contains("2 findings stand in the way of training"),
        "{}",
        checked.stderr
    );
}

#[test]
fn a_published_split_with_overlap_can_be_reproduced_and_says_so() {
    let clinic = Clinic::new();
    clinic.change(
        "config.toml",
        "label_column = \"label\"",
        "label_column = \"label\"\nsplit_columns = [\"split\"]",
    );
    clinic.change("table.csv", "s0,p0,normal,1.5,0,train", "s0,p0,normal,1.5,0,test");
    let ended = clinic.train(&["--set", "task.mil.split.allow_group_overlap=true"]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let warning = "expected every patient on one side of the split, got 1 on several: `p0`";
    assert!(ended.stdout.contains(warning), "{}", ended.stdout);
    let report = fs::read_to_string(clinic.desk.path("runs/config/report.html")).unwrap();
    assert!(report.contains("on several"));
}

#[test]
fn published_split_files_are_followed_and_their_mistakes_named() {
    let clinic = Clinic::new();
    clinic.change(
        "config.toml",
        "label_column = \"label\"",
        "label_column = \"label\"\nsplit_files = [\"splits_0.csv\", \"splits_1.csv\"]",
    );
    // As CLAM writes them: an index without a name, columns of different lengths; slides or patients.
    let slides = ",train,val,test\n0,s0,s4,s8\n1,s1,s6,s10\n2,s2,,\n3,s3,,\n";
    clinic.desk.put("splits_0.csv", slides);
    clinic.desk.put("splits_1.csv", "train,val,test\np2,p4,p0\np3,p5,p1\n");
    let ended = clinic.train(&[]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let counts =
        ["fold 0: 4 training, 2 validation, 2 test", "fold 1: 4 training, 4 validation, 4"];
    for line in counts {
        assert!(ended.stderr.contains(line), "{}", ended.stderr);
    }
    fs::remove_dir_all(clinic.desk.path("runs/config")).unwrap();
    for (old, new, expected) in [
        (
            "s10",
            "s99",
            "`DIR/splits_0.csv`: line 3, column `test`: expected a slide or a patient of the table, got `s99`",
        ),
        (
            "s99",
            "s0",
            "`DIR/splits_0.csv`: line 3, column `test`: slide `s0` stands in another part too",
        ),
        ("s0\n2", "p0\n2", "line 3, column `test`: slide `s0` stands in another part too"),
        (
            "val",
            "dev",
            "`DIR/splits_0.csv`: expected a column `val`, got ``, `train`, `dev`, `test`",
        ),
    ] {
        clinic.change("splits_0.csv", old, new);
        clinic.refuses(&[], expected);
    }
    clinic.refuses(
        &["--set", "data.slides.split_columns=[\"split\"]"],
        "expected either `split_columns` or `split_files`, got both",
    );
}

#[test]
fn folds_are_trained_resumed_and_reported_together() {
    let clinic = Clinic::new();
    let ended = clinic.train(&["--fold", "1"]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(ended.stderr.contains("no common report yet: 2 of 3 folds have no result"));
    assert!(!clinic.desk.path("runs/config/report.html").exists());
    let again = clinic.train(&[]);
    assert!(again.stderr.contains("already holds a run"), "{}", again.stderr);
    let ended = clinic.train(&["--resume"]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(ended.stdout.contains("mean ± sd"), "{}", ended.stdout);
    let result =
        |clinic: &Clinic| fs::read_to_string(clinic.desk.path("runs/config/result.json")).unwrap();
    let report = fs::read_to_string(clinic.desk.path("runs/config/report.html")).unwrap();
    assert!(report.contains("Receiver operating characteristic"));
    // All at once, in another place: the same numbers.
    let whole = Clinic::new();
    assert_eq!(whole.train(&[]).code, 0);
    let metrics =
        |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap()["metrics"].clone();
    assert_eq!(metrics(&result(&whole)), metrics(&result(&clinic)));
}

#[test]
fn survival_is_trained_from_a_table() {
    let clinic = Clinic::new();
    clinic.change(
        "config.toml",
        "label_column = \"label\"",
        "time_column = \"time\"\nevent_column = \"event\"",
    );
    let ended = clinic.train(&["--set", "task.mil.n_bins=2", "--set", "task.mil.select=c_index"]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(ended.stdout.contains("c_index"), "{}", ended.stdout);
    let report = fs::read_to_string(clinic.desk.path("runs/config/report.html")).unwrap();
    assert!(report.contains("Kaplan-Meier"));
}

#[test]
fn a_trained_fold_reads_a_new_slide_and_draws_where_it_looks() {
    let clinic = Clinic::new();
    clinic.change("config.toml", "hidden = [8]", "hidden = [8], dropout = 0.1");
    assert_eq!(clinic.train(&["--fold", "0"]).code, 0);
    let run = clinic.path("runs/config/fold_00");
    let slide = clinic.path("features/s0.npy");
    let ended = clinic.desk.ssm(&["predict", &run, "--slide", &slide]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let said: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    let probability = |class: &str| said["probabilities"][class].as_f64().unwrap();
    assert!((probability("normal") + probability("tumour") - 1.0).abs() < 1e-9);
    let patches = said["patches"].as_array().unwrap();
    let attention: f64 = patches.iter().map(|patch| patch["attention"].as_f64().unwrap()).sum();
    assert_eq!(patches.len(), 3);
    assert!((attention - 1.0).abs() < 1e-5);

    let png = clinic.path("map.png");
    let drawn = clinic.desk.ssm(&["heatmap", &run, "--slide", &slide, "--output", &png]);
    assert_eq!(drawn.code, 2);
    assert!(drawn.stderr.contains("the file has no coordinates"), "{}", drawn.stderr);
    assert!(!clinic.desk.path("map.png").exists());
    let wide =
        root().join("crates/ssm-tasks/tests/fixtures/mil/clam_latest.h5").display().to_string();
    let refused = clinic.desk.ssm(&["predict", &run, "--slide", &wide]);
    assert!(refused.stderr.contains("expected features of width 3, got 6"), "{}", refused.stderr);
}
