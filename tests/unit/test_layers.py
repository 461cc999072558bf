"""The shapes of a model's parameters, traced once for each configuration and type."""

import jax
import jax.numpy as jnp
from micro_pipeline import MICRO

from sixbit_jax.models import vae


def test_they_are_those_of_the_parameters():
    made = vae.init_params(MICRO.vae, jax.random.key(0))
    of = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)
    assert of(vae.abstract_params(MICRO.vae)) == of(made)


def test_every_caller_has_its_own():
    first, whole = vae.abstract_params(MICRO.vae), vae.abstract_params(MICRO.vae)
    first["decoder"].clear()
    assert vae.abstract_params(MICRO.vae) == whole
    assert whole["decoder"]


def test_types_do_not_mix():
    of = lambda dtype: vae.abstract_params(MICRO.vae, dtype)["decoder"]["conv_in"]["weight"].dtype
    assert (of(jnp.bfloat16), of(jnp.float32)) == (jnp.bfloat16, jnp.float32)
