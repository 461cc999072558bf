"""What an input is: a pipeline folder of diffusers, the original repository's folder, one component, or one file.

`find` tells the layouts apart by the files they have and lists the components to convert; nothing is read yet.
"""

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from converters import defaults
from converters.community import normalize
from converters.components import COMPONENTS, detect
from converters.read import Reader, open_files, read_json, weight_files
from sixbit_jax.errors import UserError, nearest

_NOT_WEIGHTS = ("tokenizer", "scheduler")


@dataclasses.dataclass(frozen=True)
class Part:
    """One component of an input."""

    component: str
    files: tuple[Path, ...]
    config: Path | None = None

    def open(self) -> Reader:
        return normalize(open_files(self.files))


@dataclasses.dataclass(frozen=True)
class Source:
    """Everything an input has for us. `skipped` names the components that no table converts."""

    path: Path
    parts: tuple[Part, ...]
    pipeline: dict[str, Any] = dataclasses.field(default_factory=dict)
    tokenizer: Path | None = None
    skipped: tuple[str, ...] = ()

    def files(self) -> tuple[Path, ...]:
        """Every file that a conversion reads."""
        weights = [file for part in self.parts for file in part.files]
        configs = [part.config for part in self.parts if part.config]
        others = [self.path / name for name in ("model_index.json", "defaults.json", "scheduler/scheduler_config.json")]
        if self.tokenizer:
            others += [self.tokenizer / "tokenizer.json", self.tokenizer / "tokenizer_config.json"]
        return tuple(weights + configs + [path for path in others if path.is_file()])

    def only(self, component: str | None) -> "Source":
        """The same input reduced to one component."""
        names = [part.component for part in self.parts]
        if component is None:
            return self
        if component not in names:
            raise UserError(f"--component: {self.path} has no {component}; {nearest(component, names)}")
        return dataclasses.replace(self, parts=tuple(part for part in self.parts if part.component == component))


def find(path: Path) -> Source:
    """Look at an input."""
    if not path.exists():
        raise UserError(f"--input {path}: no such file or folder")
    for layout in _LAYOUTS:
        if source := layout(path):
            return source
    if any(path.glob("*/_METADATA")):
        raise UserError(f"{path}: a half-written checkpoint (it has no manifest.json); convert it again")
    raise UserError(
        f"{path}: no weights found; expected a diffusers folder (model_index.json), an original Wan folder "
        "(diffusion_pytorch_model*.safetensors, *.pth) or a .safetensors file"
    )


def _single_file(path: Path) -> Source | None:
    return Source(path, (_detected((path,)),)) if path.is_file() else None


def _pipeline(path: Path) -> Source | None:
    if not (path / "model_index.json").is_file():
        if beside := [name for name in COMPONENTS if (path / name / "config.json").is_file()]:
            raise UserError(f"{path / 'model_index.json'}: missing, although {', '.join(beside)} lie beside it")
        return None
    index = read_json(path / "model_index.json")
    present = [name for name, value in index.items() if isinstance(value, list) and value and value[0] is not None]
    names = [name for name in present if name in COMPONENTS]
    parts = tuple(_folder_part(name, path / name) for name in names)
    # Sizes can be told from the tensors, but not all: the VAE's latent statistics and the schedule are nowhere else.
    described = [path / name / "config.json" for name in names]
    described += [path / name / "scheduler_config.json" for name in present if name == "scheduler"]
    for file in described:
        if not file.is_file():
            raise UserError(f"{file}: missing, although model_index.json names {file.parent.name}; download it again")
    return Source(
        path,
        parts,
        defaults.from_diffusers(path, index),
        _tokenizer(path / "tokenizer"),
        tuple(name for name in present if name not in COMPONENTS and name not in _NOT_WEIGHTS),
    )


def _original(path: Path) -> Source | None:
    experts = {"transformer": path / "high_noise_model", "transformer_2": path / "low_noise_model"}
    has_experts = all(folder.is_dir() for folder in experts.values())
    others = {"text_encoder": sorted(path.glob("models_t5*.pth")), "vae": sorted(path.glob("Wan2*_VAE.pth"))}
    if not path.is_dir() or not (has_experts or any(others.values())):
        return None
    folders = experts if has_experts else {"transformer": path}
    parts = [_folder_part(name, folder) for name, folder in folders.items() if weight_files(folder)]
    parts += [Part(name, (files[0],)) for name, files in others.items() if files]
    config = next((part.config for part in parts if part.config), None)
    return Source(
        path,
        tuple(parts),
        defaults.from_original(has_experts, read_json(config) if config else {}),
        _tokenizer(path / "google" / "umt5-xxl"),
        tuple(file.name for file in path.glob("models_clip*.pth")),
    )


def _component_folder(path: Path) -> Source | None:
    files = weight_files(path)
    return Source(path, (_detected(files, _config(path)),)) if files else None


_LAYOUTS: Iterable[Callable[[Path], Source | None]] = (_single_file, _pipeline, _original, _component_folder)


def _detected(files: tuple[Path, ...], config: Path | None = None) -> Part:
    """A part whose keys say what it is."""
    part = Part("", files, config)
    return dataclasses.replace(part, component=detect(part.open().keys(), str(files[0])))


def _folder_part(component: str, folder: Path) -> Part:
    files = weight_files(folder)
    if not files:
        raise UserError(f"{folder}: no weights (*.safetensors), although the pipeline names them; download them again")
    return Part(component, files, _config(folder))


def _config(folder: Path) -> Path | None:
    file = folder / "config.json"
    return file if file.is_file() else None


def _tokenizer(folder: Path) -> Path | None:
    return folder if (folder / "tokenizer.json").is_file() else None
