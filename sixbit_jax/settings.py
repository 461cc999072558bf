"""Everything that decides a video apart from the model.

Checked once, before anything is loaded, and written to the sidecar.
"""

import dataclasses
from typing import Any

from sixbit_jax.errors import UserError, nearest
from sixbit_jax.schedulers import SCHEDULES, SOLVERS

SPATIAL_MULTIPLE = 16  # 8 of the VAE times 2 of the patches
FRAME_STRIDE = 4


@dataclasses.dataclass(frozen=True)
class Settings:
    """One video. Defaults are Wan2.1's at 480p; a checkpoint may bring its own (`Settings(**manifest defaults)`)."""

    prompt: str = ""
    negative_prompt: str = ""
    height: int = 480
    width: int = 832
    num_frames: int = 81
    num_inference_steps: int = 50
    guidance_scale: float = 5.0
    guidance_scale_2: float | None = None
    flow_shift: float = 3.0
    solver: str = "unipc"
    schedule: str = "diffusers"
    seed: int = 0
    fps: int = 16

    @property
    def branches(self) -> int:
        """Model calls per step: without guidance the negative prompt has no say."""
        return 2 if max(self.guidance_scale, self.guidance_scale_2 or 0.0) > 1.0 else 1

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(t, h, w) of the latents of a 4 x 8 x 8 VAE."""
        return (self.num_frames - 1) // FRAME_STRIDE + 1, self.height // 8, self.width // 8

    def checked(self) -> "Settings":
        """These settings, or one line that names the flag and the nearest valid value."""
        _check_sizes(self)
        _check_name("--solver", self.solver, tuple(SOLVERS))
        _check_name("--schedule", self.schedule, SCHEDULES)
        if self.num_inference_steps < 1:
            raise UserError(f"--num-inference-steps {self.num_inference_steps}: needs at least 1")
        if not self.flow_shift > 0:
            raise UserError(f"--flow-shift {self.flow_shift}: needs a positive number (Wan uses 3 to 12)")
        if not 0 <= self.guidance_scale < float("inf"):
            raise UserError(f"--guidance-scale {self.guidance_scale}: needs a number from 0 up; 1 turns guidance off")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"--seed {self.seed}: needs a whole number from 0 to {2**32 - 1}")
        if self.fps < 1:
            raise UserError(f"--fps {self.fps}: needs at least 1")
        return self

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def parse_size(text: str) -> tuple[int, int]:
    """(width, height) from Wan's `832*480`.

    >>> parse_size("832*480")
    (832, 480)
    """
    width, star, height = text.lower().replace("x", "*").partition("*")
    if not (star and width.isdigit() and height.isdigit()):
        raise UserError(f"--size {text}: needs WIDTH*HEIGHT, for example 832*480")
    return int(width), int(height)


def _check_sizes(settings: Settings) -> None:
    for flag, value in (("--height", settings.height), ("--width", settings.width)):
        if value < SPATIAL_MULTIPLE or value % SPATIAL_MULTIPLE:
            good = max(1, round(value / SPATIAL_MULTIPLE)) * SPATIAL_MULTIPLE
            raise UserError(f"{flag} {value}: needs a multiple of {SPATIAL_MULTIPLE}; the nearest is {good}")
    frames = settings.num_frames
    if frames < 1 or frames % FRAME_STRIDE != 1:
        good = max(0, round((frames - 1) / FRAME_STRIDE)) * FRAME_STRIDE + 1
        raise UserError(f"--num-frames {frames}: needs 4n+1 (1, 5, 9, ... 81); the nearest is {good}")


def _check_name(flag: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f'{flag}: unknown value "{value}"; {nearest(value, choices)}')
