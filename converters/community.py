"""What community files add to a checkpoint: key prefixes and ComfyUI's FP8 scales. LoRA files are refused."""

import dataclasses
import math
import re
from collections.abc import Mapping

import numpy as np

from converters.read import Reader, Tensor
from sixbit_jax.errors import UserError

# Longest first: the second is the end of the first.
_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "model.")
_LORA = re.compile(r"(lora_(up|down|A|B|unet)|\.(diff|diff_b|alpha)$)")
_SCALE = "scale_weight"
# ComfyUI's mark of a scaled file and its scales of activations; neither says anything about the weights.
_MARKS = ("scaled_fp8", "scale_input")


def normalize(reader: Reader) -> Reader:
    """The same tensors under plain keys and with their scales applied."""
    tensors = {key: tensor for key, tensor in reader.tensors.items() if key.split(".")[-1] not in _MARKS}
    _refuse_lora(reader, tensors)
    return dataclasses.replace(reader, tensors=_apply_scales(_strip_prefix(tensors)))


def _refuse_lora(reader: Reader, tensors: Mapping[str, Tensor]) -> None:
    for key in tensors:
        if _LORA.search(key):
            raise UserError(f'{reader.files[0]}: a LoRA ("{key}"), not a model; give the base model as --input')


def _strip_prefix(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A prefix goes when every key carries it; on part of the keys only, it tells two models in one file apart."""
    for prefix in _PREFIXES:
        if tensors and all(key.startswith(prefix) for key in tensors):
            return {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    return dict(tensors)


def _apply_scales(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`x.weight` in FP8 with its `x.scale_weight` becomes one f32 tensor, their product."""
    scaled = dict(tensors)
    for key in tensors:
        weight = key.removesuffix(_SCALE) + "weight"
        if key.split(".")[-1] == _SCALE and weight in tensors:
            scaled[weight] = _product(tensors[weight], tensors[key], key)
            del scaled[key]
    return scaled


def _product(weight: Tensor, scale: Tensor, key: str) -> Tensor:
    if math.prod(scale.shape) != 1:
        raise UserError(f"{key} has shape {scale.shape}; only one scale per tensor is supported")

    def load() -> np.ndarray:
        return weight.load().astype(np.float32) * scale.load().astype(np.float32).reshape(())

    return Tensor(weight.shape, np.dtype(np.float32), load)
