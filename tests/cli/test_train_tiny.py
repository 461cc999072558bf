"""Every stage of training in micro size: it runs, a resumed run repeats an uninterrupted one, the folder loads."""

import argparse
import importlib.util
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from sixbit_jax.errors import UserError
from sixbit_jax.pipeline import WanPipeline
from sixbit_jax.tiny import commands, train_dit, train_vae

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--size", "micro", "--steps", "4", "--chunk", "2", "--batch", "2", "--save-seconds", "0"]
VAE = [*SMALL, "--checked", "2", "--measured", "2"]
DIT = [*SMALL, "--clips", "4", "--encoded", "2", "--shown", "1", "--sample-steps", "2"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def optax_promotes():
    """optax mixes integers with Python's floats, which the house's strict promotion refuses."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module")
def parser() -> argparse.ArgumentParser:
    spec = importlib.util.spec_from_file_location("train_tiny", ROOT / "scripts" / "train_tiny.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.parser()


@pytest.fixture(scope="module")
def run(parser):
    def run(*words: str) -> None:
        args = parser.parse_args([str(word) for word in words])
        getattr(commands, args.run)(args)

    return run


@pytest.fixture(scope="module")
def trained(run, tmp_path_factory) -> Path:
    work = tmp_path_factory.mktemp("trained")
    run("vae", "--work", work, *VAE)
    run("dit", "--work", work, *DIT)
    return work


def stop(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(("stage", "flags", "module"), [("vae", VAE, train_vae), ("dit", DIT, train_dit)])
def test_a_resumed_run_repeats_an_uninterrupted_one(stage, flags, module, run, trained, tmp_path, monkeypatch):
    shutil.copy(trained / "vae.npz", tmp_path)
    fit = module.fit
    with monkeypatch.context() as patch:
        patch.setattr(module, "fit", lambda *args: fit(*args[:-1], stop))
        with pytest.raises(KeyboardInterrupt):
            run(stage, "--work", tmp_path, *flags)
    run(stage, "--work", tmp_path, *flags, "--resume")
    with np.load(trained / f"{stage}-state.npz") as whole, np.load(tmp_path / f"{stage}-state.npz") as resumed:
        assert set(whole) == set(resumed)
        assert all(np.array_equal(whole[key], resumed[key]) for key in whole)
    steps = [json.loads(line)["step"] for line in (tmp_path / f"{stage}-log.jsonl").read_text().splitlines()]
    assert steps == [2, 4]


def test_a_finished_run_goes_on_for_more_steps(run, trained, tmp_path):
    for file in ("vae.npz", "dit.npz", "dit-state.npz", "dit-log.jsonl"):
        shutil.copy(trained / file, tmp_path)
    run("dit", "--work", tmp_path, *DIT, "--steps", "6", "--resume")
    lines = [json.loads(line) for line in (tmp_path / "dit-log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6]


def test_a_resumed_run_must_not_change_its_settings(run, trained):
    with pytest.raises(UserError, match=r"--seed 1.* has 0"):
        run("vae", "--work", trained, *VAE, "--seed", "1", "--resume")


def test_a_finished_run_is_not_started_over(run, trained):
    with pytest.raises(UserError, match="--resume"):
        run("dit", "--work", trained, *DIT)


def test_the_exported_folder_samples(run, trained, tmp_path):
    folder = tmp_path / "tiny-wan"
    run("export", "--work", trained, "--size", "micro", "--output", folder)
    pipe = WanPipeline.load(folder, "f32")
    result = pipe(pipe.components.defaults["prompt"], num_inference_steps=2)
    assert result.video.shape == (5, 32, 32, 3)


def test_an_adopted_autoencoder_is_exported_as_it_was(run, trained, tmp_path):
    """f16 weights in f32 and back: the same bits, so a transformer can be trained anew without touching the VAE."""
    first, second, work = tmp_path / "first", tmp_path / "second", tmp_path / "work"
    run("export", "--work", trained, "--size", "micro", "--output", first)
    run("adopt", "--work", work, "--input", first)
    with pytest.raises(UserError, match="--overwrite"):
        run("adopt", "--work", work, "--input", first)
    shutil.copy(trained / "dit.npz", work)
    run("export", "--work", work, "--size", "micro", "--output", second)
    for file in ("vae/diffusion_pytorch_model.safetensors", "vae/config.json"):
        assert (first / file).read_bytes() == (second / file).read_bytes()
