"""The recipes that have a name.

The number behind w is the width of the stored weights, the one behind a that of the activations. Four bits are NVFP4,
except in DVD-Quant's recipes, which are about integers: BGR refines asymmetric INT4 weights, ARQ scales activations in
blocks; `int4-w4a4` is the min-max that its paper compares with. NVFP4 weights have searched block scales, which cost
nothing once they are stored; `minmax-w4a4` has the plain ones, bit for bit those of `quantize_nvfp4`. All of them
quantize every linear of every block and nothing else: embedders of patches, time and text, modulation, norms and head
stay in the recipe's dtype.

Cross-attention's keys and values depend on the prompt alone and are computed once, so their activations stay 16 bits
under every recipe; their weights are stored as all others.
"""

from sixbit_jax.errors import UserError, nearest
from sixbit_jax.policies import FixedPrecision
from sixbit_jax.quantizers import ARQ, AbstractQuantizer, MinMax, QuaRot, ScaleSearch, SmoothQuant, SVDQuant, ViDiTQ
from sixbit_jax.recipes.recipe import Recipe, WeightRule
from sixbit_jax.routes import Route

BLOCKS = "blocks/*"
NVFP4 = ScaleSearch()


def _quantized(name: str, method: AbstractQuantizer, act: str | None) -> Recipe:
    return Recipe(name, weights=(WeightRule(BLOCKS, method),), precision=FixedPrecision(Route(act)))


_PRESETS = {
    recipe.name: recipe
    for recipe in (
        Recipe("bf16"),
        Recipe("f32", dtype="f32"),
        _quantized("w8a8", MinMax("int8"), "int8"),
        _quantized("w4a8", NVFP4, "int8"),
        _quantized("w4a4", NVFP4, "nvfp4"),
        _quantized("w4a16", NVFP4, None),
        _quantized("minmax-w4a4", MinMax("nvfp4"), "nvfp4"),
        _quantized("smoothquant-w4a4", SmoothQuant(weights=NVFP4), "nvfp4"),
        _quantized("quarot-w4a4", QuaRot(weights=NVFP4), "nvfp4"),
        _quantized("viditq-w4a8", ViDiTQ(weights=NVFP4), "int8"),
        _quantized("svdquant-w4a4", SmoothQuant(weights=SVDQuant(weights=NVFP4)), "nvfp4"),
        _quantized("int4-w4a4", MinMax("int4"), "int4"),
        _quantized("dvd-w4a4", ARQ(), "int4"),
        _quantized("dvd-w4a8", ARQ(), "int8"),
    )
}


def names() -> tuple[str, ...]:
    """The presets.

    >>> names()[:3]
    ('bf16', 'f32', 'w8a8')
    """
    return tuple(_PRESETS)


def get(name: str) -> Recipe:
    """A preset by name.

    >>> get("w4a8").precision.routes
    (Route(act='int8', implementation=None),)
    """
    if name not in _PRESETS:
        raise UserError(f'--recipe: unknown recipe "{name}"; {nearest(name, _PRESETS)}, or a .json file')
    return _PRESETS[name]
