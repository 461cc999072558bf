"""What every kernel refuses before it is launched, and how arrays over several devices go through."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.layout import Format, Layout

from pallas_kernels import checks
from pallas_kernels.add_deltas import add_deltas
from pallas_kernels.attention_int8 import attention_int8
from pallas_kernels.int8_matmul import int8_matmul
from pallas_kernels.keep_delta import keep_delta
from pallas_kernels.nvfp4_matmul import expand_to_int8, nvfp4_matmul
from pallas_kernels.quantize_rows import quantize_rows

ROOT = Path(__file__).resolve().parents[2]
X, W = np.ones((16, 256), np.int8), np.ones((128, 256), np.int8)
PACKED, SCALE = np.zeros((128, 128), np.uint8), np.ones((128, 16), jnp.float8_e4m3fn)
DELTAS, SCALES, PLACES = np.ones((2, 16, 512), np.int8), np.ones((2, 16), np.float32), np.arange(2, dtype=np.int32)
Y, KEPT = np.ones((16, 512), jnp.bfloat16), np.ones((2, 16, 512), jnp.bfloat16)
HEADS = np.ones((1, 16, 2, 128), jnp.bfloat16)
# (the argument, its value, the call)
CALLS = [
    ("x", X, lambda x: int8_matmul(x, W, np.ones(16, np.float32), np.ones(128, np.float32))),
    ("x", np.ones((16, 256), jnp.bfloat16), quantize_rows),
    ("packed", PACKED, lambda packed: expand_to_int8(packed, SCALE, np.float32(1))),
    ("x", np.ones((16, 256), jnp.bfloat16), lambda x: nvfp4_matmul(x, PACKED, SCALE, np.float32(1))),
    ("codes", DELTAS, lambda codes: add_deltas(np.ones((16, 512), jnp.bfloat16), codes, SCALES, PLACES)),
    ("x", Y, lambda x: keep_delta(x, Y, KEPT, np.int32(1))),
    ("y", Y, lambda y: keep_delta(Y, y, KEPT, np.int32(1))),
    ("deltas", KEPT, lambda deltas: keep_delta(Y, Y, deltas, np.int32(1))),
    ("v", HEADS, lambda v: attention_int8(HEADS, HEADS, v)),
]


@pytest.mark.parametrize(("name", "value", "call"), CALLS)
def test_strided_arrays_are_refused(name, value, call):
    call(value)
    strided = np.repeat(value, 2, axis=1)[:, ::2]
    with pytest.raises(ValueError, match=f"{name} has strides"):
        call(strided)


@pytest.mark.parametrize(("name", "value", "call"), CALLS)
def test_axes_in_another_order_are_refused(name, value, call):
    x = jnp.asarray(value)
    order = tuple(reversed(range(x.ndim)))
    turned = jax.device_put(x, Format(Layout(major_to_minor=order), x.sharding))
    with pytest.raises(ValueError, match=f"{name} lies in memory"):
        call(turned)


def test_misaligned_memory_is_refused(monkeypatch):
    """A view that begins in the middle of somebody's memory; here every address counts as such."""
    monkeypatch.setattr(checks, "ALIGNMENT", 1 << 62)
    with pytest.raises(ValueError, match="x does not begin at a multiple"):
        quantize_rows(jnp.ones((16, 256), jnp.bfloat16))


PROGRAM = """
import functools, jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from pallas_kernels.int8_matmul import int8_matmul
from pallas_kernels.quantize_rows import quantize_rows

mesh = jax.make_mesh((2,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
x = jax.random.normal(jax.random.key(0), (16, 256), jnp.bfloat16)
w = jax.random.randint(jax.random.key(1), (128, 256), -127, 128, jnp.int8)
split = jax.device_put(x, NamedSharding(mesh, P("rows")))

def run(x, w):
    q = quantize_rows(x, rotate=True)
    return int8_matmul(q.codes, w, q.scale, jnp.ones(128))

try:
    run(split, w)
except ValueError as error:
    assert "x is split over 2 devices; call quantize_rows inside jax.shard_map" in str(error), error
else:
    raise SystemExit("was not refused")
sharded = jax.shard_map(run, mesh=mesh, in_specs=(P("rows"), P()), out_specs=P("rows"), check_vma=False)
np.testing.assert_array_equal(np.asarray(sharded(split, w), np.float32), np.asarray(run(x, w), np.float32))
"""


def test_rows_over_two_devices_go_through_shard_map():
    flags = {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, env=os.environ | flags, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
