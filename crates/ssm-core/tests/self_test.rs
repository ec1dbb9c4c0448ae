//! What a user runs to trust a machine passes where the thorough tests pass.

use ssm_core::ops::self_test;

use crate::support::devices;

#[test]
fn every_operation_passes_on_every_device() {
    // With and without autodiff it is the same, which two devices show as well as four runs.
    let mut devices = devices();
    devices[0].1 = devices[0].1.clone().autodiff();
    for (name, device) in devices {
        let mut n_ended = 0;
        let tests = self_test(&device, |_| n_ended += 1);
        assert_eq!(n_ended, tests.len());
        let mut ops: Vec<&str> = tests.iter().map(|test| test.op).collect();
        ops.dedup();
        let expected = [
            "selective_scan",
            "causal_conv1d",
            "linear",
            "rms_norm",
            "add_rms_norm",
            "gelu",
            "neg_exp",
            "masked",
            "dropped",
            "reverse",
            "layer_norm",
            "cross_entropy",
            "recompute",
            "decode_product",
            "decode_product_conv",
            "decode_conv",
            "decode_state",
            "decode_add_norm",
            "decode_copy",
            "decode_argmax",
            "decode_set",
        ];
        assert_eq!(ops, expected);
        for test in &tests {
            assert!(test.passed(), "{name}: {test:?}");
        }
    }
}
