"""The VAE against itself: pieces and wholes, causality, tiles by hand, number formats.

Parity with diffusers is in `tests/parity`, refusals are in `test_vae_refusals.py`.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sixbit_jax.models import vae
from sixbit_jax.models.vae_tiling import map_tiles
from sixbit_jax.shapes import Params

# The smallest model that changes both grids: 2× in space, 2× in time.
CONFIG = vae.VAEConfig(base_dim=4, dim_mult=(1, 2), num_res_blocks=1, temporal_downsample=(True,))
# f32 runs of one computation cut up differently. Each of some 15 layers rounds sums of up to 27·8 terms, worth about
# sqrt(216) · 6e-8 = 1e-6, and a norm follows; outputs are of order one.
SAME = 2e-5

encode = jax.jit(vae.encode, static_argnums=1, static_argnames=("frames_per_chunk", "tile"))
decode = jax.jit(vae.decode, static_argnums=1, static_argnames=("frames_per_chunk", "tile"))


@functools.cache
def params() -> Params:
    """Every parameter away from its neutral value, and an output small enough not to be clipped."""
    rng = np.random.default_rng(0)
    tree = jax.tree_util.tree_map_with_path(
        lambda path, leaf: draw(rng, path[-1].key, leaf), vae.abstract_params(CONFIG)
    )
    tree["decoder"]["conv_out"] = jax.tree.map(lambda leaf: 0.1 * leaf, tree["decoder"]["conv_out"])
    return tree


def draw(rng: np.random.Generator, name: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    """Scales near one, biases near zero, weights that keep the size of what they multiply."""
    size = 0.1 if leaf.ndim == 1 else (leaf.size / max(leaf.shape[0], leaf.shape[-1])) ** -0.5
    return jnp.asarray(size * rng.standard_normal(leaf.shape) + (name == "scale"), leaf.dtype)


def latents(t: int = 5, h: int = 3, w: int = 4) -> jax.Array:
    return jax.random.normal(jax.random.key(2), (1, t, h, w, 16))


def video(frames: int = 9, height: int = 6, width: int = 8) -> jax.Array:
    return jax.random.uniform(jax.random.key(3), (1, frames, height, width, 3), minval=-1)


@pytest.mark.parametrize("frames_per_chunk", [2, 3, 100])
def test_decoding_in_chunks_is_decoding_at_once(frames_per_chunk: int) -> None:
    one_by_one = decode(params(), CONFIG, latents())
    assert one_by_one.shape == (1, 9, 6, 8, 3)
    assert 0.1 < jnp.abs(one_by_one).max() < 1
    chunked = decode(params(), CONFIG, latents(), frames_per_chunk=frames_per_chunk)
    np.testing.assert_allclose(chunked, one_by_one, rtol=0, atol=SAME)


@pytest.mark.parametrize("frames_per_chunk", [3, 4])
def test_encoding_in_chunks_is_encoding_at_once(frames_per_chunk: int) -> None:
    one_by_one = encode(params(), CONFIG, video())
    assert one_by_one.shape == (1, 5, 3, 4, 16)
    chunked = encode(params(), CONFIG, video(), frames_per_chunk=frames_per_chunk)
    np.testing.assert_allclose(chunked, one_by_one, rtol=0, atol=SAME)


def test_one_frame_is_the_first_of_many() -> None:
    image = decode(params(), CONFIG, latents()[:, :1])
    np.testing.assert_allclose(image, decode(params(), CONFIG, latents())[:, :1], rtol=0, atol=SAME)
    first = encode(params(), CONFIG, video()[:, :1])
    np.testing.assert_allclose(first, encode(params(), CONFIG, video())[:, :1], rtol=0, atol=SAME)


def reach(code: Callable[[jax.Array], jax.Array], x: jax.Array) -> list[list[bool]]:
    """For every input frame, the output frames that move with it, by derivative."""
    direction = jax.random.normal(jax.random.key(4), x.shape)
    push = jax.jit(lambda tangent: jax.jvp(code, (x,), (tangent,))[1])
    moved = [push(jnp.zeros_like(x).at[:, frame].set(direction[:, frame])) for frame in range(x.shape[1])]
    return [jnp.any(y != 0, axis=(0, 2, 3, 4)).tolist() for y in moved]


def test_decoder_never_looks_ahead() -> None:
    """Each latent frame after the first makes two frames, and later ones remember it."""
    code = functools.partial(vae.decode, params(), CONFIG)
    assert reach(code, latents(t=3, h=2, w=2)) == [[True] * 5, [False] + [True] * 4, [False] * 3 + [True] * 2]


def test_encoder_never_looks_ahead() -> None:
    code = functools.partial(vae.encode, params(), CONFIG)
    seen = reach(code, video(frames=5, height=4, width=4))
    assert seen == [[True] * 3, [False, True, True], [False, True, True], [False, False, True], [False, False, True]]


def test_tiles_by_hand() -> None:
    """Each decoded by itself; across the overlap the right one fades in."""
    z = latents(t=1, h=2, w=6)
    tiled = decode(params(), CONFIG, z, tile=vae.Tiling((8, 8), (8, 4)))
    left, right, rest = (np.asarray(decode(params(), CONFIG, z[..., i : i + 4, :])) for i in (0, 2, 4))
    ramp = np.linspace(0, 1, 4, endpoint=False)[:, None]
    middle = left[..., 4:, :] * (1 - ramp) + right[..., :4, :] * ramp
    # The third tile is cut off by the frame: all of it is overlap.
    end = right[..., 4:, :] * (1 - ramp) + rest * ramp
    np.testing.assert_allclose(tiled, np.concatenate([left[..., :4, :], middle, end], axis=3), rtol=0, atol=SAME)


def test_a_frame_no_larger_than_a_tile_is_not_tiled() -> None:
    tile = vae.Tiling((6, 8), (4, 4))
    np.testing.assert_array_equal(decode(params(), CONFIG, latents(), tile=tile), decode(params(), CONFIG, latents()))


def test_tiles_of_bf16_keep_their_type() -> None:
    x = jnp.ones((1, 1, 6, 6, 1), jnp.bfloat16)
    tile = vae.Tiling((4, 4), (3, 3))
    assert map_tiles(lambda part: part, x, tile, tile).dtype == jnp.bfloat16


def test_bf16_is_near_f32() -> None:
    """Some 15 layers of four roundings, worth 2^-9 / sqrt(3) each, add to 0.9 % when they are independent.

    They are not quite (a rounded weight is met at every pixel), hence four times that.
    """
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params())
    for code, x, dtype in ((decode, latents(), jnp.bfloat16), (encode, video(), jnp.float32)):
        exact, rounded = code(params(), CONFIG, x), code(half, CONFIG, x)
        assert rounded.dtype == dtype
        error = np.linalg.norm(rounded.astype(jnp.float32) - exact)
        assert error < 0.036 * np.linalg.norm(exact)


def test_norms_stay_f32() -> None:
    names = {
        (path[-1].key, leaf.dtype.name)
        for path, leaf in jax.tree.leaves_with_path(vae.abstract_params(CONFIG, jnp.bfloat16))
    }
    assert names == {("scale", "float32"), ("weight", "bfloat16"), ("bias", "bfloat16")}


def test_decoded_video_is_clipped() -> None:
    loud = params() | {
        "decoder": params()["decoder"] | {"conv_out": jax.tree.map(lambda x: 1e3 * x, params()["decoder"]["conv_out"])}
    }
    out = decode(loud, CONFIG, latents(t=1))
    assert (out.min(), out.max()) == (-1, 1)


def test_normalize_uses_the_statistics() -> None:
    z = latents()
    expected = (np.asarray(z) - np.array(CONFIG.latents_mean)) / np.array(CONFIG.latents_std)
    np.testing.assert_allclose(vae.normalize(CONFIG, z), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(vae.denormalize(CONFIG, vae.normalize(CONFIG, z)), z, rtol=1e-5, atol=1e-6)
