"""How transformer and text encoder are trained: rectified flow on latents, with captions as the sampler gives them.

x = (1 - sigma) data + sigma noise,  the model says  noise - data
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from sixbit_jax.attention.before import NOTHING, Before, prepared
from sixbit_jax.models import umt5, wan, wan_modules
from sixbit_jax.models.wan_config import TEXT_TOKENS, TRAIN_TIMESTEPS
from sixbit_jax.shapes import Params
from sixbit_jax.text import zero_padding
from sixbit_jax.tiny.autoencoding import half_precision
from sixbit_jax.tiny.lexicon import END_ID, PAD_ID
from sixbit_jax.tiny.sizes import Sizes

SHIFT = 1.5  # of the noise levels, as in sampling: 320 tokens need fewer high ones than 32,760
_UNIFORM_SHARE = 0.25  # of the noise levels
_EMPTY_SHARE = 0.1  # of the captions, so that guidance has something to steer away from


def init_params(sizes: Sizes, key: Key[Array, ""]) -> Params:
    """Random parameters whose transformer begins as a function of its latents alone that says zero."""
    text_key, transformer_key = jax.random.split(key)
    text = umt5.init_params(sizes.text_encoder, text_key)
    transformer = wan_modules.init_params(sizes.transformer, transformer_key)
    for name in ("head", "time_projection"):
        transformer[name]["weight"] = jnp.zeros_like(transformer[name]["weight"])
    return {"text_encoder": _tame_scores(sizes, text), "transformer": transformer}


def half_params(params: Params, sizes: Sizes) -> Params:
    """Both models as they compute: bf16 between their f32 islands."""
    abstract = {
        "text_encoder": umt5.abstract_params(sizes.text_encoder, jnp.bfloat16),
        "transformer": wan_modules.abstract_params(sizes.transformer, jnp.bfloat16),
    }
    return half_precision(params, abstract)


def loss(
    params: Params,
    sizes: Sizes,
    latents: Float[Array, "b t h w c"],
    ids: Int[Array, "b p"],
    mask: Int[Array, "b p"],
    key: Key[Array, ""],
    attention: str | None,
    *,
    recompute: bool = False,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The mean squared error of the velocity, with figures for the log. `recompute`: see `keep_products`."""
    noise_key, sigma_key, empty_key = jax.random.split(key, 3)
    batch = latents.shape[0]
    sigma = sample_sigma(sigma_key, batch)
    mixed = sigma[:, None, None, None, None]
    noise = jax.random.normal(noise_key, latents.shape)
    empty = jax.random.bernoulli(empty_key, _EMPTY_SHARE, (batch,))
    ids, mask = drop_captions(ids, mask, empty)
    computing = half_params(params, sizes)
    context = read_captions(computing, sizes, ids, mask)
    velocity, _, _ = wan.forward(
        computing["transformer"],
        sizes.transformer,
        (1 - mixed) * latents + mixed * noise,
        TRAIN_TIMESTEPS * sigma,
        context,
        attention_implementation=attention,
        attend_text=attend_captions,
        run_block=keep_products if recompute else wan.run_dense,
        # A scan would write what the backward pass needs into stacks, and copy it: 93 ms a step instead of 40.
        unroll=sizes.transformer.num_layers,
    )
    errors = jnp.mean((velocity - (noise - latents)) ** 2, axis=(1, 2, 3, 4))
    high = (sigma > 0.75).astype(jnp.float32)
    return errors.mean(), {
        "loss": errors.mean(),
        "high_noise_loss": (high * errors).sum() / jnp.maximum(high.sum(), 1.0),
    }


def keep_products(
    compute: Callable[[Array], tuple[Array, dict[str, Any]]], x: Array, memory: Any, decision: Any
) -> tuple[Array, Any, dict[str, Any]]:
    """Runs a block of which the backward pass finds its matrix products alone, and computes the rest again.

    The rest is f32 between bf16 products: 3 GB are kept of a step of 128 videos instead of 21.
    """
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    y, notes = jax.checkpoint(compute, policy=policy)(x)
    return y, memory, notes


def sample_sigma(key: Key[Array, ""], count: int) -> Float[Array, " b"]:
    """Noise levels: shifted logit-normal, and some uniform, or the first and last steps would hardly be learned."""
    normal_key, uniform_key, which_key = jax.random.split(key, 3)
    sigma = jax.nn.sigmoid(jax.random.normal(normal_key, (count,)))
    shifted = SHIFT * sigma / (1 + (SHIFT - 1) * sigma)
    return jnp.where(
        jax.random.bernoulli(which_key, _UNIFORM_SHARE, (count,)), jax.random.uniform(uniform_key, (count,)), shifted
    )


def drop_captions(
    ids: Int[Array, "b p"], mask: Int[Array, "b p"], empty: Array
) -> tuple[Int[Array, "b p"], Int[Array, "b p"]]:
    """Where `empty`, the tokens of the empty prompt: its end and nothing else."""
    first, empty = (jnp.arange(ids.shape[1]) == 0)[None], empty[:, None]
    return jnp.where(empty, jnp.where(first, END_ID, PAD_ID), ids), jnp.where(empty, first.astype(jnp.int32), mask)


def read_captions(params: Params, sizes: Sizes, ids: Int[Array, "b p"], mask: Int[Array, "b p"]) -> wan.Context:
    """What the transformer reads of captions: the rows of their tokens, and one zero row for all those up to 512."""
    text = zero_padding(umt5.encode(params["text_encoder"], sizes.text_encoder, ids, mask), mask)
    return wan.embed_context(params["transformer"], sizes.transformer, jnp.pad(text, ((0, 0), (0, 1), (0, 0))))


def as_sampled(context: wan.Context) -> wan.Context:
    """The context with all of its zero rows, as the sampler has it."""

    def repeat_last(x: Float[Array, "l b p a c"]) -> Float[Array, "l b rows a c"]:
        l, b, p, a, c = x.shape
        return jnp.concatenate([x, jnp.broadcast_to(x[:, :, -1:], (l, b, TEXT_TOKENS - p, a, c))], axis=2)

    return jax.tree.map(repeat_last, context)


def attend_captions(
    q: Float[Array, "b q a c"], k: Float[Array, "b p a c"], v: Float[Array, "b p a c"], before: Before = NOTHING
) -> Float[Array, "b q a c"]:
    """Attention to a context of `read_captions` as to one of `as_sampled`: the last row counts for all zero rows.

    Nine of ten rows are zero rows. Attending to each of them was a seventh of a training step.
    """
    q, k = prepared(q, k, before)
    rows = k.shape[1]
    copies = jnp.where(jnp.arange(rows) < rows - 1, 1.0, TEXT_TOKENS - rows + 1)
    scores = jnp.einsum("bqac,bpac->baqp", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    weights = jax.nn.softmax(scores + jnp.log(copies)[None, None, None], axis=-1).astype(v.dtype)
    return jnp.einsum("baqp,bpac->bqac", weights, v, preferred_element_type=jnp.float32).astype(q.dtype)


def _tame_scores(sizes: Sizes, text: Params) -> Params:
    """UMT5 does not divide scores by the root of the head's width; its queries have to start that much smaller."""
    config = sizes.text_encoder
    attention: dict[str, Any] = text["blocks"]["attention"]
    is_query = jnp.arange(3 * config.inner_dim) < config.inner_dim
    scale = jnp.where(is_query, config.head_dim**-0.5, 1.0)
    attention["qkv"]["weight"] = attention["qkv"]["weight"] * scale[None, :, None]
    return text
