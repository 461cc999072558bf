"""What all scripts share: mistakes become one line on stderr and exit code 2, Ctrl-C and SIGTERM 130 and 143."""

import argparse
import concurrent.futures
import difflib
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeVar

from sixbit_jax.errors import UserError

Result = TypeVar("Result")


class Terminated(KeyboardInterrupt):
    """SIGTERM, as batch systems and `timeout` send it: unwound as Ctrl-C is, so that no process is left behind."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are `UserError`s: one line instead of a page of usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message + self._hint(message))

    def _hint(self, message: str) -> str:
        _, unknown, arguments = message.partition("unrecognized arguments: ")
        flags = [flag for action in self._actions for flag in action.option_strings]
        close = difflib.get_close_matches(arguments.split("=")[0].split(" ")[0], flags, n=1) if unknown else []
        return f" (did you mean {close[0]}?)" if close else ""


def check_at_least(flag: str, number: int, least: int = 1) -> None:
    """Raise for a count of which there are too few to do anything.

    >>> check_at_least("--batch", 1)
    """
    if number < least:
        raise UserError(f"{flag} {number}: needs at least {least}")


def run(main: Callable[[], int | None]) -> NoReturn:
    """Run a script's `main` and leave with its exit code."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        code = main() or 0
    except UserError as error:
        _say(f"error: {error}")
        code = 2
    except KeyboardInterrupt as interrupt:
        _say("interrupted")
        sys.stdout.flush()
        # All of ours is unwound. Threads of XLA and Orbax may still run: an orderly exit would wait for them or abort.
        os._exit(143 if isinstance(interrupt, Terminated) else 130)
    sys.exit(code)


def _terminate(*_: object) -> NoReturn:
    raise Terminated


def interruptible(work: Callable[[], Result]) -> Result:
    """Run `work` in a thread and wait for it, so that Ctrl-C is answered at once.

    A compiled program is one long call into C++, and Python delivers signals only between its own instructions. Work
    that is interrupted goes on until the process ends, so it must not leave anything to clean up.
    """
    outcome: concurrent.futures.Future[Result] = concurrent.futures.Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return outcome.result()


def _say(text: str) -> None:
    print(f"{Path(sys.argv[0]).name}: {' '.join(text.split())}", file=sys.stderr)
