"""NVFP4 weights to what a large matmul takes: INT8 with a scale per output channel, or bf16.

At video token counts a weight is read once per thousands of tokens, so it is expanded just before its product and
thrown away after.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax

from pallas_kernels import checks
from pallas_kernels.nvfp4_matmul import expand_sm90
from pallas_kernels.nvfp4_matmul.checks import check_weight
from pallas_kernels.nvfp4_matmul.codes import scaled_values
from pallas_kernels.nvfp4_matmul.config import CHUNK
from pallas_kernels.quantize_rows.spec import INT8_MAX

E2M1_MAX = 6.0


def expand_to_bf16(packed: Array, block_scale: Array) -> Array:
    """Code × block scale, exact in bf16 (n, k). The tensor scale is left for the product's result.

    >>> import jax.numpy as jnp
    >>> expand_to_bf16(jnp.full((1, 8), 0x21, jnp.uint8), jnp.full((1, 1), 2.0, jnp.float8_e4m3fn))[0, :2].tolist()
    [1.0, 2.0]
    """
    check_weight("expand_to_bf16", packed, block_scale)
    return scaled_values(packed, block_scale).astype(jnp.bfloat16)


def expand_to_int8(packed: Array, block_scale: Array, tensor_scale: Array) -> tuple[Array, Array]:
    """Codes s8 (n, k) and scales f32 (n,): rounded once more, to one scale per output channel.

    tensor_scale f32 () or (n,). The scale puts 6 × the row's largest block scale at 127: the row's largest magnitude,
    when that block has a code of 6, as the largest value of a block rounded to nearest always has.

    >>> import jax.numpy as jnp
    >>> codes, scale = expand_to_int8(
    ...     jnp.full((1, 8), 0x57, jnp.uint8), jnp.full((1, 1), 2.0, jnp.float8_e4m3fn), jnp.float32(1.0)
    ... )
    >>> codes[0, :2].tolist()
    [127, 64]
    """
    op = "expand_to_int8"
    check_weight(op, packed, block_scale)
    checks.check_array(op, "tensor_scale", tensor_scale, jnp.float32)
    checks.check_shape(op, "tensor_scale", tensor_scale, (), (packed.shape[0],))
    checks.check_finite(op, "tensor_scale", tensor_scale)
    return jax.custom_batching.sequential_vmap(_expand)(packed, block_scale, tensor_scale)


def _expand(packed: Array, block_scale: Array, tensor_scale: Array) -> tuple[Array, Array]:
    scale = jnp.max(block_scale.astype(jnp.float32), axis=1) * (E2M1_MAX / INT8_MAX)
    # TMA wants rows of scales in multiples of 16 bytes.
    kernel = expand_sm90.run if packed.shape[1] % (CHUNK // 2) == 0 else emulate
    codes = lax.platform_dependent(packed, block_scale, 1.0 / scale, cuda=kernel, default=emulate)
    return codes, scale * tensor_scale


def emulate(packed: Array, block_scale: Array, inverse: Array) -> Array:
    """The kernel's result in plain JAX: code × (block scale × inverse), rounded half to even."""
    n, blocks = block_scale.shape
    factor = block_scale.astype(jnp.float32) * inverse[:, None]
    values = scaled_values(packed, jnp.ones_like(block_scale)).reshape(n, blocks, -1)
    return jnp.round(values * factor[..., None]).astype(jnp.int8).reshape(n, -1)
