"""Counting what is right: per attribute, for prompts about one object and about two.

    reading, truth --judge--> Verdict --count--> {group: {attribute: Tally}}

Two objects are right in an attribute when both are; the group `EACH_OF_TWO` counts them one by one instead. Size and
speed are asked only where a prompt about one object says them.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence

from sixbit_jax.evaluate.captions import ObjectReading, Reading, match, score
from sixbit_jax.tiny import phrases
from sixbit_jax.tiny.attributes import Attributes, ObjectAttributes

ALL, ONE, TWO, EACH_OF_TWO = "all prompts", "one object", "two objects, both right", "each of two objects"
BOTH_OF_MOTION = "motion and direction"
_OF_OBJECTS = ("colour", "shape", "motion", "direction")


@dataclasses.dataclass(frozen=True)
class Verdict:
    """One video: what is right of the whole description, and of each described object."""

    whole: Mapping[str, bool]
    objects: Sequence[Mapping[str, bool]]


@dataclasses.dataclass(frozen=True)
class Tally:
    right: int
    total: int

    @property
    def share(self) -> float:
        return self.right / self.total


def judge(prompt: str, reading: Reading, truth: Attributes) -> Verdict:
    """Compare what was seen with what was asked for."""
    pairs = match(reading.objects, truth.objects)
    whole = score(reading, truth)
    whole |= {BOTH_OF_MOTION: whole["motion"] and whole["direction"]}
    if len(pairs) == 1:
        whole |= _asked(prompt, *pairs[0])
    return Verdict(whole, [_of_object(seen, told) for seen, told in pairs])


def count(verdicts: Iterable[Verdict]) -> dict[str, dict[str, Tally]]:
    """Right answers and questions of each group that has any."""
    verdicts = list(verdicts)
    alone = [verdict for verdict in verdicts if len(verdict.objects) == 1]
    paired = [verdict for verdict in verdicts if len(verdict.objects) > 1]
    groups: dict[str, list[Mapping[str, bool]]] = {
        ALL: [verdict.whole for verdict in verdicts],
        ONE: [verdict.whole for verdict in alone],
        TWO: [verdict.whole for verdict in paired],
        EACH_OF_TWO: [thing for verdict in paired for thing in verdict.objects],
    }
    return {group: _tally(answers) for group, answers in groups.items() if answers}


def _tally(answers: Sequence[Mapping[str, bool]]) -> dict[str, Tally]:
    names = dict.fromkeys(name for answer in answers for name in answer)
    asked = {name: [answer[name] for answer in answers if name in answer] for name in names}
    return {name: Tally(sum(values), len(values)) for name, values in asked.items()}


def _of_object(seen: ObjectReading, told: ObjectAttributes) -> dict[str, bool]:
    answers = {name: getattr(seen, name) == getattr(told, name) for name in _OF_OBJECTS}
    return answers | {BOTH_OF_MOTION: answers["motion"] and answers["direction"]}


def _asked(prompt: str, seen: ObjectReading, told: ObjectAttributes) -> dict[str, bool]:
    """Size and speed, of those that the prompt says."""
    said = {"size": _says(prompt, phrases.SIZES[told.size]), "speed": _says(prompt, phrases.ADVERBS[told.speed])}
    return {name: getattr(seen, name) == getattr(told, name) for name, is_said in said.items() if is_said}


def _says(prompt: str, choices: Sequence[str]) -> bool:
    return any(phrase and re.search(rf"\b{phrase}\b", prompt) for phrase in choices)
