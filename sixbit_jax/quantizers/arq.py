"""ARQ, auto-scaling rotated quantization (DVD-Quant, arXiv 2505.18663): data-free, for 4-bit weights and activations.

The weight is rotated and refined by BGR. The activations are rotated while the model runs and take one scale per block
of k, measured online: the block-wise form that the paper deploys, since a scale per channel of k could not leave an
integer product.
"""

import dataclasses

from jaxtyping import Array, Float32

from sixbit_jax.formats import QuantizedWeight
from sixbit_jax.quantizers.base import AbstractQuantizer, Weight, per_matrix
from sixbit_jax.quantizers.bgr import BGR
from sixbit_jax.quantizers.quarot import QuaRot
from sixbit_jax.quantizers.statistics import Statistics


@dataclasses.dataclass(frozen=True)
class ARQ(AbstractQuantizer):
    """`block`: of the rotation. `act_group`: how many channels of an activation share a scale."""

    block: int = 128
    act_group: int = 128
    weights: AbstractQuantizer = BGR()

    def __call__(self, weight: Weight, statistics: Statistics | None = None) -> QuantizedWeight:
        return arq(weight, statistics, self)


@per_matrix(ARQ)
def arq(weight: Float32[Array, "n k"], statistics: Statistics | None, options: ARQ) -> QuantizedWeight:
    """Rotate and refine the weight; ask for block-wise scales of the activations.

    >>> import jax.numpy as jnp
    >>> w = arq(jnp.ones((2, 256)))
    >>> w.rotated, w.act_group, w.weight.dtype
    (128, 128, dtype(int4))
    """
    if weight.shape[1] % options.act_group:
        raise ValueError(f"arq: act_group={options.act_group} does not divide the {weight.shape[1]} inputs")
    return dataclasses.replace(QuaRot(options.block, options.weights)(weight, statistics), act_group=options.act_group)
