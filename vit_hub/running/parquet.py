"""Parquet files: pyarrow where it is installed, and the columns that hold images and labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vit_hub.errors import ConfigError

__all__ = ["HUGGING_FACE", "image_column", "label_column", "needs_pyarrow"]

HUGGING_FACE = b"huggingface"  # the key of what datasets keep in a file's metadata
_IMAGES = ("image", "img", "picture", "photo", "jpg", "png", "webp", "bytes")
_LABELS = ("label", "labels", "class", "cls", "fine_label", "target")


def needs_pyarrow() -> Any:
    """Return the module ``pyarrow.parquet``.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError(
            "parquet files need pyarrow, which is not installed",
            hint="pip install 'vit-hub[embed]'; or write .npy or safetensors files: --to npy",
        ) from error
    return pyarrow.parquet


def image_column(schema: Any, wanted: str | None, file: str) -> str:
    """Return the name of the column with images: bytes, or Hugging Face's struct with a field ``bytes``.

    Raises:
        ConfigError: there is none, or no way to choose one.
    """
    import pyarrow

    def holds_bytes(kind: Any) -> bool:
        if pyarrow.types.is_struct(kind):
            return bool(kind.get_field_index("bytes") >= 0)
        return bool(pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind))

    return _chosen([field.name for field in schema if holds_bytes(field.type)], wanted, _IMAGES, file, schema.names)


def label_column(schema: Any, wanted: str | None, file: str) -> str | None:
    """Return the name of the column with classes, numbers or text; None if there is none.

    Raises:
        ConfigError: the wanted one is not there.
    """
    import pyarrow

    fits = (pyarrow.types.is_integer, pyarrow.types.is_string, pyarrow.types.is_large_string)
    found = [field.name for field in schema if any(test(field.type) for test in fits)]
    if wanted is None and not set(found) & set(_LABELS):
        return None
    return _chosen(found, wanted, _LABELS, file, schema.names)


def _chosen(found: Sequence[str], wanted: str | None, usual: Sequence[str], file: str, there: Sequence[str]) -> str:
    if wanted is not None:
        if wanted not in found:
            raise ConfigError(f"{file}: no fitting column {wanted!r}", hint=f"its columns: {', '.join(there)}")
        return wanted
    known = [name for name in usual if name in found]
    if known or len(found) == 1:
        return (known or found)[0]
    reason = (
        f"several columns could hold images: {', '.join(found)}" if found else "no column holds the bytes of images"
    )
    hint = "name it: --image-column" if found else f"its columns: {', '.join(there)}"
    raise ConfigError(f"{file}: {reason}", hint=hint)
