"""What all scripts share: one line and an exit code for every mistake."""

import subprocess
import sys

import pytest

from sixbit_jax import cli
from sixbit_jax.errors import UserError


def outcome(main, capsys):
    with pytest.raises(SystemExit) as left:
        cli.run(main)
    return left.value.code, capsys.readouterr().err


def fail():
    raise UserError("--flag: two\nlines")


@pytest.mark.parametrize(("main", "code"), [(lambda: None, 0), (lambda: 0, 0), (lambda: 3, 3)])
def test_the_exit_code_is_what_main_returns(main, code, capsys):
    assert outcome(main, capsys) == (code, "")


def test_mistakes_become_one_line(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["somewhere/script.py"])
    assert outcome(fail, capsys) == (2, "script.py: error: --flag: two lines\n")


def test_too_few_is_a_mistake_that_names_the_flag():
    cli.check_at_least("--seeds", 1)
    cli.check_at_least("--clips", 0, least=0)
    with pytest.raises(UserError, match=r"^--seeds 0: needs at least 1$"):
        cli.check_at_least("--seeds", 0)
    with pytest.raises(UserError, match=r"^--clips -1: needs at least 0$"):
        cli.check_at_least("--clips", -1, least=0)


def test_bugs_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        cli.run(lambda: 1 // 0)


def test_ctrl_c_is_130():
    program = "from sixbit_jax import cli\ndef main(): raise KeyboardInterrupt\ncli.run(main)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "-c: interrupted\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stpes", "3"], r"unrecognized arguments: --stpes 3 \(did you mean --steps\?\)"),
        (["--zzz"], "unrecognized arguments: --zzz$"),
        (["--steps", "x"], "argument --steps: invalid int value: 'x'"),
        (["--dtype", "f16"], "argument --dtype: invalid choice: 'f16'"),
    ],
)
def test_arguments_are_refused_by_name(arguments, message):
    parser = cli.Parser()
    parser.add_argument("--steps", type=int)
    parser.add_argument("--dtype", choices=("f32", "bf16"))
    with pytest.raises(UserError, match=message):
        parser.parse_args(arguments)
