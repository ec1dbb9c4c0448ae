//! Files of features, as other programs write them.
//!
//! Recorded by `fixtures/mil/make_fixtures.py` (h5py, numpy, safetensors; `.pt` by hand).

use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
};

use ssm_tasks::mil::{cohort::Bag, features};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/mil").join(name)
}

fn assert_is_the_fixture(name: &str, bag: &Bag) {
    assert_eq!((bag.n_instances(), bag.d_feature), (30, 6), "{name}");
    for (at, value) in bag.features.iter().enumerate() {
        // Feature j of instance i is i + j / 8, exact in half precision.
        let expected = (at / 6) as f32 + (at % 6) as f32 / 8.0;
        assert_eq!(*value, expected, "{name}, value {at}");
    }
}

#[test]
fn every_kind_of_file_holds_the_same_instances() {
    for name in [
        "clam_earliest.h5",
        "clam_latest.h5",
        "trident_f16.h5",
        "feats_3d.h5",
        "features.npy",
        "features.npz",
        "features.safetensors",
        "tensor.pt",
        "dictionary.pt",
    ] {
        let bag = features::read(&fixture(name)).unwrap_or_else(|e| panic!("{}", e.report()));
        assert_is_the_fixture(name, &bag);
        let with_coords = name.ends_with(".h5") || name.contains("z") || name.contains("safe");
        assert_eq!(bag.coords.is_some(), with_coords, "{name}");
        for (i, place) in bag.coords.iter().flatten().enumerate() {
            assert_eq!(*place, [(i % 6 * 512) as f64, (i / 6 * 512) as f64], "{name}");
        }
        assert_eq!(bag.patch_size, name.ends_with(".h5").then_some(512.0), "{name}");
    }
}

#[test]
fn the_two_real_slides_load_although_their_layouts_differ() {
    // Public files that are not part of the repository.
    let dirs = crate::support::data_dirs();
    for (name, n, with_coords) in [
        ("mil/TCGA-3X-AAVA-01Z-00-DX1_features.h5", 180, false),
        ("mil/TCGA-AD-6964-01Z-00-DX1_features.h5", 777, true),
    ] {
        let Some(path) = dirs.iter().map(|dir| dir.join(name)).find(|path| path.is_file()) else {
            continue;
        };
        let bag = features::read(&path).unwrap();
        assert_eq!((bag.n_instances(), bag.d_feature), (n, 512));
        assert!(bag.features.iter().all(|value| value.is_finite()));
        assert_eq!(bag.coords.is_some(), with_coords);
        if let Some(coords) = bag.coords {
            assert_eq!(coords[..2], [[10240.0, 21504.0], [10240.0, 22016.0]]);
        }
    }
}

fn refused(path: &Path) -> String {
    let report = features::read(path).unwrap_err().report();
    report.replace(&path.display().to_string(), "FILE")
}

/// A byte of the header says that there are nine times as many rows as the file could hold.
#[test]
fn a_size_beyond_what_the_file_can_hold_is_refused_before_it_is_allocated() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("damaged.h5");
    let mut bytes = std::fs::read(fixture("feats_3d.h5")).unwrap();
    bytes[850] ^= 9;
    std::io::Write::write_all(&mut std::fs::File::create(&path).unwrap(), &bytes).unwrap();
    let said = refused(&path);
    assert!(said.ends_with("is too large"), "{said}");
}

#[test]
fn files_that_hold_no_features_say_what_they_hold() {
    assert_eq!(
        refused(&fixture("no_features.h5")),
        "error: `FILE`: expected features under `features` or `feats`, got `coords`, `embedding`"
    );
    assert_eq!(
        refused(&fixture("lzf.h5")),
        "error: `FILE`: not a HDF5 file that can be read: features: unsupported filter: filter id 32000\nhint: LZF is h5py's own compression; write the file again with gzip or without \
         compression"
    );
    assert_eq!(
        refused(&fixture("make_fixtures.py")),
        "error: `FILE`: expected a name that ends in one of `.h5`, `.hdf5`, `.pt`, `.pth`, \
         `.safetensors`, `.npz`, `.npy`"
    );
}

#[test]
fn files_that_were_cut_off_are_errors_at_every_length() {
    let dir = tempfile::tempdir().unwrap();
    for name in
        ["clam_earliest.h5", "clam_latest.h5", "features.npz", "features.safetensors", "tensor.pt"]
    {
        let whole = std::fs::read(fixture(name)).unwrap();
        for share in [0, 1, 10, 40, 70, 95] {
            let path = dir.path().join(name);
            let part = &whole[..whole.len() * share / 100];
            File::create(&path).unwrap().write_all(part).unwrap();
            let error = refused(&path);
            assert!(
                error.starts_with("error: `FILE`: ") || error.starts_with("error: cannot read"),
                "{name}: {error}"
            );
        }
    }
}

#[test]
fn a_missing_file_is_an_error_of_reading() {
    for ending in features::ENDINGS {
        let path = PathBuf::from(format!("nowhere/slide.{ending}"));
        let error = refused(&path);
        assert!(error.starts_with("error: cannot read `FILE`: No such file"), "{error}");
    }
}
