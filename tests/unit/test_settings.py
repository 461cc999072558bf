"""Settings and recipes: every mistake is one line that names the flag and the nearest valid value."""

import json

import numpy as np
import pytest

from sixbit_jax import recipes
from sixbit_jax.errors import UserError
from sixbit_jax.pipeline import from_channels_first, plan_steps
from sixbit_jax.policies import NoCache
from sixbit_jax.settings import Settings, parse_size


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": 100}, "--height 100: needs a multiple of 16; the nearest is 96"),
        ({"width": 3}, "--width 3: needs a multiple of 16; the nearest is 16"),
        ({"num_frames": 16}, "--num-frames 16: needs 4n+1 (1, 5, 9, ... 81); the nearest is 17"),
        ({"num_frames": 0}, "the nearest is 1"),
        ({"solver": "unipcc"}, 'did you mean "unipc"?'),
        ({"schedule": "wann"}, 'did you mean "wan"?'),
        ({"num_inference_steps": 0}, "--num-inference-steps 0: needs at least 1"),
        ({"flow_shift": -1.0}, "--flow-shift -1.0: needs a positive number"),
        ({"flow_shift": float("nan")}, "--flow-shift nan"),
        ({"guidance_scale": float("nan")}, "--guidance-scale nan"),
        ({"seed": -1}, "--seed -1"),
        ({"fps": 0}, "--fps 0"),
    ],
)
def test_bad_values_are_named(change, message):
    with pytest.raises(UserError) as caught:
        Settings(**change).checked()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_defaults_are_valid():
    assert Settings().checked().latent_shape == (21, 60, 104)


@pytest.mark.parametrize("text", ["832*480", "832x480", "832X480"])
def test_size(text):
    assert parse_size(text) == (832, 480)


@pytest.mark.parametrize("text", ["832", "*480", "832*480*3", "a*b", "-16*16"])
def test_bad_size(text):
    with pytest.raises(UserError, match="WIDTH\\*HEIGHT"):
        parse_size(text)


def test_guidance_of_one_needs_one_branch():
    assert Settings(guidance_scale=1.0).branches == 1
    assert Settings(guidance_scale=1.0, guidance_scale_2=3.0).branches == 2
    assert Settings(guidance_scale=5.0).branches == 2


def test_the_second_expert_takes_over_below_the_boundary():
    settings = Settings(num_inference_steps=10, flow_shift=12.0, guidance_scale=4.0, guidance_scale_2=3.0)
    info = plan_steps(settings, boundary_ratio=0.875)
    np.testing.assert_array_equal(info.expert == 1, info.timestep < 875)
    np.testing.assert_array_equal(info.guidance, np.where(info.expert == 1, 3.0, 4.0))
    assert 0 < int(info.expert.sum()) < 10
    assert int(plan_steps(settings, boundary_ratio=None).expert.sum()) == 0


def test_latents_in_the_layout_of_diffusers():
    latents = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    ours = from_channels_first("--init-latents", latents, (2, 3, 4, 5))
    assert ours.shape == (1, 3, 4, 5, 2)
    np.testing.assert_array_equal(ours[0, ..., 1], latents[1])
    np.testing.assert_array_equal(ours, from_channels_first("--init-latents", latents[None], (2, 3, 4, 5)))


def test_bad_latents_are_named():
    with pytest.raises(UserError, match=r"--init-latents: shape \(1, 2\); these settings need \(1, 2, 3, 4, 5\)"):
        from_channels_first("--init-latents", np.zeros((1, 2)), (2, 3, 4, 5))
    with pytest.raises(UserError, match="not finite"):
        from_channels_first("--init-latents", np.full((2, 3, 4, 5), np.inf), (2, 3, 4, 5))


@pytest.mark.parametrize("name", recipes.names())
def test_recipes_survive_json(name):
    recipe = recipes.get(name)
    assert recipes.from_json(json.loads(json.dumps(recipes.to_json(recipe)))) == recipe


def test_recipe_file(tmp_path):
    recipe = recipes.Recipe("mine", dtype="f32", cache=NoCache(measure=True), attention="xla")
    (tmp_path / "mine.json").write_text(json.dumps(recipes.to_json(recipe)))
    assert recipes.load(str(tmp_path / "mine.json")) == recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1", "--recipe"),
        ('{"kind": "Recipe", "name": "x", "dtyp": "f32"}', 'did you mean "dtype"'),
        ('{"kind": "Recipy", "name": "x"}', 'did you mean "Recipe"'),
        ('{"kind": "NoCache"}', 'outermost "kind" must be "Recipe"'),
        ('{"kind": "Recipe", "name": "x", "dtype": "f16"}', 'unknown dtype "f16"'),
        ('{"kind": "Recipe"}', "name"),
        ("[]", "outermost"),
    ],
)
def test_bad_recipe_files_are_named(tmp_path, text, message):
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(UserError) as caught:
        recipes.load(str(tmp_path / "bad.json"))
    assert message in str(caught.value)


def test_unknown_recipe_names_the_nearest():
    with pytest.raises(UserError, match='did you mean "bf16"'):
        recipes.get("bf61")
