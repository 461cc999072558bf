"""What a quantizer accepts, said in one line when it is something else."""

import jax
import jax.numpy as jnp
from jax.experimental import checkify
from jaxtyping import Array, Float


def require_float(name: str, x: jax.Array | jax.ShapeDtypeStruct, what: str = "x", hint: str = "") -> None:
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{name}: {what} is {x.dtype}; it must be a real float (f32, bf16 or f16){hint}")


def pad_to_multiple(name: str, x: jax.Array, multiple: int, pad: bool) -> jax.Array:
    """`x` with a last axis of a multiple of `multiple`: as it is, padded with zeros if asked, or an error."""
    if multiple < 1:
        raise ValueError(f"{name}: a group has at least one value, not {multiple}")
    length = x.shape[-1] if x.ndim else 0
    missing = -length % multiple
    if x.ndim and length and not missing:
        return x
    if not length:
        raise ValueError(f"{name}: x has shape {x.shape}; its last axis must have a length")
    if not pad:
        hint = f"pad=True fills it with zeros to {length + missing}"
        raise ValueError(f"{name}: axis -1 of x has length {length}, not a multiple of {multiple}; {hint}")
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)])


def check_finite(x: Float[Array, "*shape"], name: str = "x") -> Float[Array, "*shape"]:
    """`x` itself, after a check that names the position of its first NaN or infinity.

    `quantize_nvfp4(check_finite(x))` is the checked variant of `quantize_nvfp4(x)`. Inside `jit` the check needs
    `jax.experimental.checkify.checkify` around the function, as every check there does.

    >>> import jax.numpy as jnp
    >>> check_finite(jnp.array([[1.0, 2.0], [3.0, jnp.inf]]))
    Traceback (most recent call last):
    ...
    ValueError: x[1, 1] is inf: only finite values can be quantized
    """
    bad = ~jnp.isfinite(x)
    flat = jnp.argmax(bad)
    position = jnp.unravel_index(flat, x.shape)
    value = x.reshape(-1)[flat].astype(jnp.float32)
    axes = ", ".join(f"{{{axis}}}" for axis in range(x.ndim))
    message = f"{name}[{axes}] is {{value}}: only finite values can be quantized"
    if not isinstance(bad, jax.core.Tracer):
        if bad.any():
            raise ValueError(message.format(*position, value=value))
        return x
    checkify.check(~bad.any(), message, *position, value=value)
    return x
