"""One op, several implementations: how `linear` and `attention` choose.

An implementation is a name, a `supports(spec)` that returns `None` or the reason why not, and a function. Asking for
one by name runs it or raises that reason; asking for several, or for none (all exact ones), takes the first that
supports the case. Implementations never fall back on their own.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sixbit_jax.errors import nearest


class UnsupportedError(NotImplementedError):
    """The implementation asked for cannot run this case; the message says why."""


@dataclasses.dataclass(frozen=True)
class Implementation:
    """`measure`: like `run`, but also returns what it saw of its input, if it can tell for nothing."""

    supports: Callable[[Any], str | None]
    run: Callable[..., Any]
    measure: Callable[..., Any] | None = None


@dataclasses.dataclass(frozen=True)
class Choice:
    """What was picked for a spec, and why the ones before it were not."""

    name: str
    rejected: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        reasons = "; ".join(f"not {name}: {reason}" for name, reason in self.rejected)
        return f"{self.name} ({reasons})" if reasons else self.name


def choose(
    op: str, implementations: Mapping[str, Implementation], spec: Any, name: str | Sequence[str] | None = None
) -> Choice:
    """Pick by name, or the first in order of preference that supports `spec`."""
    names = (name,) if isinstance(name, str) else tuple(implementations if name is None else name)
    for each in names:
        if each not in implementations:
            raise ValueError(f'{op}: unknown implementation "{each}"; {nearest(each, implementations)}')
    if isinstance(name, str):
        if reason := implementations[name].supports(spec):
            raise UnsupportedError(f"{op}: {name} cannot run this case: {reason}")
        return Choice(name, ())
    rejected: list[tuple[str, str]] = []
    for candidate in names:
        reason = implementations[candidate].supports(spec)
        if reason is None:
            return Choice(candidate, tuple(rejected))
        rejected.append((candidate, reason))
    raise UnsupportedError(f"{op}: no implementation for {spec}: " + "; ".join(f"{n}: {r}" for n, r in rejected))
