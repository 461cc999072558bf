"""Settings every test runs under: the CPU, no silent broadcasting, no silent promotion."""

import gc
import os
import signal

# A suite in the background inherits that Ctrl-C is ignored, and so would the programs whose Ctrl-C is tested.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Threads of XLA's CPU client. An interpreted GPU kernel blocks one per warpgroup: with two cores' worth it would hang.
os.environ.setdefault("NPROC", "16")
# Most of the suite's time is XLA optimising programs that then run for milliseconds. Its older emitters of fusions take
# a quarter less of it; a later XLA that does not know an extra option passes it over.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_backend_extra_options="
    "xla_cpu_disable_new_fusion_emitters,xla_cpu_disable_loop_unrolling,xla_cpu_disable_slp_vectorizer",
)

import hypothesis
import jax
import numpy as np
import pytest

# The first example of a shape compiles, so times say nothing. The same commit gets the same examples and with them the
# same verdict; `--hypothesis-profile search` looks for others.
_TIMELESS = {"deadline": None, "suppress_health_check": [hypothesis.HealthCheck.too_slow]}
hypothesis.settings.register_profile("house", derandomize=True, **_TIMELESS)
hypothesis.settings.register_profile("search", **_TIMELESS)
hypothesis.settings.load_profile("house")

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="module", autouse=True)
def short_collections() -> None:
    """What was there before a file, modules and caches of jax, is not looked through for garbage again and again.

    Orbax collects with every tree of arrays it writes or reads: among all of a worker's objects that takes a second.
    """
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """GPU tests say why they do not run instead of failing."""
    if jax.default_backend() == "gpu":
        return
    skip = pytest.mark.skip(reason=f"needs a GPU, this is {jax.default_backend()}")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)
