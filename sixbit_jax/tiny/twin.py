"""What `scripts/outlier_twin.py` runs: a pipeline folder in, the same folder with planted outliers out.

Only the transformers change. Everything else is copied, and `outliers.json` says what was done.
"""

import dataclasses
import shutil
from pathlib import Path

import numpy as np

from converters.components import COMPONENTS
from converters.convert import plan
from converters.export import export_component, write_json
from converters.rules import convert
from converters.sources import Part, find
from sixbit_jax.errors import UserError
from sixbit_jax.staging import staged
from sixbit_jax.tiny.outliers import Outliers, describe
from sixbit_jax.tiny.outliers import plant as plant_outliers

SHARD_BYTES = 14 * 2**20
_COPIED = ("model_index.json", "defaults.json", "scheduler", "tokenizer", "text_encoder", "vae")


def write_twin(model: Path, target: Path, outliers: Outliers, *, overwrite: bool = False) -> None:
    """Read a diffusers folder and write its twin, in the same layout and number formats."""
    if not (model / "model_index.json").is_file():
        raise UserError(f"--model {model}: not a pipeline folder of diffusers (it has no model_index.json)")
    transformers = [part for part in find(model).parts if COMPONENTS[part.component].name == "transformer"]
    with staged(target, overwrite=overwrite, replaceable=lambda folder: (folder / "outliers.json").is_file()) as new:
        for name in _COPIED:
            _copy(model / name, new / name)
        planted = {part.component: _write_transformer(part, new, outliers) for part in transformers}
        write_json(new / "outliers.json", {"settings": dataclasses.asdict(outliers), "transformers": planted})


def _write_transformer(part: Part, folder: Path, outliers: Outliers) -> dict[str, object]:
    planned = plan(part, _dtype(part))
    params = convert(planned.reader, planned.rules, planned.abstract, ignored=planned.ignored)
    twin = plant_outliers(params, planned.config, outliers)
    export_component(folder / part.component, planned.kind, planned.config, twin, shard_bytes=SHARD_BYTES)
    return describe(planned.config, outliers)


def _dtype(part: Part) -> str:
    """What the matrices are stored in."""
    reader = part.open()
    widest = max(reader.keys(), key=lambda key: np.prod(reader.shape(key)))
    return {"bfloat16": "bf16"}.get(reader.dtype(widest).name, "f32")


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target)
    elif source.is_file():
        shutil.copyfile(source, target)
