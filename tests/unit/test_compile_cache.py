"""A second process with the same program finds it compiled, progress callbacks included."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import jax, jax.numpy as jnp
from sixbit_jax import compile_cache, progress
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event) if event.endswith("cache_hits") else None)
print(compile_cache.enable())
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

def loop(x):
    def step(x, i):
        jax.debug.callback(progress.report, i, 0.0, 16.0)
        return jnp.sin(x @ x), None
    return jax.lax.scan(step, x, jnp.arange(3))[0]

seen = []
with progress.listening(lambda step, skipped, bits: seen.append(step)):
    compiled = jax.jit(loop).lower(jnp.ones((4, 4))).compile()
    jax.block_until_ready(compiled(jnp.ones((4, 4))))
    jax.effects_barrier()
assert sorted(seen) == [0, 1, 2], seen
print("hits", len(hits))
"""


def run(**variables: str) -> list[str]:
    mine = {name: value for name, value in os.environ.items() if "CACHE" not in name}
    environment = mine | {"JAX_PLATFORMS": "cpu"} | variables
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    return result.stdout.split("\n")


def test_second_process_reads_the_cache(tmp_path):
    first = run(SIXBIT_COMPILE_CACHE=str(tmp_path))
    assert first[0] == str(tmp_path)
    assert first[1] == "hits 0"
    second = run(SIXBIT_COMPILE_CACHE=str(tmp_path))
    assert int(second[1].split()[1]) >= 1


def test_variable_turns_it_off(tmp_path):
    assert run(SIXBIT_COMPILE_CACHE="0", XDG_CACHE_HOME=str(tmp_path))[0] == "None"
    assert not list(tmp_path.iterdir())


def test_default_folder_is_the_users_cache(tmp_path):
    assert run(SIXBIT_COMPILE_CACHE="", XDG_CACHE_HOME=str(tmp_path))[0] == str(tmp_path / "sixbit-jax" / "compiled")


def test_a_folder_set_through_jax_is_kept(tmp_path):
    set_by_jax = run(SIXBIT_COMPILE_CACHE=str(tmp_path / "ours"), JAX_COMPILATION_CACHE_DIR=str(tmp_path / "jax's"))
    assert set_by_jax[0] == str(tmp_path / "jax's")


def test_unwritable_folder_is_no_error(tmp_path):
    (tmp_path / "file").write_text("")
    assert run(SIXBIT_COMPILE_CACHE=str(tmp_path / "file" / "cache"))[0] == "None"
