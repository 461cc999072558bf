"""Activations to INT8 or NVFP4 with a row in the registers of a warp, on Hopper; of a warpgroup, if it is long.

The other structure, `kernel_sm90`, brings rows into shared memory and every value twice through the tensor cores, and
its warpgroups wait for each other three times a block: on an H200 43 to 55 % of copy bandwidth, rotated or not. Here a
warp has its row, or its part of one, in registers in sixteen bytes a lane. Warps wait for nobody, or for the other
three of their warpgroup once a row, so that some load while others calculate. What a rotated value costs is 8
instructions, a plain one 5; 17 fit in the time its bytes take.

Rows come and codes leave `straight`, which reached 72 to 77 % of copy bandwidth with 54 to 96 KB an SM under way, more
of them or fewer; or far ahead and in whole lines, through a `ring` in shared memory.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import ptx
from pallas_kernels.mosaic import device_facts, launch_grid
from pallas_kernels.quantize_rows import ring
from pallas_kernels.quantize_rows.config import GROUP, QuantizeRowsConfig
from pallas_kernels.quantize_rows.division import WARPS, Division, Place
from pallas_kernels.quantize_rows.lane_channels import LaneChannels, channel_bytes
from pallas_kernels.quantize_rows.registers import GROUPS
from pallas_kernels.quantize_rows.ring import Ring
from pallas_kernels.quantize_rows.spec import BLOCK, Spec
from pallas_kernels.quantize_rows.straight import Straight
from pallas_kernels.quantize_rows.warp import Outputs, Warp, meetings


def _check(division: Division, spec: Spec) -> None:
    config = division.config
    if config.warps not in (1, WARPS) or (config.warps == WARPS and config.rows != 1):
        raise ValueError(
            f"quantize_rows: config has warps {config.warps}, rows {config.rows}: expected 1, or 4 and 1 row"
        )
    if division.common_units == 0:
        narrowest = (WARPS - 1) * GROUPS * GROUP + GROUP
        raise ValueError(f"quantize_rows: config.warps = {WARPS}, expected 1 for k = {division.k}, below {narrowest}")
    if config.ahead < 0:
        raise ValueError(f"quantize_rows: config.ahead = {config.ahead}, expected at least 0")
    if config.late < 0 or config.stretch < 1:
        raise ValueError(
            f"quantize_rows: config.late = {config.late}, stretch = {config.stretch}, expected at least 0 and 1"
        )
    if not (config.keep or config.ahead):
        raise ValueError("quantize_rows: config.keep is False, expected True if config.ahead = 0")
    if config.crossed and not config.ahead:
        raise ValueError("quantize_rows: config.crossed is True, expected False if config.ahead = 0")
    if spec.form == "nvfp4" and not config.ahead:
        raise ValueError("quantize_rows: config.ahead = 0, expected at least 1: a lane has to hold blocks of NVFP4")
    besides = channel_bytes(division) if spec.affine else 0
    if (config.ahead or besides) and not ring.fits(division, besides):
        size = ring.ring_bytes(division) + besides
        raise ValueError(f"quantize_rows: config.ahead = {config.ahead} takes {size} bytes of shared memory a CTA")


def run(
    x: Array, factor: Array | None, offset: Array | None, *, spec: Spec, config: QuantizeRowsConfig
) -> tuple[Array, ...]:
    """Codes s8 (m, k); scale f32 (m,) or (m, k/128), Σ|x| and max|x| f32 (m,); in NVFP4 packed, and block scales."""
    m, k = x.shape
    kernel = Kernel(spec, Division(m, k, config, device_facts()[1]))
    _check(kernel.division, spec)
    call = launch_grid(kernel, kernel.out_type, grid={"cta": kernel.division.ctas}, warpgroups=config.warpgroups)
    codes, *vectors = call(x, *((factor, offset) if spec.affine else ()))
    if spec.form == "int8":
        return codes, *vectors
    *vectors, bits = vectors
    return lax.bitcast_convert_type(codes, jnp.uint8), *vectors, lax.bitcast_convert_type(bits, jnp.float8_e4m3fn)


@dataclasses.dataclass(frozen=True)
class Kernel:
    spec: Spec
    division: Division

    @property
    def config(self) -> QuantizeRowsConfig:
        return self.division.config

    @property
    def _code_bits(self) -> int:
        return 4 if self.spec.form == "nvfp4" else 8

    @property
    def out_type(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        m, k = self.division.m, self.division.k
        vector = jax.ShapeDtypeStruct((m,), jnp.float32)
        scale = jax.ShapeDtypeStruct((m, k // GROUP), jnp.float32) if self.spec.grouped else vector
        codes = jax.ShapeDtypeStruct((m, k * self._code_bits // 8), jnp.int8)
        blocks = [jax.ShapeDtypeStruct((m, k // BLOCK), jnp.int8)] * (self.spec.form == "nvfp4")
        return codes, scale, vector, vector, *blocks

    def __call__(self, *gmem) -> None:
        division = self.division
        scratch = dict(met=plgpu.SMEM((2 * meetings(self.spec) * division.warps * 4,), jnp.float32))
        if self.config.ahead:
            memory, barriers = ring.words(division)
            scratch |= dict(memory=plgpu.SMEM((memory,), jnp.int32), barriers=plgpu.SMEM((barriers,), jnp.int32))
        if self.spec.affine:
            scratch["channels"] = plgpu.SMEM((channel_bytes(division) // 4,), jnp.float32)
        pl.run_scoped(functools.partial(self._rounds, gmem), **scratch, collective_axes="wg")

    def _rounds(self, gmem, **smem) -> None:
        cta = lax.axis_index("cta")
        refs = (*gmem, *smem.values())

        def with_registers(step):
            @plgpu.inline_mgpu(arg_types=(ptx.SCALAR, ptx.SCALAR, *[ptx.REF] * len(refs)))
            def run(_, i, cta, *refs):
                (i,), (cta,) = ptx.unpack(i), ptx.unpack(cta)
                inside = dict(zip(smem, refs[len(gmem) :], strict=True))
                step(self._warp(Place.of_thread(self.division, cta), i, refs[: len(gmem)], inside))

            return lambda i: run(i, cta, *refs)

        zero = jnp.int32(0)
        if self.config.ahead:  # first: rows are on their way while factors come
            with_registers(lambda warp: warp.rows.begin())(zero)
        if self.spec.affine:
            with_registers(lambda warp: warp.channels.begin())(zero)
        pl.loop(0, self._count(cta))(with_registers(Warp.run))
        if self.config.ahead:
            with_registers(lambda warp: warp.rows.end())(zero)

    def _count(self, cta: Array) -> Array | int:
        """Of rounds."""
        division = self.division
        if division.ctas == division.sms:
            return division.rounds
        return jnp.where(cta < division.sms, division.rounds, division.config.stretch)

    def _warp(self, place: Place, i, gmem, smem) -> Warp:
        x, *results = gmem
        vectors, results = (results[:2], results[2:]) if self.spec.affine else ([], results)
        outputs = Outputs(*results)
        if self.config.ahead:
            memory = smem["memory"], smem["barriers"]
            rows = Ring(place, i, x, outputs.codes, *memory, code_bits=self._code_bits)
        else:
            rows = Straight(place, i, x, outputs.codes)
        channels = LaneChannels(place, rows, *vectors, smem["channels"]) if vectors else None
        return Warp(self.spec, place, i, rows, channels, outputs, smem["met"])
