"""Classifiers in another place than the table's: ``head.1`` behind a dropout, ``fc`` beside a backbone, an own MLP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vit_hub.converters.recognize import Match, beyond
from vit_hub.converters.rules.extras import OTHER, beside_reason
from vit_hub.converters.tensors import LazyTensor

__all__ = ["Classifier", "find_classifier"]


@dataclass(frozen=True)
class Classifier:
    """The fate of the tensors that may be a classifier.

    Attributes:
        moved: name in the table, without the prefix -> full name found.
        dropped: full name -> reason for leaving it out.
        warnings: messages for the user.
    """

    moved: Mapping[str, str] = field(default_factory=dict)
    dropped: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def find_classifier(match: Match, tensors: Mapping[str, LazyTensor], width: int, *, has_head: bool) -> Classifier:
    """Return where the classifier of a model is, if it is a single linear layer, and what is left out if it is not.

    Args:
        match: the model.
        tensors: all tensors of the file, by full name.
        width: channels of the encoder.
        has_head: the table itself found a classifier.
    """
    candidates = match.classifier or ({} if has_head else _lone_layer(match, tensors, width))
    if not candidates:
        return Classifier()
    layers: dict[str, dict[str, str]] = {}
    for name, (layer, part) in candidates.items():
        layers.setdefault(layer, {})[part] = name
    weights = [tensors[parts["weight"]].shape for parts in layers.values() if "weight" in parts]
    if not any(len(shape) == 2 for shape in weights):
        return Classifier(dropped={name: beside_reason(beyond(match.prefix, name)) for name in candidates})
    listed = ", ".join(layers)
    if len(layers) == 1 and not has_head and weights[0][1] == width:
        (layer, parts), table = next(iter(layers.items())), match.table
        place = table.foreign_name("head.weight").removesuffix(".weight") or "head"
        if parts.keys() <= {"weight", "bias"}:
            moved = {f"{place}.{part}": name for part, name in parts.items()}
            same = layer.partition(".")[0] == place.partition(".")[0]
            message = f"{layer} is taken for the classifier, over the model's pooled output"
            return Classifier(moved, warnings=() if same else (message,))
    if has_head:
        reason, message = "another classifier", f"{listed}, beside the model's own classifier, is left out"
    else:
        reason = "a classifier that is no single linear layer over the pooled output"
        message = (
            f"the classifier ({listed}) is no single linear layer: it is left out, and the model has num_classes=0; "
            "keep_rest=True (--keep-rest) keeps its tensors"
        )
    return Classifier(dropped=dict.fromkeys(candidates, reason), warnings=(message,))


def _lone_layer(match: Match, tensors: Mapping[str, LazyTensor], width: int) -> dict[str, tuple[str, str]]:
    """Return the tensors of the only other layer beside an encoder, if it reads embeddings: whatever it is called."""
    beside = [name for name, reason in match.dropped.items() if reason == OTHER and name in tensors]
    layers = {beyond(match.prefix, name).rpartition(".")[0] for name in beside}
    shapes = {name.rpartition(".")[2]: tensors[name].shape for name in beside}
    layer = layers.pop() if len(layers) == 1 else ""
    if shapes.keys() != {"weight", "bias"} or not layer or "proj" in layer or "embed" in layer:
        return {}
    fits = len(shapes["weight"]) == 2 and shapes["weight"] == (*shapes["bias"], width)
    return {name: (layer, name.rpartition(".")[2]) for name in beside} if fits else {}
