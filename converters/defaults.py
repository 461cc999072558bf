"""What a pipeline says about sampling: the manifest's `pipeline` entry.

    {"defaults": fields of Settings, "boundary_ratio": float or None, "expand_timesteps": bool}

A diffusers folder says it in `model_index.json` and its scheduler's configuration; a `defaults.json` beside them (ours)
may add anything a user can set. The original repository keeps it in code: `_ORIGINAL` has those values.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from converters.read import read_json

_SOLVERS = {"UniPCMultistepScheduler": "unipc", "FlowMatchEulerDiscreteScheduler": "euler"}

# Whether there are two experts, and the model type of the original `config.json`.
_ORIGINAL: Mapping[tuple[bool, str], dict[str, Any]] = {
    (False, "t2v"): {"flow_shift": 5.0, "num_inference_steps": 50, "guidance_scale": 5.0},
    (False, "i2v"): {"flow_shift": 5.0, "num_inference_steps": 40, "guidance_scale": 5.0},
    (False, "ti2v"): {
        "flow_shift": 5.0,
        "num_inference_steps": 50,
        "guidance_scale": 5.0,
        "num_frames": 121,
        "fps": 24,
    },
    (True, "t2v"): {
        "flow_shift": 12.0,
        "num_inference_steps": 40,
        "guidance_scale": 4.0,
        "guidance_scale_2": 3.0,
    },
    (True, "i2v"): {
        "flow_shift": 5.0,
        "num_inference_steps": 40,
        "guidance_scale": 3.5,
        "guidance_scale_2": 3.5,
    },
}
_BOUNDARIES = {"t2v": 0.875, "i2v": 0.9}


def from_diffusers(folder: Path, index: Mapping[str, Any]) -> dict[str, Any]:
    """Of a folder with this `model_index.json`."""
    config, own = folder / "scheduler" / "scheduler_config.json", folder / "defaults.json"
    scheduler = read_json(config) if config.is_file() else {}
    defaults: dict[str, Any] = {"schedule": "diffusers"}
    if solver := _SOLVERS.get(scheduler.get("_class_name", "")):
        defaults["solver"] = solver
    if shift := scheduler.get("flow_shift", scheduler.get("shift")):
        defaults["flow_shift"] = float(shift)
    return {
        "defaults": defaults | (read_json(own) if own.is_file() else {}),
        "boundary_ratio": index.get("boundary_ratio"),
        "expand_timesteps": bool(index.get("expand_timesteps", False)),
    }


def from_original(experts: bool, config: Mapping[str, Any]) -> dict[str, Any]:
    """Of the original repository's folder whose transformer has this `config.json`."""
    model_type = config.get("model_type", "t2v")
    return {
        "defaults": {"schedule": "wan", "solver": "unipc"} | _ORIGINAL.get((experts, model_type), {}),
        "boundary_ratio": _BOUNDARIES.get(model_type) if experts else None,
        "expand_timesteps": model_type == "ti2v",
    }
