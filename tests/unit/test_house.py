"""The rules of the house: who may import whom, what an import may cost, how large a file may grow."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("sixbit_jax", "converters", "pallas_kernels")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

# Layer by layer: a module may import those listed for the longest prefix of its name, and its own package.
BASE = {"sixbit_jax.errors", "sixbit_jax.shapes", "sixbit_jax.dispatch", "sixbit_jax.routes"}
FORMATS = BASE | {"sixbit_jax.formats"}
OPS = BASE | {"sixbit_jax.linear", "sixbit_jax.attention"}
LOOP = BASE | {"sixbit_jax.policies", "sixbit_jax.schedulers"}
MAY_IMPORT = {
    "sixbit_jax.errors": set(),
    "sixbit_jax.shapes": set(),
    "sixbit_jax.routes": set(),
    "sixbit_jax.dispatch": {"sixbit_jax.errors"},
    "sixbit_jax.formats": set(),
    "sixbit_jax.quantizers": {"sixbit_jax.errors", "sixbit_jax.formats"},
    "pallas_kernels": set(),
    "sixbit_jax.linear": FORMATS | {"pallas_kernels", "sixbit_jax.models.norms"},
    "sixbit_jax.attention": BASE | {"pallas_kernels", "sixbit_jax.models.norms", "sixbit_jax.models.rope"},
    "sixbit_jax.models": OPS,
    "sixbit_jax.models.norms": set(),
    "sixbit_jax.models.rope": set(),
    "sixbit_jax.policies": FORMATS | {"sixbit_jax.linear.magnitude"},
    "sixbit_jax.policies.delta_store_pallas": {"sixbit_jax.formats", "pallas_kernels"},
    "sixbit_jax.linear.magnitude": set(),
    "sixbit_jax.schedulers": BASE,
    "sixbit_jax.sampler": LOOP,
    "sixbit_jax.recipes": LOOP | {"sixbit_jax.quantizers"},
    "sixbit_jax.quantize": FORMATS | {"sixbit_jax.quantizers", "sixbit_jax.recipes"},
    "sixbit_jax.settings": LOOP,
    "sixbit_jax.evaluate": BASE | {"sixbit_jax.tiny", "sixbit_jax.outputs"},
    "sixbit_jax.checkpoint": BASE | {"sixbit_jax.manifest", "sixbit_jax.staging", "sixbit_jax.orbax_trees"},
    "converters": FORMATS | {"sixbit_jax.models", "sixbit_jax.checkpoint", "sixbit_jax.manifest", "sixbit_jax.staging"},
}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    """Every module a file imports, at any depth, type-checking blocks included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def layer(name: str) -> str | None:
    return max((key for key in MAY_IMPORT if name == key or name.startswith(key + ".")), key=len, default=None)


def within(name: str, allowed: set[str]) -> bool:
    return any(name == key or name.startswith(key + ".") for key in allowed)


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_point_one_way(path):
    name = module_name(path)
    home = layer(name)
    if home is None:  # the outermost layer: pipeline, commands
        return
    ours = {module for module in imports(path) if module.split(".")[0] in PACKAGES and module not in PACKAGES}
    wrong = {module for module in ours if not within(module, MAY_IMPORT[home] | {home})}
    assert not wrong


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_flax_and_torch_stay_where_they_belong(path):
    name, found = module_name(path), {module.split(".")[0] for module in imports(path)}
    assert "flax" not in found or name.startswith("sixbit_jax.models")
    assert "torch" not in found or name == "converters.read"
    assert not found & {"diffusers", "transformers"}


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_files_are_small(path):
    assert len(path.read_text().splitlines()) <= 400


def test_import_is_light():
    """No torch, no device, and under two seconds of processor time (measured: well under one)."""
    program = """
import sys, time
start = time.process_time()  # a busy machine does not make an import heavier
import sixbit_jax
seconds = time.process_time() - start
assert seconds < 2, seconds
for heavy in ("torch", "transformers", "diffusers", "orbax", "flax", "tokenizers"):
    assert heavy not in sys.modules, heavy
from sixbit_jax import attention, linear
from jax._src import xla_bridge
assert not xla_bridge._backends, "a device was initialised"
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
