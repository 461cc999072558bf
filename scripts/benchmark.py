"""Time the kernels next to their peers, or tune them, on the GPU at hand.

    python scripts/benchmark.py kernels                       all of them -> benchmarks/kernels.jsonl, kernels.md
    python scripts/benchmark.py kernels int8_matmul --grep 14B
    python scripts/benchmark.py tune int8_matmul              -> the kernel's tuned.json

Needs torch beside jax, for the peers.
"""

import importlib
import os
import sys
from pathlib import Path

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # benchmarks/ is not part of the installed package

from benchmarks.kernels import report  # noqa: E402
from sixbit_jax.cli import Parser, run  # noqa: E402
from sixbit_jax.errors import UserError, nearest  # noqa: E402

KERNELS = ("int8_matmul", "quantize_rows", "nvfp4_matmul", "attention_int8", "attention_prologue")


def main() -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, says in (("kernels", "measure"), ("tune", "search configurations")):
        command = commands.add_parser(name, help=says)
        command.add_argument("names", nargs="*", help=f"kernels (default: all of {', '.join(KERNELS)})")
        command.add_argument("--grep", default="", help="only cases whose description contains this")
        if name == "kernels":
            command.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "kernels.jsonl")
    args = parser.parse_args()

    modules = [load(name) for name in args.names or KERNELS]
    if args.command == "kernels":
        report.measure(modules, args.grep, args.output)
    else:
        report.tune(modules, args.grep)


def load(name: str):
    if name not in KERNELS:
        raise UserError(f'names: unknown kernel "{name}"; {nearest(name, KERNELS)}')
    return importlib.import_module(f"benchmarks.kernels.{name}")


if __name__ == "__main__":
    run(main)
