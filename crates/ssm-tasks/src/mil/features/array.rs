//! Dense arrays in row-major order, and the number types that files of features hold.

use half::{bf16, f16};

/// A dense array in row-major order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Array {
    /// Length of each axis, outermost first.
    pub shape: Vec<usize>,
    /// All values.
    pub values: Vec<f32>,
}

impl Array {
    /// The same values with the axes in the opposite order.
    #[must_use]
    pub(super) fn transposed(self) -> Self {
        let Self { mut shape, values } = self;
        let mut transposed = Vec::with_capacity(values.len());
        let mut index = vec![0; shape.len()];
        shape.reverse();
        for _ in 0..values.len() {
            // The first of the new axes lies densest in the old values.
            let place = index.iter().zip(&shape).rev();
            transposed.push(values[place.fold(0, |place, (at, size)| place * size + at)]);
            for (at, size) in index.iter_mut().zip(&shape).rev() {
                *at += 1;
                if *at < *size {
                    break;
                }
                *at = 0;
            }
        }
        Self { shape, values: transposed }
    }
}

/// A type of numbers, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// IEEE half precision.
    F16,
    /// The upper half of an `f32`.
    Bf16,
    /// IEEE single precision.
    F32,
    /// IEEE double precision.
    F64,
    /// Signed integers of 8, 16, 32 and 64 bits.
    I8,
    /// 16 bits.
    I16,
    /// 32 bits.
    I32,
    /// 64 bits.
    I64,
    /// Unsigned integers of 8, 16, 32 and 64 bits.
    U8,
    /// 16 bits.
    U16,
    /// 32 bits.
    U32,
    /// 64 bits.
    U64,
}

impl Kind {
    /// Bytes of a number.
    #[must_use]
    pub fn size(self) -> usize {
        match self {
            Self::I8 | Self::U8 => 1,
            Self::F16 | Self::Bf16 | Self::I16 | Self::U16 => 2,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F64 | Self::I64 | Self::U64 => 8,
        }
    }

    /// The numbers as f32; of integers above 2^24 and of doubles the nearest. Bytes at the end that
    /// are no whole number are left out: the caller compares the count with the shape.
    #[must_use]
    pub fn to_f32(self, bytes: &[u8]) -> Vec<f32> {
        fn each<const N: usize>(bytes: &[u8], read: impl Fn([u8; N]) -> f32) -> Vec<f32> {
            bytes.as_chunks::<N>().0.iter().map(|bytes| read(*bytes)).collect()
        }
        match self {
            Self::F16 => each(bytes, |bytes| f16::from_le_bytes(bytes).to_f32()),
            Self::Bf16 => each(bytes, |bytes| bf16::from_le_bytes(bytes).to_f32()),
            Self::F32 => each(bytes, f32::from_le_bytes),
            Self::F64 => each(bytes, |bytes| f64::from_le_bytes(bytes) as f32),
            Self::I8 => each(bytes, |bytes| f32::from(i8::from_le_bytes(bytes))),
            Self::I16 => each(bytes, |bytes| f32::from(i16::from_le_bytes(bytes))),
            Self::I32 => each(bytes, |bytes| i32::from_le_bytes(bytes) as f32),
            Self::I64 => each(bytes, |bytes| i64::from_le_bytes(bytes) as f32),
            Self::U8 => each(bytes, |[byte]| f32::from(byte)),
            Self::U16 => each(bytes, |bytes| f32::from(u16::from_le_bytes(bytes))),
            Self::U32 => each(bytes, |bytes| u32::from_le_bytes(bytes) as f32),
            Self::U64 => each(bytes, |bytes| u64::from_le_bytes(bytes) as f32),
        }
    }

    /// An array of this kind of numbers.
    ///
    /// # Errors
    /// A sentence, if the bytes do not fill the shape.
    pub fn array(self, shape: Vec<usize>, bytes: &[u8]) -> Result<Array, String> {
        // An overflow cannot equal the number of values in memory either.
        let expected = shape.iter().try_fold(1_usize, |product, size| product.checked_mul(*size));
        if expected.and_then(|count| count.checked_mul(self.size())) != Some(bytes.len()) {
            return Err(format!(
                "expected values of shape {shape:?}, got {} values",
                bytes.len() / self.size()
            ));
        }
        Ok(Array { shape, values: self.to_f32(bytes) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transposed_array_has_its_axes_in_the_opposite_order() {
        let array = Array { shape: vec![2, 3, 4], values: (0_u8..24).map(f32::from).collect() };
        let transposed = array.clone().transposed();
        assert_eq!(transposed.shape, [4, 3, 2]);
        for (i, j, k) in
            (0..2).flat_map(|i| (0..3).flat_map(move |j| (0..4).map(move |k| (i, j, k))))
        {
            assert_eq!(transposed.values[(k * 3 + j) * 2 + i], array.values[(i * 3 + j) * 4 + k]);
        }
        assert_eq!(transposed.transposed(), array);
        let empty = Array { shape: vec![0, 3], values: Vec::new() };
        assert_eq!(empty.transposed().shape, [3, 0]);
    }

    #[test]
    fn every_kind_of_numbers_is_read() {
        let cases: [(Kind, Vec<u8>); 12] = [
            (Kind::F16, [f16::from_f32(7.0), f16::from_f32(9.0)].map(f16::to_le_bytes).concat()),
            (
                Kind::Bf16,
                [bf16::from_f32(7.0), bf16::from_f32(9.0)].map(bf16::to_le_bytes).concat(),
            ),
            (Kind::F32, [7.0_f32, 9.0].map(f32::to_le_bytes).concat()),
            (Kind::F64, [7.0_f64, 9.0].map(f64::to_le_bytes).concat()),
            (Kind::I8, vec![7, 9]),
            (Kind::I16, [7_i16, 9].map(i16::to_le_bytes).concat()),
            (Kind::I32, [7_i32, 9].map(i32::to_le_bytes).concat()),
            (Kind::I64, [7_i64, 9].map(i64::to_le_bytes).concat()),
            (Kind::U8, vec![7, 9]),
            (Kind::U16, [7_u16, 9].map(u16::to_le_bytes).concat()),
            (Kind::U32, [7_u32, 9].map(u32::to_le_bytes).concat()),
            (Kind::U64, [7_u64, 9].map(u64::to_le_bytes).concat()),
        ];
        for (kind, bytes) in cases {
            assert_eq!(kind.array(vec![2], &bytes).unwrap().values, [7.0, 9.0], "{kind:?}");
            let error = kind.array(vec![3], &bytes).unwrap_err();
            assert_eq!(error, "expected values of shape [3], got 2 values", "{kind:?}");
        }
    }
}
