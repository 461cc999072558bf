"""A tokenizer of the UMT5 kind with a vocabulary of a few dozen pieces, written as the files a checkpoint holds."""

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

PIECES = ["▁", "▁a", "▁red", "▁cat", "▁dog", "▁and", "▁runs", "s", "ing", "&", ",", ".", '"', *"abcdefghijklmnoprtu"]

END_TOKEN = {"__type": "AddedToken", "content": "</s>", "normalized": False, "lstrip": False, "rstrip": False}


def write_tokenizer(folder: Path, *, template: str = "$A </s>") -> Path:
    """`tokenizer.json` and `tokenizer_config.json`; ids 0, 1, 2 are padding, end and unknown."""
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocabulary += [(piece, -2.0 - i / 10) for i, piece in enumerate(PIECES)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=2, byte_fallback=False))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("</s>", 1)])
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    tokenizer.enable_truncation(4)  # as left behind by a careless save; readers have to undo it
    tokenizer.save(str(folder / "tokenizer.json"))
    # Both spellings of a special token that transformers writes.
    names = {"pad_token": "<pad>", "eos_token": END_TOKEN, "unk_token": "<unk>", "extra_ids": 0}
    (folder / "tokenizer_config.json").write_text(json.dumps(names | {"tokenizer_class": "T5TokenizerFast"}))
    return folder
