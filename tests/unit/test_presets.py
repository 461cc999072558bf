"""Calibrations as files: found by weights and recipe, refused where they do not belong."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from micro_pipeline import MICRO, write_micro_pipeline

from sixbit_jax import checkpoint, presets, recipes
from sixbit_jax.components import locate
from sixbit_jax.errors import UserError
from sixbit_jax.models.wan_config import GROUPS
from sixbit_jax.presets import Preset, read_preset, write_preset
from sixbit_jax.presets.preset import stored_weights

ADAPTIVE = ("6bit", "6bit-predictor-only", "6bit-tdc-only", "6bit-no-pdr", "fast")
TABLE = ((0.5,) * len(GROUPS),) * MICRO.transformer.num_layers


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_micro_pipeline(tmp_path_factory.mktemp("model") / "micro")


@pytest.fixture
def preset(model, request) -> Preset:
    """Of this model and of the recipe 6bit, and nowhere to be found yet."""
    contents = checkpoint.read_manifest(locate(model, "f32")).contents
    weights = stored_weights(recipes.get("6bit"))
    found = Preset("micro", contents, weights, "nvfp4", 20, TABLE, TABLE, 0.3, 0.1, 0.2, (1, 0), {})
    request.addfinalizer(lambda: [file.unlink() for file in presets.home(model, "f32").glob("*.json")])
    return found


def get(name: str) -> Any:
    return dataclasses.replace(recipes.get(name), dtype="f32")


def place(model: Path, name: str, preset: Preset) -> Path:
    file = presets.home(model, "f32") / name
    write_preset(file, preset)
    return file


@pytest.mark.parametrize("name", ADAPTIVE)
def test_every_adaptive_recipe_is_completed(model, preset, name):
    place(model, "one.json", preset)
    recipe, found = presets.complete(get(name), model)
    assert found == preset
    assert not recipe.precision.missing
    assert not recipe.cache.missing
    assert recipes.from_json(recipes.to_json(recipe)) == recipe
    assert getattr(recipe.cache, "tau", 0.2) == 0.2
    assert getattr(recipe.cache, "order", (1, 0)) == (1, 0)
    assert getattr(recipe.precision, "slope", TABLE) == TABLE
    threshold = 0.3 if name == "6bit-predictor-only" else 0.1
    assert getattr(recipe.precision, "error_threshold", threshold) == threshold, "beside a cache there is another one"
    assert presets.complete(recipe, model) == (recipe, None), "complete already"


def test_what_is_set_by_hand_stays(model, preset):
    place(model, "one.json", preset)
    by_hand = recipes.with_flags(get("6bit"), {"--tau": 0.7, "--error-threshold": None, "--cache-budget-gb": None})
    recipe, _ = presets.complete(by_hand, model)
    assert (recipe.cache.tau, recipe.precision.error_threshold) == (0.7, 0.1)


def test_of_several_the_closest_number_of_steps_is_taken(model, preset):
    place(model, "a.json", preset)
    place(model, "b.json", dataclasses.replace(preset, steps=50, tau=0.3))
    tau = lambda steps: presets.complete(get("6bit"), model, steps=steps)[0].cache.tau
    assert [tau(4), tau(36), tau(100)] == [0.2, 0.3, 0.3]


def test_without_one_the_command_is_said(model):
    with pytest.raises(UserError) as caught:
        presets.complete(get("6bit"), model)
    command = f"`python scripts/calibrate.py --model {model} --recipe 6bit`"
    for words in ("no calibration for", command, "--error-threshold and --tau"):
        assert words in str(caught.value)


def test_both_thresholds_by_hand_need_none(model):
    by_hand = recipes.with_flags(get("6bit"), {"--tau": 0.2, "--error-threshold": 0.3})
    recipe, found = presets.complete(by_hand, model)
    assert found is None
    assert recipe.precision.slope is None


def test_another_model_or_recipe_is_refused(model, preset, tmp_path):
    other = dataclasses.replace(preset, contents="0" * 24, model="another")
    place(model, "other.json", other)
    with pytest.raises(UserError, match="no calibration for"):
        presets.complete(get("6bit"), model)
    write_preset(tmp_path / "other.json", other)
    with pytest.raises(UserError, match="calibrated on another, whose weights are not those of"):
        presets.complete(get("6bit"), model, file=tmp_path / "other.json")
    int4 = dataclasses.replace(preset, low="int4")
    write_preset(tmp_path / "int4.json", int4)
    with pytest.raises(UserError, match=r"another low route \(int4\)"):
        presets.complete(get("6bit"), model, file=tmp_path / "int4.json")
    assert presets.complete(get("fast"), model, file=tmp_path / "int4.json")[0].cache.tau == 0.2
    place(model, "int4.json", int4)
    with pytest.raises(UserError, match="only calibrations of other recipes"):
        presets.complete(get("6bit"), model)
    with pytest.raises(UserError, match="leaves nothing to it"):
        presets.complete(get("w4a8"), model, file=tmp_path / "int4.json")


@pytest.mark.parametrize("text", ["", "[]", "{}", json.dumps({"kind": "sixbit-jax preset", "tau": 1})])
def test_broken_files_are_named(tmp_path, text):
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(UserError, match=r"bad.json: not a preset; scripts/calibrate.py makes them"):
        read_preset(tmp_path / "bad.json")
    with pytest.raises(UserError, match="No such file"):
        read_preset(tmp_path / "absent.json")


@pytest.mark.parametrize(
    ("name", "values", "says"),
    [
        ("w4a8", {"--tau": 0.1}, "--tau: recipe w4a8 has no delta cache"),
        ("6bit-tdc-only", {"--error-threshold": 0.1}, "no predicted precision"),
        ("6bit", {"--tau": -1.0}, "--tau -1.0: needs a number from 0 up"),
        ("6bit", {"--error-threshold": float("nan")}, "--error-threshold nan"),
    ],
)
def test_flags_that_do_not_fit_are_named(name, values, says):
    with pytest.raises(UserError, match=says):
        recipes.with_flags(recipes.get(name), values)


def test_shipped_presets_are_whole():
    """One for tiny-wan under the recipe that README names: it has to sample out of the box."""
    files = sorted(Path(presets.__file__).parent.glob("*.json"))
    asset = Path(__file__).resolve().parents[2] / "assets" / "tiny-wan"
    recipe, found = presets.complete(get("6bit"), asset)
    assert found in [read_preset(file) for file in files]
    assert {read_preset(file).low for file in files} == {"nvfp4"}
    assert len(recipe.cache.order) == len(recipe.precision.slope)
