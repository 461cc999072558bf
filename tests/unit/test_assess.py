"""Assessments: who is counted where, what the distances are, and the whole command on a micro model."""

import argparse
import dataclasses
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from micro_pipeline import MICRO, write_micro_pipeline

from sixbit_jax.errors import UserError
from sixbit_jax.evaluate.captions import ObjectReading, Reading
from sixbit_jax.pipeline import WanPipeline
from sixbit_jax.tiny import assess, tallies
from sixbit_jax.tiny.assess_command import assess_folder
from sixbit_jax.tiny.assess_vae import Clip, flicker
from sixbit_jax.tiny.attributes import Attributes, ObjectAttributes
from sixbit_jax.tiny.tallies import ALL, EACH_OF_TWO, ONE, TWO, Tally, count, judge

ROOT = Path(__file__).resolve().parents[2]

RED = ObjectAttributes("red", "circle", "linear", "left", "small", "slow")
BLUE = ObjectAttributes("blue", "star", "still", "none", "large", "none")


def see(thing: ObjectAttributes, **changes: str) -> ObjectReading:
    return dataclasses.replace(ObjectReading(**dataclasses.asdict(thing), fit=1.0, area=0.1), **changes)


def judged(prompt: str, seen: list[ObjectReading], *told: ObjectAttributes) -> tallies.Verdict:
    return judge(prompt, Reading(tuple(seen), "plain", "gray"), Attributes(told, "plain", "gray"))


def test_one_wrong_object_of_two_is_wrong_for_the_pair_and_half_of_the_objects():
    counts = count([judged("", [see(RED), see(BLUE, shape="ring")], RED, BLUE)])
    assert set(counts) == {ALL, TWO, EACH_OF_TWO}, "nothing is said of groups without prompts"
    assert counts[TWO]["shape"] == counts[ALL]["shape"] == Tally(0, 1)
    assert counts[EACH_OF_TWO]["shape"] == Tally(1, 2)
    assert counts[TWO]["colour"] == Tally(1, 1)


def test_groups_add_up():
    alone, pair = judged("", [see(RED)], RED), judged("", [see(RED), see(BLUE)], RED, BLUE)
    counts = count([alone, alone, pair])
    assert [counts[group]["colour"].total for group in (ALL, ONE, TWO, EACH_OF_TWO)] == [3, 2, 1, 2]


def test_motion_and_direction_are_right_together():
    (answers,) = [judged("", [see(RED, direction="right")], RED).whole]
    assert (answers["motion"], answers["direction"], answers["motion and direction"]) == (True, False, False)


@pytest.mark.parametrize(
    ("prompt", "asked"),
    [
        ("a red circle drifts left", set()),
        ("a tiny red circle drifts left", {"size"}),
        ("a red circle drifts slowly left", {"speed"}),
        ("a small red circle drifts left slowly.", {"size", "speed"}),
    ],
)
def test_size_and_speed_are_asked_where_the_prompt_says_them(prompt: str, asked: set[str]):
    answers = judged(prompt, [see(RED, size="large")], RED).whole
    assert {name for name in ("size", "speed") if name in answers} == asked
    assert answers.get("size", False) is False


def test_distances_tell_a_collapsed_model():
    black, white = np.zeros((2, 5, 8, 8, 3), np.uint8), np.full((2, 5, 8, 8, 3), 255, np.uint8)
    collapsed = assess.distances([black, black])
    assert collapsed["between seeds, mean"] == 0
    varied = assess.distances([black, white])
    assert varied["between seeds, mean"] == varied["between seeds, least"] == pytest.approx(1)
    assert varied["between prompts, mean"] == 0
    assert assess.distances([black[:1]]) == {}, "one video has no distance"


def test_flicker_is_what_the_copy_adds():
    still = np.full((3, 4, 4, 3), 100, np.uint8)
    flickering = still + np.array([0, 6, 0], np.uint8)[:, None, None, None]
    truth = Attributes((RED,), "plain", "gray")
    assert flicker(Clip(still, still, truth)) == (0, 0)
    assert flicker(Clip(still, flickering, truth)) == (6, 6)
    assert flicker(Clip(flickering, flickering, truth)) == (0, 0), "nothing stands still, and nothing is wrong"


@pytest.fixture(scope="module")
def parser() -> argparse.ArgumentParser:
    spec = importlib.util.spec_from_file_location("assess_tiny", ROOT / "scripts" / "assess_tiny.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.parser()


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_micro_pipeline(tmp_path_factory.mktemp("model") / "micro")


def test_the_command_measures_everything(parser, model, tmp_path):
    words = ["--prompts", "3", "--seeds", "2", "--batch", "2", "--clips", "2", "--dtype", "f32"]
    words += ["--steps", "1", "2", "--guidance-scale", "3"]
    assess_folder(parser.parse_args(["--model", str(model), "--output", str(tmp_path / "out"), *words]))
    lines = [json.loads(line) for line in (tmp_path / "out" / "summary.jsonl").read_text().splitlines()]
    assert [line["what"] for line in lines] == ["autoencoder", "captions", "captions"]
    assert [line["steps"] for line in lines[1:]] == [1, 2]
    assert lines[1]["counts"][ALL]["colour"]["total"] == 6
    videos = [json.loads(line) for line in (tmp_path / "out" / "videos.jsonl").read_text().splitlines()]
    assert len(videos) == 2 * 6
    assert len({(video["run"], video["prompt"], video["seed"]) for video in videos}) == 12
    page = (tmp_path / "out" / "assessment.md").read_text()
    assert "## Autoencoder: 2 held-out clips" in page
    assert "## Captions: 2 steps, guidance 3" in page
    sheets = sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    runs = ("guidance-3-steps-1", "guidance-3-steps-2")
    assert sheets == ["autoencoder.png", *sorted(f"{run}{kind}.png" for run in runs for kind in ("", "-wrong"))]


def test_videos_are_those_that_sampling_makes(model):
    """Up to rounding: batches of another size sum in another order, a few 1e-6, and a level of 255 is 8e-3."""
    pipe = WanPipeline.load(model, "f32")
    wanted = assess.Assessment(prompts=3, seeds=2, batch=2, steps=2, guidance=3.0)
    outcome = assess.assess_captions(pipe.components, wanted)
    assert outcome.videos[0].shape == (3, MICRO.frames, MICRO.height, MICRO.width, 3)
    for seed in (0, 1):
        for index, shown in enumerate(outcome.shown[:3]):
            video = pipe(shown.prompt, seed=seed).video
            assert video.std() > 1, "a constant video would prove nothing"
            assert np.abs(outcome.videos[seed][index].astype(int) - video).max() <= 1
    assert np.abs(outcome.videos[0].astype(int) - outcome.videos[1]).max() > 1


def test_only_prompts_of_one_kind_are_fine(model, monkeypatch):
    """Neither group may be missed: assessments of a handful of prompts have none of one kind or the other."""
    components = WanPipeline.load(model, "f32").components
    wanted = assess.Assessment(prompts=2, seeds=1, batch=2, steps=1, guidance=3.0)
    draw = assess.held_out_prompts
    for share, absent in ((0.0, TWO), (1.0, ONE)):
        with monkeypatch.context() as patch:
            patch.setattr(assess, "held_out_prompts", lambda *args, share=share: draw(*args, pair_share=share))
            summary = assess.assess_captions(components, wanted).summary()
        assert absent not in summary["counts"]
        assert summary["counts"][ALL]["count"]["total"] == 2
        assert "between seeds, mean" not in summary["distances"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--prompts", "-1"], "--prompts -1"),
        (["--seeds", "0"], "--seeds 0"),
        (["--steps", "0"], "--steps 0"),
        (["--prompts", "0", "--clips", "0"], "nothing is left"),
    ],
)
def test_mistakes_are_named(parser, tmp_path, words, told):
    with pytest.raises(UserError, match=told):
        assess_folder(parser.parse_args(["--output", str(tmp_path / "out"), *words]))
    assert not (tmp_path / "out").exists()
