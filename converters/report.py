"""What the scripts print when a folder is written."""

from collections.abc import Sequence
from pathlib import Path

from converters.convert import Converted
from converters.sources import Source


def describe(source: Source, results: Sequence[Converted], output: Path) -> str:
    """One line a component, then the folder."""
    lines = [_line(result) for result in results]
    lines += [f"{name}: not converted (no part of sampling here)" for name in source.skipped]
    if source.tokenizer is None:
        lines.append("tokenizer: none in the input; sampling needs one")
    total = sum(result.nbytes for result in results)
    return "\n".join([*lines, f"wrote {output} ({format_bytes(total)})"])


def format_bytes(count: int) -> str:
    """
    >>> format_bytes(2_840_000_000), format_bytes(1_500)
    ('2.84 GB', '0.00 MB')
    """
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"


def _line(result: Converted) -> str:
    verified = "" if result.verified is None else f", {result.verified} tensors verified"
    size = f"{result.parameters / 1e6:.2f} M parameters, {format_bytes(result.nbytes)}"
    return f"{result.component}: {result.tensors} tensors, {size}, {result.seconds:.1f} s{verified}"
