"""What lanes of the row quantizer read and write in shared memory: all of it, in no bank twice at a time."""

import numpy as np
import ptx_lanes
import pytest

from pallas_kernels import ptx
from pallas_kernels.quantize_rows import QuantizeRowsConfig, lane_channels, registers, ring
from pallas_kernels.quantize_rows.division import Division, Place
from pallas_kernels.quantize_rows.lane_channels import LaneChannels, channel_bytes
from pallas_kernels.quantize_rows.registers import GROUPS
from pallas_kernels.quantize_rows.ring import Ring

LANES = np.arange(32)
TOGETHER = 8  # lanes that shared memory serves at a time, sixteen bytes each


class SharedMemory:
    def __init__(self, size):
        self.words, self.places, self.end = np.zeros(size // 4, np.uint32), [], 0

    def load(self, address, count):
        return [self.words[self._place(address) // 4 + i].astype(np.int64) for i in range(count)]

    def store(self, address, words, here):
        place, here = self._place(address), np.broadcast_to(np.asarray(here, bool), 32)
        self.end = max(self.end, 4 * len(words) + place[here].max(initial=0))
        for i, word in enumerate(words):
            self.words[place[here] // 4 + i] = np.broadcast_to(word, 32)[here]

    def _place(self, address):
        place = np.broadcast_to(address, 32)
        self.places.append(place)
        return place

    def meet(self):
        """Whether lanes that are served together ever want something else of one bank."""
        banks = [set(lanes // 16 % 8) for place in self.places for lanes in place.reshape(-1, TOGETHER)]
        return any(len(found) < TOGETHER for found in banks)


@pytest.fixture
def shared(monkeypatch):
    memory = SharedMemory(1 << 18)
    ptx_lanes.replace_instructions(monkeypatch)
    monkeypatch.setattr(ring, "_sync", lambda: None)
    monkeypatch.setattr(ptx, "emit", lambda *_, **__: [])  # barriers
    monkeypatch.setattr(ptx, "shared_address", lambda address: address)
    monkeypatch.setattr(ptx, "load_sixteen", lambda _, address, offset, exists: memory.load(address[1] + offset, 4))
    monkeypatch.setattr(
        registers,
        "store_shared_where",
        lambda address, offset, words, here: memory.store(address + offset, words, True if here is None else here),
    )
    return memory


def place_of(its, warp=0):
    return Place(its, 0, warp, LANES)


def ring_of(its):
    return Ring(place_of(its), 0, 0, 0, 0, 0)


def divided(k, rows, *, crossed=False, warps=1):
    config = QuantizeRowsConfig(rows, warpgroups=2, warps=warps, ahead=1, keep=False, crossed=crossed)
    return Division(64, k, config, sms=1)


@pytest.mark.parametrize("k", [4096, 8960, 13824])
def test_warps_that_share_a_row_have_their_parts_of_its_place(shared, k):
    """One behind the other in the order of the row, and teams apart."""
    its = divided(k, 1, warps=4)
    rings = [Ring(place_of(its, warp), 0, 0, 0, 0, 0) for warp in range(its.warps)]
    taken = sorted((int(ring.memory), int(ring.place.groups)) for ring in rings)
    ends = [begins + 256 * groups for begins, groups in taken]
    for team in range(its.teams):
        begins = [begin for begin, _ in taken[4 * team : 4 * team + 4]]
        assert begins == [team * 2 * 2 * k, *ends[4 * team : 4 * team + 3]]
    assert ends[-1] == (2 * its.teams - 1) * 2 * k


@pytest.fixture
def values(rng, shared):
    """Two rows of 1024, all units full."""
    shared.words[:1024] = rng.integers(0, 1 << 32, 1024)
    return shared.words[:1024].copy()


def test_crossed_lanes_load_what_others_load(shared, values):
    straight, crossed = (ring_of(divided(1024, 2, crossed=crossed)) for crossed in (False, True))
    for unit in (0, 1):
        np.testing.assert_array_equal(straight.load(unit), crossed.load(unit))


@pytest.mark.parametrize("was_put_back", [False, True])
def test_crossed_lanes_load_again_what_they_are_asked_for(shared, values, rng, was_put_back):
    rows = ring_of(divided(1024, 2, crossed=True))
    expected = [rows.load(unit) for unit in (0, 1)]
    if was_put_back:
        expected = [list(rng.integers(0, 1 << 32, (16, 32))) for _ in expected]
        for unit, words in enumerate(expected):
            rows.put_back(unit, words)
    for unit, words in enumerate(expected):
        np.testing.assert_array_equal(rows.load_again(unit, was_put_back), words)


@pytest.mark.parametrize("code_bits", [8, 4])
def test_crossed_lanes_store_codes_where_others_do(shared, rng, code_bits):
    left = []
    codes = rng.integers(0, 1 << 32, (4, code_bits // 4, 32))
    for crossed in (False, True):
        shared.words[:] = 0
        rows = ring_of(divided(1024, 2, crossed=crossed))
        rows.line = 128 * code_bits // 8
        rows.store(1, [list(chunk) for chunk in codes])
        left.append(shared.words.copy())
    assert np.count_nonzero(left[0]) > 0.99 * codes.size
    np.testing.assert_array_equal(*left)


@pytest.mark.parametrize("crossed", [False, True])
@pytest.mark.parametrize("access", ["load", "put_back", "store"])
def test_only_crossed_lanes_do_not_meet(shared, crossed, access):
    rows, word = ring_of(divided(1024, 2, crossed=crossed)), np.zeros(32, np.int64)
    steps = {
        "load": lambda: rows.load(1),
        "put_back": lambda: rows.put_back(1, [word] * 16),
        "store": lambda: rows.store(1, [[word, word]] * 4),
    }
    steps[access]()
    assert shared.places and shared.meet() is not crossed


@pytest.mark.parametrize(
    ("k", "rows", "warps", "expected"),
    [
        (1536, 1, 1, 2),
        (1536, 2, 1, 3),
        (1536, 4, 1, 3),
        (3072, 2, 1, 3),
        (5120, 1, 1, 5),
        (5120, 2, 1, 5),
        (3584, 1, 4, 1),
        (8960, 1, 4, 3),
    ],
)
def test_channels_come_again_after_so_many_units(k, rows, warps, expected):
    its = divided(k, rows, warps=warps)
    assert its.channel_units == expected
    group = np.arange(GROUPS * its.units).reshape(its.units, GROUPS) % its.row_groups
    for unit in range(its.units):
        np.testing.assert_array_equal(group[unit], group[unit % expected])


@pytest.mark.parametrize(("k", "rows", "warps"), [(1536, 2, 1), (1536, 4, 1), (5120, 2, 1), (4096, 1, 4), (8960, 1, 4)])
def test_lanes_have_the_factors_of_what_they_hold(shared, monkeypatch, rng, k, rows, warps):
    """Of a row of columns, as a lane loads it, the factors of these columns in every unit."""
    its = divided(k, rows, warps=warps)
    vectors = rng.normal(size=(2, k)).astype(np.float32)
    monkeypatch.setattr(lane_channels, "address", lambda vector, row, width, column, size: (vector, column * size))

    def load_sixteen(instruction, address, offset, exists):
        vector, column = address[1]
        first = np.where(exists, (column + offset) // 4, 0)
        return [np.where(exists, vectors[vector][first + i].view(np.uint32), np.uint32(0)) for i in range(4)]

    monkeypatch.setattr(ptx, "load_sixteen", load_sixteen)
    monkeypatch.setattr(
        ptx, "load_shared", lambda a, offset: [w.astype(np.uint32).view(np.float32) for w in shared.load(a + offset, 4)]
    )
    channels = [LaneChannels(place_of(its, warp), Ring, 0, 1, 0) for warp in range(its.warps)]
    for warp in channels:
        warp.begin()
    assert shared.end == channel_bytes(its)
    for warp in channels:
        for unit in range(warp.place.units):
            group = warp.place.first_group + GROUPS * unit + LANES // 4
            for q in range(4):
                column = group % its.row_groups * 128 + Ring.chunk_column(q) + LANES % 4 * Ring.lane_columns
                pairs = warp.of_chunk(unit % its.channel_units, q)
                for i, pair in enumerate(pairs):
                    here = group < its.groups  # beyond, nothing is held
                    np.testing.assert_array_equal(np.array(pair)[:, here], vectors[:, (column + i)[here]])
