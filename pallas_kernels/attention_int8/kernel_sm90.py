"""Attention for Hopper: two warpgroups of 64 query rows compute, a third loads keys and values by TMA.

    first S -> softmax -> [ take the turn: O += P·V of this block, S of the next -> pass it -> softmax ]* -> O += P·V

While one warpgroup holds the tensor cores the other works its softmax out. P stays in registers. CTAs of a cluster work
on neighbouring queries of one head; each loads a half of every block and multicasts it to both.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.attention_int8.config import CONSUMERS, AttentionConfig
from pallas_kernels.attention_int8.numbers import HEAD, ONES, ROWS
from pallas_kernels.attention_int8.operands import Operands
from pallas_kernels.attention_int8.steps import Steps
from pallas_kernels.attention_int8.tile import Tile
from pallas_kernels.mosaic import ceil_div

# 65536 registers an SM; the loader needs few.
COMPUTE_REGISTERS, LOAD_REGISTERS = 240, 24

DTYPES = {"s8": jnp.int8, "e4m3": jnp.float8_e4m3fn, "f16": jnp.float16, "bf16": jnp.bfloat16}
KINDS = {jnp.dtype(dtype): kind for kind, dtype in DTYPES.items()}


def run(
    x: Operands, *, heads: int, queries: int, valid_keys: int, config: AttentionConfig, with_lse: bool
) -> tuple[Array, Array | None]:
    """(out (b, s, heads, 128) bf16, natural log-sum-exp (b·heads, s) f32 or None)."""
    tile = Tile(KINDS[x.q.dtype], KINDS[x.v.dtype], config)
    batch_heads = x.q.shape[0]
    out = jax.ShapeDtypeStruct((batch_heads // heads, queries, heads, HEAD), jnp.bfloat16)
    lse = jax.ShapeDtypeStruct((batch_heads, queries), jnp.float32)
    q_tiles = ceil_div(queries, ROWS * CONSUMERS * config.cluster)  # of a cluster
    kernel = plgpu.kernel(
        functools.partial(_entry, tile=tile, heads=heads, queries=queries, valid_keys=valid_keys, with_lse=with_lse),
        out_type=[out, lse] if with_lse else [out],
        grid=(batch_heads * q_tiles,),
        grid_names=("cta",),
        cluster=(config.cluster,),
        cluster_names=("cluster",),
        num_threads=CONSUMERS + 1,
        thread_name="wg",
        compiler_params=plgpu.CompilerParams(
            approx_math=True,
            # Registers have to lie as the inline code says.
            lowering_semantics=plgpu.LoweringSemantics.Lane,
        ),
    )
    result = kernel(*x)
    return (result[0], result[1]) if with_lse else (result[0], None)


def swizzled(dtype: Any, line: int) -> tuple[Any, ...]:
    """Rows in swizzled lines of `line` bytes, eight rows together: what wgmma reads."""
    return plgpu.TilingTransform((8, line // jnp.dtype(dtype).itemsize)), plgpu.SwizzleTransform(line)


def _entry(*refs: Any, tile: Tile, valid_keys: int, **static: Any) -> None:
    """Shared memory and barriers, then the body."""
    promotes = tile.promotes and ceil_div(valid_keys, tile.keys) > tile.config.promote
    config, stages = tile.config, tile.config.stages
    narrow = tile.pv == "e4m3"
    qk_dtype, v_dtype = DTYPES[tile.qk], DTYPES[tile.pv]
    v_block = (tile.columns, tile.keys) if narrow else (tile.keys, HEAD)
    qk, v = swizzled(qk_dtype, 128), swizzled(v_dtype, config.swizzle_v if narrow else 128)
    out = swizzled(jnp.bfloat16, 128)
    free = dict(num_arrivals=CONSUMERS, num_barriers=stages)
    if config.cluster > 1:  # a slot is free when no CTA of the cluster reads it any more
        freed = lambda: plgpu.ClusterBarrier(collective_axes=("cluster",), **free)
    else:
        freed = lambda: plgpu.Barrier(**free)
    static |= dict(steps=Steps(tile, (qk, qk, v, out)), valid_keys=valid_keys, promotes=promotes)
    body = functools.partial(_body, refs, **static)
    pl.run_scoped(
        body,
        q_smem=plgpu.SMEM((CONSUMERS, ROWS, HEAD), qk_dtype, transforms=qk),
        k_smem=plgpu.SMEM((stages, tile.keys, HEAD), qk_dtype, transforms=qk),
        v_smem=plgpu.SMEM((stages, *v_block), v_dtype, transforms=v),
        o_smem=plgpu.SMEM((tile.staged(promotes), ROWS, HEAD), jnp.bfloat16, transforms=out),
        q_ready=plgpu.Barrier(num_barriers=CONSUMERS),
        k_ready=plgpu.Barrier(num_barriers=stages),
        v_ready=plgpu.Barrier(num_arrivals=2 if narrow else 1, num_barriers=stages),
        k_free=freed(),
        v_free=freed(),
        collective_axes="wg",
    )


def _body(
    refs: tuple[Any, ...],
    *,
    steps: Steps,
    heads: int,
    queries: int,
    valid_keys: int,
    promotes: bool,
    with_lse: bool,
    q_smem: Any,
    k_smem: Any,
    v_smem: Any,
    o_smem: Any,
    q_ready: Any,
    k_ready: Any,
    v_ready: Any,
    k_free: Any,
    v_free: Any,
) -> None:
    q_gmem, q_scale, k_gmem, k_scale, v_gmem, v_scale, v_mean, o_gmem, *lse_gmem = refs
    tile, config = steps.tile, steps.tile.config
    keys, stages, blocks = tile.keys, config.stages, ceil_div(valid_keys, tile.keys)
    narrow = tile.pv == "e4m3"
    # 8-bit V is zero, ones included, where a key does not exist; smoothed keys make its score 0, never the maximum.
    missing = not narrow and valid_keys % keys != 0
    valid = valid_keys - (blocks - 1) * keys if missing else None

    # Queries of one head side by side: what runs at one time reads the same keys and values, from the L2 cache.
    q_tiles = jnp.int32(ceil_div(queries, ROWS * CONSUMERS * config.cluster))
    cta, wg = lax.axis_index("cta"), lax.axis_index("wg")
    head = lax.div(cta, q_tiles)
    q_tile = lax.rem(cta, q_tiles) * config.cluster + lax.axis_index("cluster")
    first_row = (q_tile * CONSUMERS + wg) * ROWS
    slot_of = lambda j: lax.rem(j, jnp.int32(stages))

    def compute() -> None:
        plgpu.set_max_registers(COMPUTE_REGISTERS, action="increase")
        q = q_smem.at[wg]
        plgpu.copy_gmem_to_smem(q_gmem.at[head, pl.ds(first_row, ROWS)], q, q_ready.at[wg])
        o, statistics = steps.start(q_scale, head * q_scale.shape[1] + first_row)
        if promotes:
            steps.clear_totals(o_smem)
        plgpu.barrier_wait(q_ready.at[wg])
        first_block = head * k_scale.shape[1]

        plgpu.barrier_wait(k_ready.at[0])
        s, scale = steps.first_scores(q, k_smem.at[0], k_scale, first_block)
        release(k_free.at[0], 0)
        o, p, statistics = steps.softmax(s, o, statistics, scale, valid if blocks == 1 else None)
        if config.turns and blocks > 1:
            steps.give_first_turn(wg)

        def block(j: Array, carry: Any, valid: int | None = None) -> Any:
            o, p, statistics = carry
            v_slot, k_slot = slot_of(j), slot_of(j + 1)
            plgpu.barrier_wait(k_ready.at[k_slot])
            plgpu.barrier_wait(v_ready.at[v_slot])
            o, s, scale = steps.both(o, p, q, k_smem.at[k_slot], v_smem.at[v_slot], wg, k_scale, first_block + j + 1)
            release(k_free.at[k_slot], j + 1)
            release(v_free.at[v_slot], j)
            o, p, statistics = steps.softmax(s, o, statistics, scale, valid)
            if promotes:
                move = functools.partial(steps.promote, statistics=statistics, memory=o_smem)
                o = lax.cond(lax.rem(j + 1, jnp.int32(config.promote)) == 0, move, lambda o: o, o)
            return o, p, statistics

        whole = max(blocks - 2 if missing else blocks - 1, 0)
        carry = lax.fori_loop(0, whole, block, (o, p, statistics))
        if missing and blocks > 1:
            carry = block(jnp.int32(blocks - 2), carry, valid)
        o, p, statistics = carry
        slot = (blocks - 1) % stages
        plgpu.barrier_wait(v_ready.at[slot])
        o = steps.last_outputs(o, p, v_smem.at[slot])
        if config.turns and blocks > 1:
            steps.take_last_turn(wg)
        if promotes:
            o = steps.final_sums(o, statistics, o_smem)
            steps.wait_for_both()  # the output will lie over the totals of both
        store(*steps.finish(o, statistics, v_scale, v_mean, head * HEAD))

    def store(out: Array, lse: Array) -> None:
        o_smem.at[wg][...] = out.astype(jnp.bfloat16)
        plgpu.commit_smem()
        batch, its_head = lax.div(head, jnp.int32(heads)), lax.rem(head, jnp.int32(heads))
        plgpu.copy_smem_to_gmem(o_smem.at[wg], o_gmem.at[batch, pl.ds(first_row, ROWS), its_head])
        if with_lse:
            steps.store_lse(lse_gmem[0], lse, head * queries + first_row, queries - first_row)
        plgpu.wait_smem_to_gmem(0)

    def release(barrier: Any, j: Any) -> None:
        """Block j's slot may be filled again. In a cluster the last stay: nobody waits, and the other may be gone."""
        if config.cluster > 1:
            pl.when(j < blocks - stages)(lambda: plgpu.barrier_arrive(barrier))
        else:
            plgpu.barrier_arrive(barrier)

    shared = {"collective_axes": ("cluster",)} if config.cluster > 1 else {}

    def load_k(j: Any, slot: Any) -> None:
        span = pl.ds(j * keys, keys)
        plgpu.copy_gmem_to_smem(k_gmem.at[head, span], k_smem.at[slot], k_ready.at[slot], **shared)

    def load_v(j: Any, slot: Any) -> None:
        span = pl.ds(j * keys, keys)
        if not narrow:
            plgpu.copy_gmem_to_smem(v_gmem.at[head, span], v_smem.at[slot], v_ready.at[slot], **shared)
            return
        channels, ones = pl.ds(0, HEAD), pl.ds(HEAD, ONES)
        ready = v_ready.at[slot]
        plgpu.copy_gmem_to_smem(v_gmem.at[head, channels, span], v_smem.at[slot, channels], ready, **shared)
        plgpu.copy_gmem_to_smem(v_gmem.at[head, ones, span], v_smem.at[slot, ones], ready)

    def load() -> None:
        plgpu.set_max_registers(LOAD_REGISTERS, action="decrease")
        for j in range(min(stages, blocks)):
            load_k(j, j)
            load_v(j, j)

        @pl.loop(stages, max(blocks, stages))
        def _(j: Array) -> None:
            slot = slot_of(j)
            plgpu.barrier_wait(k_free.at[slot])
            load_k(j, slot)
            plgpu.barrier_wait(v_free.at[slot])
            load_v(j, slot)

    pl.when(wg < CONSUMERS)(compute)
    pl.when(wg == CONSUMERS)(load)
