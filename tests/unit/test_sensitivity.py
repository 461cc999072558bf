"""What a group's low route does to the velocity: none where the route rounds nothing, else what a run by hand shows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from micro_pipeline import MICRO, write_micro_pipeline

from sixbit_jax import predictor, recipes, sensitivity
from sixbit_jax.models.wan_config import GROUPS
from sixbit_jax.pipeline import WanPipeline
from sixbit_jax.routes import Route
from sixbit_jax.sampler import guide

STEPS = 5


@pytest.fixture(scope="module")
def pipe(tmp_path_factory) -> WanPipeline:
    folder = write_micro_pipeline(tmp_path_factory.mktemp("model") / "micro")
    return WanPipeline.load(folder, recipes.get("w4a16"))


def test_a_route_that_rounds_nothing_changes_nothing(pipe):
    found = sensitivity.measure(pipe, ["a red circle"], Route(), num_inference_steps=STEPS)
    np.testing.assert_array_equal(found, np.zeros((MICRO.transformer.num_layers, len(GROUPS))))


def test_each_group_is_measured_by_itself(pipe, monkeypatch):
    """At one place of the run: the velocity of both branches with a single group in four bits."""
    monkeypatch.setattr(sensitivity, "PLACES", (0.5,))
    found = sensitivity.measure(pipe, ["a red circle"], Route("nvfp4"), num_inference_steps=STEPS, seed=3)
    chosen = pipe.settings(prompt="a red circle", num_inference_steps=STEPS, seed=3)
    parts, noise = pipe.parts(chosen), pipe.initial_latents(chosen)
    info = jax.tree.map(lambda leaf: leaf[2], pipe.infos(chosen))
    arguments = (pipe.encode_text(chosen), noise, pipe.infos(chosen), None, None)
    video = pipe.denoise_program(chosen, arguments)(pipe.components.experts, *arguments)[0]
    latents = (1 - info.solver.sigma) * video + info.solver.sigma * noise

    @jax.jit
    def velocity(route):
        contexts = parts.denoise.contexts(pipe.components.experts, arguments[0])
        each = [jax.tree.map(lambda leaf, e=e: leaf[e], contexts) for e in range(2)]
        plan = {"routes": (Route(), Route("nvfp4")), "route_index": route}
        return guide(
            jnp.stack([parts.denoise(pipe.components.experts, latents, c, info, **plan)[0] for c in each]),
            info.guidance,
        )

    none = jnp.zeros(found.shape, jnp.int32)
    for place in ((0, 0), (1, GROUPS.index("ffn_out"))):
        change = velocity(none.at[place].set(1)) - velocity(none)
        expected = np.linalg.norm(change) / np.linalg.norm(velocity(none))
        np.testing.assert_allclose(found[place], expected, rtol=1e-3)
    assert found.min() > 0


def test_a_scaled_predictor_predicts_as_much_and_explains_as_much(rng):
    gamma, error = rng.uniform(0.1, 1, (2, 6, 2, 3)), rng.uniform(0.1, 0.2, (2, 6, 2, 3, 6))
    fitted, factor = predictor.fit(gamma, error), rng.uniform(0.1, 2, (3, 6))
    scaled = fitted.scaled(factor)
    np.testing.assert_allclose(scaled.predict(gamma), fitted.predict(gamma) * factor, rtol=1e-9)
    np.testing.assert_array_equal(scaled.r2, fitted.r2)
