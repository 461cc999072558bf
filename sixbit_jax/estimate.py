"""What a video will cost, from the sizes alone: floating-point operations, bytes, and seconds at a measured rate."""

import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np

from sixbit_jax.models.wan_config import TEXT_TOKENS, WanConfig
from sixbit_jax.recipes import DTYPES
from sixbit_jax.settings import Settings

# Share of a plain matrix product's rate that a whole forward reaches (H200, 1.3B and 14B at 480p: 0.66 and 0.75).
EFFICIENCY = 0.65


@dataclasses.dataclass(frozen=True)
class Estimate:
    tokens: int
    tflop_per_call: float
    attention_share: float
    model_calls: int
    weight_bytes: int
    activation_bytes: int


def estimate(config: WanConfig, settings: Settings, weight_bytes: int, dtype: str) -> Estimate:
    """One transformer at these settings.

    Activations: the stream, the widest hidden layer, q, k, v, and the prompt's keys and values.
    """
    tokens = int(np.prod(config.grid(settings.latent_shape)))
    linear, attention = forward_flops(config, tokens)
    width = 2 * config.dim + max(config.ffn_dim, 4 * config.dim)
    context = 2 * config.num_layers * TEXT_TOKENS * config.dim * settings.branches
    itemsize = jnp.dtype(DTYPES[dtype]).itemsize
    return Estimate(
        tokens=tokens,
        tflop_per_call=(linear + attention) / 1e12,
        attention_share=attention / (linear + attention),
        model_calls=settings.num_inference_steps * settings.branches,
        weight_bytes=weight_bytes,
        activation_bytes=itemsize * (tokens * width + context),
    )


def forward_flops(config: WanConfig, tokens: int) -> tuple[int, int]:
    """(linears, attention) of one forward, keys and values of the prompt excluded: they are computed once.

    >>> from sixbit_jax.models.wan_config import WAN_1_3B
    >>> linear, attention = forward_flops(WAN_1_3B, 32760)
    >>> round(attention / (linear + attention), 2)
    0.71
    """
    d = config.dim
    linear = 2 * tokens * (4 * d * d + 2 * d * d + 2 * d * config.ffn_dim)
    attention = 4 * tokens * (tokens + TEXT_TOKENS) * d
    return linear * config.num_layers, attention * config.num_layers


def measured_rate(dtype: str, seconds: float = 0.3) -> float:
    """FLOP per second of one large matrix product here, now."""
    size = 8192 if jax.default_backend() == "gpu" else 1024
    x = jax.random.normal(jax.random.key(0), (size, size), DTYPES[dtype])
    multiply = jax.jit(jnp.matmul)
    jax.block_until_ready(multiply(x, x))
    start, runs = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        jax.block_until_ready(multiply(x, x))
        runs += 1
    return 2 * size**3 * runs / (time.perf_counter() - start)
