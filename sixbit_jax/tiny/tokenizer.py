"""The word tokenizer of tiny-wan: one id a word, punctuation apart, case ignored, one end token as UMT5 has.

Written as the two files that `sixbit_jax.text.load_tokenizer` and transformers read.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from sixbit_jax.tiny.lexicon import SPECIAL_TOKENS, VOCABULARY, token_id

if TYPE_CHECKING:
    import tokenizers

VOCABULARY_SIZE = len(SPECIAL_TOKENS) + len(VOCABULARY)
_MAX_LENGTH = 512


def build_tokenizer() -> "tokenizers.Tokenizer":
    """Padding, end and unknown are 0, 1 and 2; then the vocabulary in order."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    pad, end, unknown = SPECIAL_TOKENS
    ids = {word: index for index, word in enumerate(SPECIAL_TOKENS)} | {word: token_id(word) for word in VOCABULARY}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=unknown))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {end}", special_tokens=[(end, ids[end])])
    tokenizer.add_special_tokens([pad, end, unknown])
    return tokenizer


def write_tokenizer(folder: Path) -> None:
    """`tokenizer.json` and `tokenizer_config.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    build_tokenizer().save(str(folder / "tokenizer.json"))
    pad, end, unknown = SPECIAL_TOKENS
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": _MAX_LENGTH,
        "pad_token": pad,
        "eos_token": end,
        "unk_token": unknown,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
