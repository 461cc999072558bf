"""Laws of tiling: tiles that agree give back the whole, and every pixel is a mixture of the tiles over it."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sixbit_jax.models.vae_tiling import Tiling, map_tiles


@st.composite
def tilings(draw: st.DrawFn) -> Tiling:
    size = draw(st.tuples(st.integers(1, 6), st.integers(1, 6)))
    return Tiling(size, (draw(st.integers(1, size[0])), draw(st.integers(1, size[1]))))


extents = st.tuples(st.integers(1, 9), st.integers(1, 9))


@given(tilings(), extents)
@settings(max_examples=20)
def test_tiles_of_a_pointwise_code_are_the_whole(tiling: Tiling, extent: tuple[int, int]) -> None:
    """Up to the one rounding of `a·(1 - r) + a·r`, at most once per axis and tile."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 2, *extent, 1), np.float32))
    y = jax.jit(lambda x: map_tiles(lambda tile: 2 * tile, x, tiling, tiling))(x)
    np.testing.assert_allclose(y, 2 * x, rtol=1e-5, atol=1e-6)


@given(tilings(), extents)
@settings(max_examples=10)
def test_tiles_may_change_the_grid(tiling: Tiling, extent: tuple[int, int]) -> None:
    """A code that doubles height and width, described by tiles twice as large."""
    large = Tiling(tuple(2 * n for n in tiling.size), tuple(2 * n for n in tiling.stride))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 1, *extent, 1), np.float32))
    double = lambda tile: jnp.repeat(jnp.repeat(tile, 2, axis=2), 2, axis=3)
    y = jax.jit(lambda x: map_tiles(double, x, tiling, large))(x)
    np.testing.assert_allclose(y, double(x), rtol=1e-5, atol=1e-6)


@given(tilings(), extents)
@settings(max_examples=10)
def test_blending_is_a_mixture(tiling: Tiling, extent: tuple[int, int]) -> None:
    """Tiles of different constants: nothing leaves the range between them."""
    x = jnp.arange(extent[0] * extent[1], dtype=jnp.float32).reshape(1, 1, *extent, 1)
    constant = lambda tile: jnp.broadcast_to(tile[:, :, :1, :1], tile.shape)
    y = jax.jit(lambda x: map_tiles(constant, x, tiling, tiling))(x)
    assert y.shape == x.shape
    assert y.min() >= -1e-5
    assert y.max() <= x.max() * (1 + 1e-5) + 1e-5
