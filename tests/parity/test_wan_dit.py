"""The DiT against diffusers' WanTransformer3DModel, CPU f32, random small models.

Error model: both sides compute in f32 with sums of up to 512 terms, so each linear is off by about sqrt(512) * 2**-24 =
1.4e-6 of its scale, and a model of a few blocks, some twenty such steps deep, by a few 1e-5. A wrong transpose, epsilon
or order is off by 1e-2 or more.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import WanTransformer3DModel
from memory_source import memory_reader

from converters import wan_dit
from converters.rules import convert
from sixbit_jax.models import wan
from sixbit_jax.models.wan_config import WanConfig
from sixbit_jax.models.wan_modules import abstract_params

pytestmark = pytest.mark.parity

BOUND = 1e-4


def build(seed: int = 0, **changes) -> tuple[torch.nn.Module, WanConfig, dict]:
    """A diffusers model with every parameter random (its own are trivial in biases and norms), and ours from it."""
    sizes = {"num_layers": 2, "num_attention_heads": 2, "ffn_dim": 384, "text_dim": 48, "freq_dim": 32} | changes
    torch.manual_seed(seed)
    model = WanTransformer3DModel(attention_head_dim=128, **sizes).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        noise = torch.randn_like(parameter)
        if parameter.ndim == 1:
            parameter.copy_(0.3 * noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
        elif "scale_shift" in name or "pos_embed" in name:
            parameter.copy_(0.5 * noise)
    config = WanConfig.from_dict(dict(model.config))
    source = memory_reader({key: value.numpy() for key, value in model.state_dict().items()})
    arrays = convert(source, wan_dit.rules(config, "diffusers"), abstract_params(config, jnp.float32))
    return model, config, jax.tree.map(jnp.asarray, arrays)


def error(ours, reference: torch.Tensor) -> float:
    reference = reference.numpy()
    assert ours.shape == reference.shape
    return float(np.abs(np.asarray(ours) - reference).max() / np.abs(reference).max())


def run(
    model, config, params, frames: int, height: int, width: int, batch: int = 1, image_tokens: int = 0, **options
) -> float:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(batch, config.in_channels, frames, height, width, generator=generator)
    text = torch.randn(batch, 512, config.text_dim, generator=generator)
    timestep = torch.linspace(987, 321, batch)
    image = torch.randn(batch, image_tokens, config.image_dim, generator=generator) if image_tokens else None
    expected = model(latents, timestep, text, image, return_dict=False)[0]

    def ours(latents, timestep, text, image):
        context = wan.embed_context(params, config, text, image)
        return wan.forward(params, config, latents, timestep, context, **options)[0]

    channels_last = jnp.asarray(latents.permute(0, 2, 3, 4, 1).numpy())
    image = None if image is None else jnp.asarray(image.numpy())
    velocity = jax.jit(ours)(channels_last, jnp.asarray(timestep.numpy()), jnp.asarray(text.numpy()), image)
    return error(jnp.moveaxis(velocity, -1, 1), expected)


@pytest.mark.parametrize(
    ("heads", "layers", "frames", "height", "width"),
    [(1, 1, 1, 4, 4), (2, 2, 3, 6, 4), (3, 4, 5, 4, 10), (1, 3, 7, 2, 2)],
)
def test_whole_model(heads, layers, frames, height, width):
    model, config, params = build(num_attention_heads=heads, num_layers=layers)
    assert run(model, config, params, frames, height, width) <= BOUND


def test_batch_and_padding_of_tokens():
    model, config, params = build()
    assert run(model, config, params, 3, 6, 4, batch=2, token_multiple=256) <= BOUND


def test_image_branch():
    model, config, params = build(in_channels=36, out_channels=16, image_dim=40, added_kv_proj_dim=256)
    assert run(model, config, params, 3, 4, 6, image_tokens=9) <= BOUND


def test_channels_without_image_tokens():
    """Wan2.2's image-to-video experts: 36 input channels, no CLIP branch."""
    model, config, params = build(in_channels=36, out_channels=16)
    assert run(model, config, params, 1, 4, 6) <= BOUND


@pytest.mark.parametrize("layer", [0, 1])
def test_each_block(layer):
    model, config, params = build()
    generator = torch.Generator().manual_seed(2)
    x, text = torch.randn(1, 24, config.dim, generator=generator), torch.randn(1, 512, config.dim, generator=generator)
    modulation = torch.randn(1, 6, config.dim, generator=generator)
    rope = model.rope(torch.zeros(1, 16, 3, 4, 8))
    expected = model.blocks[layer](x, text, modulation, rope)

    p = jax.tree.map(lambda leaf: leaf[layer], params["blocks"])
    grid = config.grid((3, 4, 8))
    table = tuple(jnp.asarray(t) for t in wan.rope_table(grid, config.head_dim))
    kv = wan._keys_values(p["cross_attention"]["kv"], p["cross_attention"]["norm_k"], config, jnp.asarray(text.numpy()))
    ours = wan.block(
        p, config, jnp.asarray(x.numpy()), jnp.asarray(modulation.numpy()), table, wan.Context(*kv), 24,
        lambda group, x, p, before=None, after=None: wan.linear(x, p["weight"], p["bias"], before=before, after=after),
        {"video": wan.attention, "text": wan.attention},
    )  # fmt: skip
    assert error(ours, expected) <= BOUND


def test_rope_table_is_the_references_bit_for_bit():
    model, _, _ = build()
    cos, sin = (table[0, :, 0].numpy() for table in model.rope(torch.zeros(1, 16, 5, 6, 10)))
    ours_cos, ours_sin = wan.rope_table((5, 3, 5), 128)
    np.testing.assert_allclose(ours_cos, cos, atol=1.2e-7, rtol=0)
    np.testing.assert_allclose(np.abs(ours_sin), np.abs(sin), atol=1.2e-7, rtol=0)


@pytest.mark.parametrize(
    "changes", [{}, {"in_channels": 36, "image_dim": 40, "added_kv_proj_dim": 256, "pos_embed_seq_len": 18}]
)
def test_configuration_from_shapes(changes):
    model, config, _ = build(**changes)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert wan_dit.infer_config(shapes, "diffusers") == config
