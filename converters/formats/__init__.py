"""The checkpoint formats, a module each; modules whose name begins with ``_`` hold what several share."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from functools import cache

from vit_hub.converters.rules.format import Dialect, Format
from vit_hub.errors import UnknownFormatError
from vit_hub.untrusted import quoted

__all__ = ["all_formats", "format_meant", "format_names", "formats_named", "unknown_format"]

# What people call the formats.
_MEANT = {
    "huggingface": "hf",
    "transformers": "hf",
    "pytorch": "timm",
    "torch": "timm",
    "jax": "vit_jax",
    "flax": "hf_flax",
    "tensorflow": "hf_tf",
    "tf": "hf_tf",
    "keras": "keras_hub",
    "clip": "openai_clip",
    "dinov2": "facebook",
    "safetensors": "canonical",
}
# Programs, which are no checkpoints, and what `vit-hub export --to` calls them.
_EXPORTED = {"onnx": "onnx", "openvino": "openvino", "torchexport": "torch-export", "pt2": "torch-export"}


@cache
def all_formats() -> tuple[Format, ...]:
    """Return every format, in the order that decides where two explain a file equally well: by name of the module."""
    modules = sorted(info.name for info in pkgutil.iter_modules(__path__) if not info.name.startswith("_"))
    loaded = [importlib.import_module(f"{__name__}.{name}") for name in modules]
    return tuple(item for module in loaded for item in module.FORMATS)


def format_names() -> list[str]:
    """Return the names that ``to=`` and ``format=`` accept: ``canonical``, every format, every dialect."""
    labels = [label for fmt in all_formats() for label in (fmt.name, *map(fmt.label, fmt.dialects))]
    return ["canonical", *dict.fromkeys(labels)]


def format_meant(name: str) -> str:
    """Return what was probably meant by a name that no format has, as a question or a remark; empty: nobody knows."""
    plain = "".join(character for character in name.lower() if character.isalnum())
    if plain in _EXPORTED:
        return f"`vit-hub export --to {_EXPORTED[plain]}` (vit_hub.export) writes programs"
    spelled = {"".join(filter(str.isalnum, known.lower())): known for known in format_names()}
    known = spelled.get(plain) or _MEANT.get(plain)
    near = [known] if known else difflib.get_close_matches(name, format_names(), n=2)
    return f"did you mean {' or '.join(near)}?" if near else ""


def unknown_format(name: str) -> UnknownFormatError:
    """Return the error for a name that no format has."""
    names = f"formats: {', '.join(format_names())}"
    return UnknownFormatError(
        f"there is no format {quoted(name)}", hint="; ".join(filter(None, (format_meant(name), names)))
    )


def formats_named(label: str) -> list[tuple[Format, tuple[Dialect, ...]]]:
    """Return the formats that a label means, each with its possible dialects; empty if there is none.

    The name of a format allows all of its dialects, ``hf-v5`` those of this name.
    """
    found = []
    for fmt in all_formats():
        named = tuple(dialect for dialect in fmt.dialects if fmt.label(dialect) == label)
        dialects = fmt.dialects if fmt.name == label else named
        if dialects:
            found.append((fmt, dialects))
    return found
