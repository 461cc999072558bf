"""How large tiny-wan is. All its sizes are here.

Together at most 32 MiB in 16 bits: 11.3 M parameters in the transformer, 4.6 M in the autoencoder, 0.6 M in the text
encoder.
"""

import dataclasses

from sixbit_jax.models.umt5 import UMT5Config
from sixbit_jax.models.vae_config import VAEConfig
from sixbit_jax.models.wan_config import WanConfig
from sixbit_jax.tiny.tokenizer import VOCABULARY_SIZE


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The three models and the video they are trained on."""

    transformer: WanConfig
    text_encoder: UMT5Config
    vae: VAEConfig
    frames: int
    height: int
    width: int

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """(t, h, w, c) of one video."""
        scale = self.vae.spatial_scale
        frames = (self.frames - 1) // self.vae.temporal_scale + 1
        return frames, self.height // scale, self.width // scale, self.vae.z_dim


def _vae(base_dim: int, dim_mult: tuple[int, ...]) -> VAEConfig:
    """Latents are left as they are until training has measured their statistics."""
    zeros, ones = (0.0,) * 16, (1.0,) * 16
    return VAEConfig(
        base_dim=base_dim, dim_mult=dim_mult, num_res_blocks=1, z_dim=16, latents_mean=zeros, latents_std=ones
    )


SIZES = {
    "tiny": Sizes(
        WanConfig(num_layers=10, num_heads=2, ffn_dim=1024, text_dim=128),
        UMT5Config(VOCABULARY_SIZE, d_model=128, num_layers=3, num_heads=4, head_dim=32, ffn_dim=256),
        _vae(16, (1, 2, 4, 6)),
        frames=17,
        height=128,
        width=128,
    ),
    # For tests: every stage in seconds on a CPU.
    "micro": Sizes(
        WanConfig(num_layers=2, num_heads=1, head_dim=32, ffn_dim=64, text_dim=16),
        UMT5Config(VOCABULARY_SIZE, d_model=16, num_layers=1, num_heads=2, head_dim=8, ffn_dim=32),
        _vae(4, (1, 1, 1, 1)),
        frames=5,
        height=32,
        width=32,
    ),
}
