"""A transformers UMT5 with weights that can tell a wrong model from a right one, and the same weights in our layout."""

from typing import Any

import jax
import jax.numpy as jnp
import torch
from memory_source import memory_reader
from transformers import UMT5EncoderModel

from converters import rules
from converters import umt5 as tables
from sixbit_jax.models import umt5
from sixbit_jax.models.umt5 import UMT5Config
from sixbit_jax.shapes import Params


def randomize(model: UMT5EncoderModel, seed: int = 0) -> UMT5EncoderModel:
    """Every parameter random: norms around 1, linears so that scores spread over a few units but no softmax is hard."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1:
            value = 1 + 0.3 * noise
        elif "shared" in name or "bias" in name:
            value = noise
        else:
            value = noise * parameter.shape[1] ** -0.5
        parameter.data.copy_(value)
    return model


def convert(model: UMT5EncoderModel, dtype: Any = jnp.float32) -> tuple[UMT5Config, Params]:
    """The model's configuration and parameters, through the converter's tables."""
    config = UMT5Config.from_dict(model.config.to_dict())
    return config, convert_tensors(config, model.state_dict(), "diffusers", dtype)


def convert_tensors(config: UMT5Config, tensors: dict[str, torch.Tensor], naming: str, dtype: Any) -> Params:
    """A state dict in either naming as our parameters."""
    table, ignored = tables.rules(config, naming), tables.IGNORED[naming]
    source = memory_reader({key: tensor.numpy() for key, tensor in tensors.items()})
    arrays = rules.convert(source, table, umt5.abstract_params(config, dtype), ignored=ignored)
    return jax.tree.map(jnp.asarray, arrays)
