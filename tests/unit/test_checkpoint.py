"""Checkpoint folders: whole or not at all, and refusals in words."""

import errno
import gc
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from sixbit_jax import checkpoint, manifest, orbax_trees, staging
from sixbit_jax.errors import UserError


@pytest.fixture
def tree(rng):
    return {
        "blocks": {"weight": rng.standard_normal((2, 300, 400), np.float32).astype(ml_dtypes.bfloat16)},
        "scale": rng.standard_normal(3, np.float32),
        "gain": np.full((), 2, np.float32),
    }


@pytest.fixture
def folder(tmp_path, tree):
    with checkpoint.draft(tmp_path / "made") as draft:
        draft.add("vae", "vae", {"base_dim": 16}, "bf16", tree)
        draft.finish({"defaults": {"flow_shift": 3.0}}, {"path": "somewhere"})
    return tmp_path / "made"


def assert_trees_equal(a, b):
    assert manifest.describe(a) == manifest.describe(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def test_load_gives_back_what_was_saved(folder, tree):
    config, params = checkpoint.load(folder, "vae")
    assert config == {"base_dim": 16}
    assert_trees_equal(params, tree)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))
    assert jax.tree.leaves(params)[0].sharding == jnp.zeros(()).sharding


def test_load_numpy_stays_on_the_host(folder, tree):
    _, params = checkpoint.load_numpy(folder, "vae")
    assert_trees_equal(params, tree)
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("batch_bytes", [1, 2**30])
def test_stream_gives_one_parameter_after_the_other(folder, tree, monkeypatch, batch_bytes):
    monkeypatch.setattr(checkpoint, "_BATCH_BYTES", batch_bytes)
    streamed = dict(checkpoint.stream(folder, "vae"))
    assert_trees_equal(manifest.nest(streamed), tree)
    assert all(type(leaf) is np.ndarray for leaf in streamed.values())


def test_jax_arrays_can_be_saved_too(tmp_path, tree):
    with checkpoint.draft(tmp_path / "made") as draft:
        draft.add("vae", "vae", {}, "bf16", jax.tree.map(jnp.asarray, tree))
        assert_trees_equal(draft.read_back("vae"), tree)
        draft.finish({}, {})
    assert_trees_equal(checkpoint.load(tmp_path / "made", "vae")[1], tree)


def test_manifest_says_what_is_inside(folder):
    read = checkpoint.read_manifest(folder)
    assert read.components["vae"].parameters == {
        "blocks/weight": "bfloat16[2,300,400]",
        "gain": "float32[]",
        "scale": "float32[3]",
    }
    assert read.versions["jax"] == jax.__version__
    assert read.pipeline["defaults"] == {"flow_shift": 3.0}
    assert read.format_version == manifest.FORMAT_VERSION


def test_nothing_but_the_checkpoint_is_left(folder):
    assert os.listdir(folder.parent) == ["made"]


def refusal(folder):
    """What `load` says of a folder it refuses."""
    try:
        checkpoint.load(folder, "vae")
    except UserError as error:
        text = str(error)
    gc.collect()  # a read left half-way would complain now, and fail the test
    return text


def edit_manifest(folder, **fields):
    path = folder / manifest.FILE_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_newer_format_is_refused(folder):
    edit_manifest(folder, format_version=manifest.FORMAT_VERSION + 1)
    with pytest.raises(UserError, match="checkpoint format 3, this version reads up to 2; update"):
        checkpoint.load(folder, "vae")


def test_an_absent_component_is_refused(folder):
    with pytest.raises(UserError, match=r"has no transformer; choices: vae"):
        checkpoint.load(folder, "transformer")


def test_a_tree_that_the_model_does_not_expect_is_refused(folder, tree):
    expected = tree | {"scale": np.zeros(4, np.float32)}
    with pytest.raises(UserError, match=r"scale is float32\[3\], expected float32\[4\]"):
        checkpoint.load(folder, "vae", expected)


def test_data_that_differs_from_the_manifest_is_refused(folder):
    components = json.loads((folder / manifest.FILE_NAME).read_text())["components"]
    components["vae"]["parameters"]["scale"] = "float32[4]"
    edit_manifest(folder, components=components)
    assert "convert the checkpoint again" in refusal(folder)


def largest_file(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def halve(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "no such checkpoint"),
        (lambda folder: (folder / "manifest.json").unlink(), "not a checkpoint"),
        (lambda folder: (folder / "manifest.json").write_text('{"format_'), "manifest.json: damaged"),
        (lambda folder: (folder / "manifest.json").write_text('{"format_version": 1}'), "manifest.json: damaged"),
        (lambda folder: shutil.rmtree(folder / "vae"), "vae: missing"),
        (lambda folder: shutil.rmtree(folder / "vae" / "d"), "vae: files are damaged or missing"),
        (lambda folder: largest_file(folder / "vae").unlink(), "vae: files are damaged or missing"),
        (lambda folder: halve(largest_file(folder / "vae")), "vae: files are damaged or missing"),
    ],
)
def test_damage_is_named_in_one_line(folder, damage, message):
    damage(folder)
    text = refusal(folder)
    assert message in text
    assert "\n" not in text


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 5 bytes")]
)
def test_too_little_memory_is_not_called_damage(folder, monkeypatch, error):
    def exhaust(path, abstract, **options):
        raise ValueError("wrapped") from error

    monkeypatch.setattr(orbax_trees, "restore_tree", exhaust)
    with pytest.raises(ValueError, match="wrapped"):
        checkpoint.load(folder, "vae")


def test_an_exception_leaves_nothing(tmp_path, tree):
    with pytest.raises(KeyboardInterrupt), checkpoint.draft(tmp_path / "new" / "made") as draft:
        draft.add("vae", "vae", {}, "bf16", tree)
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_an_existing_checkpoint_needs_overwrite(folder, tree):
    with pytest.raises(UserError, match="add --overwrite"), checkpoint.draft(folder):
        pass
    with checkpoint.draft(folder, overwrite=True) as draft:
        draft.finish({}, {})
    assert checkpoint.read_manifest(folder).components == {}
    assert os.listdir(folder.parent) == ["made"]


def test_a_failed_overwrite_keeps_the_old_one(folder, tree):
    with pytest.raises(RuntimeError), checkpoint.draft(folder, overwrite=True) as draft:
        draft.add("vae", "vae", {}, "bf16", tree)
        raise RuntimeError
    assert checkpoint.read_manifest(folder).components.keys() == {"vae"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_other_peoples_folders_are_never_replaced(tmp_path, overwrite):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(UserError, match="not something this command wrote"):
        checkpoint.draft(tmp_path / "mine", overwrite=overwrite).__enter__()
    assert (tmp_path / "mine" / "thesis.tex").exists()


def test_an_empty_folder_may_be_filled(tmp_path):
    (tmp_path / "made").mkdir()
    with checkpoint.draft(tmp_path / "made") as draft:
        draft.finish({}, {})
    assert checkpoint.is_checkpoint(tmp_path / "made")


def test_paths_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        checkpoint.draft(tmp_path / "file" / "made").__enter__()


def raise_full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def raise_full_in_words(*_, **__):
    raise ValueError("RESOURCE_EXHAUSTED: Error writing local file: No space left on device")


@pytest.mark.parametrize("fault", [raise_full, raise_full_in_words])
def test_a_disk_that_fills_up_is_one_line_and_leaves_nothing(tmp_path, tree, monkeypatch, fault):
    monkeypatch.setattr(orbax_trees, "save_tree", fault)
    with pytest.raises(UserError, match="No space left on device; free"), checkpoint.draft(tmp_path / "made") as draft:
        draft.add("vae", "vae", {}, "bf16", tree)
    assert os.listdir(tmp_path) == []


def test_too_little_room_is_seen_beforehand(tmp_path):
    with pytest.raises(UserError, match=r"needs 1000000\.00 GB"):
        staging.refuse_full_disk(tmp_path / "not" / "there", 10**15)
    staging.refuse_full_disk(tmp_path / "not" / "there", 0)


def test_no_permission_is_one_line(tmp_path):
    def denied():
        with staging.staged(tmp_path / "made", overwrite=False, replaceable=lambda _: False):
            raise PermissionError(errno.EACCES, "Permission denied", "weights.safetensors")

    with pytest.raises(UserError, match=r"weights\.safetensors: permission denied"):
        denied()


def test_leftovers_of_dead_runs_go_and_those_of_living_ones_stay(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    prefix = f".made.partial-{socket.gethostname()}-"
    dead, alive, elsewhere = f"{prefix}{process.pid}", f"{prefix}{os.getppid()}", ".made.partial-otherhost-1"
    for name in (dead, f"{dead}.old", f"{prefix}{os.getpid()}", alive, elsewhere):
        (tmp_path / name / "inside").mkdir(parents=True)
    with checkpoint.draft(tmp_path / "made") as draft:
        draft.finish({}, {})
    assert set(os.listdir(tmp_path)) == {"made", alive, elsewhere}


def test_another_run_that_finishes_first_wins(tmp_path):
    def lose():
        with checkpoint.draft(tmp_path / "made"), checkpoint_by_another_process(tmp_path / "made"):
            pass

    def checkpoint_by_another_process(target):
        target.mkdir()
        return (target / "manifest.json").open("w")

    with pytest.raises(UserError, match="another run has just written it"):
        lose()
    assert os.listdir(tmp_path) == ["made"]


_KILLED = """
    import os, signal, sys
    from pathlib import Path
    import numpy as np
    from sixbit_jax import checkpoint

    with checkpoint.draft(Path(sys.argv[1])) as draft:
        draft.add("vae", "vae", {}, "f32", {"w": np.ones(8, np.float32)})
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_kill_leaves_no_checkpoint_and_the_next_run_clears_up(tmp_path):
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(_KILLED), str(tmp_path / "made")], check=False)
    assert run.returncode == -signal.SIGKILL
    (leftover,) = tmp_path.iterdir()
    for path in (tmp_path / "made", leftover):
        with pytest.raises(UserError):
            checkpoint.load(path, "vae")
    with checkpoint.draft(tmp_path / "made") as draft:
        draft.finish({}, {})
    assert os.listdir(tmp_path) == ["made"]


def test_descriptions_build_the_tree_they_describe(tree):
    described = manifest.describe(tree)
    assert manifest.describe(manifest.build_abstract(described)) == described
