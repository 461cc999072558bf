"""What to do at this step: how linears multiply (`precision`) and which blocks run at all (`cache`)."""

from sixbit_jax.policies.base import PolicySpec, StepInfo
from sixbit_jax.policies.cache import AbstractCachePolicy, NoCache
from sixbit_jax.policies.precision import AbstractPrecisionPolicy, FixedPrecision
from sixbit_jax.policies.predicted import PredictedPrecision
from sixbit_jax.policies.random_precision import RandomPrecision
from sixbit_jax.policies.scheduled_reuse import ScheduledReuse
from sixbit_jax.policies.temporal_delta import TemporalDeltaCache

__all__ = [
    "AbstractCachePolicy",
    "AbstractPrecisionPolicy",
    "FixedPrecision",
    "NoCache",
    "PolicySpec",
    "PredictedPrecision",
    "RandomPrecision",
    "ScheduledReuse",
    "StepInfo",
    "TemporalDeltaCache",
]
