"""A small tokenizer of UMT5's kind (unigram, `▁` for a space, `</s>` at the end) for models with random weights."""

import json
import string
from pathlib import Path

SPECIAL = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
_WORDS = (
    "a an the and of on in to with from at over under is are while red green blue black white circle square triangle "
    "cat dog bird fish car boat tree grass sea sky sun moon walks runs flies swims drifts moves turns falls "
    "left right up down slowly fast small large"
)


def write_tokenizer(folder: Path) -> int:
    """Write `tokenizer.json` and what transformers wants beside it; returns the size of the vocabulary."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, processors

    vocabulary = _vocabulary()
    tokenizer = tokenizers.Tokenizer(models.Unigram(vocabulary, unk_id=len(SPECIAL) - 1, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    end = vocabulary.index((SPECIAL["eos_token"], 0.0))
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", "$A </s> $B </s>", [("</s>", end)])
    tokenizer.add_special_tokens(list(SPECIAL.values()))
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = SPECIAL | {"tokenizer_class": "T5TokenizerFast", "model_max_length": 512, "extra_ids": 0}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(SPECIAL, indent=2) + "\n")
    return len(vocabulary)


def _vocabulary() -> list[tuple[str, float]]:
    """Pieces and their log-probabilities: a known word is likelier than its letters."""
    characters = string.ascii_letters + string.digits + string.punctuation
    pieces = [(piece, 0.0) for piece in SPECIAL.values()]
    pieces += [("▁", -3.0)] + [(character, -4.0) for character in characters]
    return pieces + [(f"▁{word}", -4.0) for word in _WORDS.split()]
