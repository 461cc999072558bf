"""Versions of packages, for what is written down about a run."""

from collections.abc import Iterable
from importlib import metadata


def versions(packages: Iterable[str]) -> dict[str, str]:
    """By package; "unknown" for one that is not installed, as this one run from a checkout.

    >>> versions(["no-such-package"])
    {'no-such-package': 'unknown'}
    """
    return {package: _version(package) for package in packages}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"
