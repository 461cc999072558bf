"""Converters against the libraries that write and read these files: diffusers, transformers, torch, safetensors."""

import json

import diffusers
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from memory_source import memory_reader

from converters import rules as engine
from converters.components import COMPONENTS, DTYPES
from converters.convert import convert_checkpoint
from converters.export import export_component
from converters.random_pipeline import write_random_pipeline
from converters.read import open_file
from sixbit_jax import checkpoint

pytestmark = pytest.mark.parity

# Wan2.1's two kinds of image-to-video read image tokens; FLF2V has positions for them.
_DIT = {"num_attention_heads": 1, "num_layers": 2, "ffn_dim": 192, "text_dim": 32}
_IMAGE_DIT = _DIT | {"in_channels": 36, "image_dim": 48, "added_kv_proj_dim": 128, "pos_embed_seq_len": 10}
_TEXT = {"vocab_size": 40, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
# Of each kind: the component it is, and a small model made by the library that owns it.
MODELS = {
    "transformer": ("transformer", lambda: diffusers.WanTransformer3DModel(**_DIT)),
    "image_transformer": ("transformer", lambda: diffusers.WanTransformer3DModel(**_IMAGE_DIT)),
    "vae": ("vae", lambda: diffusers.AutoencoderKLWan(base_dim=16)),
    "text_encoder": ("text_encoder", lambda: transformers.UMT5EncoderModel(transformers.UMT5Config(**_TEXT))),
}


@pytest.fixture(params=MODELS)
def made(request):
    """(component, module)"""
    component, make = MODELS[request.param]
    torch.manual_seed(0)
    return component, make()


def numpy_state(module):
    return {key: value.detach().numpy() for key, value in module.state_dict().items()}


def test_round_trip_through_both_namings_is_exact(made):
    """diffusers keys -> ours -> original keys -> ours -> diffusers keys."""
    component, module = made
    kind, source = COMPONENTS[component], numpy_state(module)
    config = kind.table.infer_config({key: x.shape for key, x in source.items()}, "diffusers")
    abstract = kind.abstract_params(config, DTYPES["f32"])
    tables = {naming: kind.table.rules(config, naming) for naming in kind.table.MARKERS}
    ignored = kind.table.IGNORED["diffusers"]
    ours = engine.convert(memory_reader(source), tables["diffusers"], abstract, ignored=ignored)
    original = dict(engine.revert(ours, tables["original"]))
    assert kind.table.MARKERS["original"] in original
    again = engine.convert(memory_reader(original), tables["original"], abstract)
    back = dict(engine.revert(again, tables["diffusers"]))
    assert back.keys() == source.keys() - set(ignored)
    for key, array in back.items():
        np.testing.assert_array_equal(array, source[key])


def test_exported_folders_load_in_the_owners_library(made, tmp_path):
    component, module = made
    module.save_pretrained(tmp_path / "theirs")
    convert_checkpoint(tmp_path / "theirs", tmp_path / "ours", "f32", compare=True)
    values, params = checkpoint.load_numpy(tmp_path / "ours", component)
    kind = COMPONENTS[component]
    export_component(tmp_path / "back", kind, kind.config.from_dict(values), params, shard_bytes=100_000)
    loaded = type(module).from_pretrained(tmp_path / "back")
    expected, found = numpy_state(module), numpy_state(loaded)
    assert found.keys() == expected.keys()
    for key, array in expected.items():
        np.testing.assert_array_equal(found[key], array)


def test_sharded_folders_of_diffusers_convert(tmp_path):
    module = diffusers.WanTransformer3DModel(**_DIT)
    module.save_pretrained(tmp_path / "theirs", max_shard_size="500KB")
    assert (tmp_path / "theirs" / "diffusion_pytorch_model.safetensors.index.json").is_file()
    _, (result,) = convert_checkpoint(tmp_path / "theirs", tmp_path / "ours", "bf16", compare=True)
    assert result.verified == len(module.state_dict())


_DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn]


# torch itself cannot read f8 from its old format.
@pytest.mark.parametrize(("dtype", "zipped"), [*((d, True) for d in _DTYPES), *((d, False) for d in _DTYPES[:3])])
def test_pth_files_read_bit_for_bit(tmp_path, zipped, dtype):
    values = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    state = {"w": values, "strided": values.T, "parameter": torch.nn.Parameter(values, requires_grad=True)}
    torch.save(state, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    tensors = open_file(tmp_path / "a.pth")
    for key, tensor in state.items():
        found = tensors[key].load()
        assert (found.shape, tensors[key].shape) == (tuple(tensor.shape),) * 2
        assert found.dtype == tensors[key].dtype
        np.testing.assert_array_equal(found.astype(np.float32), tensor.detach().float().numpy())


def test_pth_and_safetensors_give_the_same_checkpoint(made, tmp_path):
    component, module = made
    state = {key: value.contiguous() for key, value in module.state_dict().items()}
    state.pop("encoder.embed_tokens.weight", None)  # tied: safetensors refuses to write memory twice
    torch.save({"state_dict": state}, tmp_path / "a.pth")
    safetensors.torch.save_file(state, tmp_path / "b.safetensors")
    for name in ("a.pth", "b.safetensors"):
        convert_checkpoint(tmp_path / name, tmp_path / name[0], "f32")
    left, right = (checkpoint.load_numpy(tmp_path / name, component)[1] for name in "ab")
    assert engine.flatten(left).keys() == engine.flatten(right).keys()
    for path, array in engine.flatten(left).items():
        np.testing.assert_array_equal(array, engine.flatten(right)[path])


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"not a pickle", "damaged, or it holds more than tensors"), (b"PK\x03\x04", "damaged")],
)
def test_damaged_pth_files_are_one_line(tmp_path, content, message):
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        open_file(tmp_path / "a.pth")
    assert "\n" not in str(caught.value)


class Trap:
    """What a hostile pickle does: run code when loaded."""

    def __reduce__(self):
        return print, ("ran",)


def test_pth_files_with_code_are_refused(tmp_path, capsys):
    torch.save({"w": torch.zeros(1), "trap": Trap()}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="holds more than tensors"):
        open_file(tmp_path / "a.pth")
    assert "ran" not in capsys.readouterr().out


def test_bf16_files_of_torch_are_read_exactly(tmp_path):
    values = {"w": torch.randn(7, 3, generator=torch.Generator().manual_seed(0)).bfloat16()}
    safetensors.torch.save_file(values, tmp_path / "a.safetensors")
    found = open_file(tmp_path / "a.safetensors")["w"].load()
    assert found.dtype.name == "bfloat16"
    np.testing.assert_array_equal(found.view(np.int16), values["w"].view(torch.int16).numpy())


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipelines") / "tiny"
    write_random_pipeline(folder, dtype="bf16")
    return folder


# transformers warns about its own deprecated paths.
@pytest.mark.filterwarnings("default")
def test_the_random_pipeline_runs_in_diffusers(pipeline):
    pipe = diffusers.WanPipeline.from_pretrained(pipeline, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    video = pipe("a red circle", height=32, width=32, num_frames=5, num_inference_steps=2, output_type="np").frames
    assert video.shape == (1, 5, 32, 32, 3)
    assert np.isfinite(video).all()
    assert video.std() > 0.05


@pytest.mark.filterwarnings("default")
def test_the_random_tokenizer_means_the_same_to_transformers(pipeline):
    import tokenizers

    theirs = transformers.AutoTokenizer.from_pretrained(pipeline / "tokenizer")
    ours = tokenizers.Tokenizer.from_file(str(pipeline / "tokenizer" / "tokenizer.json"))
    for text in ("a red circle drifts to the left", "", "zebra, 12!", "猫 and dog"):
        assert theirs(text).input_ids == ours.encode(text).ids
    assert (theirs.pad_token_id, theirs.eos_token_id) == (0, 1)


def test_every_tensor_of_the_random_pipeline_is_one_diffusers_has(pipeline):
    config = json.loads((pipeline / "vae" / "config.json").read_text())
    expected = diffusers.AutoencoderKLWan.from_config(config).state_dict()
    found = open_file(pipeline / "vae" / "diffusion_pytorch_model.safetensors")
    assert {key: tensor.shape for key, tensor in found.items()} == {k: tuple(v.shape) for k, v in expected.items()}
