"""`scripts/outlier_twin.py`: a folder that loads like the original, makes the same video, and says what was planted.

Error model: see `tests/unit/test_outliers.py`; each model call differs by some 1e-6 of its scale, guidance of 3 and two
steps make 1e-5 of it. A level of 255 is 8e-3 of the decoder's range.
"""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from micro_pipeline import write_micro_pipeline

from sixbit_jax import block_statistics, cli
from sixbit_jax.pipeline import WanPipeline
from sixbit_jax.tiny.outliers import SITES

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "a red circle moves left"


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    return write_micro_pipeline(tmp_path_factory.mktemp("original") / "micro")


@pytest.fixture
def run(monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("outlier_twin", ROOT / "scripts" / "outlier_twin.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["outlier_twin.py", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            cli.run(script.main)
        return left.value.code, *capsys.readouterr()

    return run


def test_the_twin_makes_the_same_video_and_is_loud(run, original, tmp_path):
    code, said, errors = run("--model", original, "--output", tmp_path / "twin", "--channels", 8)
    assert (code, errors) == (0, "")
    assert said.startswith(f"wrote {tmp_path / 'twin'}")
    pipes = [WanPipeline.load(folder, "f32") for folder in (original, tmp_path / "twin")]
    videos = [pipe(PROMPT, seed=4) for pipe in pipes]
    scale = np.abs(videos[0].latents).max()
    assert 0 < np.abs(videos[0].latents - videos[1].latents).max() < 1e-4 * scale
    assert np.abs(videos[0].video.astype(int) - videos[1].video).max() <= 1
    before, after = (block_statistics.collect(pipe, [PROMPT]) for pipe in pipes)
    np.testing.assert_allclose(before.gamma, after.gamma, rtol=1e-3)
    for site in SITES:
        # Heads of 32 channels, two of them 32 times louder: at most 16 times the mean of all.
        assert (after.ratio[site] / before.ratio[site]).mean() > 2
    np.testing.assert_allclose(before.ratio["ffn_out"], after.ratio["ffn_out"], rtol=1e-3)


def test_the_folder_says_what_was_planted(run, original, tmp_path):
    assert run("--model", original, "--output", tmp_path / "twin", "--sites", "cross_q", "--exponent", 3)[0] == 0
    told = json.loads((tmp_path / "twin" / "outliers.json").read_text())
    assert told["settings"]["sites"] == ["cross_q"]
    assert told["transformers"]["transformer"]["factor"] == 8
    names = lambda folder: {str(p.relative_to(folder)) for p in folder.rglob("*.*") if ".sixbit-jax" not in p.parts}
    assert names(tmp_path / "twin") - names(original) == {"outliers.json"}
    assert names(original) <= names(tmp_path / "twin")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--sites", "ffn_out"], "--sites: unknown site"),
        (["--exponent", "20"], "--exponent 20"),
        (["--model", "/not/there"], "/not/there"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(run, original, tmp_path, words, told):
    code, _, errors = run("--model", original, "--output", tmp_path / "twin", *words)
    assert code == 2
    assert told in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "twin").exists()


def test_a_twin_is_replaced_only_when_asked_and_nothing_else_is(run, original, tmp_path):
    words = ("--model", original, "--output", tmp_path / "twin")
    assert run(*words)[0] == 0
    assert "--overwrite" in run(*words)[2]
    assert run(*words, "--overwrite")[0] == 0
    code, _, errors = run("--model", original, "--output", original, "--overwrite")
    assert code == 2
    assert "not something this command wrote" in errors
