"""A script that is called wrongly, run in this process, which has imported jax already."""

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sixbit_jax.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


def refusal_of(script: str, arguments: Sequence[Any], monkeypatch: pytest.MonkeyPatch) -> str:
    """What the one line says; `cli.run` writes it to stderr and leaves with exit code 2."""
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *map(str, arguments)])
    with pytest.raises(UserError) as caught:
        runpy.run_path(str(ROOT / "scripts" / f"{script}.py"))["main"]()
    message = str(caught.value)
    assert "\n" not in message
    return message
