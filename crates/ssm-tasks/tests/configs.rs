//! The configuration files of the project: each is complete, strict, and holds published numbers.

use std::path::{Path, PathBuf};

use ssm_tasks::forecasting::{
    config::{Features, ForecastingConfig},
    data::DataConfig,
    model::ForecasterConfig,
};
use ssm_train::config::Config;

/// One row of the published scripts (S-D-Mamba@e7e8bf0, `scripts/multivariate_forecasting`).
struct Script {
    stem: &'static str,
    n_layer: [usize; 4],
    d_model: [usize; 4],
    d_state: [usize; 4],
    lr: [f64; 4],
    batch_size: [usize; 4],
    epochs: [u64; 4],
    use_norm: bool,
}

const fn script(stem: &'static str) -> Script {
    Script {
        stem,
        n_layer: [2; 4],
        d_model: [512; 4],
        d_state: [32; 4],
        lr: [1e-4; 4],
        batch_size: [32; 4],
        epochs: [10; 4],
        use_norm: true,
    }
}

/// Horizons are 96, 192, 336, 720; for PEMS 12, 24, 48, 96.
const SCRIPTS: [Script; 13] = [
    Script { d_model: [256; 4], d_state: [2; 4], lr: [7e-5, 7e-5, 5e-5, 5e-5], ..script("etth1") },
    Script { d_model: [256; 4], d_state: [2; 4], lr: [4e-5, 4e-5, 3e-5, 7e-5], ..script("etth2") },
    Script { d_model: [256, 128, 128, 128], d_state: [2; 4], lr: [5e-5; 4], ..script("ettm1") },
    Script {
        d_model: [256, 128, 128, 128],
        d_state: [2; 4],
        lr: [5e-5, 5e-5, 3e-5, 5e-5],
        ..script("ettm2")
    },
    Script {
        d_model: [128; 4],
        lr: [1e-4, 1e-4, 5e-5, 5e-5],
        batch_size: [16, 32, 32, 32],
        ..script("exchange")
    },
    Script { n_layer: [3; 4], d_state: [2; 4], lr: [5e-5; 4], epochs: [5; 4], ..script("weather") },
    script("solar"),
    Script {
        n_layer: [3; 4],
        d_state: [16, 32, 32, 32],
        lr: [1e-3, 5e-4, 5e-4, 5e-4],
        batch_size: [16; 4],
        epochs: [5; 4],
        ..script("electricity")
    },
    Script {
        n_layer: [4; 4],
        lr: [1e-3, 1e-3, 2e-3, 8e-4],
        batch_size: [16; 4],
        ..script("traffic")
    },
    Script {
        n_layer: [4, 4, 5, 4],
        lr: [1e-3, 1e-3, 1e-4, 1.5e-3],
        epochs: [5, 10, 10, 10],
        ..script("pems03")
    },
    Script {
        n_layer: [4; 4],
        d_model: [1024; 4],
        lr: [3e-4; 4],
        use_norm: false,
        ..script("pems04")
    },
    Script {
        n_layer: [2, 2, 4, 4],
        lr: [7e-4, 7e-4, 5e-4, 5e-4],
        batch_size: [16, 32, 16, 16],
        use_norm: false,
        ..script("pems07")
    },
    Script {
        n_layer: [2, 2, 4, 4],
        d_model: [512, 512, 256, 256],
        lr: [1e-3, 7e-4, 1e-3, 1e-3],
        batch_size: [32, 32, 16, 16],
        ..script("pems08")
    },
];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/forecasting")
}

fn load(path: &Path) -> Config<ForecastingConfig> {
    Config::load(path, &[]).unwrap_or_else(|error| panic!("{}\n{error}", path.display()))
}

#[test]
fn every_file_is_valid_and_named_after_its_run() {
    let mut n_files = 0;
    for entry in std::fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        let config = load(&path);
        assert_eq!(path.file_stem().unwrap().to_str(), Some(config.run.name.as_str()));
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("# "), "{}: the first line says what it is", path.display());
        assert!(text.contains("ublished"), "{}: no published number", path.display());
        n_files += 1;
    }
    assert_eq!(n_files, 4 * SCRIPTS.len() + 4 + 2);
}

#[test]
fn s_mamba_files_hold_the_published_hyper_parameters() {
    for script in &SCRIPTS {
        let pems = script.stem.starts_with("pems");
        let horizons = if pems { [12, 24, 48, 96] } else { [96, 192, 336, 720] };
        for (i, pred_len) in horizons.into_iter().enumerate() {
            let name = format!("{}_{pred_len}_smamba", script.stem);
            let config = load(&folder().join(format!("{name}.toml")));
            assert_eq!((config.task.lookback_len, config.task.pred_len), (96, pred_len), "{name}");
            assert_eq!(config.task.features, Features::M, "{name}");
            assert_eq!(config.task.calendar, !pems && script.stem != "solar", "{name}");
            let ForecasterConfig::SMamba(model) = &config.model else { panic!("{name}") };
            let expected = format!(
                "d_model = {d_model}\nd_ff = {d_model}\nn_layer = {}\ndropout = 0.1\n\
                 use_norm = {}\nmerge = \"sum\"\n\
                 mixer.mamba = {{ d_state = {}, d_conv = 2, expand = 1 }}",
                script.n_layer[i],
                script.use_norm,
                script.d_state[i],
                d_model = script.d_model[i]
            );
            assert_eq!(model, &toml::from_str(&expected).unwrap(), "{name}");
            assert_eq!(config.optim.name(), "adam", "{name}");
            assert_eq!(config.optim.lr(), script.lr[i], "{name}");
            assert_eq!(config.train.batch_size, script.batch_size[i], "{name}");
            assert_eq!(config.train.epochs, Some(script.epochs[i]), "{name}");
            assert_eq!(config.train.patience, Some(3), "{name}");
            assert_eq!(config.run.seed, 2023, "{name}");
            let known = matches!(
                (&config.data, script.stem),
                (DataConfig::Ett(_), "etth1" | "etth2" | "ettm1" | "ettm2")
                    | (DataConfig::Exchange(_), "exchange")
                    | (DataConfig::Weather(_), "weather")
                    | (DataConfig::Solar(_), "solar")
                    | (DataConfig::Electricity(_), "electricity")
                    | (DataConfig::Traffic(_), "traffic")
                    | (DataConfig::Pems(_), "pems03" | "pems04" | "pems07" | "pems08")
            );
            assert!(known, "{name}");
            let variant = toml::to_string(&config.data).unwrap();
            if let Some(number) = script.stem.strip_prefix("ett") {
                assert!(variant.contains(&format!("variant = \"{number}\"")), "{name}: {variant}");
            } else if let Some(number) = script.stem.strip_prefix("pems") {
                assert!(variant.contains(&format!("variant = \"{number}\"")), "{name}: {variant}");
            }
        }
    }
}
