"""Where results go. Checked before any work, written whole or not at all."""

import errno
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from sixbit_jax.errors import UserError


def plan(output: Path, prompts: list[str], seed: int) -> list[Path]:
    """One .mp4 path a prompt. `output` is a file for one prompt, or a folder that names are made up in."""
    if output.suffix and not output.is_dir():
        if output.suffix != ".mp4":
            raise UserError(f"--output {output}: writes .mp4; the nearest is {output.with_suffix('.mp4')}")
        if len(prompts) > 1:
            raise UserError(f"--output {output}: is one file for {len(prompts)} prompts; give a folder")
        targets = [output]
    elif output.is_file():
        raise UserError(f"--output {output}: is a file, not a folder")
    else:
        targets = [output / _name(index, prompt, seed, len(prompts)) for index, prompt in enumerate(prompts)]
    check_writable("--output", targets[0])
    return targets


def check_writable(flag: str, path: Path | None) -> None:
    """The folder exists and takes files, or can be made."""
    if path is None:
        return
    folder = path.absolute().parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise UserError(f"{flag} {path}: {folder} is not a folder")
    if path.is_dir():
        raise UserError(f"{flag} {path}: is a folder, not a file")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{flag} {path}: {folder} is not writable")


def write_json(path: Path, data: dict[str, Any]) -> None:
    write_text(path, json.dumps(data, indent=2) + "\n")


def read_lines(path: Path, key: str) -> dict[str, Any]:
    """The objects of a file of JSON lines by what each has under `key`, the last of equal ones; none without a file.

    A line that an interruption cut short is none.
    """
    found: dict[str, Any] = {}
    for text in path.read_text().splitlines() if path.is_file() else ():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        found[line[key]] = line
    return found


def write_text(path: Path, text: str) -> None:
    _write(path, lambda file: file.write(text.encode()))


def write_npy(path: Path, array: np.ndarray) -> None:
    _write(path, lambda file: np.save(file, array))


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    _write(path, lambda file: np.savez(file, allow_pickle=False, **arrays))


def _write(path: Path, fill: Callable[[BinaryIO], Any]) -> None:
    """Fill a temporary sibling, then rename it."""
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            fill(file)
        partial.replace(path)
    except OSError as error:
        reason = "no space left on the disk" if error.errno == errno.ENOSPC else error.strerror
        raise UserError(f"{path}: {reason}") from None
    finally:
        partial.unlink(missing_ok=True)


def _name(index: int, prompt: str, seed: int, count: int) -> str:
    slug = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:48] or "video"
    number = f"{index:03d}-" if count > 1 else ""
    return f"{number}{slug}-seed{seed}.mp4"
