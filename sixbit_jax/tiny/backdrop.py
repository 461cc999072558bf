"""Backgrounds: still patterns, as the mix of a dark and a light shade of one muted colour."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from sixbit_jax.tiny import names
from sixbit_jax.tiny.outlines import turn
from sixbit_jax.tiny.scene import Background

_DOT_RADIUS = 0.3  # of the period


def draw_background(background: Background, points: Float[Array, "h w 2"], pixel: float) -> Float[Array, "h w 3"]:
    """Colours in [0, 1]. `pixel` is the side of a pixel, the width of antialiased edges."""
    mix = _mix(background, points, pixel)
    is_gradient = background.kind == names.GRADIENT
    dark = jnp.where(is_gradient, names.GRADIENT_SHADES[0], names.TEXTURE_SHADES[0])
    light = jnp.where(is_gradient, names.GRADIENT_SHADES[1], names.TEXTURE_SHADES[1])
    shade = dark + (light - dark) * mix
    return jnp.clip(shade[..., None] * background.tint[None, None], 0, 1)


def _mix(background: Background, points: Float[Array, "h w 2"], pixel: float) -> Float[Array, "h w"]:
    """The share of the light shade."""
    patterns = {
        "plain": jnp.full(points.shape[:2], 0.5),
        "gradient": _gradient(background, points),
        "striped": _bands(turn(points, background.angle)[..., 0], background.period, background.phase[0], pixel),
        "checkered": _checkers(background, points, pixel),
        "dotted": _dots(background, points, pixel),
        "noisy": _clouds(background, points),
    }
    kinds = [jnp.broadcast_to(background.kind == index, points.shape[:2]) for index in range(len(patterns))]
    return jnp.select(kinds, [patterns[name] for name in names.BACKGROUNDS])


def _gradient(background: Background, points: Float[Array, "h w 2"]) -> Float[Array, "h w"]:
    """Dark to light across the unit square."""
    along = turn(points - 0.5, background.angle)[..., 0]
    reach = (jnp.abs(jnp.cos(background.angle)) + jnp.abs(jnp.sin(background.angle))) / 2
    return jnp.clip(0.5 + along / (2 * reach), 0, 1)


def _bands(position: Float[Array, "h w"], period: Array, phase: Array, pixel: float) -> Float[Array, "h w"]:
    """Ones and zeros of equal width, with edges one pixel wide."""
    cycle = jnp.mod(position / period + phase, 1.0)
    return jnp.clip(0.5 + (0.25 - jnp.abs(cycle - 0.5)) * period / pixel, 0, 1)


def _checkers(background: Background, points: Float[Array, "h w 2"], pixel: float) -> Float[Array, "h w"]:
    # Two squares to a period, and squares as wide as the other patterns' periods would look coarse.
    period = background.period * 1.5
    across = _bands(points[..., 0], period, background.phase[0], pixel)
    down = _bands(points[..., 1], period, background.phase[1], pixel)
    return across * down + (1 - across) * (1 - down)


def _dots(background: Background, points: Float[Array, "h w 2"], pixel: float) -> Float[Array, "h w"]:
    """Light discs on a square lattice."""
    period = background.period * 1.2
    cell = jnp.mod(points / period + background.phase[None, None], 1.0) - 0.5
    return jnp.clip(0.5 + (_DOT_RADIUS - jnp.linalg.norm(cell, axis=-1)) * period / pixel, 0, 1)


def _clouds(background: Background, points: Float[Array, "h w 2"]) -> Float[Array, "h w"]:
    """Waves in all directions on top of each other: no grain, no lattice."""
    waves = background.waves
    cycles = points[..., None, 0] * waves[None, None, :, 0] + points[..., None, 1] * waves[None, None, :, 1]
    heights = jnp.cos(2 * math.pi * (cycles + waves[None, None, :, 2]))
    return 0.5 + 0.5 * jnp.tanh(heights.sum(-1) / math.sqrt(waves.shape[0] / 2))
