"""The outlier twin: the same model with a few channels far louder than the rest in front of its linears.

Large models grow such channels by themselves; a miniature may not, and then methods made against outliers cannot be
told from those without. The twin multiplies a channel by a power of two where it is produced and divides it where it is
read, so it computes the same function:

    site         produced by                                       read by
    self_qkv     shift and scale before it (tables, projection)    columns of q, k, v
    self_out     rows of v: attention is linear in v               columns of the output
    cross_q      scale and bias of the norm before it              columns of q
    cross_out    rows of v of the prompt (and of the image)        columns of the output
    ffn_in       shift and scale before it (tables, projection)    columns of the first linear

The sixth group, ffn_out, reads a GELU, which does not commute with a factor. Tables and time projection add up before
they are used, and one projection serves all layers: sites behind them have the same channels in every layer, the others
have their own. Powers of two leave bf16 weights exact; only the tables' "1 + scale" is rounded anew, in f32.
"""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float

from sixbit_jax.errors import UserError, nearest
from sixbit_jax.models.wan_config import WanConfig
from sixbit_jax.shapes import Params

SITES = ("self_qkv", "self_out", "cross_q", "cross_out", "ffn_in")
_MODULATED = {"self_qkv": (0, 1), "ffn_in": (3, 4)}  # rows of the modulation: (shift, scale)


@dataclasses.dataclass(frozen=True)
class Outliers:
    """`channels` of every 128 become `2**exponent` times louder, at each of the `sites`."""

    exponent: int = 5
    channels: int = 1
    sites: tuple[str, ...] = SITES
    seed: int = 0

    def __post_init__(self) -> None:
        for site in self.sites:
            if site not in SITES:
                raise UserError(f'--sites: unknown site "{site}"; {nearest(site, SITES)}')
        if not 0 < self.exponent <= 10:
            raise UserError(f"--exponent {self.exponent}: needs 1 to 10")
        if not 0 < self.channels <= 32:
            raise UserError(f"--channels {self.channels}: needs 1 to 32 of every 128")

    def scales(self, config: WanConfig) -> dict[str, Float[np.ndarray, "layers d"]]:
        """The factor of each channel in front of each site."""
        return {site: self._draw(config, SITES.index(site), site in _MODULATED) for site in self.sites}

    def _draw(self, config: WanConfig, index: int, shared: bool) -> Float[np.ndarray, "layers d"]:
        rng = np.random.default_rng([self.seed, index])
        count = max(1, self.channels * config.dim // 128)
        rows = np.ones((config.num_layers, config.dim), np.float32)
        chosen = [rng.choice(config.dim, count, replace=False) for _ in range(config.num_layers)]
        for layer, row in enumerate(rows):
            row[chosen[0 if shared else layer]] = 2.0**self.exponent
        return rows


def plant(params: Params, config: WanConfig, outliers: Outliers) -> Params:
    """The twin's parameters, as numpy arrays in the dtypes of `params`."""
    twin = _copy(params)
    for site, scales in outliers.scales(config).items():
        _PLANTERS[site](twin, site, scales)
    return twin


def _plant_modulated(twin: Params, site: str, scales: Float[np.ndarray, "layers d"]) -> None:
    """y = norm (1 + table + time) + shift: the factor goes into both tables and into the rows that all layers share."""
    shift, scale = _MODULATED[site]
    table, shared = twin["blocks"]["modulation"], scales[0]
    table[:, shift] *= scales
    table[:, scale] = scales * (1 + table[:, scale]) - 1
    for name in ("weight", "bias"):
        rows = twin["time_projection"][name].reshape(6, scales.shape[1], -1)
        for row in (shift, scale):
            rows[row] *= shared[:, None].astype(rows.dtype)
    reader = twin["blocks"]["ffn_in"] if site == "ffn_in" else twin["blocks"]["self_attention"]["qkv"]
    _divide_columns(reader, scales)


def _plant_norm(twin: Params, site: str, scales: Float[np.ndarray, "layers d"]) -> None:
    norm = twin["blocks"]["cross_norm"]
    norm["scale"] *= scales
    norm["bias"] *= scales
    _divide_columns(twin["blocks"]["cross_attention"]["q"], scales)


def _plant_values(twin: Params, site: str, scales: Float[np.ndarray, "layers d"]) -> None:
    attention = twin["blocks"]["self_attention" if site == "self_out" else "cross_attention"]
    producers = ("qkv",) if site == "self_out" else tuple(name for name in ("kv", "image_kv") if name in attention)
    for name in producers:
        # Values come last of what is concatenated.
        attention[name]["weight"][:, -scales.shape[1] :] *= scales[..., None].astype(attention[name]["weight"].dtype)
        attention[name]["bias"][:, -scales.shape[1] :] *= scales.astype(attention[name]["bias"].dtype)
    _divide_columns(attention["out"], scales)


_PLANTERS = {
    "self_qkv": _plant_modulated,
    "ffn_in": _plant_modulated,
    "cross_q": _plant_norm,
    "self_out": _plant_values,
    "cross_out": _plant_values,
}


def _divide_columns(reader: Params, scales: Float[np.ndarray, "layers d"]) -> None:
    reader["weight"] *= (1 / scales)[:, None].astype(reader["weight"].dtype)


def _copy(params: Params) -> Params:
    return {name: _copy(each) if isinstance(each, dict) else np.array(each) for name, each in params.items()}


def describe(config: WanConfig, outliers: Outliers) -> dict[str, Any]:
    """Plain data: what was planted where."""
    channels = {
        site: [np.flatnonzero(row > 1).tolist() for row in rows] for site, rows in outliers.scales(config).items()
    }
    return {"factor": 2**outliers.exponent, "seed": outliers.seed, "channels_by_site_and_layer": channels}
