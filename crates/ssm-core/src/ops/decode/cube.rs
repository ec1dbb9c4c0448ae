//! Single steps on devices of CubeCL, written into the buffers that they came from.

use burn::{
    backend::{
        TensorMetadata,
        tensor::{FloatTensor, IntTensor},
    },
    tensor::{DType, FloatDType},
};
use burn_cubecl::{CubeBackend, tensor::CubeTensor};
use cubecl::{CubeCount, CubeDim};

use super::{
    extension::{ChosenPrimitives, ConvPrimitives, DecodeOps, ProductPrimitives, StatePrimitives},
    kernel::{self, Form, LANES, UNITS, WIDE},
};
use crate::ops::{
    cube::{
        cast, check_device, check_len, convert, dtypes_of, elem, empty, empty_f32, has_planes,
        independent, is_cuda, lacks_planes, rows, rows_f32, rows_f32_or, rows_or, take_slow_path,
        vector_size,
    },
    primitive::Maybe,
};

type B = CubeBackend;

/// Cubes that keep a large device busy.
const ENOUGH_CUBES: usize = 192;

/// A buffer that is written in place: it has to be what the caller holds.
fn own(op: &str, what: &str, tensor: &CubeTensor) {
    let dense = tensor.meta.num_elements() == 0 || tensor.is_contiguous();
    assert!(
        dense && matches!(tensor.dtype, DType::F32 | DType::I32),
        "{op}: `{what}` is {:?} with the strides {:?}, expected f32, or i32 for tokens, in a row",
        tensor.dtype,
        tensor.meta.strides(),
    );
}

/// The past of a convolution, and a buffer that is never written for a convolution of width one, which
/// has none: nothing that a kernel may write can be without elements, or be bound twice.
fn written(past: CubeTensor) -> CubeTensor {
    if past.meta.num_elements() == 0 { empty_f32(&past, [1]) } else { past }
}

/// The types of a convolution's parameters.
fn of_taps(taps: &CubeTensor, bias: &Maybe<B>) -> impl Iterator<Item = DType> {
    [taps.dtype].into_iter().chain(dtypes_of([bias]))
}

/// Largest vector that divides both.
fn common_vector(a: usize, b: usize) -> usize {
    vector_size(a).min(vector_size(b))
}

fn product(
    input: ProductPrimitives<B>,
    conv: Option<ConvPrimitives<B>>,
    epsilon: f32,
) -> CubeTensor {
    let given = dtypes_of([&input.norm, &input.add]);
    let of_conv = conv.iter().flat_map(|conv| of_taps(&conv.taps, &conv.bias));
    let dtypes = [input.x.dtype, input.weight.dtype].into_iter().chain(given).chain(of_conv);
    check_device("decode_product", &input.x, dtypes, 7);
    let (x, weight) = (rows_f32(input.x), rows(input.weight));
    let [batch, stride]: [usize; 2] = x.shape().dims();
    let [d_out, d_in]: [usize; 2] = weight.shape().dims();
    check_len("decode", "a weight", d_out * d_in);
    let (norm, add) =
        (input.norm.into_option().map(rows_f32), input.add.into_option().map(rows_f32));
    let y = empty_f32(&x, [batch, d_out]);
    let vector = common_vector(d_in, stride);
    let width = d_in / vector;
    let per_cube = UNITS / LANES;
    // Several rows a group once there are enough of them, as each reads `x` anew.
    let fits = |span: &usize| d_out >= span * per_cube * ENOUGH_CUBES;
    let span = [4, 2].into_iter().find(fits).unwrap_or(1);
    let planes = has_planes(&x.client);
    if !planes {
        let why = lacks_planes(&x.client);
        take_slow_path("decode_product", &x.client, "kernels without planes", &why);
    }
    let mut form = Form {
        span,
        turns: width.div_ceil(LANES),
        norm: norm.is_some(),
        add: add.is_some(),
        d_conv: 0,
        bias: false,
        planes,
        cuda: is_cuda(&x.client),
    };
    let mut channels = 0;
    let (taps, added, past) = match conv {
        Some(ConvPrimitives { taps, bias, past }) => {
            own("decode_product_conv", "past", &past);
            let taps = rows_f32(taps);
            let [of_taps, d_conv]: [usize; 2] = taps.shape().dims();
            (channels, form.d_conv) = (of_taps, d_conv);
            let bias = bias.into_option().map(rows_f32);
            form.bias = bias.is_some();
            (taps, bias, written(past))
        }
        None => (x.clone(), add, empty_f32(&x, [1])),
    };
    let count = CubeCount::Static(d_out.div_ceil(span * per_cube) as u32, batch as u32, 1);
    let dtype = elem(&weight);
    // SAFETY: units read rows and columns that exist and write none that do not; `vector` divides the
    // lengths of rows; absent tensors are not read.
    unsafe {
        kernel::product::launch_unchecked(
            &y.client,
            count,
            CubeDim::new_1d(UNITS as u32),
            vector,
            x.clone().into_tensor_arg(),
            norm.unwrap_or_else(|| x.clone()).into_tensor_arg(),
            weight.into_tensor_arg(),
            added.unwrap_or_else(|| x.clone()).into_tensor_arg(),
            taps.into_tensor_arg(),
            past.into_tensor_arg(),
            y.clone().into_tensor_arg(),
            d_out,
            width,
            stride / vector,
            channels,
            epsilon,
            form,
            dtype,
        );
    }
    y
}

fn conv(x: CubeTensor, conv: ConvPrimitives<B>) -> (CubeTensor, CubeTensor) {
    let ConvPrimitives { taps, bias, past } = conv;
    let dtypes = [x.dtype].into_iter().chain(of_taps(&taps, &bias));
    check_device("decode_conv", &x, dtypes, 5);
    own("decode_conv", "past", &past);
    let (x, taps) = (rows(x), rows_f32(taps));
    let [batch, stride]: [usize; 2] = x.shape().dims();
    let [channels, d_conv]: [usize; 2] = taps.shape().dims();
    let u = empty(&x, [batch, channels], x.dtype);
    let len = batch * channels;
    let (count, dim) = independent(len);
    let has_bias = matches!(bias, Maybe::Present(_));
    let bias = rows_f32_or(bias, &taps);
    let (dtype, cuda) = (elem(&x), is_cuda(&x.client));
    // SAFETY: units check their place, and the shapes are those of the tensors.
    unsafe {
        kernel::conv::launch_unchecked(
            &u.client,
            count,
            dim,
            x.into_tensor_arg(),
            taps.into_tensor_arg(),
            bias.into_tensor_arg(),
            written(past.clone()).into_tensor_arg(),
            u.clone().into_tensor_arg(),
            len,
            stride,
            channels,
            d_conv,
            has_bias,
            cuda,
            dtype,
        );
    }
    (u, past)
}

fn state(input: StatePrimitives<B>) -> (CubeTensor, CubeTensor) {
    let StatePrimitives { u, z, projected, dt_weight, params, state } = input;
    check_device(
        "decode_state",
        &u,
        [&u, &z, &projected, &dt_weight, &params].map(|of| of.dtype),
        7,
    );
    own("decode_state", "state", &state);
    let u = rows(u);
    let (z, projected) = (rows(cast(z, u.dtype)), rows(cast(projected, u.dtype)));
    let (dt_weight, params) = (rows(dt_weight), rows_f32(params));
    let [batch, d_inner, d_state]: [usize; 3] = state.shape().dims();
    check_len("decode_state", "`state`", batch * d_inner * d_state);
    let ([_, stride_u], [_, stride_z]): ([usize; 2], [usize; 2]) =
        (u.shape().dims(), z.shape().dims());
    let [_, dt_rank]: [usize; 2] = dt_weight.shape().dims();
    let y = empty(&u, [batch, d_inner], u.dtype);
    let len = batch * d_inner;
    let (rank_vector, vector) = (vector_size(dt_rank), vector_size(d_state));
    // Few units a cube: a single sequence is to reach all of the device.
    let (count, dim) = match len < 64 * ENOUGH_CUBES {
        true => (CubeCount::Static(len.div_ceil(LANES) as u32, 1, 1), CubeDim::new_1d(32)),
        false => independent(len),
    };
    let (dtypes, cuda) = ([elem(&u), elem(&dt_weight)], is_cuda(&u.client));
    // SAFETY: as in `conv`; the vectors divide the rows that they read.
    unsafe {
        kernel::state::launch_unchecked(
            &y.client,
            count,
            dim,
            rank_vector,
            vector,
            u.into_tensor_arg(),
            z.into_tensor_arg(),
            projected.into_tensor_arg(),
            dt_weight.into_tensor_arg(),
            params.into_tensor_arg(),
            state.clone().into_tensor_arg(),
            y.clone().into_tensor_arg(),
            len,
            d_inner,
            stride_u,
            stride_z,
            dt_rank / rank_vector,
            d_state / vector,
            cuda,
            dtypes,
        );
    }
    (y, state)
}

fn add_norm(
    x: CubeTensor,
    add: Maybe<B>,
    weight: CubeTensor,
    epsilon: f32,
    dtype: FloatDType,
) -> (CubeTensor, CubeTensor) {
    let dtypes = [DType::from(dtype), weight.dtype].into_iter().chain(dtypes_of([&add]));
    check_device("decode_add_norm", &x, dtypes, 4);
    // The caller lets go of `x`, so that its buffer is free to take the sum.
    own("decode_add_norm", "x", &x);
    let [batch, width]: [usize; 2] = x.shape().dims();
    let has_add = matches!(add, Maybe::Present(_));
    let weight = rows_f32(weight);
    let add = rows_or(add, &weight);
    let y = empty(&x, [batch, width], DType::from(dtype));
    let dtypes = [elem(&add), elem(&y)];
    // SAFETY: one cube for each row, and units check their place in it.
    unsafe {
        kernel::add_norm::launch_unchecked(
            &y.client,
            CubeCount::Static(batch as u32, 1, 1),
            CubeDim::new_1d(WIDE as u32),
            x.clone().into_tensor_arg(),
            add.into_tensor_arg(),
            weight.into_tensor_arg(),
            y.clone().into_tensor_arg(),
            width,
            epsilon,
            has_add,
            dtypes,
        );
    }
    (x, y)
}

fn argmax(logits: CubeTensor, chosen: ChosenPrimitives<B>, n_vocab: usize) -> ChosenPrimitives<B> {
    check_device("decode_argmax", &logits, [logits.dtype], 4);
    let logits = rows(logits);
    let [batch, stride]: [usize; 2] = logits.shape().dims();
    let ChosenPrimitives { newest, ring, count } = chosen;
    for (what, tensor) in [("newest", &newest), ("ring", &ring), ("count", &count)] {
        own("decode_argmax", what, tensor);
    }
    let [_, capacity]: [usize; 2] = ring.shape().dims();
    let dtype = elem(&logits);
    // SAFETY: one cube for each row of `logits`, which has at least `n_vocab` columns.
    unsafe {
        kernel::argmax::launch_unchecked(
            &logits.client.clone(),
            CubeCount::Static(batch as u32, 1, 1),
            CubeDim::new_1d(WIDE as u32),
            logits.into_tensor_arg(),
            newest.clone().into_tensor_arg(),
            ring.clone().into_tensor_arg(),
            count.clone().into_tensor_arg(),
            n_vocab,
            stride,
            capacity,
            dtype,
        );
    }
    ChosenPrimitives { newest, ring, count }
}

fn copy(from: CubeTensor, to: Maybe<B>, dtype: FloatDType) -> CubeTensor {
    check_device("decode_copy", &from, [from.dtype, DType::from(dtype)], 2);
    let from = rows(from);
    let len = from.meta.num_elements();
    let to = match to.into_option() {
        Some(to) => {
            assert!(
                to.is_contiguous() && to.meta.num_elements() == len,
                "decode_copy: other sizes"
            );
            to
        }
        None => empty(&from, from.shape(), DType::from(dtype)),
    };
    convert(from, &to);
    to
}

impl DecodeOps for CubeBackend {
    fn decode_product(input: ProductPrimitives<Self>, epsilon: f32) -> FloatTensor<Self> {
        product(input, None, epsilon)
    }

    fn decode_product_conv(
        input: ProductPrimitives<Self>,
        conv: ConvPrimitives<Self>,
        epsilon: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let past = conv.past.clone();
        (product(input, Some(conv), epsilon), past)
    }

    fn decode_conv(
        x: FloatTensor<Self>,
        convolution: ConvPrimitives<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        conv(x, convolution)
    }

    fn decode_state(input: StatePrimitives<Self>) -> (FloatTensor<Self>, FloatTensor<Self>) {
        state(input)
    }

    fn decode_add_norm(
        x: FloatTensor<Self>,
        add: Maybe<Self>,
        weight: FloatTensor<Self>,
        epsilon: f32,
        dtype: FloatDType,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        add_norm(x, add, weight, epsilon, dtype)
    }

    fn decode_argmax(
        logits: FloatTensor<Self>,
        chosen: ChosenPrimitives<Self>,
        n_vocab: usize,
    ) -> ChosenPrimitives<Self> {
        argmax(logits, chosen, n_vocab)
    }

    fn decode_copy(
        from: FloatTensor<Self>,
        to: Maybe<Self>,
        dtype: FloatDType,
    ) -> FloatTensor<Self> {
        copy(from, to, dtype)
    }

    fn decode_set(to: IntTensor<Self>, from: IntTensor<Self>) -> IntTensor<Self> {
        check_device("decode_set", &from, [], 2);
        let from = rows(from);
        for (what, tensor) in [("to", &to), ("from", &from)] {
            own("decode_set", what, tensor);
        }
        let len = from.meta.num_elements();
        assert!(to.meta.num_elements() == len, "decode_set: other sizes");
        let (count, dim) = independent(len);
        // SAFETY: units check their place, and both have `len` elements.
        unsafe {
            kernel::set::launch_unchecked(
                &to.client,
                count,
                dim,
                from.into_tensor_arg(),
                to.clone().into_tensor_arg(),
                len,
            );
        }
        to
    }
}
