//! The task on small series: batches, scores, conclusions, and data that does not fit.

use std::{fs::File, io::Write};

use burn::module::Module;
use ssm_tasks::forecasting::{
    ForecastingTask,
    score::Scores,
    window::{Input, WindowBatch},
};
use ssm_train::{
    config::Settings,
    task::{Split, Task},
};
use zip::{ZipWriter, write::SimpleFileOptions};

use crate::support::{csv, device, dlinear, options, s_mamba, settings, task, waves};

#[test]
fn batches_are_pure_in_their_index_and_cover_an_epoch() {
    let (first, _) = task(&options(""), &dlinear(), &settings(16), 400).unwrap();
    let (second, _) = task(&options(""), &dlinear(), &settings(3), 400).unwrap();
    // 280 training rows are 251 windows: 15 full batches of 16.
    assert_eq!(first.batches_per_epoch(), 15);
    // Any order of asking gives the same batches.
    for index in [31, 2, 0, 17] {
        assert_eq!(first.batch(index).unwrap(), second.batch(index).unwrap());
    }
    let epoch = |task: &ForecastingTask, epoch: u64| -> Vec<WindowBatch> {
        (0..15).map(|place| task.batch(15 * epoch + place).unwrap()).collect()
    };
    let (zero, one) = (epoch(&first, 0), epoch(&first, 1));
    assert_ne!(zero, one, "every epoch has an order of its own");
    let mut starts: Vec<u32> =
        zero.iter().flat_map(|batch| batch.x.chunks(3 * 24)).map(|x| x[0].to_bits()).collect();
    starts.sort_unstable();
    starts.dedup();
    assert_eq!(starts.len(), 240, "no window comes twice in an epoch");
}

/// What a message calls a window is where the user finds it in the file.
#[test]
fn windows_are_named_by_their_rows() {
    let (task, _) = task(&options(""), &dlinear(), &settings(16), 400).unwrap();
    let batch = task.batch(17).unwrap();
    let names = task.samples(17);
    assert_eq!(names.len(), 16);
    for (name, x) in names.iter().zip(batch.x.chunks(3 * 24)) {
        let rows = name.strip_prefix("rows ").and_then(|n| n.strip_suffix(" of `waves.csv`"));
        let (first, last) = rows.and_then(|rows| rows.split_once(" to ")).unwrap();
        let [first, last] = [first, last].map(|row| row.parse::<usize>().unwrap());
        assert_eq!(last + 1 - first, 24 + 6, "{name}");
        assert_eq!(task.windows().gather(Split::Train, &[first - 1]).x, x, "{name}");
    }
}

#[test]
fn the_last_partial_batch_is_dropped_or_kept() {
    let keep = options("train_drop_last = false");
    let (task, _) = task(&keep, &dlinear(), &settings(16), 400).unwrap();
    assert_eq!(task.batches_per_epoch(), 16);
    assert_eq!(task.batch(15).unwrap().n_windows, 11);
    assert_eq!(task.batch(16).unwrap().n_windows, 16);
}

#[test]
fn a_score_is_the_same_for_every_evaluation_batch_size() {
    let scores = [1, 7, 64].map(|eval_batch_size| {
        let settings = settings(eval_batch_size);
        let (task, model) = task(&options(""), &s_mamba(""), &settings, 500).unwrap();
        task.evaluate(&model, Split::Test).unwrap()
    });
    assert_eq!(scores[0], scores[1]);
    assert_eq!(scores[0], scores[2]);
}

#[test]
fn the_training_loss_is_the_score_of_the_same_windows() {
    let (task, model) = task(&options(""), &s_mamba(""), &settings(16), 400).unwrap();
    let batch = task.batch(0).unwrap();
    let loss = task.loss(&model, task.input(batch.clone(), 0, &device()));
    assert_eq!(loss.weight, 16.0);
    let input = task.windows().input(&batch, &device());
    let predicted: Vec<f32> = model.forward(input).into_data_as::<f32>().try_into_vec().unwrap();
    let squares = predicted.iter().zip(&batch.y).map(|(p, y)| f64::from(p - y).powi(2));
    let expected = squares.sum::<f64>() / batch.y.len() as f64;
    let loss: f32 = loss.mean.into_scalar();
    assert!((f64::from(loss) / expected - 1.0).abs() < 1e-5, "{loss} and {expected}");
}

#[test]
fn one_target_is_trained_and_scored_alone() {
    for (features, n_variates) in [("S", 1), ("MS", 3)] {
        let options = options(&format!("features = \"{features}\"\ntarget = \"second\""));
        let (task, model) = task(&options, &s_mamba(""), &settings(16), 400).unwrap();
        assert_eq!(task.windows().n_variates(), n_variates);
        assert_eq!(task.artifacts().targets, ["second"]);
        let batch = task.batch(0).unwrap();
        assert_eq!(batch.y.len(), 16 * 6);
        assert!(
            f64::from(task.loss(&model, task.input(batch, 0, &device())).mean.into_scalar::<f32>())
                .is_finite()
        );
        assert!(task.evaluate(&model, Split::Valid).unwrap()["mse"].is_finite());
    }
}

#[test]
fn the_published_validation_drops_windows_and_the_default_does_not() {
    // 410 rows: 41 validation rows after the border are 36 windows, of which 32 fill two batches.
    let rows = 410;
    let compat = "compat.smamba_validation = true";
    let last_value = |input: Input| input.x.narrow(2, 23, 1).repeat_dim(2, 6);
    let score = |extra: &str, eval_batch_size, seed| {
        let settings = Settings { seed, ..settings(eval_batch_size) };
        let (task, _) = task(&options(extra), &dlinear(), &settings, rows).unwrap();
        task.score(Split::Valid, &device(), last_value).unwrap()
    };
    assert_eq!(score("", 7, 2023).n_windows(), 36);
    let shuffled = score(compat, 7, 2023);
    assert_eq!(shuffled.n_windows(), 32);
    assert_eq!(shuffled.mse(), score(compat, 64, 2023).mse());
    // Which four are dropped is drawn by the seed; without an order of its own they would be the last.
    assert_ne!(shuffled.mse(), score(compat, 7, 2024).mse());
    assert_eq!(score("", 7, 2023).mse(), score("", 7, 2024).mse());
    let (task, _) = task(&options(""), &dlinear(), &settings(7), rows).unwrap();
    let windows = task.windows();
    let first = windows.gather(Split::Valid, &(0..32).collect::<Vec<_>>());
    let predicted = last_value(windows.input(&first, &device()));
    let mut in_order = Scores::new(3, 6);
    in_order.add(&predicted.into_data_as::<f32>().try_into_vec::<f32>().unwrap(), &first.y);
    assert_eq!(in_order.n_windows(), 32);
    assert!((in_order.mse() - shuffled.mse()).abs() > 1e-6, "{}", in_order.mse());
}

#[test]
fn a_conclusion_compares_with_the_baselines() {
    let options = options("baselines = [\"last_value\", \"dlinear\"]");
    let (task, model) = task(&options, &s_mamba(""), &settings(16), 600).unwrap();
    let outcome = task.conclude(&model).unwrap();
    let keys: Vec<&str> = outcome.metrics.keys().map(String::as_str).collect();
    assert_eq!(
        keys,
        ["dlinear_mae", "dlinear_mse", "last_value_mae", "last_value_mse", "mae", "mse"]
    );
    assert_eq!(outcome.metrics["mse"], task.evaluate(&model, Split::Test).unwrap()["mse"]);
    // Waves of 24 steps: a linear map sees them, the last value does not.
    assert!(outcome.metrics["dlinear_mse"] < 0.5 * outcome.metrics["last_value_mse"]);
    let table = &outcome.tables[0];
    assert_eq!(table.columns, ["forecaster", "parameters", "MSE", "MAE"]);
    let names: Vec<&str> = table.rows.iter().map(|row| row[0].as_str()).collect();
    assert_eq!(names, ["s_mamba", "last_value", "dlinear"]);
    assert_eq!(table.rows[0][1], model.num_params().to_string());
    assert_eq!(table.rows[2][1], "300");
    assert_eq!(outcome.figures.len(), 3);
}

#[test]
fn the_header_says_what_is_read() {
    let (task, _) = task(&options(""), &dlinear(), &settings(16), 400).unwrap();
    let text = task.describe();
    assert!(text.starts_with("waves from /"), "{text}");
    assert!(
        text.ends_with(
            "3 variates, 3 to predict, 24 → 6 steps; windows: 251 training, 35 validation, 75 test"
        ),
        "{text}"
    );
    let hashes = task.data_hashes();
    assert_eq!(hashes.keys().collect::<Vec<_>>(), ["waves.csv"]);
    assert_eq!(hashes["waves.csv"].len(), 64);
}

#[test]
fn data_that_does_not_fit_is_refused_with_a_hint() {
    let report = |extra: &str, n_rows: usize| {
        let error = task(&options(extra), &dlinear(), &settings(16), n_rows).err().unwrap();
        let report = error.report();
        report.split_once("waves.csv`: ").unwrap().1.to_owned()
    };
    assert_eq!(
        report("features = \"S\"\ntarget = \"third\"", 400),
        "no column `third` to predict, got `first`, `second`, `OT`\n\
         hint: name one of them by `task.forecasting.target`"
    );
    assert_eq!(
        report("", 50),
        "too few rows: a window needs lookback_len + pred_len = 30, the validation split has 29 \
         of 50\n\
         hint: shorten `task.forecasting.lookback_len` or `task.forecasting.pred_len`"
    );
    assert_eq!(
        report("", 60),
        "too few rows: 13 training windows are less than one batch of 16\n\
         hint: lower `train.batch_size`, or set `train_drop_last = false`"
    );
}

#[test]
fn a_missing_series_is_an_error_before_any_model_is_built() {
    let dir = tempfile::tempdir().unwrap();
    let path = waves(dir.path(), 10);
    std::fs::remove_file(&path).unwrap();
    let error =
        ForecastingTask::new(&options(""), &csv(&path), &dlinear(), &settings(16), &device());
    let error = error.err().unwrap().to_string();
    assert!(error.contains("data file not found; searched"), "{error}");
}

#[test]
fn sets_without_header_or_dates_are_read_from_a_data_directory() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("timeseries");
    std::fs::create_dir(&folder).unwrap();
    let value = |row: usize, column: usize| ((row * 31 + column * 7) % 97) as f64;

    let mut solar = File::create(folder.join("solar_AL.txt")).unwrap();
    for row in 0..400 {
        writeln!(solar, "{},{}", value(row, 0), value(row, 1)).unwrap();
    }
    let header = "{'descr': '<f8', 'fortran_order': False, 'shape': (400, 2, 1), }\n";
    let mut npy = b"\x93NUMPY\x01\x00".to_vec();
    npy.extend((header.len() as u16).to_le_bytes());
    npy.extend(header.as_bytes());
    npy.extend((0..400).flat_map(|row| [value(row, 0), value(row, 1)]).flat_map(f64::to_le_bytes));
    let mut pems = ZipWriter::new(File::create(folder.join("PEMS08.npz")).unwrap());
    pems.start_file("data.npy", SimpleFileOptions::default()).unwrap();
    pems.write_all(&npy).unwrap();
    pems.finish().unwrap();

    let options = options("calendar = false");
    let settings = Settings { data_dirs: vec![dir.path().to_owned()], ..settings(16) };
    // 70, 10, 20 % with shared look-back rows; 60, 20, 20 % without.
    for (data, counts) in [("[solar]", [251, 35, 75]), ("[pems]\nvariant = \"08\"", [211, 51, 51])]
    {
        let data = toml::from_str(data).unwrap();
        let (task, model) =
            ForecastingTask::new(&options, &data, &s_mamba(""), &settings, &device()).unwrap();
        let windows = task.windows();
        let got = [Split::Train, Split::Valid, Split::Test].map(|split| windows.n_windows(split));
        assert_eq!(got, counts);
        assert_eq!(task.artifacts().columns, ["0", "1"]);
        assert!(task.batch(0).unwrap().marks.is_empty());
        assert!(task.evaluate(&model, Split::Test).unwrap()["mse"].is_finite());
    }
}

/// Sets that are not at hand, with rows made up in their form.
#[test]
fn dated_sets_are_read_from_a_data_directory() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("timeseries");
    std::fs::create_dir(&folder).unwrap();
    let options = options("calendar = true");
    let settings = Settings { data_dirs: vec![dir.path().to_owned()], ..settings(16) };
    // Sixteen months of 30 days for ETTm2, which are what its borders ask for.
    for (data, file, n_rows, counts) in [
        ("[weather]", "weather.csv", 400, [251, 35, 75]),
        ("[electricity]", "electricity.csv", 400, [251, 35, 75]),
        ("[traffic]", "traffic.csv", 400, [251, 35, 75]),
        ("[ett]\nvariant = \"m2\"", "ETTm2.csv", 57_600, [34_531, 11_515, 11_515]),
    ] {
        let path = waves(dir.path(), n_rows);
        std::fs::copy(path, folder.join(file)).unwrap();
        let data = toml::from_str(data).unwrap();
        let (task, model) =
            ForecastingTask::new(&options, &data, &dlinear(), &settings, &device()).unwrap();
        let windows = task.windows();
        let got = [Split::Train, Split::Valid, Split::Test].map(|split| windows.n_windows(split));
        assert_eq!(got, counts, "{file}");
        assert_eq!(task.artifacts().columns, ["first", "second", "OT"]);
        assert!(!task.batch(0).unwrap().marks.is_empty());
        assert!(task.evaluate(&model, Split::Valid).unwrap()["mse"].is_finite());
    }
}
