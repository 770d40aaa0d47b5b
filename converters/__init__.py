"""Checkpoint formats <-> the canonical tensors."""

from vit_hub.converters.checkpoint import Checkpoint, open_checkpoint
from vit_hub.converters.conversion import Report, convert_checkpoint
from vit_hub.converters.format import format_names

__all__ = ["Checkpoint", "Report", "convert_checkpoint", "format_names", "open_checkpoint"]
