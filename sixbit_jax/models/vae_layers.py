"""The layers of the VAE, on channels-last videos.

Layers that look back in time take `past`, the frames they still need, and return it renewed next to their output.
`past=None` marks the start of a video; that first call carries exactly one frame. Because `past` is handed along, a
video can stream through in pieces of any length with the same result.
"""

from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from sixbit_jax.linear import linear
from sixbit_jax.shapes import Params

Video: TypeAlias = Float[Array, "b t h w c"]
Frame: TypeAlias = Float[Array, "b 1 h w c"]
Frames: TypeAlias = Float[Array, "b 2 h w c"]

_SAME = ((1, 1), (1, 1))


def rms_norm(params: Params, x: Float[Array, "... c"]) -> Float[Array, "... c"]:
    """`x / |x| · sqrt(c) · scale` over the channels, in f32; the caller casts.

    The length is bounded below by 1e-12; there is no epsilon in the mean square. Bounding its square instead keeps the
    gradient finite at zero.
    """
    x = x.astype(jnp.float32)
    squares = jnp.sum(x * x, axis=-1, keepdims=True)
    scale = params["scale"].astype(jnp.float32) * x.shape[-1] ** 0.5
    return x * lax.rsqrt(jnp.maximum(squares, 1e-24)) * jnp.broadcast_to(scale, x.shape)


def norm_silu(params: Params, x: Video) -> Video:
    """RMS norm, then SiLU, rounded once."""
    return jax.nn.silu(rms_norm(params, x)).astype(x.dtype)


def frame_conv(
    params: Params, x: Video, *, stride: int = 1, padding: tuple[tuple[int, int], ...] = _SAME
) -> Float[Array, "b t y x n"]:
    """A 3×3 convolution of every frame by itself."""
    y = _conv2d(x, params["weight"], stride, padding)
    return y + jnp.broadcast_to(params["bias"], y.shape)


def causal_conv(params: Params, x: Video, past: Frames | None) -> tuple[Float[Array, "b t h w n"], Frames]:
    """A 3×3×3 convolution over each frame and the two before it."""
    weight = params["weight"]
    frames = jnp.concatenate([_blank(x) if past is None else past, x], axis=1)
    # The frames before a video are zero, so two thirds of the kernel have nothing to do on its first.
    y = _conv2d(x, weight[2]) if past is None else _conv3d(frames, weight)
    return y + jnp.broadcast_to(params["bias"], y.shape), frames[:, -2:]


def attention(params: Params, x: Video) -> Video:
    """Single-head self-attention inside each frame, added to its input. One frame at a time: its scores are (h·w)²."""
    b, t, h, w, c = x.shape
    tokens = x.reshape(b * t, h * w, c)
    normed = rms_norm(params["norm"], tokens).astype(x.dtype)
    qkv = linear(normed, params["qkv"]["weight"], params["qkv"]["bias"])
    y = lax.map(_attend, jnp.split(qkv, 3, axis=-1))
    return x + linear(y, params["out"]["weight"], params["out"]["bias"]).reshape(x.shape)


def downsample_space(params: Params, x: Video) -> Float[Array, "b t y x n"]:
    """Halve height and width. The zero border lies at the bottom and the right only."""
    return frame_conv(params, x, stride=2, padding=((0, 1), (0, 1)))


def upsample_space(params: Params, x: Video) -> Float[Array, "b t y x n"]:
    """Double height and width: every pixel four times, then a convolution."""
    b, t, h, w, c = x.shape
    pixels = jnp.broadcast_to(x[:, :, :, None, :, None], (b, t, h, 2, w, 2, c))
    return frame_conv(params, pixels.reshape(b, t, 2 * h, 2 * w, c))


def downsample_time(params: Params, x: Video, past: Frame | None) -> tuple[Float[Array, "b u h w c"], Frame]:
    """Halve the number of frames: every output sees three, in steps of two. The first frame passes as it is."""
    if past is None:
        return x, x
    frames = jnp.concatenate([past, x], axis=1)
    windows = jnp.concatenate([frames[:, :-2:2], frames[:, 1:-1:2], frames[:, 2::2]], axis=-1)
    return linear(windows, params["weight"], params["bias"]), x[:, -1:]


def upsample_time(params: Params, x: Video, past: Frames | None) -> tuple[Float[Array, "b u h w c"], Frames]:
    """Double the number of frames: each input frame, with the two before it, gives two.

    The first frame passes as it is and is not remembered either: to this layer the video begins with the second.
    """
    if past is None:
        return x, _blank(x)
    frames = jnp.concatenate([past, x], axis=1)
    windows = jnp.concatenate([frames[:, :-2], frames[:, 1:-1], frames[:, 2:]], axis=-1)
    pairs = linear(windows, params["weight"], params["bias"])
    b, t, h, w, c = x.shape
    return jnp.moveaxis(pairs.reshape(b, t, h, w, 2, c), 4, 2).reshape(b, 2 * t, h, w, c), frames[:, -2:]


def _blank(x: Video) -> Frames:
    """The two frames before a video."""
    b, _, h, w, c = x.shape
    return jnp.zeros((b, 2, h, w, c), x.dtype)


def _conv3d(frames: Video, weight: Float[Array, "3 3 3 c n"]) -> Float[Array, "b u h w n"]:
    """One output frame for each window of three.

    In f32 this is three 2-D convolutions and a sum, the fastest way on a CPU. GFLOP/s on two cores for 96, 192 and 384
    channels: one 3-D convolution 81, 114, 141; frames stacked on the channels 85, 127, 177; three convolutions 128,
    151, 177. Narrower types stack the frames, which keeps the sum over time in the f32 accumulator.
    """
    shifted = [frames[:, i : frames.shape[1] - 2 + i] for i in range(3)]
    if weight.dtype == jnp.float32:
        first, second, third = (_conv2d(x, weight[i]) for i, x in enumerate(shifted))
        return first + second + third
    return _conv2d(jnp.concatenate(shifted, axis=-1), jnp.concatenate(list(weight), axis=2))


def _conv2d(
    x: Video, weight: Float[Array, "3 3 c n"], stride: int = 1, padding: tuple[tuple[int, int], ...] = _SAME
) -> Float[Array, "b t y x n"]:
    b, t, h, w, c = x.shape
    y = lax.conv_general_dilated(
        x.reshape(b * t, h, w, c),
        weight,
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        # A GPU rounds f32 operands to tf32 here, as PyTorch does in convolutions: invisible in frames of 8 bits.
        precision=lax.Precision.DEFAULT,
    )
    return y.reshape(b, t, *y.shape[1:])


def _attend(qkv: list[Float[Array, "s c"]]) -> Float[Array, "s c"]:
    """softmax(q·kᵀ / sqrt(c)) · v for one frame, scores in f32."""
    q, k, v = qkv
    exact = lax.Precision.HIGHEST if q.dtype == jnp.float32 else lax.Precision.DEFAULT
    scores = jnp.einsum("qc,kc->qk", q, k, precision=exact, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scores * q.shape[-1] ** -0.5, axis=-1).astype(v.dtype)
    return jnp.einsum("qk,kc->qc", weights, v, precision=exact, preferred_element_type=jnp.float32).astype(v.dtype)
