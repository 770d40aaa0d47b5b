"""The version of vit-hub, for all modules beneath the package's own."""

__version__ = "0.1.0"
