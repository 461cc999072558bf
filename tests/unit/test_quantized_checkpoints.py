"""Quantizing a checkpoint, calibrating for it, and reading it back under its own recipe and under others."""

import dataclasses
import gc
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from converters.convert import cached
from converters.random_pipeline import write_random_pipeline
from sixbit_jax import calibrate, checkpoint, manifest, recipes
from sixbit_jax.components import Components, stored_recipe
from sixbit_jax.errors import UserError
from sixbit_jax.formats import QuantizedWeight
from sixbit_jax.models.wan_config import GROUP_WEIGHTS
from sixbit_jax.pipeline import WanPipeline
from sixbit_jax.policies import FixedPrecision
from sixbit_jax.quantize import linear_weights
from sixbit_jax.quantizing import quantize_checkpoint
from sixbit_jax.routes import Route

W4A8 = dataclasses.replace(recipes.get("w4a8"), dtype="f32")
PROMPTS = ("a red circle", "two blue stars")
QUICK = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    write_random_pipeline(folder, "tiny", seed=1)
    return folder


@pytest.fixture(scope="module")
def dense(model):
    return WanPipeline.load(model, "f32")


@pytest.fixture(scope="module")
def quantized(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantized") / "w4a8"
    recipe = recipes.with_text_encoder(W4A8, recipes.get("w8a8"))
    return folder, recipe, quantize_checkpoint(model, folder, recipe)


@pytest.fixture(scope="module")
def statistics(dense):
    return calibrate.collect(dense, PROMPTS, **QUICK)


def assert_trees_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x, np.float32), np.asarray(y, np.float32))


def test_a_quantized_checkpoint_is_what_quantizing_at_load_gives(model, quantized):
    folder, recipe, _ = quantized
    stored = Components.load(folder, "f32", recipe)
    loaded = Components.load(model, "f32", recipe)
    assert_trees_equal(stored.experts, loaded.experts)
    assert_trees_equal(stored.text_params, loaded.text_params)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(stored.experts))


def test_dense_checkpoints_quantize_to_the_same(model, quantized, tmp_path):
    folder, recipe, _ = quantized
    quantize_checkpoint(cached(model, "f32"), tmp_path / "again", recipe)
    for name in ("transformer", "text_encoder", "vae"):
        assert_trees_equal(checkpoint.load(tmp_path / "again", name)[1], checkpoint.load(folder, name)[1])
    entries = (checkpoint.read_manifest(path) for path in (tmp_path / "again", folder))
    first, second = (dataclasses.replace(each, source={}) for each in entries)
    assert first == second


def test_both_experts_are_quantized(tmp_path):
    write_random_pipeline(tmp_path / "two", "tiny-a14b", seed=2)
    results = quantize_checkpoint(tmp_path / "two", tmp_path / "out", W4A8)
    counts = {each.component: each.weights for each in results}
    assert counts == {"transformer": 7, "transformer_2": 7, "text_encoder": 0, "vae": 0}
    assert len(Components.load(tmp_path / "out", "f32", W4A8).experts) == 2


def test_bytes_are_those_of_the_arrays(model, quantized):
    folder, recipe, results = quantized
    components = Components.load(folder, "f32", recipe)
    measured, dense = components.weight_bytes(), components.dense_bytes()
    reported = {each.component: each for each in results}
    assert measured["transformer"] == reported["transformer"].nbytes
    assert dense["transformer"] == reported["transformer"].dense_bytes
    assert measured["text_encoder"] < dense["text_encoder"]
    assert measured["vae"] == dense["vae"]
    assert Components.load(model, "f32").weight_bytes() == dense


@pytest.mark.parametrize("stored", [False, True], ids=["quantized at load", "quantized checkpoint"])
def test_only_packed_weights_stay_on_the_device(model, quantized, stored):
    folder, recipe, _ = quantized
    before = {id(array) for array in jax.live_arrays()}
    components = Components.load(folder if stored else model, "f32", recipe)
    gc.collect()
    new = sum(array.nbytes for array in jax.live_arrays() if id(array) not in before)
    # Constants of compiled quantizers may stay; the smallest dense weight has 65,536 bytes.
    assert sum(components.weight_bytes().values()) <= new <= sum(components.weight_bytes().values()) + 60_000


def test_a_quantized_checkpoint_brings_its_recipe(model, quantized):
    folder, recipe, _ = quantized
    assert stored_recipe(folder) == recipe
    assert stored_recipe(model) is None
    assert WanPipeline.load(folder).recipe == recipe


def test_recipes_that_store_the_same_weights_share_a_checkpoint(quantized):
    """One stored NVFP4 weight serves every route."""
    folder, recipe, _ = quantized
    other = dataclasses.replace(recipe, name="mine", precision=recipes.get("w4a4").precision)
    pipe = WanPipeline.load(folder, other)
    assert np.isfinite(pipe("a red circle", **QUICK).latents).all()


@pytest.mark.parametrize("name", ["bf16", "w8a8", "quarot-w4a4"])
def test_other_recipes_are_refused_in_one_line(quantized, name):
    with pytest.raises(UserError) as caught:
        WanPipeline.load(quantized[0], name)
    message = str(caught.value)
    assert "its transformer is quantized with recipe w4a8, whose weights are not those of" in message
    assert name in message
    assert "\n" not in message


def test_what_is_quantized_stays_so(quantized, tmp_path):
    with pytest.raises(UserError, match="its transformer is quantized already, with recipe w4a8"):
        quantize_checkpoint(quantized[0], tmp_path / "again", W4A8)


def test_a_checkpoint_that_does_not_fit_its_recipe_is_refused(model, tmp_path):
    quantize_checkpoint(model, tmp_path / "made", W4A8)
    file = tmp_path / "made" / manifest.FILE_NAME
    data = json.loads(file.read_text())
    data["components"]["transformer"]["recipe"] = recipes.to_json(recipes.get("w8a8"))
    file.write_text(json.dumps(data))
    with pytest.raises(UserError, match=r"does not fit its recipe: .*; quantize the checkpoint again"):
        WanPipeline.load(tmp_path / "made")


def test_methods_that_do_not_fit_are_refused_before_anything_is_written(model, tmp_path):
    rotated = recipes.with_text_encoder(W4A8, recipes.get("quarot-w4a4"))  # its width of 64 has no block of 128
    with pytest.raises(UserError, match=r"text_encoder/blocks/\S+: hadamard: the last axis of x"):
        quantize_checkpoint(model, tmp_path / "made", rotated)
    balanced = recipes.with_text_encoder(W4A8, recipes.get("smoothquant-w4a4"))
    with pytest.raises(UserError, match=r"needs statistics.absmax; .*; calibration does not run on the text encoder"):
        quantize_checkpoint(model, tmp_path / "made", balanced)
    assert not (tmp_path / "made").exists()


def test_calibration_sees_every_input(dense, statistics):
    """Against the inputs themselves: the largest value of every channel, from a run by hand."""
    params = dense.components.experts[0]
    blocks = {path: w for path, w in linear_weights(params).items() if path.startswith("blocks/")}
    assert set(statistics["transformer"]) == set(blocks)
    for path, weight in blocks.items():
        absmax = statistics["transformer"][path].absmax
        assert absmax.shape == (*weight.shape[:-2], weight.shape[-1])
        assert (np.asarray(absmax) >= 0).all()
        assert np.asarray(absmax).max() > 0


def test_calibration_is_the_maximum_over_its_prompts(dense, statistics):
    alone = [
        calibrate.collect(dense, [prompt], seed=seed, **QUICK)["transformer"] for seed, prompt in enumerate(PROMPTS)
    ]
    for path, both in statistics["transformer"].items():
        larger = np.maximum(*(np.asarray(each[path].absmax) for each in alone))
        np.testing.assert_allclose(both.absmax, larger, rtol=1e-6)
    assert any(not np.allclose(alone[0][path].absmax, alone[1][path].absmax) for path in GROUP_WEIGHTS.values())


def test_scaling_an_input_scales_its_statistics(dense, statistics):
    """A norm's bias in front of cross-attention's queries moves exactly what they see."""
    components = dense.components
    params = jax.tree.map(lambda leaf: leaf, components.experts[0])
    norm = dict(params["blocks"]["cross_norm"])
    norm["bias"] = norm["bias"].at[:, 5].set(1e4)
    params["blocks"] = params["blocks"] | {"cross_norm": norm}
    pipe = WanPipeline(dataclasses.replace(components, experts=(params,)), dense.recipe)
    seen = calibrate.collect(pipe, PROMPTS[:1], **QUICK)["transformer"][GROUP_WEIGHTS["cross_q"]].absmax
    assert (np.asarray(seen)[:, 5] > 0.99e4).all()
    assert (np.delete(np.asarray(seen), 5, axis=1) < 1e3).all()


def test_statistics_survive_their_file(statistics, tmp_path):
    calibrate.save(tmp_path / "s.npz", statistics, {"model": "tiny"})
    read = calibrate.load(tmp_path / "s.npz")
    assert_trees_equal(read, statistics)


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda path: None, "No such file"),
        (lambda path: path.write_text("x"), "not a .npz file"),
        (lambda path: np.savez(path, **{"encoder/w": np.ones(3)}), "has none of a transformer"),
        (lambda path: np.savez(path, facts="{}"), "has none of a transformer"),
    ],
)
def test_bad_statistics_are_named(tmp_path, write, words):
    write(tmp_path / "s.npz")
    with pytest.raises(UserError, match=words) as caught:
        calibrate.load(tmp_path / "s.npz")
    assert "--statistics" in str(caught.value)


def test_calibration_refuses_a_quantized_model(quantized):
    with pytest.raises(UserError, match="recipe w4a8 is quantized"):
        calibrate.collect(WanPipeline.load(quantized[0]), PROMPTS)


def test_balanced_recipes_sample_after_calibration(model, statistics):
    pipe = WanPipeline.load(model, "svdquant-w4a4", dtype="f32", statistics=statistics)
    weight = pipe.components.experts[0]["blocks"]["ffn_in"]["weight"]
    assert isinstance(weight, QuantizedWeight)
    assert weight.smooth.shape == (2, 256)
    assert weight.low_rank[0].dtype == jnp.bfloat16
    assert np.isfinite(pipe("a red circle", **QUICK).latents).all()


def test_unknown_implementations_are_named_before_anything_is_read(model):
    route = recipes.Recipe("mine", weights=W4A8.weights, precision=FixedPrecision(Route("int8", "palas")))
    with pytest.raises(UserError, match='"mine": unknown linear implementation "palas"'):
        WanPipeline.load(model, route)
    with pytest.raises(UserError, match='unknown attention implementation "flash"'):
        WanPipeline.load(model, "w4a8", attention="flash")


def test_explain_lists_every_linear_and_attention_and_why(quantized):
    folder, _, _ = quantized
    pipe = WanPipeline.load(folder)
    # What is picked depends on the machine, and is said with the reasons against those tried before.
    explained = pipe.explain(**QUICK).splitlines()
    lines = [line.partition(": xla")[0] for line in explained]
    assert all(": xla" in line for line in explained)
    assert "transformer/blocks/ffn_in/weight: 2 of (512, 256) nvfp4, activations int8" in lines
    assert "transformer/blocks/cross_attention/kv/weight: 2 of (512, 256) nvfp4, activations as they come" in lines
    assert "transformer/head/weight: (64, 256) float32, activations as they come" in lines
    assert "text_encoder/blocks/ffn_out/weight: 2 of (64, 128) int8, activations as they come" in lines
    expected = sum(len(linear_weights(tree)) for tree in (pipe.components.experts[0], pipe.components.text_params))
    attentions = [line for line in lines if "weight: " not in line]
    assert [line.split(": ")[0].rsplit("/", 1)[1] for line in attentions] == ["self_attention", "cross_attention"]
    assert len(lines) == expected + len(attentions)
