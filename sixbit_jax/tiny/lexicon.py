"""All phrases of captions in one numbered list, the numbers of each family, and the words they are made of.

A caption is a row of phrase numbers. Read through `PHRASES` it is a sentence, read through `phrase_tokens` it is token
ids: the two cannot disagree.
"""

import dataclasses
import functools
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int

from sixbit_jax.tiny import names, phrases

PAD_ID, END_ID, UNKNOWN_ID = 0, 1, 2
SPECIAL_TOKENS = ("<pad>", "</s>", "<unk>")

_numbers: dict[str, int] = {"": 0}


def _number(phrase: str) -> int:
    return _numbers.setdefault(phrase, len(_numbers))


@dataclasses.dataclass(frozen=True)
class Family:
    """Phrase numbers to choose from: `rows[index, :counts[index]]`."""

    rows: Int[np.ndarray, "index variants"]
    counts: Int[np.ndarray, " index"]


def _family(choices: Iterable[Sequence[str]]) -> Family:
    numbers = [[_number(phrase) for phrase in variants] for variants in choices]
    widest = max(map(len, numbers))
    rows = np.array([row + [0] * (widest - len(row)) for row in numbers], np.int32)
    return Family(rows, np.array([len(row) for row in numbers], np.int32))


# Families that depend on the form lead with it: 0 a sentence ("it drifts"), 1 a fragment ("it drifting").
_FORMS = ("sentence", "fragment")
OPENINGS = _family(phrases.OPENINGS[form] for form in _FORMS)
JOINTS = _family(phrases.JOINTS[form] for form in _FORMS)
VERBS = _family(
    [pair[form] for pair in phrases.VERBS[motion]] for form in range(len(_FORMS)) for motion in names.MOTIONS
)
ARTICLES = _family([["a"], ["an"]])
SIZES = _family(phrases.SIZES[size] for size in names.SIZES)
FINISHES = _family(phrases.FINISHES[finish] for finish in names.FINISHES)
COLOURS = _family(phrases.COLOURS[colour] for colour in names.COLOURS)
SHAPES = _family(phrases.SHAPES[shape] for shape in names.SHAPES)
ADVERBS = _family(phrases.ADVERBS[speed] for speed in names.SPEEDS)
DIRECTIONS = _family(phrases.DIRECTIONS[direction] for direction in names.DIRECTIONS)
PREPOSITIONS = _family([phrases.PREPOSITIONS])
COMMAS = _family([[phrases.COMMA]])
CLOSINGS = _family([phrases.CLOSINGS])
# (kind, colour), flattened
BACKGROUNDS = _family(
    phrases.background_phrases(kind, colour) for kind in names.BACKGROUNDS for colour in names.BACKGROUND_COLOURS
)

PHRASES = tuple(_numbers)
STARTS_WITH_VOWEL = np.array([phrases.article(phrase or "x") == "an" for phrase in PHRASES])

# Every word of a caption, in the order of its token ids.
VOCABULARY = tuple(sorted({word for phrase in PHRASES for word in phrase.split()}))


def token_id(word: str) -> int:
    return len(SPECIAL_TOKENS) + VOCABULARY.index(word)


@functools.cache
def phrase_tokens() -> Int[np.ndarray, "phrases words"]:
    """The token ids of each phrase, padded."""
    rows = [[token_id(word) for word in phrase.split()] for phrase in PHRASES]
    return np.array([row + [PAD_ID] * (max(map(len, rows)) - len(row)) for row in rows], np.int32)
