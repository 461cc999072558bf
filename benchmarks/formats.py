#!/usr/bin/env python3
"""What formats and methods lose on random weights: the figures of docs/formats.md. A minute on two CPU cores.

python benchmarks/formats.py --output benchmarks/formats.md
"""

import argparse
import platform
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from sixbit_jax import recipes
from sixbit_jax.formats import dequantize, effective_weight, quantize_int8, quantize_nvfp4, to_int8
from sixbit_jax.models import wan_modules
from sixbit_jax.models.wan_config import WanConfig
from sixbit_jax.quantize import quantize
from sixbit_jax.quantizers import BGR, AbstractQuantizer, FourOverSix, MinMax, QuaRot, ScaleSearch

ROWS, COLUMNS = 256, 5120
STDS = (0.002, 0.005, 0.01, 0.02, 0.05)
METHODS: dict[str, AbstractQuantizer] = {
    "NVFP4, min-max": MinMax("nvfp4"),
    "NVFP4, four over six": FourOverSix(),
    "NVFP4, searched scales": ScaleSearch(),
    "NVFP4, rotated, searched scales": QuaRot(weights=ScaleSearch()),
    "INT4 per row, min-max": MinMax("int4"),
    "INT4 per row, BGR without refinement": BGR(refinements=0),
    "INT4 per row, BGR": BGR(),
    "INT8 per row, min-max": MinMax("int8"),
}
SIZES = {"1.3B": WanConfig(30, 12, ffn_dim=8960), "14B": WanConfig(40, 40, ffn_dim=13824)}


def weights(tails: str, std: float = 0.02) -> jax.Array:
    rng = np.random.default_rng(0)
    draw = rng.standard_normal if tails == "Gaussian" else lambda size: rng.standard_t(4, size) / np.sqrt(2)
    return jnp.asarray(draw((ROWS, COLUMNS)) * std, jnp.float32)


def squared_error(w: jax.Array, approximation: jax.Array) -> float:
    """Of the whole matrix, relative to its squares."""
    difference = np.asarray(approximation, np.float64) - np.asarray(w, np.float64)
    return float((difference**2).sum() / (np.asarray(w, np.float64) ** 2).sum())


def decibels(w: jax.Array, approximation: jax.Array) -> float:
    return -10 * float(np.log10(squared_error(w, approximation)))


def by_method() -> Iterable[tuple[str, ...]]:
    for name, method in METHODS.items():
        cells = []
        for tails in ("Gaussian", "Student-t4"):
            w = weights(tails)
            error = squared_error(w, effective_weight(method(w)))
            plain = squared_error(w, effective_weight(MinMax("nvfp4" if "NVFP4" in name else "int4")(w)))
            cells += [f"{-10 * np.log10(error):.2f}", "" if "8" in name else f"{100 * (error / plain - 1):+.1f} %"]
        yield name, *cells


def by_spread() -> Iterable[tuple[str, ...]]:
    for std in STDS:
        w = weights("Gaussian", std)
        one_level = dequantize(quantize_nvfp4(w, tensor_scale=1.0))
        both = (dequantize(quantize_nvfp4(w)), one_level, dequantize(quantize_int8(w)))
        yield f"{std:g}", *(f"{decibels(w, each):.2f}" for each in both)


def shares() -> Iterable[tuple[str, ...]]:
    """What one step adds to the error of the step before it."""
    for tails in ("Gaussian", "Student-t4"):
        w = weights(tails)
        searched, refined = (squared_error(w, effective_weight(BGR(refinements=count)(w))) for count in (0, 10))
        four = quantize_nvfp4(w)
        stored, expanded = squared_error(w, dequantize(four)), squared_error(w, dequantize(to_int8(four)))
        yield tails, f"{100 * (refined / searched - 1):+.2f} %", f"{100 * (expanded / stored - 1):+.2f} %"


def by_model() -> Iterable[tuple[str, ...]]:
    """Bytes of the transformer's parameters, from shapes alone."""
    size = lambda tree: sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
    dense = {name: wan_modules.abstract_params(config, jnp.bfloat16) for name, config in SIZES.items()}
    for name in recipes.names():
        recipe = recipes.get(name)
        if recipe.weights:
            cells = ((size(tree), size(quantize(tree, recipe))) for tree in dense.values())
            yield name, *(f"{small / 1e9:.2f} GB ({large / small:.2f}x)" for large, small in cells)


def table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def page() -> str:
    parts = (
        "# Formats and methods on random weights",
        f"{ROWS} x {COLUMNS} values, standard deviation 0.02; {platform.machine()}, jax {metadata.version('jax')}.\n\n"
        "```\npython benchmarks/formats.py --output benchmarks/formats.md\n```",
        "Signal over error in dB, and the squared error against the format's own min-max:",
        table(("method", "Gaussian", "vs min-max", "Student-t4", "vs min-max"), by_method()),
        "Signal over error in dB by the spread of Gaussian weights. With one level of scales NVFP4 loses what falls "
        "below e4m3's normal range:",
        table(("standard deviation", "NVFP4", "NVFP4, tensor scale 1", "INT8 per row"), by_spread()),
        "What a step adds to the squared error of the step before it. BGR's refinement, to which DVD-Quant's paper "
        "credits 86 % less error, has little to do on random weights: the searched bounds bring nearly all of BGR's "
        "gain. And an NVFP4 weight expanded to INT8 with one scale per row:",
        table(("weights", "BGR's refinement", "NVFP4 to INT8"), shares()),
        "Bytes of the transformers under every recipe, from shapes:",
        table(("recipe", *SIZES), by_model()),
    )
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="a Markdown file; default: the terminal")
    args = parser.parse_args()
    text = page()
    print(text)
    if args.output:
        args.output.write_text(text)


if __name__ == "__main__":
    main()
