"""From an input to a checkpoint: look, check everything, stream the tensors, write, and (on request) read back.

    find (sources) -> plan (here: configuration, table, census) -> convert (rules) -> Draft.add (checkpoint) -> verify

All that can be wrong with an input is found before the first byte is written, and a failure later leaves nothing.
"""

import dataclasses
import hashlib
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from converters import rules as engine
from converters.components import COMPONENTS, DTYPES, Kind
from converters.read import Reader, read_json
from converters.rules import Rule
from converters.sources import Part, Source, find
from converters.verify import verify
from sixbit_jax import checkpoint
from sixbit_jax.errors import UserError
from sixbit_jax.manifest import FORMAT_VERSION
from sixbit_jax.shapes import Params
from sixbit_jax.staging import refuse_existing, refuse_full_disk


@dataclasses.dataclass(frozen=True)
class Plan:
    """A component that is known to fit: everything but the values of its tensors."""

    component: str
    kind: Kind
    reader: Reader
    rules: Sequence[Rule]
    config: Any
    dtype: str
    abstract: Params
    ignored: tuple[str, ...]

    @property
    def parameters(self) -> int:
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(self.abstract))

    @property
    def nbytes(self) -> int:
        return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(self.abstract))


@dataclasses.dataclass(frozen=True)
class Converted:
    """What became of one component; `verified` counts the tensors compared with the source."""

    component: str
    tensors: int
    parameters: int
    nbytes: int
    seconds: float
    verified: int | None


def convert_checkpoint(
    path: Path,
    output: Path,
    dtype: str,
    *,
    component: str | None = None,
    compare: bool = False,
    overwrite: bool = False,
    on_start: Callable[[], None] = lambda: None,
) -> tuple[Source, list[Converted]]:
    """Convert an input (see `sources`) to a checkpoint at `output`; `on_start` is called when it is known to fit."""
    refuse_existing(output, overwrite=overwrite, replaceable=checkpoint.is_checkpoint)
    source = find(path).only(component)
    mark = fingerprint(source)  # before anything is read: a file that changes meanwhile must not count as converted
    plans = [plan(part, dtype) for part in source.parts]
    on_start()
    with checkpoint.draft(output, overwrite=overwrite) as draft:
        # A little more, for the manifest and Orbax's own files.
        refuse_full_disk(output, sum(p.nbytes for p in plans) + 10_000_000)
        results = [_convert_component(p, draft, compare) for p in plans]
        if source.tokenizer:
            draft.add_tokenizer(source.tokenizer)
        draft.finish(source.pipeline, provenance(source, mark))
    return source, results


def cached(path: Path, dtype: str) -> Path:
    """The checkpoint of an input, converted when there is none yet or the input has changed since.

    It lies in `.sixbit-jax` next to the input, or in the user's cache folder when that place cannot be written. Runs
    that meet here each convert; the first to finish wins and the others take its result.
    """
    mark = fingerprint(find(path))
    targets = [home / dtype for home in _cache_homes(path)]
    for target in targets:
        if _is_fresh(target, mark):
            return target
    target = next((target for target in targets if _is_writable(target)), targets[-1])
    if target.exists():
        shutil.rmtree(target)  # out of date or damaged; the place is ours
    announce = lambda: print(f"converting {path} once, into {target}", file=sys.stderr)
    try:
        convert_checkpoint(path, target, dtype, on_start=announce)
    except UserError:
        if not _is_fresh(target, mark):
            raise
    return target


def plan(part: Part, dtype: str) -> Plan:
    """Configuration and table of a component, checked against the tensors that are there."""
    kind, reader = COMPONENTS[part.component], part.open()
    where = part.files[0].parent if len(part.files) > 1 else part.files[0]
    naming = kind.naming(reader.keys())
    if naming is None:
        raise UserError(f"{where}: not a {part.component} (it has none of {', '.join(kind.table.MARKERS.values())})")
    config = _config(kind, part, reader, naming)
    table, ignored = kind.table.rules(config, naming), kind.table.IGNORED[naming]
    abstract = kind.abstract_params(config, DTYPES[kind.dtype(dtype)])
    if problems := engine.census(reader, table, abstract, ignored):
        told = f" and {part.config.name}" if part.config else ""
        raise UserError(f"{where}: tensors{told} do not make a {part.component}: {'; '.join(problems)}")
    return Plan(part.component, kind, reader, table, config, kind.dtype(dtype), abstract, ignored)


def _config(kind: Kind, part: Part, reader: Reader, naming: str) -> Any:
    """From `config.json`, or from the tensors when there is none; what the file leaves open the tensors decide."""
    try:
        inferred = kind.table.infer_config(reader.shapes(), naming)
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UserError(f"{part.files[0]}: tensors are missing, its configuration cannot be told ({error!r})") from None
    if part.config is None:
        return inferred
    values = read_json(part.config)
    try:
        config = kind.config.from_dict(values)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{part.config}: {error}") from None
    open_fields = [field.name for field in dataclasses.fields(config) if getattr(config, field.name) is None]
    return dataclasses.replace(config, **{name: getattr(inferred, name) for name in open_fields})


def _convert_component(p: Plan, draft: checkpoint.Draft, compare: bool) -> Converted:
    start = time.perf_counter()
    with _bar(p, p.component) as bar:
        params = engine.convert(p.reader, p.rules, p.abstract, ignored=p.ignored, on_tensor=lambda _: bar.update())
    draft.add(p.component, p.kind.name, p.config.to_dict(), p.dtype, params)
    del params  # before the tree is read back: one of them is in memory at a time
    verified = _verify(p, draft) if compare else None
    seconds = time.perf_counter() - start
    return Converted(p.component, len(p.rules), p.parameters, p.nbytes, seconds, verified)


def _verify(p: Plan, draft: checkpoint.Draft) -> int:
    with _bar(p, f"verify {p.component}") as bar:
        return verify(draft.read_back(p.component), p.reader, p.rules, lambda _: bar.update())


def _bar(p: Plan, label: str) -> tqdm:
    # disable=None: no bar when stderr is not a terminal.
    return tqdm(total=len(p.rules), desc=label, unit="tensor", dynamic_ncols=True, disable=None)


def provenance(source: Source, mark: str) -> dict[str, Any]:
    """What a manifest says of an input: where it lies, its fingerprint, and every file with size and checksum."""
    files = {file: {"bytes": file.stat().st_size, "sha256": _sha256(file)} for file in source.files()}
    base = source.path if source.path.is_dir() else source.path.parent
    return {
        "path": os.path.abspath(source.path),
        "fingerprint": mark,
        "files": {str(file.relative_to(base)): facts for file, facts in files.items()},
    }


def _sha256(file: Path) -> str:
    with file.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


def fingerprint(source: Source) -> str:
    """Changes when a file of the input does (its name, size or time), without reading the weights."""
    facts = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in source.files()]
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _cache_homes(path: Path) -> tuple[Path, Path]:
    beside = path / ".sixbit-jax" if path.is_dir() else path.with_suffix(".sixbit-jax")
    name = hashlib.sha256(os.path.abspath(path).encode()).hexdigest()[:16]
    return beside, Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "sixbit-jax" / name


def _is_fresh(target: Path, mark: str) -> bool:
    try:
        manifest = checkpoint.read_manifest(target)
    except UserError:  # absent, or written by a version whose format is not ours
        return False
    return manifest.format_version == FORMAT_VERSION and manifest.source.get("fingerprint") == mark


def _is_writable(target: Path) -> bool:
    return os.access(next(folder for folder in target.absolute().parents if folder.exists()), os.W_OK)
