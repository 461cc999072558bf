"""Where a figure comes from."""

import os
import platform
import subprocess
import sys

import jax


def provenance(program: str) -> dict[str, str]:
    """Device, version, commit and command of this run of `program`. $COMMIT names the commit where git is absent."""
    git = ["git", "rev-parse", "--short", "HEAD"]
    commit = os.environ.get("COMMIT") or subprocess.run(git, capture_output=True, text=True).stdout.strip()
    device = f"{jax.devices()[0].device_kind}, {platform.machine()}"
    return {
        "device": device,
        "jax": jax.__version__,
        "commit": commit,
        "command": f"python {program} {' '.join(sys.argv[1:])}",
    }
