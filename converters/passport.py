"""The passport of a canonical file: where its weights come from and how to write them back."""

from __future__ import annotations

import dataclasses
import json
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vit_hub.errors import CheckpointError
from vit_hub.model.config import ViTConfig
from vit_hub.preprocessing.labels import stated_labels, without_labels
from vit_hub.preprocessing.project_files import resized_sidecars, stated_preprocessing
from vit_hub.untrusted import conform, parse_json

__all__ = ["Passport"]

_SIZES = ("image_size", "patch_size")
_AGAIN = "convert the original file again, or fetch the file again"


@dataclass(frozen=True, kw_only=True)
class Passport:
    """Provenance, and what is needed to write the source format beyond the canonical tensors.

    Attributes:
        format: name of the source format, dialect included where it is not the format's first (``hf-v5``).
        variables: values of the ``$variables`` of the dialect.
        prefix: the prefix of every name in the source (``model/``, ``params/``).
        container: ``npz``, ``safetensors`` or ``torch``.
        shapes: shapes of source tensors that differ from what the format writes by default.
        names: names that the format writes by default -> the names found in the source, where they differ.
        channels_last: names in the source of kernels that have their channels last, as in MLX.
        carried: canonical names of tensors that the model does not use.
        absent: canonical names of biases that the source has not, which are zeros.
        overrides: config fields that the caller gave.
        resized_from: ``image_size`` and ``patch_size`` of the source, where the model was resized.
        sidecars: config files found beside the weights, by file name.
        source: file name, sha256 and size in bytes of the source file(s).
        converter: version of vit-hub that wrote the record.
        weights_id: registry id of the weights, where known.
        license: licence of the weights, where known.
        preprocess: evaluation preprocessing, as data of :class:`vit_hub.preprocessing.spec.Preprocessing`.
        labels: names of the classes: a list, or the name of a list that vit-hub ships.
    """

    format: str
    variables: dict[str, str] = field(default_factory=dict)
    prefix: str = ""
    container: str = ""
    shapes: dict[str, list[int]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    channels_last: list[str] = field(default_factory=list)
    carried: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    overrides: dict[str, Any] = field(default_factory=dict)
    resized_from: dict[str, list[int]] = field(default_factory=dict)
    sidecars: dict[str, dict[str, Any]] = field(default_factory=dict)
    source: list[dict[str, Any]] = field(default_factory=list)
    converter: str = ""
    weights_id: str = ""
    license: str = ""
    preprocess: dict[str, Any] | None = None
    labels: str | list[str] | None = None

    def resized(self, old: ViTConfig, new: ViTConfig) -> Passport:
        """Return the record for the resized model, so that it can be written back."""
        # NaFlex' files have the position table as a grid and the patch kernel as a matrix.
        before, after = (
            ((*config.grid_size, config.embed_dim), (math.prod(config.patch_size) * config.in_chans, config.embed_dim))
            for config in (old, new)
        )
        odd = dict(zip(before, after, strict=True))
        return dataclasses.replace(
            self,
            resized_from=self.resized_from or {name: list(getattr(old, name)) for name in _SIZES},
            overrides={name: value for name, value in self.overrides.items() if name not in _SIZES},
            shapes={name: list(odd.get(tuple(shape), shape)) for name, shape in self.shapes.items()},
            preprocess=self.preprocess and {**self.preprocess, "image_size": list(new.image_size)},
            sidecars=resized_sidecars(self.sidecars, new.image_size),
        )

    def with_stated(self, num_classes: int) -> tuple[Passport, list[str]]:
        """Return the record with what the config files state about class names and preprocessing, and warnings.

        What the record has already stays. Preprocessing that cannot be used is warned of where it is asked for.
        """
        labels, warnings = (self.labels, []) if self.labels else stated_labels(self.sidecars, num_classes)
        stated, _ = (None, []) if self.preprocess else stated_preprocessing(self.sidecars, self.format)
        preprocess = stated.to_dict() if stated else self.preprocess
        return dataclasses.replace(self, labels=labels, preprocess=preprocess), warnings

    def without_labels(self) -> Passport:
        """Return the record without class names, for a model with another head."""
        return dataclasses.replace(self, labels=None, sidecars=without_labels(self.sidecars))

    def to_json(self) -> str:
        """Return JSON with sorted keys, empty fields left out."""
        return json.dumps(self.to_dict(), sort_keys=True)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, empty fields left out."""
        return {key: value for key, value in dataclasses.asdict(self).items() if value or key == "format"}

    @classmethod
    def from_json(cls, text: str, file: str) -> Passport:
        """Read what :meth:`to_json` returned.

        Raises:
            CheckpointError: the record is damaged; the message names ``file``.
        """
        try:
            data = parse_json(text, finite=False)
        except ValueError as error:
            raise CheckpointError(f"{file}: the passport in the metadata is not JSON: {error}", hint=_AGAIN) from error
        known = {item.name for item in dataclasses.fields(cls)}
        if not isinstance(data, Mapping) or "format" not in data:
            raise CheckpointError(f"{file}: the passport in the metadata has no field 'format'", hint=_AGAIN)
        # Fields of later versions are not needed to read the tensors.
        found = {key: value for key, value in data.items() if key in known}
        for key, value in found.items():
            try:
                conform(value, _TYPES[key], key)
            except ValueError as error:
                raise CheckpointError(
                    f"{file}: the passport in the metadata is damaged: {error}", hint=_AGAIN
                ) from error
        return cls(**found)


_TYPES = typing.get_type_hints(Passport)
