"""The delta cache and predicted precision at the shapes of Wan 1.3B: no slower than what they have to do."""

import pytest

from benchmarks.policies import forward_times, skip_times

pytestmark = [pytest.mark.gpu, pytest.mark.slow]


@pytest.mark.parametrize(("cache_format", "by"), [("bf16", "xla"), ("int8", "pallas")])
def test_a_step_that_skips_every_block_costs_its_bytes(cache_format, by):
    """A copy of the cache would be two thirds on top: reading and writing all deltas once more."""
    found = skip_times("1.3B", cache_format)
    assert found["skip_by"] == by
    assert found["skip_ratio"] <= 1.3


def test_policies_cost_next_to_nothing():
    """The same products, so the same velocity up to how they are fused in bf16. Beside the fastest forward there is."""
    found = forward_times("1.3B", "bf16", {"linear": "pallas", "attention": "int8"})
    assert found["forward_overhead"] <= 0.03
    assert found["forward_difference"] <= 0.02
