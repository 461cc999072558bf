"""Products of single warps, instruction by instruction as a GPU would run them: all lanes of all warps of a CTA."""

import jax.numpy as jnp
import numpy as np
import ptx_integers
import pytest

from pallas_kernels import ptx
from pallas_kernels.nvfp4_matmul import decode_sm90, lanes_sm90
from pallas_kernels.nvfp4_matmul.emulation import in_order, pair_bits, scale_bits
from pallas_kernels.nvfp4_matmul.lanes_sm90 import SLICES, SPAN, Lane, Share, multiply


@pytest.fixture(autouse=True)
def integers(monkeypatch):
    monkeypatch.setattr(ptx, "op", ptx_integers.op)
    monkeypatch.setattr(ptx, "constant", lambda x, kind: x)
    monkeypatch.setattr(ptx, "add", lambda x, y, kind="f": x + y)
    for name in ("shared_address", "address"):
        monkeypatch.setattr(ptx, name, lambda address: address)


def test_pairs_are_those_of_the_emulation(rng):
    words = rng.integers(0, 2**32, 200, dtype=np.uint32)
    expected = [np.asarray(pair_bits(jnp.asarray(words.view(np.int32)), i)).view(np.uint32) for i in range(4)]
    actual = [decode_sm90.pairs(int(word)) for word in words]
    np.testing.assert_array_equal(np.array(actual, np.uint32).T, np.array(expected))


def test_scales_are_those_of_the_emulation():
    scales = np.arange(8, 0x7F, dtype=np.int8)
    actual = [decode_sm90.factor(int(scale)) for scale in scales]
    np.testing.assert_array_equal(np.array(actual), np.asarray(scale_bits(jnp.asarray(scales))) * 0x10001)


@pytest.mark.parametrize("staged", [False, True])
@pytest.mark.parametrize(
    ("share", "tile"),
    [
        (Share(m=5, k=768, n=48, tiles=2, groups=2), 1),  # half of the rows do not exist, and half of the last span
        (Share(m=17, k=512, n=32, tiles=1, groups=1), 1),
    ],
    ids=str,
)
def test_a_cta_computes_its_rows(monkeypatch, rng, share, tile, staged):
    x = jnp.asarray(rng.normal(size=(share.m, share.k)), jnp.bfloat16)
    packed = rng.integers(0, 256, (share.n, share.k // 2), dtype=np.uint8)
    scales = jnp.asarray(2.0 ** rng.uniform(-6, 8.7, (share.n, share.k // 16)), jnp.float8_e4m3fn)
    factors, bias = rng.normal(size=(2, share.n))
    weight = np.asarray(in_order(jnp.asarray(packed), scales), np.float64)

    memory = np.full(SLICES * share.groups * share.plane, np.nan)
    for group in range(share.groups):
        for warp in range(SLICES * group, SLICES * (group + 1)):
            sums = _warp_sums(monkeypatch, share, tile, warp, x, packed, scales, staged)
            _keep(monkeypatch, share, warp, sums, memory)
    out = _finish(monkeypatch, share, tile, memory, factors, bias)

    rows = slice(tile * share.rows, min((tile + 1) * share.rows, share.n))
    expected = np.asarray(x, np.float64) @ weight.T * factors * 128 + bias
    np.testing.assert_allclose(out[:, rows], expected[:, rows], rtol=1e-9, atol=1e-9 * np.abs(expected).max())
    assert np.isnan(np.delete(out, rows, axis=1)).all()


@pytest.mark.parametrize("warp", range(SLICES))
def test_lanes_that_load_at_once_do_not_meet_in_a_bank(monkeypatch, warp):
    addresses = []
    for lane in range(32):
        monkeypatch.setattr(ptx, "thread_in_cta", lambda lane=lane: 32 * warp + lane)
        monkeypatch.setattr(ptx, "thread_column", lambda lane=lane: lane % 4)
        addresses.append(Lane(Share(8, 512, 16, 1, 1))._word_address(0))
    for half in np.array(addresses).reshape(2, 16):
        assert len(set(half // 8 % 16)) == 16


@pytest.mark.parametrize("warp", range(SLICES))
def test_lanes_that_load_tokens_at_once_do_not_meet_in_a_bank(monkeypatch, warp):
    loads = []
    for lane in range(32):
        addresses = []
        monkeypatch.setattr(ptx, "thread_in_cta", lambda lane=lane: 32 * warp + lane)
        monkeypatch.setattr(ptx, "thread_column", lambda lane=lane: lane % 4)
        monkeypatch.setattr(ptx, "load_words", lambda a, offset, n, to=addresses: to.append(a + offset) or [0] * n)
        Lane(Share(16, 512, 16, 1, 1)).staged_tokens(0)
        loads.append(addresses)
    for eight_lanes in np.array(loads).reshape(4, 8, 4).transpose(0, 2, 1).reshape(16, 8):
        assert len(set(eight_lanes // 16 % 8)) == 8


def _warp_sums(monkeypatch, share, tile, warp, x, packed, scales, staged):
    """(sixteen rows, eight tokens, rows, tokens), from the operands of 32 lanes in every span of the warp's group."""
    total = 0.0
    rows = np.arange(tile * share.rows, (tile + 1) * share.rows)
    for span in range(warp // SLICES, share.spans, share.groups):
        words = _cut(packed, rows, span * SPAN // 2, SPAN // 2)
        tokens = _cut(_bytes(x).reshape(share.m, -1), np.arange(8 * share.eights), 2 * span * SPAN, 2 * SPAN)
        stage = [_swizzled(words.view(np.uint32)), _cut(_bytes(scales), rows, span * 32, 32)]
        shared = ptx_integers.Memory([*stage, _swizzled(tokens.view(np.uint32))])
        source = None if staged else _bytes(x)
        lanes = [_operands(monkeypatch, share, 32 * warp + lane, span, shared, source) for lane in range(32)]
        total = total + _products(np.array([left for left, _ in lanes]), np.array([right for _, right in lanes]))
    return total


def _operands(monkeypatch, share, thread, span, shared, x):
    """Of one lane: values of the left operand (tile, eight tokens, step, four, pair) and the right (…, two, pair).

    Tokens are those of x, or without x those of the stage.
    """
    calls = []
    monkeypatch.setattr(ptx, "thread_in_cta", lambda: thread)
    monkeypatch.setattr(ptx, "thread_column", lambda: thread % 4)
    monkeypatch.setattr(ptx, "load_words", shared.load_words)
    monkeypatch.setattr(ptx, "load_byte", shared.load_byte)
    monkeypatch.setattr(ptx, "load_sixteen", _loader(x))
    monkeypatch.setattr(ptx, "mma_bf16", lambda left, *rest: calls.append((left, rest[:2])) or rest[2])
    monkeypatch.setattr(lanes_sm90, "product", lambda pair, factor: tuple(_bf16(pair) * _bf16(factor)))
    lane = Lane(share)
    tokens = lane.staged_tokens(int(shared.starts[2])) if x is None else lane.tokens(0, span)
    assert len(tokens) == share.held
    weights = lane.weights(0, int(shared.starts[1]))
    assert multiply(list(range(share.sums)), weights, tokens) == list(range(share.sums))
    shape = (share.tiles, share.eights, 4)
    left = np.array([left for left, _ in calls]).reshape(*shape, 4, 2)
    return left, np.array([[_bf16(word) for word in right] for _, right in calls]).reshape(*shape, 2, 2)


def _products(left, right):
    """What m16n8k16 makes of the operands of 32 lanes, added over steps."""
    a, b = np.zeros((*left.shape[1:4], 16, 16)), np.zeros((*left.shape[1:4], 16, 8))
    for lane in range(32):
        g, c = divmod(lane, 4)
        for j in range(4):
            a[..., g + 8 * (j % 2), 2 * c + 8 * (j // 2) :][..., :2] = left[lane, ..., j, :]
        for j in range(2):
            b[..., 2 * c + 8 * j : 2 * c + 8 * j + 2, g] = right[lane, ..., j, :]
    return (a @ b).sum(2)


def _keep(monkeypatch, share, warp, sums, memory):
    def store(text, out, ins, volatile):
        offset = int(text.split("+")[1].split("]")[0])
        memory[(ins[0][1] + offset) // 4] = ins[1][1]

    monkeypatch.setattr(ptx, "emit", store)
    for lane in range(32):
        monkeypatch.setattr(ptx, "thread_in_cta", lambda lane=lane: 32 * warp + lane)
        monkeypatch.setattr(ptx, "thread_column", lambda lane=lane: lane % 4)
        Lane(share).keep(_own(sums, *divmod(lane, 4)), 0)


def _own(sums, g, c):
    return [one[g + 8 * (i // 2), 2 * c + i % 2] for one in sums.reshape(-1, 16, 8) for i in range(4)]


def _finish(monkeypatch, share, tile, memory, factors, bias):
    out = np.full((share.m, share.n), np.nan)

    def store(out, place, pair, here):
        if here:
            assert np.isnan(out.flat[place : place + 2]).all(), "stored twice"
            out.flat[place : place + 2] = pair

    monkeypatch.setattr(ptx, "load_floats", lambda address, offset: list(memory[(address + offset) // 4 :][:2]))
    monkeypatch.setattr(ptx, "multiply", lambda x, y: x * y)
    monkeypatch.setattr(ptx, "fma", lambda x, y, z: x * y + z)
    monkeypatch.setattr(lanes_sm90, "_of_rows", lambda values, row: list(values[row : row + 2]))
    monkeypatch.setattr(lanes_sm90, "_store", store)
    for thread in range(share.threads):
        monkeypatch.setattr(ptx, "thread_in_cta", lambda thread=thread: thread)
        monkeypatch.setattr(ptx, "thread_column", lambda thread=thread: thread % 4)
        lane = Lane(share)
        lane.finish(tile, 0, lane.vectors(tile, (factors, bias)), out)
    return out


def _loader(x):
    def load(instruction, address, offset, exists):
        first = address[1] + offset
        return x.reshape(-1)[first : first + 16].view(np.uint32).tolist() if exists else [0] * 4

    return load


def _cut(array, rows, first, count):
    """With zeros where it ends, as TMA reads it."""
    padded = np.zeros((rows[-1] + 1, first + count), np.uint8)
    inside = array[: rows[-1] + 1, : first + count]
    padded[: inside.shape[0], : inside.shape[1]] = inside
    return np.ascontiguousarray(padded[rows, first:])


def _swizzled(words):
    """Tiles of eight rows by 128 bytes, sixteen bytes at place ^ row, as TMA fills them."""
    rows, columns = words.shape
    tiles = words.reshape(rows // 8, 8, columns // 32, 8, 4).transpose(0, 2, 1, 3, 4)
    places = np.arange(8) ^ np.arange(8)[:, None]
    return np.take_along_axis(tiles, places[None, None, :, :, None], axis=3).copy()


def _bytes(array):
    return np.asarray(array).view(np.uint8)


def _bf16(pair):
    """The halves of a register, lower first, as f64."""
    return np.array([pair << 16 & 0xFFFFFFFF, pair & 0xFFFF0000], np.uint32).view(np.float32).astype(np.float64)
