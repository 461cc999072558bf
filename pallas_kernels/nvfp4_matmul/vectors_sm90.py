"""Values of output channels, straight from device memory to the registers of the threads that hold their rows."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental.mosaic.gpu import fragmented_array as fa
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import ptx

ROWS = 64
BY_ROW = plgpu.Layout.WGMMA.reduce(1)


def by_row(values: Any, first_row: Array) -> Array:
    """64 of values f32 (n,) from `first_row` on; of values f32 (1,) the only one, 64 times."""
    one = values.shape == (1,)

    @plgpu.inline_mgpu(
        arg_types=(ptx.REF, ptx.SCALAR), return_type=plgpu.ShapeDtypeStruct((ROWS,), jnp.float32, layout=BY_ROW)
    )
    def run(_, values, first_row):
        row = ptx.add(ptx.unpack(first_row)[0], ptx.thread_row(), "r")
        places = [ptx.constant(0, "r") if one else ptx.add(row, ptx.constant(r, "r"), "r") for r in (0, 8)]
        loaded = ptx.pack([ptx.load_global(values, place) for place in places], "f").registers
        layout = fa.WGMMA_LAYOUT.reduce((1,))
        shape = layout.registers_shape((ROWS,))
        return fa.FragmentedArray(_registers=np.asarray(loaded).reshape(shape), _layout=layout, _is_signed=None)

    return run(values, first_row)
