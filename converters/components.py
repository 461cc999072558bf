"""The parts of a pipeline, and for each what converts it: its table, its configuration, the tree it becomes."""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp

from converters import umt5 as umt5_table
from converters import wan_dit, wan_vae
from converters.rules import Rule
from sixbit_jax.errors import UserError
from sixbit_jax.models import umt5, vae_modules, wan_modules
from sixbit_jax.models.vae_config import VAEConfig
from sixbit_jax.models.wan_config import WanConfig
from sixbit_jax.shapes import Params

DTYPES = {"f32": jnp.float32, "bf16": jnp.bfloat16}


@runtime_checkable
class Table(Protocol):
    """What a table module offers. `MARKERS` names, per naming, a key that no other naming and no other model has."""

    MARKERS: dict[str, str]
    IGNORED: dict[str, tuple[str, ...]]

    def rules(self, config: Any, naming: str) -> list[Rule]: ...
    def infer_config(self, shapes: Mapping[str, tuple[int, ...]], naming: str) -> Any: ...


@dataclasses.dataclass(frozen=True)
class Kind:
    """One model architecture. `library`, `class_name` and `file_stem` are how diffusers' folders call it."""

    name: str
    table: Table
    config: Any
    abstract_params: Callable[..., Params]
    library: str
    class_name: str
    file_stem: str
    # The VAE's rounding is visible and its share of the time is small: stored in f32 whatever was asked for.
    always_f32: bool = False

    def dtype(self, asked: str) -> str:
        return "f32" if self.always_f32 else asked

    def naming(self, keys: Collection[str]) -> str | None:
        """Which of the table's namings these keys are in."""
        return next((naming for naming, marker in self.table.MARKERS.items() if marker in keys), None)


KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            "transformer",
            wan_dit,
            WanConfig,
            wan_modules.abstract_params,
            "diffusers",
            "WanTransformer3DModel",
            "diffusion_pytorch_model",
        ),
        Kind(
            "text_encoder",
            umt5_table,
            umt5.UMT5Config,
            umt5.abstract_params,
            "transformers",
            "UMT5EncoderModel",
            "model",
        ),
        Kind(
            "vae",
            wan_vae,
            VAEConfig,
            vae_modules.abstract_params,
            "diffusers",
            "AutoencoderKLWan",
            "diffusion_pytorch_model",
            always_f32=True,
        ),
    )
}
# The folders of a pipeline. Wan2.2 A14B has two transformers; the second takes over at low noise.
COMPONENTS = {
    "transformer": KINDS["transformer"],
    "transformer_2": KINDS["transformer"],
    "text_encoder": KINDS["text_encoder"],
    "vae": KINDS["vae"],
}


def detect(keys: Collection[str], where: str) -> str:
    """The component that a file of these keys is."""
    for name, kind in KINDS.items():
        if kind.naming(keys) is not None:
            return name
    raise UserError(
        f'{where}: not a model this converter knows (its first key is "{next(iter(keys), "")}"; '
        f"it knows Wan transformers, UMT5 encoders and the Wan 2.1 VAE)"
    )
