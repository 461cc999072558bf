"""Whether there is a GPU that the kernels run on. Without Mosaic GPU, which takes most of a second to import."""

import functools

import jax


def refusal(platform: str) -> str | None:
    """Why the kernels do not run on this platform, or on its first GPU."""
    if platform != "gpu":
        return f"runs on a Hopper GPU, this is {platform}"
    if not capability().startswith("9."):
        return f"runs on a Hopper GPU, this one has compute capability {capability()}"
    return None


@functools.cache
def capability() -> str:
    return str(jax.devices("gpu")[0].compute_capability)
