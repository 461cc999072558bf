"""From inputs to checkpoints on the tiny random pipeline: layouts, configurations, refusals, the cache."""

import hashlib
import json
import os
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest

from converters import convert as conversion
from converters.components import COMPONENTS, KINDS
from converters.convert import cached, convert_checkpoint, plan
from converters.export import export_component
from converters.random_pipeline import write_random_pipeline
from converters.read import open_files, weight_files
from converters.rules import revert
from converters.safetensors_file import write_file
from converters.sources import Part, find
from sixbit_jax import checkpoint
from sixbit_jax.errors import UserError


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipelines") / "tiny"
    write_random_pipeline(folder)
    return folder


@pytest.fixture
def copy(pipeline, tmp_path):
    """A pipeline that a test may spoil."""
    shutil.copytree(pipeline, tmp_path / "input")
    return tmp_path / "input"


def save(path, arrays):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, arrays.items(), {key: (x.dtype, x.shape) for key, x in arrays.items()})


def tensors(folder):
    reader = open_files(weight_files(folder))
    return {key: np.array(reader.read(key)) for key in reader.keys()}  # noqa: SIM118


def in_original_naming(folder, component):
    """The tensors of a diffusers component under the original repository's keys."""
    kind = COMPONENTS[component]
    p = plan(Part(component, weight_files(folder), folder / "config.json"), "f32")
    params = conversion.engine.convert(p.reader, p.rules, p.abstract, ignored=p.ignored)
    return dict(revert(params, kind.table.rules(p.config, "original")))


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_a_pipeline_becomes_a_checkpoint_with_everything_in_it(pipeline, tmp_path, dtype):
    output = tmp_path / "made"
    source, results = convert_checkpoint(pipeline, output, dtype, compare=True)
    manifest = checkpoint.read_manifest(output)
    assert [result.component for result in results] == ["transformer", "text_encoder", "vae"]
    assert all(result.verified == result.tensors for result in results)
    assert {name: entry.dtype for name, entry in manifest.components.items()} == {
        "transformer": dtype,
        "text_encoder": dtype,
        "vae": "f32",
    }
    assert manifest.pipeline["defaults"]["flow_shift"] == 3.0
    assert manifest.pipeline["defaults"]["prompt"] == "a red circle drifts to the left"
    assert set(os.listdir(output / "tokenizer")) == {"tokenizer.json", "tokenizer_config.json"}
    assert set(manifest.source["files"]) == {str(file.relative_to(pipeline)) for file in source.files()}
    for name, kind in COMPONENTS.items():
        if name in manifest.components:
            config = kind.config.from_dict(manifest.components[name].config)
            wanted = kind.abstract_params(config, conversion.DTYPES[kind.dtype(dtype)])
            checkpoint.load(output, name, wanted)


def test_source_hashes_are_those_of_the_files(pipeline, tmp_path):
    convert_checkpoint(pipeline, tmp_path / "made", "f32", component="text_encoder")
    files = checkpoint.read_manifest(tmp_path / "made").source["files"]
    name = "text_encoder/model.safetensors"
    assert files[name] == {
        "bytes": (pipeline / name).stat().st_size,
        "sha256": hashlib.sha256((pipeline / name).read_bytes()).hexdigest(),
    }


def test_values_are_the_sources(pipeline, tmp_path):
    convert_checkpoint(pipeline, tmp_path / "made", "bf16", component="transformer")
    _, params = checkpoint.load_numpy(tmp_path / "made", "transformer")
    source = tensors(pipeline / "transformer")
    weight = params["blocks"]["self_attention"]["qkv"]["weight"]
    np.testing.assert_array_equal(weight[1, :256], source["blocks.1.attn1.to_q.weight"].astype(ml_dtypes.bfloat16))
    np.testing.assert_array_equal(params["blocks"]["modulation"][0], source["blocks.0.scale_shift_table"][0])


@pytest.fixture(scope="module")
def original(pipeline, tmp_path_factory):
    """The tiny transformer as the original repository stores it: no index, two shards, its own configuration."""
    folder = tmp_path_factory.mktemp("original") / "Wan"
    renamed = in_original_naming(pipeline / "transformer", "transformer")
    keys = list(renamed)
    for number, part in enumerate((keys[:30], keys[30:])):
        save(folder / f"diffusion_pytorch_model-{number}.safetensors", {key: renamed[key] for key in part})
    config = {"_class_name": "WanModel", "model_type": "t2v", "dim": 256, "num_heads": 2, "num_layers": 2}
    config |= {"ffn_dim": 512, "freq_dim": 256, "in_dim": 16, "out_dim": 16, "text_len": 512, "eps": 1e-6}
    # The real file does not say text_dim, which has one value there; the tiny model has another.
    (folder / "config.json").write_text(json.dumps(config | {"text_dim": 64}))
    return folder


def same_component(a, b, name):
    left, right = checkpoint.load_numpy(a, name)[1], checkpoint.load_numpy(b, name)[1]
    return jax.tree.all(jax.tree.map(lambda x, y: x.tobytes() == y.tobytes(), left, right))


def test_original_naming_gives_the_same_parameters(pipeline, original, tmp_path):
    convert_checkpoint(pipeline, tmp_path / "a", "f32", component="transformer")
    convert_checkpoint(original, tmp_path / "b", "f32", compare=True)
    assert same_component(tmp_path / "a", tmp_path / "b", "transformer")
    configs = [checkpoint.read_manifest(tmp_path / name).components["transformer"].config for name in "ab"]
    assert configs[0] == configs[1]


def test_two_experts_are_told_by_their_folders(original, tmp_path):
    for name in ("high_noise_model", "low_noise_model"):
        shutil.copytree(original, tmp_path / "A14B" / name)
    source = find(tmp_path / "A14B")
    assert [(part.component, part.files[0].parent.name) for part in source.parts] == [
        ("transformer", "high_noise_model"),
        ("transformer_2", "low_noise_model"),
    ]
    assert source.pipeline["boundary_ratio"] == 0.875
    assert source.pipeline["defaults"] == {
        "schedule": "wan",
        "solver": "unipc",
        "flow_shift": 12.0,
        "num_inference_steps": 40,
        "guidance_scale": 4.0,
        "guidance_scale_2": 3.0,
    }


def test_a_diffusers_pipeline_with_two_experts(tmp_path):
    write_random_pipeline(tmp_path / "in", "tiny-a14b")
    source = find(tmp_path / "in")
    assert {part.component for part in source.parts} == set(COMPONENTS)
    assert source.pipeline["boundary_ratio"] == 0.875


@pytest.mark.parametrize(
    ("component", "naming", "prefix"),
    [
        ("transformer", "diffusers", "model.diffusion_model."),
        ("transformer", "original", "diffusion_model."),
        ("text_encoder", "diffusers", "model."),
        ("text_encoder", "original", ""),
        ("vae", "diffusers", ""),
        ("vae", "original", ""),
    ],
)
def test_single_files_are_told_by_their_keys(pipeline, tmp_path, component, naming, prefix):
    folder = pipeline / component
    arrays = tensors(folder) if naming == "diffusers" else in_original_naming(folder, component)
    save(tmp_path / "model.safetensors", {f"{prefix}{key}": x for key, x in arrays.items()})
    convert_checkpoint(tmp_path / "model.safetensors", tmp_path / "made", "f32")
    convert_checkpoint(pipeline, tmp_path / "expected", "f32", component=component)
    assert same_component(tmp_path / "made", tmp_path / "expected", component)


def test_what_a_pipeline_says_about_sampling(copy):
    scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 8}
    (copy / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    (copy / "defaults.json").write_text(json.dumps({"fps": 24}))
    expected = {"schedule": "diffusers", "solver": "euler", "flow_shift": 8.0, "fps": 24}
    assert find(copy).pipeline == {"defaults": expected, "boundary_ratio": None, "expand_timesteps": False}


def test_components_of_no_use_here_are_skipped_by_name(copy):
    index = json.loads((copy / "model_index.json").read_text())
    index |= {"image_encoder": ["transformers", "CLIPVisionModel"], "image_processor": ["transformers", "X"]}
    (copy / "model_index.json").write_text(json.dumps(index))
    assert find(copy).skipped == ("image_encoder", "image_processor")


def test_a_component_folder_is_an_input_of_its_own(pipeline):
    source = find(pipeline / "vae")
    assert [(part.component, part.config) for part in source.parts] == [("vae", pipeline / "vae" / "config.json")]


@pytest.mark.parametrize("component", ["transformer", "text_encoder"])
def test_exported_folders_convert_back_exactly(pipeline, tmp_path, component):
    convert_checkpoint(pipeline, tmp_path / "made", "bf16", component=component)
    values, params = checkpoint.load_numpy(tmp_path / "made", component)
    kind = COMPONENTS[component]
    export_component(tmp_path / "out", kind, kind.config.from_dict(values), params, shard_bytes=60_000)
    assert len(list((tmp_path / "out").glob("*-of-*.safetensors"))) > 1
    convert_checkpoint(tmp_path / "out", tmp_path / "again", "bf16")
    assert same_component(tmp_path / "made", tmp_path / "again", component)


def test_shards_keep_to_their_size(pipeline, tmp_path):
    p = plan(Part("transformer", weight_files(pipeline / "transformer")), "f32")
    params = conversion.engine.convert(p.reader, p.rules, p.abstract)
    limit = 2_000_000
    export_component(tmp_path / "out", p.kind, p.config, params, shard_bytes=limit)
    sizes = [path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors")]
    header = 50_000
    assert len(sizes) > p.nbytes // limit
    assert max(sizes) < limit + header
    assert sum(sizes) == pytest.approx(p.nbytes, abs=len(sizes) * header)


def refuse(path, output, message, **options):
    with pytest.raises(UserError, match=message) as caught:
        convert_checkpoint(path, output, "bf16", **options)
    assert "\n" not in str(caught.value)
    assert not output.exists()
    assert not list(output.parent.glob(".*partial*"))


def spoil(folder, change):
    path = next(folder.glob("*.safetensors"))
    arrays = tensors(folder)
    change(arrays)
    save(path, arrays)


def test_both_sides_of_a_misfit_are_listed(copy, tmp_path):
    def change(arrays):
        arrays["blocks.0.extra"] = arrays.pop("blocks.0.ffn.net.2.bias")

    spoil(copy / "transformer", change)
    message = r"tensors and config\.json do not make a transformer: unknown source keys: blocks\.0\.extra; unfilled"
    refuse(copy, tmp_path / "made", message)


def test_a_configuration_that_disagrees_is_refused(copy, tmp_path):
    path = copy / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_layers": 3}))
    refuse(copy, tmp_path / "made", r"unfilled targets: .*blocks\.2\.")


def test_a_wrong_shape_is_named(copy, tmp_path):
    def change(arrays):
        arrays["proj_out.bias"] = arrays["proj_out.bias"][:-1]

    spoil(copy / "transformer", change)
    refuse(copy, tmp_path / "made", r"proj_out\.bias has shape \(63,\), expected \(64,\)")


def test_an_unknown_model_is_refused(tmp_path):
    save(tmp_path / "unet.safetensors", {"down_blocks.0.weight": np.zeros(2, np.float32)})
    refuse(tmp_path / "unet.safetensors", tmp_path / "made", "not a model this converter knows")


def test_too_few_tensors_for_a_configuration(tmp_path):
    marker = KINDS["transformer"].table.MARKERS["diffusers"]
    save(tmp_path / "dit.safetensors", {marker: np.zeros((2, 2), np.float32)})
    refuse(tmp_path / "dit.safetensors", tmp_path / "made", "tensors are missing, its configuration cannot be told")


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "no such file or folder"),
        (lambda folder: (folder / "model_index.json").unlink(), "model_index.json: missing"),
        (lambda folder: (folder / "vae" / "config.json").unlink(), "vae/config.json: missing"),
        (lambda folder: shutil.rmtree(folder / "scheduler"), "scheduler/scheduler_config.json: missing"),
        (lambda folder: (folder / "model_index.json").write_text("{"), "model_index.json: damaged"),
        (lambda folder: (folder / "vae" / "config.json").write_text("nope"), "config.json: damaged"),
        (lambda folder: (folder / "vae" / "config.json").write_text('{"z_dim": 3}'), "vae/config.json: VAE config"),
        (
            lambda folder: (folder / "transformer" / "config.json").write_text("{}"),
            "config.json: .* is missing",
        ),
        (lambda folder: shutil.rmtree(folder / "vae"), "vae: no weights"),
        (lambda folder: os.truncate(folder / "vae" / "diffusion_pytorch_model.safetensors", 10**6), "truncated"),
    ],
)
def test_spoiled_inputs(copy, tmp_path, prepare, message):
    prepare(copy)
    refuse(copy, tmp_path / "made", message)


def test_half_written_checkpoints_are_called_that(pipeline, tmp_path):
    convert_checkpoint(pipeline, tmp_path / "half", "f32", component="vae")
    (tmp_path / "half" / "manifest.json").unlink()
    refuse(tmp_path / "half", tmp_path / "made", "half-written checkpoint")


def test_an_absent_component_is_refused(pipeline, tmp_path):
    refuse(pipeline, tmp_path / "made", r'has no vaee; did you mean "vae"', component="vaee")


def test_no_room_is_seen_before_anything_is_written(pipeline, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    refuse(pipeline, tmp_path / "made", r"needs 0\.\d\d GB, 0\.00 GB are free")


def test_a_difference_found_by_verify_leaves_nothing(pipeline, tmp_path, monkeypatch):
    read_back = checkpoint.Draft.read_back

    def flip(draft, name):
        params = read_back(draft, name)
        params["embedding"]["weight"][3, 3] *= 2
        return params

    monkeypatch.setattr(checkpoint.Draft, "read_back", flip)
    message = r"--verify: 1 tensors differ from the source, the first is shared\.weight"
    refuse(pipeline, tmp_path / "made", message, component="text_encoder", compare=True)


@pytest.mark.parametrize("unwritable", [False, True])
def test_the_cache_converts_once_and_again_when_the_input_changes(copy, tmp_path, monkeypatch, unwritable):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    access = lambda path, mode: not (unwritable and str(path).startswith(str(copy)))
    monkeypatch.setattr(conversion.os, "access", access)
    first = cached(copy, "bf16")
    assert first.is_relative_to(tmp_path / "cache" if unwritable else copy)
    made = (first / "manifest.json").stat().st_mtime_ns
    assert cached(copy, "bf16") == first
    assert (first / "manifest.json").stat().st_mtime_ns == made
    assert cached(copy, "f32") != first
    spoil(copy / "vae", lambda arrays: arrays["decoder.conv_out.bias"].fill(7.0))
    assert cached(copy, "bf16") == first
    np.testing.assert_array_equal(checkpoint.load(first, "vae")[1]["decoder"]["conv_out"]["bias"], np.full(3, 7.0))


def test_the_loser_of_a_race_takes_the_winners_checkpoint(copy, monkeypatch):
    convert = conversion.convert_checkpoint

    def interrupted_by_a_faster_run(path, output, dtype, **options):
        convert(path, output, dtype, **options)
        return convert(path, output, dtype, **options)

    monkeypatch.setattr(conversion, "convert_checkpoint", interrupted_by_a_faster_run)
    assert checkpoint.is_checkpoint(cached(copy, "bf16"))


def test_random_pipelines_are_a_function_of_their_seed(pipeline, tmp_path):
    write_random_pipeline(tmp_path / "same")
    write_random_pipeline(tmp_path / "other", seed=1)
    name = "transformer/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "same" / name).read_bytes() == (pipeline / name).read_bytes()
    assert (tmp_path / "other" / name).read_bytes() != (pipeline / name).read_bytes()


def test_unknown_sizes_are_refused(tmp_path):
    with pytest.raises(UserError, match='--size: unknown size "2B"'):
        write_random_pipeline(tmp_path / "made", "2B")
    assert not (tmp_path / "made").exists()
