//! Sums by NCCL, as Burn and CubeCL hand it out on CUDA: for threads of one process.
//!
//! The library is found when it is first needed, by the names that CubeCL's bindings look for; each
//! device has a stream for it, which the work on the device does not wait for before a sum is used.

use burn::tensor::{
    Device, Tensor,
    distributed::{CollectiveTensor, ReduceOperation, all_reduce},
};

/// As run headers and `run.json` name it.
pub(super) const ROUTE: &str = "NCCL";

/// The sums of rows over `devices`, of which the rows lie on one; each of the others makes the same
/// call. All rows are under way before the device waits for the first one.
pub(super) fn sum(rows: &mut dyn Iterator<Item = Tensor<1>>, devices: &[Device]) -> Vec<Tensor<1>> {
    let begin = |row: Tensor<1>| all_reduce(row, ReduceOperation::Sum, devices.to_vec());
    let under_way: Vec<CollectiveTensor<1>> = rows.map(begin).collect();
    under_way.into_iter().map(CollectiveTensor::resolve).collect()
}
