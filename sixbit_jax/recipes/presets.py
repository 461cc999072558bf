"""The recipes that have a name.

The number behind w is the width of the stored weights, the one behind a that of the activations. Four bits are NVFP4,
except in DVD-Quant's recipes, which are about integers: BGR refines asymmetric INT4 weights, ARQ scales activations in
blocks; `int4-w4a4` is the min-max that its paper compares with. NVFP4 weights have searched block scales, which cost
nothing once they are stored; `minmax-w4a4` has the plain ones, bit for bit those of `quantize_nvfp4`.

All of them quantize every linear of every block and nothing else: embedders of patches, time and text, modulation,
norms and head stay in the recipe's dtype.

`6bit` is 6Bit-Diffusion whole: routes predicted from the step before, the Temporal Delta Cache, and Purified Delta
Refresh; the `6bit-…` recipes leave one or two of them out. `fast` is for GPUs without NVFP4 products: INT8 activations
everywhere, the cache, and INT8 attention where it runs. Their thresholds come from calibration (`sixbit_jax.presets`).

Cross-attention's keys and values depend on the prompt alone and are computed once, so their activations stay 16 bits
under every recipe; their weights are stored as all others.
"""

from sixbit_jax.errors import UserError, nearest
from sixbit_jax.policies import (
    AbstractCachePolicy,
    AbstractPrecisionPolicy,
    FixedPrecision,
    NoCache,
    PredictedPrecision,
    TemporalDeltaCache,
)
from sixbit_jax.quantizers import ARQ, AbstractQuantizer, MinMax, QuaRot, ScaleSearch, SmoothQuant, SVDQuant, ViDiTQ
from sixbit_jax.recipes.recipe import Recipe, WeightRule
from sixbit_jax.routes import Route

BLOCKS = "blocks/*"
NVFP4 = ScaleSearch()
# Whole steps: block by block, as the paper has it, loses 15 dB more at the same work (docs/6bit.md).
CACHE = TemporalDeltaCache(cache_format="int8", together="step")
# Implementations that round are only ever chosen by name; where this one cannot run, an exact one does.
LOW_ATTENTION = ("int8", "cudnn", "xla")


def _quantized(name: str, method: AbstractQuantizer, act: str | None) -> Recipe:
    return Recipe(name, weights=(WeightRule(BLOCKS, method),), precision=FixedPrecision(Route(act)))


def _adaptive(
    name: str,
    precision: AbstractPrecisionPolicy,
    cache: AbstractCachePolicy = CACHE,
    attention: tuple[str, ...] | None = None,
) -> Recipe:
    return Recipe(name, weights=(WeightRule(BLOCKS, NVFP4),), precision=precision, cache=cache, attention=attention)


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
        _quantized("svdquant-w4a8", SmoothQuant(weights=SVDQuant(weights=NVFP4)), "int8"),
        _quantized("int4-w4a4", MinMax("int4"), "int4"),
        _quantized("dvd-w4a4", ARQ(), "int4"),
        _quantized("dvd-w4a8", ARQ(), "int8"),
        _adaptive("6bit", PredictedPrecision()),
        _adaptive("6bit-predictor-only", PredictedPrecision(purify="never"), NoCache(measure=True)),
        _adaptive("6bit-tdc-only", FixedPrecision()),
        _adaptive("6bit-no-pdr", PredictedPrecision(purify="never")),
        _adaptive("fast", FixedPrecision(Route("int8")), attention=LOW_ATTENTION),
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
