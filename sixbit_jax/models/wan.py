"""The Wan DiT as plain functions over a parameter tree.

    text, image --embed_context--> Context      once per prompt: keys and values of every layer
    latents --patches--> x --scan over blocks--> x --head--> velocity

`forward` scans over stacked layers. What a block does at a step is not decided here: `routes` and `route_index` say how
its linears multiply, `run_block` or `run_stack` says whether it runs at all (see `policies/`). The f32 islands of the
reference stay f32: time embedding, modulation, norm statistics, gated residual adds, rotation. A norm in front of a
linear and the residual add behind it are that linear's, which may do them in the passes that round its input and its
product.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from sixbit_jax.attention import Before, attention, side_by_side
from sixbit_jax.linear import Added, Gelu, LayerNorm, linear, routed_linear
from sixbit_jax.linear.before import applied, gelu_tanh
from sixbit_jax.linear.magnitude import ratios
from sixbit_jax.models.norms import layer_norm, rms_norm
from sixbit_jax.models.rope import rope_table
from sixbit_jax.models.wan_config import GROUPS, WanConfig
from sixbit_jax.routes import Route
from sixbit_jax.shapes import Compute, Params, RunBlock, RunStack

# (q, k, v, before=…) -> what the queries gather
Attend: TypeAlias = Callable[..., Array]
# (group, x, the linear's parameters) -> what to note of a linear group's input
Observe: TypeAlias = Callable[[str, Array, Params], Any]
Project: TypeAlias = Callable[..., Array]  # (group, x, its parameters, before, after)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """What every block reads of the prompt: cross-attention keys and values, stacked over layers.

    The image pair is None without image tokens.
    """

    k: Float[Array, "*l b p a c"]
    v: Float[Array, "*l b p a c"]
    image_k: Float[Array, "*l b g a c"] | None = None
    image_v: Float[Array, "*l b g a c"] | None = None


def run_dense(compute: Compute, x: Array, memory: Any, decision: Any) -> tuple[Array, Any, dict[str, Any]]:
    """The block runner that always computes and remembers nothing."""
    y, notes = compute(x)
    return y, memory, notes


def embed_context(
    params: Params,
    config: WanConfig,
    text: Float[Array, "b p text"],
    image: Float[Array, "b g image"] | None = None,
) -> Context:
    """Text (and CLIP image) tokens to the keys and values of every layer."""
    text = embed_text(params, text)
    image = None if image is None else _embed_image(params["image_embedding"], config, image.astype(text.dtype))

    def layer(_: None, p: Params) -> tuple[None, Context]:
        k, v = _keys_values(p["kv"], p["norm_k"], config, text)
        if image is None:
            return None, Context(k, v)
        return None, Context(k, v, *_keys_values(p["image_kv"], p["norm_image_k"], config, image))

    return lax.scan(layer, None, params["blocks"]["cross_attention"])[1]


def embed_text(params: Params, text: Float[Array, "b p text"]) -> Float[Array, "b p d"]:
    """The prompt as cross-attention's keys and values of every layer read it."""
    dtype = params["text_embedding"]["linear_in"]["weight"].dtype
    return _mlp(params["text_embedding"], text.astype(dtype), gelu_tanh)


def forward(
    params: Params,
    config: WanConfig,
    latents: Float[Array, "b t h w c"],
    timestep: Float[Array, " b"],
    context: Context,
    *,
    routes: Sequence[Route] = (Route(),),
    route_index: Int[Array, "l g"] | None = None,
    run_block: RunBlock = run_dense,
    run_stack: RunStack | None = None,
    memory: Any = (),
    decisions: Any = (),
    attention_implementation: str | Sequence[str] | None = None,
    attend_text: Attend | None = None,
    token_multiple: int = 1,
    unroll: int = 1,
    observe: Observe | None = None,
    outlier_ratios: bool = False,
) -> tuple[Float[Array, "b t h w out"], Any, Any]:
    """The velocity (f32), the cache memory and what the block runner observed, stacked over layers.

    `route_index[l, g]` picks among `routes` for group `GROUPS[g]` of layer l; `decisions` has leaves with a leading
    layer axis, and `run_block` wraps each block, or `run_stack` all of them. Tokens are padded once to
    `token_multiple`, so kernels see whole tiles, and cut off again at the end.

    `observe` is called on the input and the parameters of every group; what it returns is noted as `inputs`, by group.
    `outlier_ratios` notes there how loud the input's largest value is, which is cheaper. Both see padding tokens too.
    For training: `unroll` layers become one step of the scan, which pays for every stack a scan writes; `attend_text`
    attends to the prompt's rows in place of `attention`.
    """
    grid = config.grid(latents.shape[1:4])
    tokens = int(np.prod(grid))
    padding = -tokens % token_multiple
    x = _dense(_patches(latents, config).astype(params["patch_embedding"]["weight"].dtype), params["patch_embedding"])
    x = jnp.pad(x, ((0, 0), (0, padding), (0, 0)))
    cos, sin = (jnp.asarray(np.pad(table, ((0, padding), (0, 0)))) for table in rope_table(grid, config.head_dim))
    time, per_block = embed_time(params, config, timestep)
    if route_index is None:
        route_index = jnp.zeros((config.num_layers, len(GROUPS)), jnp.int32)

    def layer(run_block: RunBlock, carry: tuple[Array, Any], xs: Any) -> tuple[tuple[Array, Any], Any]:
        x, memory = carry
        p, layer_context, index, decision = xs

        attend = functools.partial(attention, implementation=attention_implementation)
        attend_to: dict[str, Attend] = {"video": attend, "text": attend_text or attend}

        def compute(x: Array) -> tuple[Array, dict[str, Any]]:
            inputs: dict[str, Any] = {}

            def project(
                group: str,
                x: Array,
                p: Params,
                before: Gelu | LayerNorm | None = None,
                after: Added | None = None,
            ) -> Array:
                run = functools.partial(routed_linear, before=before, after=after, measured=outlier_ratios)
                y = run(x, p["weight"], p["bias"], routes, index[GROUPS.index(group)])
                if outlier_ratios:
                    y, seen = y
                    inputs[group] = seen, x.size
                elif observe is not None:
                    inputs[group] = observe(group, applied(before, x), p)
                return y

            y = block(p, config, x, per_block, (cos, sin), layer_context, tokens, project, attend_to)
            inputs = ratios(inputs) if outlier_ratios else inputs
            return y, {"inputs": inputs} if inputs else {}

        x, memory, observed = run_block(compute, x, memory, decision)
        return (x, memory), observed

    def blocks(run_block: RunBlock, x: Array, memory: Any) -> tuple[Array, Any, Any]:
        xs = (params["blocks"], context, route_index, decisions)
        carry, observed = lax.scan(functools.partial(layer, run_block), (x, memory), xs, unroll=unroll)
        return *carry, observed

    if run_stack is None:
        x, memory, observed = blocks(run_block, x, memory)
    else:
        x, memory, observed = run_stack(blocks, x, memory, decisions)
    return _head(params, config, x[:, :tokens], time, grid), memory, observed


def block(
    p: Params,
    config: WanConfig,
    x: Float[Array, "b s d"],
    modulation: Float[Array, "b 6 d"],
    rope: tuple[Float[Array, "s c"], Float[Array, "s c"]],
    context: Context,
    tokens: int,
    project: Project,
    attend_to: Mapping[str, Attend],
) -> Float[Array, "b s d"]:
    """One layer: self-attention, cross-attention, feed-forward. `tokens` of the rows are real, the rest padding."""
    shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = jnp.moveaxis(p["modulation"][None] + modulation, 1, 0)[
        :, :, None
    ]

    norm = LayerNorm(1 + scale, shift, config.eps)
    x = self_attention(p["self_attention"], config, x, norm, gate, rope, tokens, project, attend_to["video"])

    norm = LayerNorm(p["cross_norm"]["scale"], p["cross_norm"]["bias"], config.eps)
    x = cross_attention(p["cross_attention"], config, x, norm, context, project, attend_to["text"])

    hidden = project("ffn_in", x, p["ffn_in"], LayerNorm(1 + ffn_scale, ffn_shift, config.eps))
    return project("ffn_out", hidden, p["ffn_out"], Gelu(), Added(x, ffn_gate))


def self_attention(
    p: Params,
    config: WanConfig,
    x: Float[Array, "b s d"],
    norm: LayerNorm,
    gate: Float[Array, "b 1 d"],
    rope: tuple[Float[Array, "s c"], Float[Array, "s c"]],
    tokens: int,
    project: Project,
    attend: Attend,
) -> Float[Array, "b s d"]:
    """x and, through the gate, what it gathers from itself."""
    q, k, v = side_by_side(project("self_qkv", x, p["qkv"], norm), 3, config.num_heads)
    before = Before(p["norm_q"]["scale"], p["norm_k"]["scale"], rope, config.eps)
    out = attend(q, k, v, valid_keys=tokens, before=before)
    return project("self_out", out.reshape(x.shape), p["out"], after=Added(x, gate))


def cross_attention(
    p: Params,
    config: WanConfig,
    x: Float[Array, "b s d"],
    norm: LayerNorm,
    context: Context,
    project: Project,
    attend: Attend,
) -> Float[Array, "b s d"]:
    """x and what it gathers from the prompt. Every prompt row is seen, the zero rows of a short one too: the reference
    has no mask here.
    """
    q = _heads(project("cross_q", x, p["q"], norm), config)
    attend = functools.partial(attend, before=Before(p["norm_q"]["scale"], eps=config.eps))
    out = attend(q, context.k, context.v)
    if context.image_k is not None:
        out = out + attend(q, context.image_k, context.image_v)
    return project("cross_out", out.reshape(x.shape), p["out"], after=Added(x))


def timestep_features(timestep: Float[Array, " b"], width: int) -> Float[Array, "b width"]:
    """Sinusoid of the timestep, cosines first."""
    half = width // 2
    frequencies = (10000.0 ** -(np.arange(half, dtype=np.float64) / half)).astype(np.float32)
    angles = timestep.astype(jnp.float32)[:, None] * frequencies[None]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def embed_time(
    params: Params, config: WanConfig, timestep: Float[Array, " b"]
) -> tuple[Float[Array, "b d"], Float[Array, "b 6 d"]]:
    """The time vector, for the head, and its projection to the six modulation vectors of a block; all f32."""
    time = _mlp(params["time_embedding"], timestep_features(timestep, config.freq_dim), jax.nn.silu)
    projection = {name: p.astype(jnp.float32) for name, p in params["time_projection"].items()}
    return time, _dense(jax.nn.silu(time), projection).reshape(-1, 6, config.dim)


def _embed_image(p: Params, config: WanConfig, image: Float[Array, "b g image"]) -> Float[Array, "b g d"]:
    if config.image_positions is not None:
        # Two images of one video arrive as two rows; their tokens follow each other.
        image = image.reshape(-1, config.image_positions, image.shape[-1])
        image = (image.astype(jnp.float32) + p["positions"][None]).astype(image.dtype)
    # The norms of this embedding alone use PyTorch's default epsilon.
    y = layer_norm(image, 1e-5, **p["norm_in"]).astype(image.dtype)
    y = _mlp(p["mlp"], y, functools.partial(jax.nn.gelu, approximate=False))
    return layer_norm(y, 1e-5, **p["norm_out"]).astype(y.dtype)


def _keys_values(
    p_kv: Params, p_norm: Params, config: WanConfig, tokens: Float[Array, "b p d"]
) -> tuple[Float[Array, "b p a c"], Float[Array, "b p a c"]]:
    k, v = jnp.split(_dense(tokens, p_kv), 2, axis=-1)
    return _heads(rms_norm(k, config.eps, **p_norm).astype(v.dtype), config), _heads(v, config)


def _head(
    params: Params, config: WanConfig, x: Float[Array, "b s d"], time: Float[Array, "b d"], grid: tuple[int, int, int]
) -> Float[Array, "b t h w out"]:
    shift, scale = jnp.moveaxis(params["head_modulation"][None] + time[:, None], 1, 0)[:, :, None]
    y = _dense(layer_norm(x, config.eps, 1 + scale, shift).astype(x.dtype), params["head"])
    return _unpatches(y.astype(jnp.float32), config, grid)


def _dense(x: Float[Array, "... k"], p: Params) -> Float[Array, "... n"]:
    return linear(x, p["weight"], p["bias"])


def _mlp(p: Params, x: Float[Array, "... k"], nonlinearity: Callable[[Array], Array]) -> Float[Array, "... n"]:
    hidden = _dense(x, p["linear_in"])
    return _dense(nonlinearity(hidden.astype(jnp.float32)).astype(x.dtype), p["linear_out"])


def _heads(x: Float[Array, "b s d"], config: WanConfig) -> Float[Array, "b s a c"]:
    return x.reshape(*x.shape[:-1], config.num_heads, config.head_dim)


def _patches(latents: Float[Array, "b t h w c"], config: WanConfig) -> Float[Array, "b s k"]:
    t, h, w = config.grid(latents.shape[1:4])
    pt, ph, pw = config.patch_size
    split = latents.reshape(-1, t, pt, h, ph, w, pw, latents.shape[-1])
    return split.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(latents.shape[0], t * h * w, -1)


def _unpatches(x: Float[Array, "b s n"], config: WanConfig, grid: tuple[int, int, int]) -> Float[Array, "b t h w out"]:
    (t, h, w), (pt, ph, pw) = grid, config.patch_size
    split = x.reshape(-1, t, h, w, pt, ph, pw, config.out_channels).transpose(0, 1, 4, 2, 5, 3, 6, 7)
    return split.reshape(-1, t * pt, h * ph, w * pw, config.out_channels)
