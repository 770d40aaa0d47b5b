"""From an image to a model's input: what a project does, in whose words it is written down, and class names."""

from vit_hub.preprocessing.spec import Preprocessing, native_size

__all__ = ["Preprocessing", "native_size"]
