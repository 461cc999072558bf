"""Captions of scenes, as sentences and as token ids.

    scene, key --caption_rows--> phrase numbers --caption--> "a small red circle drifts left over a blue background"
                                               --caption_tokens--> ids, mask   (under jit, no strings)

Which words stand for what is in `phrases`; this module decides what is said, and in which order.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from sixbit_jax.tiny import lexicon, names
from sixbit_jax.tiny.dice import Dice
from sixbit_jax.tiny.lexicon import Family
from sixbit_jax.tiny.scene import Objects, Scene

CAPTION_LENGTH = 48  # tokens; no caption is longer

_NUMBERS = 40  # random numbers a caption may use
_FRAGMENT_SHARE = 0.4
_SIZE_SHARE, _SPEED_SHARE, _BACKGROUND_SHARE = 0.6, 0.5, 0.93  # how often each is said
_SPEED_LAST_SHARE = 0.3  # "moves left slowly" rather than "moves slowly left"
_BACKGROUND_FIRST_SHARE = 0.2  # of the sentences

_Row = Int[Array, ""]


def caption(scene: Scene, key: Key[Array, ""], *, complete: bool = False) -> str:
    """A sentence about a scene. Colour, shape and motion are always said; `complete` also insists on the background."""
    return sentence(np.asarray(_caption_rows(scene, key, complete=complete)))


def sentence(rows: Int[np.ndarray, " slots"]) -> str:
    """Phrases as text."""
    words = " ".join(lexicon.PHRASES[row] for row in rows if row)
    return words.replace(" ,", ",").replace(" .", ".")


def caption_tokens(
    scene: Scene, key: Key[Array, ""], *, length: int = CAPTION_LENGTH, complete: bool = False
) -> tuple[Int[Array, " p"], Int[Array, " p"]]:
    """Ids and mask of `caption(scene, key)`, end token included, padded to `length`."""
    words = jnp.asarray(lexicon.phrase_tokens())[caption_rows(scene, key, complete=complete)]
    words = jnp.append(words.reshape(-1), lexicon.END_ID)
    # A stable sort moves the words to the front in their order.
    order = jnp.argsort(words == lexicon.PAD_ID, stable=True)[:length]
    ids = jnp.pad(words[order], (0, length - order.size))
    # Cut short, a caption still ends; so does `text.Tokenizer`.
    ids = ids.at[-1].set(jnp.where(ids[-1] == lexicon.PAD_ID, lexicon.PAD_ID, lexicon.END_ID))
    return ids, (ids != lexicon.PAD_ID).astype(jnp.int32)


def caption_rows(scene: Scene, key: Key[Array, ""], *, complete: bool = False) -> Int[Array, " slots"]:
    """The phrases of a caption, slot by slot; 0 where a slot is left empty."""
    dice = Dice(key, _NUMBERS)
    form = dice.chance(_FRAGMENT_SHARE).astype(jnp.int32)
    first, second = _in_order(scene.objects, dice)
    opening = [_pick(lexicon.OPENINGS, form, dice)]
    subjects = _clause(first, form, dice)
    company = [_pick(lexicon.JOINTS, form, dice), *_clause(second, form, dice)]
    said = dice.chance(_BACKGROUND_SHARE) | complete
    leads = said & dice.chance(_BACKGROUND_FIRST_SHARE) & (form == 0)
    place = _place(scene, dice)
    comma = _pick(lexicon.COMMAS, 0, dice)
    before = [_if(leads, row) for row in (*place, comma)]
    after = [_if(said & ~leads, row) for row in place]
    company = [_if(second.present, row) for row in company]
    return jnp.stack([*opening, *before, *subjects, *company, *after, _pick(lexicon.CLOSINGS, 0, dice)])


_caption_rows = jax.jit(caption_rows, static_argnames="complete")


def _in_order(objects: Objects, dice: Dice) -> tuple[Objects, Objects]:
    """The objects in the order they are named: either may come first."""
    swap = objects.present[1] & dice.chance(0.5)
    order = jnp.where(swap, jnp.array([1, 0]), jnp.array([0, 1]))
    first, second = (jax.tree.map(lambda leaf, slot=order[place]: leaf[slot], objects) for place in (0, 1))
    return first, second


def _clause(thing: Objects, form: _Row, dice: Dice) -> list[_Row]:
    """One object (a single slot) and what it does: "a small red circle drifts slowly to the left"."""
    size = _if(dice.chance(_SIZE_SHARE), _pick(lexicon.SIZES, thing.size, dice))
    finish = _pick(lexicon.FINISHES, thing.finish, dice)
    colour = _pick(lexicon.COLOURS, thing.colour, dice)
    speed = _if(dice.chance(_SPEED_SHARE), _pick(lexicon.ADVERBS, thing.speed, dice))
    speed_last = dice.chance(_SPEED_LAST_SHARE)
    after_article = jnp.where(size != 0, size, jnp.where(finish != 0, finish, colour))
    vowel = jnp.asarray(lexicon.STARTS_WITH_VOWEL)[after_article].astype(jnp.int32)
    return [
        _pick(lexicon.ARTICLES, vowel, dice),
        size,
        finish,
        colour,
        _pick(lexicon.SHAPES, thing.shape, dice),
        _pick(lexicon.VERBS, form * len(names.MOTIONS) + thing.motion, dice),
        _if(~speed_last, speed),
        _pick(lexicon.DIRECTIONS, thing.direction, dice),
        _if(speed_last, speed),
    ]


def _place(scene: Scene, dice: Dice) -> list[_Row]:
    """Where it happens: "over a blue striped background"."""
    background = scene.background
    index = background.kind * len(names.BACKGROUND_COLOURS) + background.colour
    return [_pick(lexicon.PREPOSITIONS, 0, dice), _pick(lexicon.BACKGROUNDS, index, dice)]


def _pick(family: Family, index: _Row | int, dice: Dice) -> _Row:
    """One of the phrases of an index, all equally likely."""
    variant = dice.below(jnp.asarray(family.counts)[index])
    return jnp.asarray(family.rows)[index, variant]


def _if(condition: Array, row: _Row) -> _Row:
    return jnp.where(condition, row, 0)
