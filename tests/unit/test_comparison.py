"""Figures of a pair of videos, the table over many, and the files that prompts come in."""

import json
import math

import numpy as np
import pytest

from sixbit_jax.errors import UserError
from sixbit_jax.evaluate.comparison import compare, judge, markdown, summarize
from sixbit_jax.evaluate.prompts import Prompt, held_out, read_prompts, write_prompts

BYTES = {"weight_bytes": {"transformer": 250}, "dense_bytes": {"transformer": 1000}}


def run(**figures):
    return BYTES | {"figures": figures}


def test_a_pair_of_videos():
    reference = np.full((3, 16, 16, 3), 100, np.uint8)
    latents = np.ones((1, 4, 1, 2, 2), np.float32)
    figures = compare(reference + 10, 1.5 * latents, reference, latents)
    assert figures["psnr_db"] == pytest.approx(20 * math.log10(255 / 10))
    assert figures["latent_error"] == pytest.approx(0.5)
    assert 0.9 < figures["ssim"] < 1
    same = compare(reference, latents, reference, latents)
    assert same == {"psnr_db": None, "ssim": 1.0, "latent_error": 0.0}


def test_attributes_need_a_truth():
    video = np.zeros((5, 32, 32, 3), np.uint8)
    assert judge(video, None) == {}
    truth = held_out(1)[0].truth
    figures = judge(video, truth)
    assert set(figures) >= {"caption/colour", "caption/shape", "caption/motion", "caption/background"}
    assert figures["caption/colour"] == 0.0, "a black video shows no object"


def test_a_summary_pairs_runs_with_their_reference():
    reference = [run(psnr_db=None, **{"caption/colour": 1.0, "caption/shape": 0.0}) for _ in range(3)]
    runs = [run(psnr_db=20.0 + i, **{"caption/colour": 1.0, "caption/shape": float(i == 2)}) for i in range(3)]
    summary = summarize("w4a8", runs, reference)
    assert summary.means["psnr_db"] == 21.0
    assert summary.errors["psnr_db"] == pytest.approx(1 / math.sqrt(3))
    assert summary.caption_accuracy == pytest.approx(100 * 4 / 6)
    assert summary.accuracy_change == pytest.approx(100 / 6), "one of three videos has one of two attributes more"
    assert summary.accuracy_change_error == pytest.approx(50 / 3)
    assert (summary.videos, summary.identical) == (3, 0)


def test_a_table_has_a_row_a_recipe():
    identical = summarize("bf16", [run(psnr_db=None, ssim=1.0)], [run(psnr_db=None, ssim=1.0)])
    other = summarize("w4a8", [run(psnr_db=31.25, ssim=0.5)], [run(psnr_db=None, ssim=1.0)])
    lines = markdown([identical, other]).splitlines()
    assert [line.count("|") for line in lines] == [lines[0].count("|")] * 4
    assert "| identical |" in lines[2]
    assert "31.25" in lines[3]
    assert "4.00x" in lines[3]
    assert "%" not in lines[3], "no truth, no accuracy"


def test_skipped_work_counts_as_no_bits_beside_what_ran():
    widths = {"activation_bits": 7.5, "activation_bits_with_skipped": 6.0}
    cell = lambda skip_rate: markdown([summarize("6bit", [run(skip_rate=skip_rate, **widths)], [run()])])
    assert "| 7.50 (6.00) | 20.0 %" in cell(0.2)
    assert "| 7.50 | 0.0 %" in cell(0.0)


def test_prompts_survive_their_file(tmp_path):
    prompts = [*held_out(3), Prompt("a cat")]
    write_prompts(tmp_path / "p.jsonl", prompts)
    assert read_prompts(tmp_path / "p.jsonl") == prompts


def test_held_out_prompts_are_the_same_every_time():
    assert held_out(5)[:3] == held_out(3)


def test_plain_text_is_one_prompt_a_line(tmp_path):
    (tmp_path / "p.txt").write_text("a cat\n\n  two dogs \n")
    assert read_prompts(tmp_path / "p.txt") == [Prompt("a cat"), Prompt("two dogs")]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("p.txt", None, "No such file"),
        ("p.txt", "\n \n", "has no prompts"),
        ("p.jsonl", "a cat", "line 1 is not"),
        ("p.jsonl", '{"prompt": "a"}\n{"promt": "b"}', "line 2 is not"),
        ("p.jsonl", json.dumps({"prompt": "a", "truth": {"objects": [{"color": "red"}]}}), "line 1 is not"),
    ],
)
def test_bad_prompt_files_are_named(tmp_path, name, text, words):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        read_prompts(tmp_path / name)
    assert "--prompts" in str(caught.value)
    assert "\n" not in str(caught.value)
