"""Calibrated thresholds as data, found by the model's weights and by what of a recipe they depend on.

    scripts/calibrate.py --> preset.json --complete--> a recipe that lacks nothing

A preset holds for one set of weight files (their checksums), one way of storing them and one low route; of several that
fit, the one made at the closest number of steps is taken. Those of tiny-wan and of its outlier twin lie next to this
file; those that a user makes lie next to the model.
"""

from sixbit_jax.presets.complete import complete, home
from sixbit_jax.presets.preset import Preset, read_preset, write_preset

__all__ = ["Preset", "complete", "home", "read_preset", "write_preset"]
