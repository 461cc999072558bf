"""The VAE's key tables against diffusers: its own keys, and the original file's through its conversion function."""

import jax
import numpy as np
import pytest
import vae_reference
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

from converters import wan_vae
from sixbit_jax.errors import UserError
from sixbit_jax.models.vae import VAEConfig

pytestmark = pytest.mark.parity

RELEASED = "as released"


def renamed(name: str) -> dict[str, np.ndarray]:
    """The reference's tensors under the original names, paired through our tables."""
    config, tensors = vae_reference.config(name), vae_reference.tensors(name)
    pairs = zip(wan_vae.rules(config, "original"), wan_vae.rules(config, "diffusers"), strict=True)
    return {original.source: tensors[diffusers.source] for original, diffusers in pairs}


def shapes(tensors: dict[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    return {key: value.shape for key, value in tensors.items()}


def test_original_names_are_those_that_diffusers_reads() -> None:
    converted = convert_wan_vae_to_diffusers(renamed(RELEASED))
    expected = vae_reference.tensors(RELEASED)
    assert converted.keys() == expected.keys()
    assert all(converted[key] is not None and np.array_equal(converted[key], expected[key]) for key in expected)


def test_both_namings_fill_the_same_parameters() -> None:
    ours = vae_reference.fill(vae_reference.config(RELEASED), renamed(RELEASED), "original")
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, ours, vae_reference.params(RELEASED))))


@pytest.mark.parametrize("naming", wan_vae.NAMINGS)
def test_layouts_are_reversible(naming: str) -> None:
    tensors = {"diffusers": vae_reference.tensors, "original": renamed}[naming](RELEASED)
    for rule in wan_vae.rules(vae_reference.config(RELEASED), naming):
        if rule.transform is not None:
            x = tensors[rule.source]
            np.testing.assert_array_equal(rule.transform.inverse(rule.transform.forward(x), x.shape), x)


def test_markers_tell_the_namings_apart() -> None:
    found = {"diffusers": vae_reference.tensors(RELEASED), "original": renamed(RELEASED)}
    for naming, marker in wan_vae.MARKERS.items():
        assert [other for other, tensors in found.items() if marker in tensors] == [naming]


@pytest.mark.parametrize("name", [RELEASED, "two resamplings"])
def test_sizes_are_read_from_the_tensors(name: str) -> None:
    assert wan_vae.infer_config(shapes(vae_reference.tensors(name)), "diffusers") == vae_reference.config(name)
    assert wan_vae.infer_config(shapes(renamed(name)), "original") == vae_reference.config(name)


def test_released_shape_is_the_default() -> None:
    config = wan_vae.infer_config(shapes(vae_reference.tensors(RELEASED)), "diffusers")
    assert config == VAEConfig(base_dim=8)


def test_unknown_statistics_are_refused() -> None:
    with pytest.raises(UserError, match="4-channel latents are not in the file"):
        wan_vae.infer_config(shapes(vae_reference.tensors("four latent channels")), "diffusers")


@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [
        ("encoder.conv_in.weight", (160, 12, 3, 3, 3), "Wan 2.2"),
        ("encoder.conv_in.weight", None, '"encoder.conv_in.weight" is missing'),
        ("encoder.down_blocks.0.conv1.weight", None, '"encoder.down_blocks.0.conv1.weight" is missing'),
    ],
)
def test_other_files_are_refused(key: str, shape: tuple[int, ...] | None, message: str) -> None:
    found = shapes(vae_reference.tensors(RELEASED)) | {key: shape}
    with pytest.raises(UserError, match=message):
        wan_vae.infer_config({key: shape for key, shape in found.items() if shape is not None}, "diffusers")
