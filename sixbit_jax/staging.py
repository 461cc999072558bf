"""A folder that appears whole or not at all.

Everything is written to a hidden sibling, which one rename turns into the result. A run that fails takes its sibling
with it; what a killed run left behind, the next run for the same target removes.
"""

import contextlib
import errno
import glob
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from sixbit_jax.errors import UserError

_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextlib.contextmanager
def staged(target: Path, *, overwrite: bool, replaceable: Callable[[Path], bool]) -> Iterator[Path]:
    """Yield a folder to fill; it becomes `target` when the block ends well and vanishes otherwise.

    An existing `target` is replaced only with `overwrite`, and only when `replaceable(target)` says it may be.
    """
    target = Path(os.path.abspath(target))
    refuse_existing(target, overwrite=overwrite, replaceable=replaceable)
    partial = target.with_name(f"{_prefix(target)}{os.getpid()}")
    missing = [folder for folder in target.parents if not folder.exists()]
    try:
        _make_room(target, partial)
        with _worded_errors(target):
            yield partial
            _publish(partial, target, overwrite)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        for folder in missing:
            with contextlib.suppress(OSError):
                folder.rmdir()  # refuses when the target, or anything else, lies in it


def refuse_existing(target: Path, *, overwrite: bool, replaceable: Callable[[Path], bool]) -> None:
    """Raise unless `target` is free, empty, or may be replaced."""
    with _worded_errors(target):
        if not target.exists() or (target.is_dir() and not any(target.iterdir())):
            return
        ours = target.is_dir() and replaceable(target)
    if not ours:
        raise UserError(f"{target}: exists and is not something this command wrote; choose another --output")
    if not overwrite:
        raise UserError(f"{target}: exists already; add --overwrite to replace it")


def refuse_full_disk(target: Path, needed_bytes: int) -> None:
    """Raise when the disk that will hold `target` has not that much room."""
    folder = next(parent for parent in target.absolute().parents if parent.exists())
    free = shutil.disk_usage(folder).free
    if needed_bytes > free:
        raise UserError(
            f"{target}: needs {needed_bytes / 1e9:.2f} GB, {free / 1e9:.2f} GB are free on its disk; "
            "free some or choose another --output"
        )


def full_disk(error: BaseException) -> str | None:
    """What an error says of a full disk, if it does, also when a library wrapped it and only its text is left."""
    reasons = (os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
    return next((reason for reason in reasons if reason in str(error)), None)


@contextlib.contextmanager
def _worded_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if reason := full_disk(error):
            raise UserError(f"{target}: {reason}; free some disk space or choose another --output") from None
        if isinstance(error, OSError) and error.errno in _DENIED:
            raise UserError(f"{error.filename or target}: {_reason(error)}") from None
        raise


def _make_room(target: Path, partial: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(target)
        partial.mkdir()
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.filename}: {_reason(error)})") from None


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def _publish(partial: Path, target: Path, overwrite: bool) -> None:
    """Rename; an old target first steps aside under a partial name, so that it goes with the leftovers."""
    aside = partial.with_name(f"{partial.name}.old")
    if overwrite and target.exists():
        target.rename(aside)
    try:
        partial.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        raise UserError(f"{target}: another run has just written it") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _prefix(target: Path) -> str:
    # A shared disk may hold runs of several hosts, and only this host's can be known to be dead.
    return f".{target.name}.partial-{socket.gethostname()}-"


def _remove_leftovers(target: Path) -> None:
    for path in target.parent.glob(f"{glob.escape(_prefix(target))}*"):
        pid = path.name.removeprefix(_prefix(target)).removesuffix(".old")
        if pid.isdigit() and not _is_running(int(pid)):
            shutil.rmtree(path, ignore_errors=True)


def _is_running(pid: int) -> bool:
    """Whether another process has this id (our own id on a leftover was once a dead process's)."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
