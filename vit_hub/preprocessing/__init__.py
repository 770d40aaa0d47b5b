"""Evaluation preprocessing: its specification, the config files of other projects, images, and class names."""

from vit_hub.preprocessing.spec import Preprocessing, native_size

__all__ = ["Preprocessing", "native_size"]
