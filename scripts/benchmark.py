"""Time the kernels next to their peers, or tune them, on the GPU at hand.

    python scripts/benchmark.py kernels                       all of them -> benchmarks/kernels.jsonl, kernels.md
    python scripts/benchmark.py kernels int8_matmul --grep 14B
    python scripts/benchmark.py tune int8_matmul              -> the kernel's tuned.json
    python scripts/benchmark.py kernels --deciding            only the cases that a kernel is judged by
    python scripts/benchmark.py session --seconds 570 --output outputs/gpu     GPU tests, tuning and tables in one go
    python scripts/benchmark.py adopt outputs/gpu/tuned.json  the configurations a session found, as the kernels' own

Needs torch beside jax, for the peers. A run goes on where its output ends: remove the file to start over.
"""

import argparse
import functools
import importlib
import os
import sys
from pathlib import Path

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # benchmarks/ is not part of the installed package

from benchmarks.kernels import report, session  # noqa: E402
from sixbit_jax.cli import Parser, run  # noqa: E402
from sixbit_jax.errors import UserError, nearest  # noqa: E402

TUNABLE = ("int8_matmul", "attention_int8", "quantize_rows", "nvfp4_matmul", "add_deltas", "keep_delta")
KERNELS = (*TUNABLE, "attention_prologue")
FOLDER = ROOT / "benchmarks"
ONE_DAY = 86400.0


def main() -> None:
    args = parse()
    if args.command == "adopt":
        print("\n".join(map(str, session.adopt(args.tuned))))
        return
    names = args.names or (TUNABLE if args.command == "tune" else KERNELS)
    modules = [load(name) for name in names]
    if args.command == "session":
        whole = session.Session(args.output, args.seconds, tuple(names), TUNABLE, args.grep, tuple(args.tests))
        print(whole.run(args.steps))
    else:
        measure = functools.partial(report.measure, deciding=args.deciding)
        action = {"kernels": measure, "tune": report.tune}[args.command]
        action(modules, args.grep, args.output, seconds=args.seconds)


def parse() -> argparse.Namespace:
    parser = Parser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    outputs = {"kernels": FOLDER / "kernels.jsonl", "tune": FOLDER / "tune.jsonl", "session": ROOT / "outputs" / "gpu"}
    for name, says in (("kernels", "measure"), ("tune", "search"), ("session", "GPU tests, tuning and tables")):
        command = commands.add_parser(name, help=says)
        command.add_argument("names", nargs="*", help=f"kernels (default: all of {', '.join(KERNELS)})")
        command.add_argument("--grep", default="", help="only cases whose description contains this")
        command.add_argument("--output", type=Path, default=outputs[name])
        command.add_argument("--deciding", action="store_true", help="of the tables, only what a kernel is judged by")
        command.add_argument("--seconds", type=float, default=ONE_DAY, help="start nothing after so long")
    command.add_argument("--steps", nargs="+", default=session.STEPS, choices=session.STEPS)
    command.add_argument("--tests", nargs="+", default=["tests/gpu"], help="files or folders of the GPU tests")
    commands.add_parser("adopt", help="take over tuned configurations").add_argument("tuned", type=Path)
    return parser.parse_args()


def load(name: str):
    if name not in KERNELS:
        raise UserError(f'names: unknown kernel "{name}"; {nearest(name, KERNELS)}')
    return importlib.import_module(f"benchmarks.kernels.{name}")


if __name__ == "__main__":
    run(main)
