"""What all scripts share: mistakes become one line on stderr and exit code 2, Ctrl-C becomes exit code 130."""

import argparse
import difflib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from sixbit_jax.errors import UserError


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are `UserError`s: one line instead of a page of usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message + self._hint(message))

    def _hint(self, message: str) -> str:
        _, unknown, arguments = message.partition("unrecognized arguments: ")
        flags = [flag for action in self._actions for flag in action.option_strings]
        close = difflib.get_close_matches(arguments.split("=")[0].split(" ")[0], flags, n=1) if unknown else []
        return f" (did you mean {close[0]}?)" if close else ""


def run(main: Callable[[], int | None]) -> NoReturn:
    """Run a script's `main` and leave with its exit code."""
    try:
        code = main() or 0
    except UserError as error:
        _say(f"error: {error}")
        code = 2
    except KeyboardInterrupt:
        _say("interrupted")
        sys.stdout.flush()
        # All of ours is unwound. Threads of XLA and Orbax may still run: an orderly exit would wait for them or abort.
        os._exit(130)
    sys.exit(code)


def _say(text: str) -> None:
    print(f"{Path(sys.argv[0]).name}: {' '.join(text.split())}", file=sys.stderr)
