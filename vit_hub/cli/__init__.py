"""The ``vit-hub`` command: a thin layer over the library, one ``cmd_*.py`` file per verb."""

from vit_hub.cli.app import main

__all__ = ["main"]
