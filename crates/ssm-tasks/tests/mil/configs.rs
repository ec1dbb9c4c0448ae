//! The configuration files of the task: each is complete, strict, and says what is published.

use std::path::Path;

use ssm_tasks::mil::config::MilConfig;
use ssm_train::config::Config;

#[test]
fn every_file_is_valid_and_named_after_its_run() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/mil");
    let mut n_files = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let config = Config::<MilConfig>::load(&path, &[])
            .unwrap_or_else(|error| panic!("{}\n{error}", path.display()));
        assert_eq!(path.file_stem().unwrap().to_str(), Some(config.run.name.as_str()));
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("# "), "{}: the first line says what it is", path.display());
        assert!(text.contains("ublished"), "{}: no published number", path.display());
        n_files += 1;
    }
    assert_eq!(n_files, 6 * 2 + 5 + 2 + 2 + 2);
}
