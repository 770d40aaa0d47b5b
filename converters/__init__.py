"""Conversion between checkpoint formats and the canonical tensors."""

from vit_hub.converters.formats import format_names
from vit_hub.converters.read import Checkpoint, open_checkpoint
from vit_hub.converters.write import Report, convert_checkpoint

__all__ = ["Checkpoint", "Report", "convert_checkpoint", "format_names", "open_checkpoint"]
