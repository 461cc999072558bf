"""UniPC of order 2, variant B2(h), for flow models.

Zhao et al., "UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models", arXiv 2302.04867.
Notation: α = 1 - σ, λ = log(α / σ), m = the data prediction x - σ · velocity. Over a step from s to t, with
h = λ_t - λ_s and φ = e^(-h) - 1:

    predictor   x_t  = (σ_t/σ_s) x_s - α_t φ [m_s + ½ D]
    corrector   x_tᶜ = (σ_t/σ_s) x_s - α_t φ [m_s + ρ₁ D + ρ₂ (m_t - m_s)]
    history     D = (m_r - m_s) / k,  k = (λ_r - λ_s) / h,  r = the step before s

ρ solves the 2 x 2 system of the paper's order conditions. The first and the last step have order 1: D drops out and
ρ₂ = ½. The corrector of a step needs m_t, so it runs at the start of the next one; no step costs a second model call.

Both formulas are linear in (x_s, m_t, m_s, m_r) with weights that depend on the schedule alone. The weights are
computed here in float64, so `step` is two short weighted sums.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sixbit_jax.errors import UserError
from sixbit_jax.schedulers import sigmas
from sixbit_jax.schedulers.base import Latents, PerStep, StepPlan

_SCHEDULES = {"diffusers": sigmas.diffusers_unipc, "wan": sigmas.wan}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class UniPCWeights:
    """The solver's part of a plan: the factors of both weighted sums."""

    corrector: PerStep  # (i, 4): of x_s, m_t, m_s, m_r
    predictor: PerStep  # (i, 3): of x_s, m_s, m_r


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class UniPCState:
    """What the next corrector looks back on."""

    corrected: Latents  # the latents the last predictor started from
    data: Latents  # the data prediction there
    data_before: Latents  # and one step earlier


@dataclasses.dataclass(frozen=True)
class UniPC:
    """Second order, one model call a step. Equal to diffusers' UniPCMultistepScheduler as Wan configures it."""

    def plan(self, num_steps: int, *, shift: float | int, schedule: str) -> StepPlan:
        """`coefficients` are `UniPCWeights`."""
        grid = sigmas.make_schedule(_SCHEDULES, schedule, num_steps, shift)
        if grid.sigmas[0] >= 1:
            raise UserError(f"--flow-shift {shift}: too large for UniPC, the first noise level rounds to 1")
        return StepPlan(grid.timesteps, grid.sigmas[:-1], unipc_weights(grid.sigmas))

    def init(self, latents: Float[Array, "..."]) -> UniPCState:
        """The first corrector returns `corrected` unchanged, so it starts as the latents."""
        return UniPCState(latents, jnp.zeros_like(latents), jnp.zeros_like(latents))

    def step(
        self, state: UniPCState, latents: Float[Array, "*latents"], velocity: Float[Array, "*latents"], info: StepPlan
    ) -> tuple[Float[Array, "*latents"], UniPCState]:
        """Correct the latents with what the model just said about them, then predict the next ones."""
        data = latents - info.sigma * velocity.astype(jnp.float32)
        corrected = _weighted_sum(info.coefficients.corrector, (state.corrected, data, state.data, state.data_before))
        predicted = _weighted_sum(info.coefficients.predictor, (corrected, data, state.data))
        return predicted, UniPCState(corrected, data, state.data)


def unipc_weights(edges: Float[np.ndarray, " edges"]) -> UniPCWeights:
    """The weights of both formulas for each step between neighbouring `edges` (sigmas, the last 0)."""
    levels = edges.astype(np.float64)
    log_snr = np.log1p(-levels[:-1]) - np.log(levels[:-1])
    h = np.append(np.diff(log_snr), np.inf)  # λ is infinite at σ = 0
    inverse_k = _inverse_k(log_snr, h)
    keep = levels[1:] / levels[:-1]
    gain = -(1 - levels[1:]) * np.expm1(-h)
    predictor = _data_weights(gain, 0.5 * inverse_k, np.zeros_like(gain))
    rho_old, rho_new = _corrector_rhos(h[:-1], inverse_k[:-1])
    corrector = _data_weights(gain[:-1], rho_old * inverse_k[:-1], rho_new)
    # The corrector of a step runs one step later; the first step has none and keeps x_s.
    corrector = np.concatenate([[[1.0, 0.0, 0.0, 0.0]], np.column_stack([keep[:-1], corrector])])
    predictor = np.column_stack([keep, predictor[:, 1:]])
    return UniPCWeights(corrector.astype(np.float32), predictor.astype(np.float32))


def _inverse_k(log_snr: Float[np.ndarray, " i"], h: Float[np.ndarray, " i"]) -> Float[np.ndarray, " i"]:
    """1 / k of the steps of order 2, and 0 where the order is 1 (first and last), which removes D from the formulas."""
    inverse = np.zeros_like(h)
    inverse[1:-1] = h[1:-1] / (log_snr[:-2] - log_snr[1:-1])
    return inverse


def _corrector_rhos(
    h: Float[np.ndarray, " n"], inverse_k: Float[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """ρ₁ and ρ₂ from ρ₁ + ρ₂ = b₁ and k ρ₁ + ρ₂ = b₂ (order 2), or 0 and ½ (order 1)."""
    inverse_phi = 1 / np.expm1(-h)
    b1 = -1 / h - inverse_phi
    b2 = -2 * b1 / h - inverse_phi
    second_order = inverse_k != 0
    # Multiplied through by 1/k, which is 0 rather than infinite when the order is 1.
    rho_old = (b1 - b2) * inverse_k / (inverse_k - 1)
    return np.where(second_order, rho_old, 0.0), np.where(second_order, b1 - rho_old, 0.5)


def _data_weights(
    gain: Float[np.ndarray, " n"], history: Float[np.ndarray, " n"], newest: Float[np.ndarray, " n"]
) -> Float[np.ndarray, "n 3"]:
    """The bracket m_s + history (m_r - m_s) + newest (m_t - m_s), times gain, as weights of m_t, m_s and m_r."""
    return np.column_stack([gain * newest, gain * (1 - history - newest), gain * history])


def _weighted_sum(weights: Float[Array, " n"], terms: Sequence[Float[Array, "*latents"]]) -> Float[Array, "*latents"]:
    total = weights[0] * terms[0]
    for weight, term in zip(weights[1:], terms[1:], strict=True):
        total = total + weight * term
    return total
