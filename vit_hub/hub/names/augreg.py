"""The 52 thousand files of "How to train your ViT?" (arXiv 2106.10270), whose names say what is in them.

A name is ``MODEL-DATA-300ep-lr_LR-aug_AUG-wd_WD-do_DO-sd_SD``, for a fine-tuned model followed by
``--DATA-steps_NUMBERk-lr_LR-res_RESOLUTION`` (google-research/vision_transformer, vit_jax/checkpoint.py).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vit_hub.converters.formats.vit_jax import FORMATS
from vit_hub.errors import ModelNotFoundError
from vit_hub.model.config import ViTConfig
from vit_hub.preprocessing.project_files import CONVENTIONS
from vit_hub.registry import Entry, WeightSource

__all__ = ["AugRegName", "Finetuning", "entry_of", "parse"]

_FOLDER = "https://storage.googleapis.com/vit_models/augreg/"
_NOTE = "the bucket vit_models answered 403 to anonymous readers in 2026"
_TI, _S, _B, _L = (
    {"embed_dim": dim, "depth": depth, "num_heads": dim // 64, "mlp_dim": 4 * dim}
    for dim, depth in ((192, 12), (384, 12), (768, 12), (1024, 24))
)
_MODELS: dict[str, dict[str, Any]] = {
    "Ti_16": {**_TI, "patch_size": 16},
    "S_32": {**_S, "patch_size": 32},
    "S_16": {**_S, "patch_size": 16},
    "B_32": {**_B, "patch_size": 32},
    "B_16": {**_B, "patch_size": 16},
    "B_8": {**_B, "patch_size": 8},
    "L_16": {**_L, "patch_size": 16},
    # The hybrids' patches are counted on the ResNet's output. The first one's ResNet ends after its root.
    "R_Ti_16": {**_TI, "patch_size": 8, "stem": "resnet"},
    "R26_S_32": {**_S, "patch_size": 1, "stem": "resnet", "stem_stages": (2, 2, 2, 2)},
    "R50_L_32": {**_L, "patch_size": 1, "stem": "resnet", "stem_stages": (3, 4, 6, 3)},
}


@dataclass(frozen=True)
class _Data:
    """A data set: its name in the registry, its number of classes, and the list of their names, if any."""

    name: str
    num_classes: int
    labels: str | None = None


_IMAGENET, _IMAGENET_21K = _Data("imagenet-1k", 1000, "imagenet-1k"), _Data("imagenet-21k", 21843, "imagenet-21k-goog")
# i21k_30, trained for 30 epochs, is in the authors' table of runs.
_PRETRAINING = {"i21k": _IMAGENET_21K, "i21k_30": _IMAGENET_21K, "i1k": _IMAGENET}
_FINETUNING = {
    "imagenet2012": _IMAGENET,
    "cifar100": _Data("cifar-100", 100),
    "kitti": _Data("kitti", 4),
    "oxford_iiit_pet": _Data("oxford-iiit-pet", 37),
    "resisc45": _Data("resisc45", 45),
}


@dataclass(frozen=True)
class _Part:
    """One part of a name: ``before``, a value, ``after``; the value is one of ``choices``, or a number like them."""

    field: str
    title: str
    choices: Sequence[str]
    before: str = ""
    after: str = ""
    number: str = ""

    def read(self, text: str) -> str | None:
        """Return the value in this part, or None if the text is no such part."""
        pattern = self.number or "|".join(map(re.escape, self.choices))
        match = re.fullmatch(f"{re.escape(self.before)}({pattern}){re.escape(self.after)}", text)
        return match[1] if match else None

    @property
    def allowed(self) -> str:
        """The allowed values, for a message."""
        shown = ", ".join(f"{self.before}{choice}{self.after}" for choice in self.choices)
        return f"{shown}, or another number" if self.number else shown


_DECIMAL, _WHOLE = r"[0-9]+(?:\.[0-9]+)?", "[0-9]+"
_PARTS = (
    _Part("model", "model", tuple(_MODELS)),
    _Part("data", "training data", tuple(_PRETRAINING)),
    _Part("epochs", "number of epochs", ("300",), after="ep", number=_WHOLE),
    _Part("lr", "learning rate", ("0.001",), "lr_", number=_DECIMAL),
    _Part(
        "augmentation",
        "augmentation",
        ("none", "light0", "light1", "medium1", "medium2", "strong1", "strong2"),
        "aug_",
    ),
    _Part("weight_decay", "weight decay", ("0.03", "0.1"), "wd_"),
    _Part("dropout", "dropout", ("0.0", "0.1"), "do_"),
    _Part("stochastic_depth", "stochastic depth", ("0.0", "0.1"), "sd_"),
)
_FINETUNING_PARTS = (
    _Part("data", "fine-tuning data", tuple(_FINETUNING)),
    _Part("steps", "number of fine-tuning steps", ("0", "2", "10", "20"), "steps_", "k", number=_WHOLE),
    _Part("lr", "fine-tuning learning rate", ("0.001", "0.003", "0.01", "0.03"), "lr_", number=_DECIMAL),
    _Part("resolution", "resolution", ("224", "384"), "res_"),
)


@dataclass(frozen=True, kw_only=True)
class Finetuning:
    """The second stage in the name of a fine-tuned file; everything is spelled as there."""

    data: str
    steps: str
    lr: str
    resolution: str


@dataclass(frozen=True, kw_only=True)
class AugRegName:
    """The parts of a file's name; everything is spelled as there. ``str()`` gives the name, without ``.npz``."""

    model: str
    data: str
    epochs: str
    lr: str
    augmentation: str
    weight_decay: str
    dropout: str
    stochastic_depth: str
    finetuning: Finetuning | None = None

    def __str__(self) -> str:
        stages = [(self, _PARTS)] + ([(self.finetuning, _FINETUNING_PARTS)] if self.finetuning else [])
        return "--".join(
            "-".join(f"{part.before}{getattr(stage, part.field)}{part.after}" for part in parts)
            for stage, parts in stages
        )

    @property
    def url(self) -> str:
        """The address of the file."""
        return f"{_FOLDER}{self}.npz"

    @property
    def config(self) -> ViTConfig:
        """The model, with vit_jax's conventions."""
        pixels = int(self.finetuning.resolution) if self.finetuning else 224
        return ViTConfig(
            **_MODELS[self.model],
            **FORMATS[0].conventions,
            image_size=(pixels, pixels),
            num_classes=_stages(self)[-1].num_classes,
        )


def _stages(name: AugRegName) -> list[_Data]:
    """Return the data sets of the stages of training; the head has the classes of the last one."""
    return [_PRETRAINING[name.data]] + ([_FINETUNING[name.finetuning.data]] if name.finetuning else [])


def parse(name: str) -> AugRegName:
    """Parse a file's name, with or without ``.npz``.

    Raises:
        ModelNotFoundError: it is malformed; the message names the wrong part, and the hint the allowed values.
    """
    stem = name.removesuffix(".npz")
    first, dashes, second = stem.partition("--")
    fields = _read(name, first, _PARTS)
    finetuning = Finetuning(**_read(name, second, _FINETUNING_PARTS)) if dashes else None
    return AugRegName(**fields, finetuning=finetuning)


def _read(name: str, text: str, parts: Sequence[_Part]) -> dict[str, str]:
    given, fields = text.split("-"), dict[str, str]()
    refused = f"augreg:{name}: not an AugReg file"
    for place, part in enumerate(parts):
        found = given[place] if place < len(given) else ""
        value = part.read(found)
        if value is None:
            wrong = f"{found!r} is no {part.title}" if found else f"the {part.title} is missing"
            raise ModelNotFoundError(f"{refused}: {wrong}", hint=f"it may be {part.allowed}")
        fields[part.field] = value
    if len(given) > len(parts):
        raise ModelNotFoundError(
            f"{refused}: nothing may follow its {parts[-1].title}, and there is {'-'.join(given[len(parts) :])!r}",
            hint="fine-tuning follows after two dashes, as in --imagenet2012-steps_20k-lr_0.01-res_224",
        )
    return fields


def entry_of(name: AugRegName) -> Entry:
    """Return everything that a name says about its file, as an entry of the registry."""
    config, stages = name.config, _stages(name)
    return Entry(
        id=f"augreg:{name}",
        aliases=(),
        family="augreg",
        config=config,
        sources=(WeightSource(kind="https", format="vit_jax", url=name.url, note=_NOTE),),
        license="apache-2.0",
        data=dict(zip(("pretrain", "finetune"), (stage.name for stage in stages), strict=False)),
        preprocess=CONVENTIONS["vit_jax"].with_image_size(config.image_size).to_dict(),
        labels=stages[-1].labels,
        notes=("all of this follows from the name; whether there is such a file, its server knows",),
    )
