"""The persistent compile cache: a second run of the same shapes starts at once.

On by default in the scripts and in `WanPipeline.load`. `SIXBIT_COMPILE_CACHE=0` turns it off, any other value is the
folder to use.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

VARIABLE = "SIXBIT_COMPILE_CACHE"
_OFF = ("0", "off", "no", "false")


def enable() -> Path | None:
    """Turn the cache on unless the user turned it off; the folder in use, or None.

    A folder set through jax itself is kept.
    """
    chosen = os.environ.get(VARIABLE, "")
    if chosen.lower() in _OFF and chosen:
        return None
    if configured := getattr(jax.config, "jax_compilation_cache_dir", None):
        return Path(configured)
    folder = Path(chosen) if chosen else _user_cache() / "compiled"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None  # An unwritable home is no reason to stop: it only costs compile time.
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # Everything that takes noticeable time is worth keeping; jax's own threshold is a second.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    if jax.__version_info__ < (0, 11):
        _cache_programs_with_callbacks()
    return folder


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sixbit-jax"


_patched = False
_callbacks: list[Sequence[Any]] = []


def _cache_programs_with_callbacks() -> None:
    """Let jax 0.10 cache programs that report progress through a host callback.

    A callback is compiled as an index into a list that the runtime gets when it loads the program, so the program
    itself is the same in every process. jax 0.11 passes that list when it reads the cache; 0.10 refuses to cache such
    programs. This does there what 0.11 does.
    """
    global _patched
    if _patched:
        return
    _patched = True
    from jax._src import compilation_cache, compiler

    compile_or_get, write, read = (
        compiler.compile_or_get_cached,
        compiler._cache_write,
        compilation_cache.get_executable_and_time,
    )

    def compile_remembering_callbacks(
        backend: Any, module: Any, devices: Any, options: Any, host_callbacks: Any, *args: Any, **kwargs: Any
    ) -> Any:
        _callbacks.append(host_callbacks)
        try:
            return compile_or_get(backend, module, devices, options, host_callbacks, *args, **kwargs)
        finally:
            _callbacks.pop()

    def write_always(key: Any, seconds: Any, name: Any, backend: Any, executable: Any, host_callbacks: Any) -> None:
        write(key, seconds, name, backend, executable, [])

    def read_with_callbacks(key: Any, options: Any, backend: Any, devices: Any) -> Any:
        return read(key, options, _BackendWithCallbacks(backend), devices)

    setattr(compiler, "compile_or_get_cached", compile_remembering_callbacks)  # noqa: B010
    setattr(compiler, "_cache_write", write_always)  # noqa: B010
    setattr(compilation_cache, "get_executable_and_time", read_with_callbacks)  # noqa: B010


class _BackendWithCallbacks:
    """A backend that hands the callbacks of the program being compiled to `deserialize_executable`."""

    def __init__(self, backend: Any):
        self._backend = backend

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def deserialize_executable(self, serialized: Any, devices: Any, options: Any) -> Any:
        callbacks = [_callbacks[-1]] if _callbacks and _callbacks[-1] else []
        return self._backend.deserialize_executable(serialized, devices, options, *callbacks)
