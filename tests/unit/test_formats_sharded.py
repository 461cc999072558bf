"""Formats over several devices: `shard_map` and sharded `jit` give the bits of one device.

In a process of its own, since the number of CPU devices is fixed when jax starts.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import functools
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from sixbit_jax.formats import (
    NVFP4Tensor, dequantize, hadamard, nvfp4_tensor_scale, quantize_int8, quantize_nvfp4, straight_through, to_int8
)

assert jax.device_count() == 4
mesh = jax.make_mesh((4,), ("rows",), axis_types=(AxisType.Auto,))
x = jax.random.normal(jax.random.key(0), (8, 256)).at[2:4].set(0)  # the second shard has nothing but zeros
same = lambda a, b: jax.tree.map(np.testing.assert_array_equal, a, b)
shard = functools.partial(jax.shard_map, mesh=mesh)

# Rows on different devices: codes and block scales are local, the tensor scale is the maximum over the devices.
def quantize_rows(x):
    return quantize_nvfp4(x, tensor_scale=nvfp4_tensor_scale(x, "rows"))

layout = NVFP4Tensor(P("rows"), P("rows"), P())
t = jax.jit(shard(quantize_rows, in_specs=P("rows"), out_specs=layout))(x)
same(t, quantize_nvfp4(x))
same(jax.jit(shard(dequantize, in_specs=(layout,), out_specs=P("rows")))(t), dequantize(t))
same(shard(quantize_int8, in_specs=P("rows"), out_specs=P("rows"))(x), quantize_int8(x))
same(shard(to_int8, in_specs=(layout,), out_specs=P("rows"))(t), to_int8(t))

# Columns on different devices: blocks and Hadamard blocks do not cross them (256 / 4 = 64).
columns = NVFP4Tensor(P(None, "rows"), P(None, "rows"), P())
same(shard(quantize_rows, in_specs=P(None, "rows"), out_specs=columns)(x), quantize_nvfp4(x))
rotate = functools.partial(hadamard, block=64)
same(shard(rotate, in_specs=P(None, "rows"), out_specs=P(None, "rows"))(x), rotate(x))

# Gradients go straight through there too.
value = lambda x: straight_through(x, quantize_rows)
sharded = shard(value, in_specs=P("rows"), out_specs=P("rows"))
same(jax.grad(lambda x: (sharded(x) ** 2).sum())(x), 2 * straight_through(x, quantize_nvfp4))

# And XLA's own partitioning, from the sharding of the input.
spread = jax.device_put(x, NamedSharding(mesh, P("rows")))
same(jax.jit(quantize_nvfp4)(spread), quantize_nvfp4(x))
same(jax.jit(quantize_int8)(spread), quantize_int8(x))
"""


def test_the_bits_do_not_depend_on_the_devices():
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
    }
    subprocess.run([sys.executable, "-c", PROGRAM], check=True, cwd=ROOT, env=environment)
