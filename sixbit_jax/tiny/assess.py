"""How well a tiny model does what captions say: generate from held-out prompts, read the videos, count what is right.

held_out_prompts --generate, decode--> videos --evaluate.captions.measure--> readings --tallies--> counts

A video is the one that `scripts/sample.py` makes of the same prompt, seed and settings, up to rounding: here many are
made at once.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from sixbit_jax.components import Components
from sixbit_jax.evaluate.captions import Reading, measure
from sixbit_jax.evaluate.metrics import pairwise_distance
from sixbit_jax.tiny.attributes import Attributes
from sixbit_jax.tiny.captions import CAPTION_LENGTH
from sixbit_jax.tiny.generate import decode_bytes, generate
from sixbit_jax.tiny.prompts import held_out_prompts
from sixbit_jax.tiny.sizes import Sizes
from sixbit_jax.tiny.tallies import BOTH_OF_MOTION, Verdict, count, judge

_PROMPT_SEED = 5_000_011  # distinct from those of training
_NEIGHBOURS = 8  # other prompts that each is compared with

Videos = UInt8[np.ndarray, "prompts frames height width 3"]


@dataclasses.dataclass(frozen=True)
class Assessment:
    """What to measure: so many held-out prompts, each with seeds 0, 1, …; `batch` videos are made at once."""

    prompts: int
    seeds: int
    batch: int
    steps: int
    guidance: float


@dataclasses.dataclass(frozen=True)
class Shown:
    """One generated video: what was asked for, what is to be seen, what of it is right."""

    prompt: str
    seed: int
    truth: Attributes
    reading: Reading
    verdict: Verdict

    @property
    def wrong(self) -> list[str]:
        return [name for name, is_right in self.verdict.whole.items() if not is_right and name != BOTH_OF_MOTION]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """`videos` has one array a seed, in the order of the prompts; `shown` is seed by seed in the same order."""

    wanted: Assessment
    videos: list[Videos]
    shown: list[Shown]

    def summary(self) -> dict[str, Any]:
        """Plain data: the settings, the counts of every group, the distances."""
        counts = count(shown.verdict for shown in self.shown)
        tallies = {
            group: {name: dataclasses.asdict(tally) for name, tally in answers.items()}
            for group, answers in counts.items()
        }
        return dataclasses.asdict(self.wanted) | {"counts": tallies, "distances": distances(self.videos)}


def assess_captions(components: Components, wanted: Assessment) -> Outcome:
    """Make and read all videos."""
    asked = held_out_prompts(wanted.prompts, _PROMPT_SEED)
    prompts = [prompt for prompt, _ in asked]
    videos = [_videos(components, prompts, seed, wanted) for seed in range(wanted.seeds)]
    shown = [
        _look(prompt, seed, truth, video)
        for seed, of_seed in enumerate(videos)
        for (prompt, truth), video in zip(asked, of_seed, strict=True)
    ]
    return Outcome(wanted, videos, shown)


def distances(videos: Sequence[Videos]) -> dict[str, float]:
    """Root-mean-square differences in [0, 1]. A model that has collapsed has no distance between seeds.

    Between prompts the seed is the same; each prompt is compared with a few others.
    """
    found: dict[str, list[float]] = {"between seeds": [], "between prompts": []}
    for same_prompt in zip(*videos, strict=True):
        found["between seeds"] += [pairwise_distance(pair) for pair in itertools.combinations(same_prompt, 2)]
    for of_seed in videos:
        for shift in range(1, min(_NEIGHBOURS, len(of_seed) - 1) + 1):
            others = np.roll(of_seed, shift, axis=0)
            found["between prompts"] += [pairwise_distance(pair) for pair in zip(of_seed, others, strict=True)]
    return {
        f"{kind}, {name}": float(statistic(values))
        for kind, values in found.items()
        if values
        for name, statistic in (("mean", np.mean), ("least", np.min))
    }


def sizes_of(components: Components) -> Sizes:
    """The models of a pipeline folder and the video it samples by default."""
    defaults = components.defaults
    return Sizes(
        components.transformer_configs[0],
        components.text_config,
        components.vae_config,
        frames=defaults["num_frames"],
        height=defaults["height"],
        width=defaults["width"],
    )


def _look(prompt: str, seed: int, truth: Attributes, video: UInt8[np.ndarray, "frames height width 3"]) -> Shown:
    reading = measure(video)
    return Shown(prompt, seed, truth, reading, judge(prompt, reading, truth))


def _videos(components: Components, prompts: Sequence[str], seed: int, wanted: Assessment) -> Videos:
    """One video a prompt, all from the noise that the pipeline draws for this seed."""
    sizes = sizes_of(components)
    noise = jax.random.normal(jax.random.key(seed), (1, *sizes.latent_shape), jnp.float32)
    params = {"text_encoder": components.text_params, "transformer": components.experts[0]}
    batch = min(wanted.batch, len(prompts))
    parts = []
    for start in range(0, len(prompts), batch):
        chosen = list(prompts[start : start + batch])
        # Every batch is full, so that one program serves all of them.
        ids, mask = components.tokenizer(chosen + chosen[:1] * (batch - len(chosen)), length=CAPTION_LENGTH)
        latents = generate(
            params,
            sizes,
            ids,
            mask,
            jnp.repeat(noise, batch, axis=0),
            steps=wanted.steps,
            guidance=wanted.guidance,
            shift=components.defaults["flow_shift"],
        )
        parts.append(decode_bytes(components.vae_params, components.vae_config, latents)[: len(chosen)])
    return np.concatenate(parts)
