"""Tables of Hugging Face transformers' Flax and TensorFlow classes, derived from those of its PyTorch classes.

Names differ in separators and in their last parts, and kernels have inputs before outputs; ``config.json`` is the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from vit_hub.converters.containers import RawCheckpoint
from vit_hub.converters.formats import _transformers as hf
from vit_hub.converters.passport import Passport
from vit_hub.converters.rules.format import Dialect, Format, Requirement, Sidecars, Stated
from vit_hub.converters.rules.table import Rule
from vit_hub.converters.tensors import LazyTensor
from vit_hub.model.config import ViTConfig

__all__ = ["POOLER", "TOWER", "Framework", "spelled"]


@dataclass(frozen=True)
class Framework:
    """A framework's spelling of PyTorch's names.

    Attributes:
        name: of the formats.
        title: its name in messages.
        layer: what stands for ``.{i}``, the number of a layer.
        norm: the last parts of a norm's ``weight`` and ``bias``.
        embedding: the last part of an embedding's ``weight``.
        suffix: ends every name.
        rooted: names have the root of the model's class also where PyTorch's have none.
        activations: ``hidden_act`` that it lacks -> the same under a name that it has.
        options: as for :class:`Format`.
    """

    name: str
    title: str
    layer: str
    norm: Mapping[str, str]
    embedding: str
    suffix: str
    rooted: bool
    activations: Mapping[str, str]
    options: Mapping[str, Any]

    def path(self, name: str) -> str:
        """Return the beginning of a name of PyTorch, or a variable's value."""
        return name.replace(".", "/").replace("/{i}", self.layer)

    def rule(self, one: Rule) -> Rule:
        """Return a rule of PyTorch's table for this framework."""
        leaves: Mapping[str, str] = {"weight": "kernel", "bias": "bias"}
        layouts: tuple[str, ...] = ("i o -> o i",)
        module = one.canonical[0].split(".")[:-1]
        if module and "norm" in module[-1]:
            leaves, layouts = self.norm, ("",)
        elif one.canonical == ("patch_embed.proj.weight",):
            layouts = ("p q c d -> d c p q",)
        elif one.canonical == ("pos_embed",):
            leaves, layouts = {"weight": self.embedding}, one.layouts
        parts = [name.rpartition(".") for name in one.foreign]
        last = parts[0][2]
        return dataclasses.replace(
            one,
            foreign=tuple(f"{self.path(start)}/{leaves.get(end, end)}{self.suffix}" for start, _, end in parts),
            layouts=layouts if last == "weight" else one.layouts,
            unless=one.unless and f"{self.path(one.unless.removesuffix('.weight'))}/kernel{self.suffix}",
        )

    def pytorch_name(self, name: str) -> str:
        """Return the name that PyTorch has for a tensor."""
        *path, last = name.removesuffix(self.suffix).replace(self.layer.removesuffix("{i}"), "/").split("/")
        back = {"kernel": "weight", self.embedding: "weight", **{value: key for key, value in self.norm.items()}}
        return ".".join((*path, back.get(last, last)))


def _as_pytorch(framework: Framework, raw: RawCheckpoint) -> RawCheckpoint:
    return dataclasses.replace(
        raw, tensors={framework.pytorch_name(name): tensor for name, tensor in raw.tensors.items()}
    )


def _sidecars(
    framework: Framework, fmt: Format, types: Sequence[hf.ModelType], config: ViTConfig, passport: Passport | None
) -> Sidecars:
    """Return the config files of PyTorch's format, of a model type that the framework has."""
    if passport and not hf.stated_type(passport.sidecars, types):
        passport = dataclasses.replace(
            passport, sidecars={name: file for name, file in passport.sidecars.items() if name != "config.json"}
        )
    found = fmt.sidecars(config, passport)
    file = found["config.json"]
    if file.get("hidden_act") in framework.activations:
        file["hidden_act"] = framework.activations[file["hidden_act"]]
    return found


def spelled(
    framework: Framework,
    fmt: Format,
    types: Sequence[hf.ModelType],
    limits: Mapping[str, object] = {},
    requires: tuple[Requirement, ...] = (),
    **options: Any,
) -> Format:
    """Return a format of PyTorch's classes as a framework has it.

    Args:
        framework: the framework.
        fmt: the format of PyTorch.
        types: the model types that the framework has classes for.
        limits: narrower limits of its classes.
        requires: further conditions.
        options: as for :class:`Format`.
    """
    originals = [d for d in fmt.dialects if not d.name and not (framework.rooted and not d.variables["root"])]
    dialects = [
        Dialect("", {key: framework.path(value) for key, value in original.variables.items()}) for original in originals
    ]

    def original(dialect: Dialect) -> Dialect:
        return originals[dialects.index(dialect)]

    def state(raw: RawCheckpoint, tensors: Mapping[str, LazyTensor], dialect: Dialect) -> Stated:
        renamed = {framework.pytorch_name(name): tensor for name, tensor in tensors.items()}
        return fmt.state(_as_pytorch(framework, raw), renamed, original(dialect))

    def dialect_for(config: ViTConfig, _: Sequence[Dialect]) -> Dialect:
        if framework.rooted and not config.num_classes:
            root = "deit/" if config.distilled else ""
            return next((d for d in dialects if d.variables["root"].startswith(root)), dialects[0])
        return dialects[originals.index(fmt.dialect_for(config, originals))]

    return dataclasses.replace(
        fmt,
        name=framework.name,
        project=f"{fmt.project} in {framework.title}",
        rules=tuple(map(framework.rule, fmt.rules)),
        drops=(),
        dialects=tuple(dialects),
        limits={**fmt.limits, **limits},
        requires=(*fmt.requires, *requires),
        evidence=lambda raw, prefix: fmt.evidence(_as_pytorch(framework, raw), framework.pytorch_name(prefix)),
        state=state,
        sidecars=partial(_sidecars, framework, fmt, types),
        dialect_for=dialect_for,
        **{**framework.options, **options},
    )


POOLER = Requirement(
    "representation_dim", lambda c: c.representation_dim in (0, c.embed_dim), "its pooler is as wide as its tokens"
)
# Limits of CLIP's image tower: only the class of both towers has a projection, and none a classifier.
TOWER = {"projection_dim": 0, "num_classes": 0}
