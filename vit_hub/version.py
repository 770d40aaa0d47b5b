"""The version of vit-hub, for all modules beneath the package's own, and those of other packages."""

from __future__ import annotations

import contextlib
import importlib.metadata

__all__ = ["__version__", "installed_version"]

__version__ = "0.1.0"


def installed_version(package: str) -> str | None:
    """Return the version of a package; None: it is not installed."""
    if package == "vit-hub":  # perhaps a clone, which is not installed
        return __version__
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None
