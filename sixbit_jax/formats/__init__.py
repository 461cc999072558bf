"""What a number is: NVFP4, INT8 and INT4 as frozen pytrees of arrays, and the functions that make and read them.

    quantize_nvfp4(x) -> NVFP4Tensor      dequantize(t) -> x'
    quantize_int8(x)  -> Int8Tensor       to_int8(t)    -> Int8Tensor

Everything is pure, takes any leading axes and runs under `jit`, `vmap`, `grad`, `eval_shape` and `shard_map`. The bit
layout is in docs/formats.md. Imports jax only.
"""

from sixbit_jax.formats.checks import check_finite
from sixbit_jax.formats.dequantize import QuantizedTensor, dequantize, expand_nvfp4, to_int8, value_scales
from sixbit_jax.formats.e2m1 import decode_e2m1, encode_e2m1
from sixbit_jax.formats.e4m3 import decode_e4m3
from sixbit_jax.formats.gradients import straight_through
from sixbit_jax.formats.hadamard import hadamard
from sixbit_jax.formats.int4 import Int4Tensor, pack_int4, unpack_int4
from sixbit_jax.formats.int8 import Int8Tensor, encode_int8, per_value, quantize_int8
from sixbit_jax.formats.nvfp4 import (
    NVFP4Tensor,
    encode_nvfp4,
    nvfp4_block_scale,
    nvfp4_tensor_scale,
    quantize_nvfp4,
)
from sixbit_jax.formats.packing import pack_nibbles, unpack_nibbles
from sixbit_jax.formats.parts import check_parts
from sixbit_jax.formats.storage import stored_bytes
from sixbit_jax.formats.weight import QuantizedWeight, effective_weight, main_weight

__all__ = [
    "Int4Tensor",
    "Int8Tensor",
    "NVFP4Tensor",
    "QuantizedTensor",
    "QuantizedWeight",
    "check_finite",
    "check_parts",
    "decode_e2m1",
    "decode_e4m3",
    "dequantize",
    "effective_weight",
    "encode_e2m1",
    "encode_int8",
    "encode_nvfp4",
    "expand_nvfp4",
    "hadamard",
    "main_weight",
    "nvfp4_block_scale",
    "nvfp4_tensor_scale",
    "pack_int4",
    "pack_nibbles",
    "per_value",
    "quantize_int8",
    "quantize_nvfp4",
    "stored_bytes",
    "straight_through",
    "to_int8",
    "unpack_int4",
    "unpack_nibbles",
    "value_scales",
]
