"""Captions: true, in a closed vocabulary, and the same as text and as tokens."""

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_world import sample_scenes, single, truths

from sixbit_jax.text import Tokenizer, load_tokenizer
from sixbit_jax.tiny import lexicon, names, phrases
from sixbit_jax.tiny.attributes import Attributes, is_held_out
from sixbit_jax.tiny.batches import sample_batch
from sixbit_jax.tiny.captions import CAPTION_LENGTH, caption, caption_rows, caption_tokens, sentence
from sixbit_jax.tiny.prompts import held_out_prompts
from sixbit_jax.tiny.scene import Scene
from sixbit_jax.tiny.tokenizer import VOCABULARY_SIZE, write_tokenizer

COUNT = 512


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def told() -> tuple[list[str], np.ndarray, np.ndarray]:
    """Texts, ids and masks of all scenes."""

    def tell(scene: Scene, key: jax.Array):
        return caption_rows(scene, key), *caption_tokens(scene, key)

    keys = jax.random.split(jax.random.key(7), COUNT)
    rows, ids, mask = jax.device_get(jax.jit(jax.vmap(tell))(sample_scenes(0), keys))
    return [sentence(row) for row in rows], ids, mask


@pytest.fixture(scope="module")
def prompts() -> list[tuple[str, Attributes]]:
    return held_out_prompts(48, 0)


def says(text: str, choices: list[str]) -> bool:
    return any(f" {phrase} " in f" {text} " for phrase in choices)


def test_tokens_are_those_of_the_text(told, tokenizer: Tokenizer):
    texts, ids, mask = told
    expected_ids, expected_mask = tokenizer(texts, length=CAPTION_LENGTH)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_array_equal(mask, expected_mask)
    assert not (ids == lexicon.UNKNOWN_ID).any()


def test_a_short_length_cuts_as_the_tokenizer_does(tokenizer: Tokenizer):
    scenes, keys = sample_scenes(0), jax.random.split(jax.random.key(7), COUNT)
    few = jax.tree.map(lambda leaf: leaf[:64], scenes)
    ids, mask = jax.jit(jax.vmap(lambda scene, key: caption_tokens(scene, key, length=12)))(few, keys[:64])
    texts = [sentence(row) for row in jax.device_get(jax.jit(jax.vmap(caption_rows))(few, keys[:64]))]
    expected_ids, expected_mask = tokenizer(texts, length=12)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_array_equal(mask, expected_mask)
    assert mask.all(1).any() and not mask.all()


def test_no_caption_is_longer_than_the_length():
    """From the grammar: the longest phrase of each slot, with two objects and the background last."""

    def longest(family: lexicon.Family) -> int:
        return max(len(lexicon.PHRASES[row].split()) for row in family.rows.reshape(-1))

    clause = (lexicon.ARTICLES, lexicon.SIZES, lexicon.FINISHES, lexicon.COLOURS, lexicon.SHAPES, lexicon.VERBS)
    clause = sum(map(longest, (*clause, lexicon.ADVERBS, lexicon.DIRECTIONS)))
    rest = sum(map(longest, (lexicon.OPENINGS, lexicon.JOINTS, lexicon.PREPOSITIONS, lexicon.BACKGROUNDS)))
    stops = longest(lexicon.CLOSINGS) + 1  # and the end token
    assert 2 * clause + rest + stops <= CAPTION_LENGTH


def test_captions_are_true(told):
    for text, truth in zip(told[0], truths(sample_scenes(0)), strict=True):
        text = text.replace(",", " ,").replace(".", " .")
        for thing in truth.objects:
            assert says(text, phrases.COLOURS[thing.colour]), text
            assert says(text, phrases.SHAPES[thing.shape]), text
            assert says(text, [form for forms in phrases.VERBS[thing.motion] for form in forms]), text
            assert thing.direction == "none" or says(text, phrases.DIRECTIONS[thing.direction]), text
        for size in names.SIZES:
            assert size in {thing.size for thing in truth.objects} or not says(text, phrases.SIZES[size]), text
        for speed in ("slow", "fast"):
            assert speed in {thing.speed for thing in truth.objects} or not says(text, phrases.ADVERBS[speed]), text
        shown = phrases.background_phrases(truth.background, truth.background_colour)
        assert says(text, shown) == ("background" in text or "backdrop" in text or says(text, shown)), text


def test_captions_vary(told):
    texts = told[0]
    assert len(set(texts)) > 0.98 * COUNT
    words = {word for text in texts for word in text.replace(",", " ,").replace(".", " .").split()}
    assert len(words) > 0.9 * len(lexicon.VOCABULARY)


def test_articles_fit(told):
    for text in told[0]:
        words = text.replace(",", "").replace(".", "").split()
        for first, second in itertools.pairwise(words):
            assert first not in ("a", "an") or first == phrases.article(second), text


def test_one_caption_is_the_batched_one(told):
    scenes, keys = sample_scenes(0), jax.random.split(jax.random.key(7), COUNT)
    assert [caption(single(scenes, index), keys[index]) for index in range(4)] == told[0][:4]


def test_either_object_may_come_first():
    scenes = sample_scenes(0)
    pair = single(scenes, int(np.flatnonzero(scenes.objects.present[:, 1])[0]))
    keys = jax.random.split(jax.random.key(0), 32)
    rows = jax.jit(jax.vmap(caption_rows, (None, 0)))(pair, keys)
    first = [phrases.COLOURS[names.COLOURS[colour]] for colour in pair.objects.colour]
    leads = []
    for row in rows:
        words = sentence(np.asarray(row)).replace(",", "").split()
        places = [min(words.index(word) for word in colour if word in words) for colour in first]
        leads.append(places[0] < places[1])
    assert any(leads) and not all(leads)


def test_prompts_are_held_out_complete_and_different(prompts):
    assert len({prompt for prompt, _ in prompts}) == len(prompts) == 48
    for prompt, truth in prompts:
        assert is_held_out(truth)
        text = prompt.replace(",", " ,").replace(".", " .")
        assert says(text, phrases.background_phrases(truth.background, truth.background_colour)), prompt


def test_prompts_repeat_and_depend_on_the_seed(prompts):
    assert held_out_prompts(48, 0) == prompts
    assert not {prompt for prompt, _ in held_out_prompts(48, 1)} & {prompt for prompt, _ in prompts}


def test_people_may_write_as_they_like(tokenizer: Tokenizer):
    assert tokenizer.unknown_words("A Red circle DRIFTS to the left, over a blue striped background.") == []
    assert tokenizer.unknown_words("a red zebra!") == ["zebra", "!"]
    assert tokenizer.vocab_size == VOCABULARY_SIZE < 256


def test_a_batch_is_what_it_says():
    batch = jax.jit(lambda key: sample_batch(key, 3, frames=2, height=16, width=24, length=20))(jax.random.key(0))
    assert batch.videos.shape == (3, 2, 16, 24, 3)
    assert batch.ids.shape == batch.mask.shape == (3, 20)
    assert batch.scenes.objects.shape.shape == (3, 2)
    assert jnp.ptp(batch.videos[0] - batch.videos[1]) > 0
