"""A missing or cut-off file of a pipeline folder is named in one line with exit code 2, whichever file it is.

The script's `main` runs in this process: a process a case would spend its time on imports.
"""

import importlib.util
import re
import shutil
import sys
from pathlib import Path

import pytest
from micro_pipeline import write_micro_pipeline

from converters.components import COMPONENTS
from converters.convert import plan
from converters.export import export_component
from converters.rules import convert
from converters.sources import find
from sixbit_jax import cli

ROOT = Path(__file__).resolve().parents[2]
ASSET = ROOT / "assets" / "tiny-wan"
SHARDS = tuple(f"transformer/diffusion_pytorch_model-0000{number}-of-00002.safetensors" for number in (1, 2))
NEEDED = (
    *("model_index.json", "scheduler/scheduler_config.json", "tokenizer/tokenizer.json"),
    *("text_encoder/config.json", "transformer/config.json", "vae/config.json"),
    *("text_encoder/model.safetensors", *SHARDS, "vae/diffusion_pytorch_model.safetensors"),
)
INDEX = "transformer/diffusion_pytorch_model.safetensors.index.json"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A micro pipeline whose transformer has two shards, as the bundled one has."""
    folder = write_micro_pipeline(tmp_path_factory.mktemp("whole") / "micro")
    p = plan(next(part for part in find(folder).parts if part.component == "transformer"), "f32")
    params = convert(p.reader, p.rules, p.abstract)
    shutil.rmtree(folder / "transformer")
    half = p.nbytes // 2 + 20_000
    export_component(folder / "transformer", COMPONENTS["transformer"], p.config, params, shard_bytes=half)
    return folder


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    return shutil.copytree(whole, tmp_path / "model", ignore=shutil.ignore_patterns(".sixbit-jax"))


@pytest.fixture
def sample(monkeypatch, capfd, tmp_path):
    """Run scripts/sample.py; gives the exit code and what it wrote to stderr."""
    spec = importlib.util.spec_from_file_location("sample", ROOT / "scripts" / "sample.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    def run(model: Path, *words: str) -> tuple[int, str]:
        arguments = ["--model", str(model), "--output", str(tmp_path / "out.mp4"), "--no-compile-cache", *words]
        monkeypatch.setattr(sys, "argv", ["sample.py", *arguments])
        # The flag sets it for the whole process.
        monkeypatch.setenv("SIXBIT_COMPILE_CACHE", "0")
        with pytest.raises(SystemExit) as left:
            cli.run(script.main)
        return left.value.code, capfd.readouterr()

    return run


def test_the_bundled_folder_has_no_other_kinds_of_files(whole):
    def names(folder: Path) -> set[str]:
        found = {path for path in folder.rglob("*") if path.suffix in (".json", ".safetensors")}
        relative = {str(path.relative_to(folder)) for path in found if ".sixbit-jax" not in path.parts}
        return {re.sub(r"-\d+-of-\d+", "-shard", name) for name in relative}

    assert names(ASSET) == names(whole)
    assert {re.sub(r"-\d+-of-\d+", "-shard", name) for name in (*NEEDED, INDEX)} <= names(whole)


@pytest.mark.parametrize("name", NEEDED)
def test_a_missing_file_is_named(name, folder, sample, tmp_path):
    (folder / name).unlink()
    code, said = sample(folder)
    assert code == 2
    assert name_in(said.err, folder, name, "missing", "no weights")
    assert not (tmp_path / "out.mp4").exists()


@pytest.mark.parametrize("name", [*NEEDED, INDEX, "tokenizer/tokenizer_config.json", "defaults.json"])
def test_a_truncated_file_is_named(name, folder, sample, tmp_path):
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 2])
    code, said = sample(folder)
    assert code == 2
    assert name_in(said.err, folder, name, "truncated", "damaged", "is not")
    assert not (tmp_path / "out.mp4").exists()


def name_in(stderr: str, folder: Path, name: str, *reasons: str) -> bool:
    """The last line names the file (or, where that is its only one, the folder of weights) and one of the reasons."""
    last = stderr.strip().splitlines()[-1]
    assert "Traceback" not in stderr
    assert last.startswith("sample.py: error: "), stderr
    assert str(folder / name) in last or ("no weights" in last and str((folder / name).parent) in last), stderr
    assert any(reason in last for reason in reasons), stderr
    return True


def test_unknown_words_are_said_in_one_line_and_sample(folder, sample, tmp_path):
    code, said = sample(folder, "--prompt", "a red zeppelin moves to the quux")
    assert code == 0, said.err
    assert (tmp_path / "out.mp4").stat().st_size > 0
    warnings = [line for line in said.out.splitlines() if "warning" in line]
    assert warnings == ["warning: the tokenizer does not know zeppelin, quux; the model will not either"]
    code, said = sample(folder, "--prompt", "a red circle moves to the left")
    assert (code, "warning" in said.out) == (0, False)
