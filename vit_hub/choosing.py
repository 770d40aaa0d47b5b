"""A choice among the models of the registry, by recorded facts alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vit_hub.errors import ConfigError, ModelNotFoundError
from vit_hub.registry import UNKNOWN_LICENSE, Entry, Metric, get_entry, list_models
from vit_hub.shown import ShortRepr

__all__ = ["TASKS", "Recommendation", "recommend"]

# Task -> the published results that rank models for it, the first one before the others.
_EVIDENCE = {
    "features": ("imagenet-1k linear top-1", "imagenet-1k k-NN top-1"),
    "classify": ("imagenet-1k top-1",),
}
TASKS = tuple(_EVIDENCE)


@dataclass(frozen=True, kw_only=True, repr=False)
class Recommendation(ShortRepr):
    """The best of the models that meet the conditions, as far as results are on record.

    Attributes:
        task: ``features`` or ``classify``.
        id: of the model.
        results: its published results that count for the task, the one that ranks it first.
        ranked: ids of all models with such a result, the best first; this one is the first of them.
        unranked: ids of the models that meet the conditions and have no such result on record. They may be better.
        unknown: facts about the model that are not on record, in words.
    """

    task: str
    id: str
    results: tuple[Metric, ...]
    ranked: tuple[str, ...]
    unranked: tuple[str, ...]
    unknown: tuple[str, ...]

    def _facts(self) -> dict[str, object]:
        return {
            "id": self.id,
            "task": self.task,
            "results": [f"{metric.value} % {metric.name}" for metric in self.results],
            "ranked": len(self.ranked),
            "unranked": len(self.unranked),
            "unknown": list(self.unknown),
        }


def recommend(task: str, **conditions: Any) -> Recommendation:
    """Recommend the model with the best published result for a task; of equal ones, the smallest.

    ``features`` are ranked by the accuracy of a linear classifier on them on ImageNet-1k, then by that of k nearest
    neighbours; models to ``classify`` with their own head by its accuracy there, and their class names must be known.
    Results are those that authors and evaluators published: their protocols differ a little.

    Args:
        task: ``features`` or ``classify``.
        **conditions: as for :func:`vit_hub.list_models`, such as ``max_params=30e6, license="commercial"``.

    Raises:
        ConfigError: there is no such task or condition.
        ModelNotFoundError: no model meets the conditions, or none of those has a result on record.
    """
    if task not in _EVIDENCE:
        raise ConfigError(f"task: there is no task {task!r}", hint=f"tasks: {', '.join(TASKS)}")
    for name in ("sort", "limit"):
        if conditions.get(name) is not None:
            raise ConfigError(f"{name}: all models that meet the conditions are ranked", hint=f"leave {name} out")
    entries = [get_entry(name) for name in list_models(**conditions)]
    if task == "classify":
        entries = [entry for entry in entries if entry.labels]
    if not entries:
        raise ModelNotFoundError("no model meets all conditions", hint="give up one; `vit-hub list` has the same")
    found = {entry.id: results_for(task, entry) for entry in entries}
    ranked = sorted((entry for entry in entries if found[entry.id]), key=lambda entry: _rank(entry, found[entry.id]))
    if not ranked:
        raise ModelNotFoundError(
            f"none of the {len(entries)} models that meet the conditions has a published {_EVIDENCE[task][0]} accuracy "
            "on record",
            hint="`vit-hub list` lists them under the same conditions",
        )
    best = ranked[0]
    return Recommendation(
        task=task,
        id=best.id,
        results=found[best.id],
        ranked=tuple(entry.id for entry in ranked),
        unranked=tuple(name for name, results in found.items() if not results),
        unknown=tuple(_unknown(best, found[best.id])),
    )


def results_for(task: str, entry: Entry) -> tuple[Metric, ...]:
    """Return the published results of a model that count for a task; none, if the first kind is not on record."""
    kinds = [[metric for metric in entry.metrics if metric.name.startswith(kind)][:1] for kind in _EVIDENCE[task]]
    return tuple(metric for found in kinds for metric in found) if kinds[0] else ()


def _rank(entry: Entry, results: tuple[Metric, ...]) -> tuple[object, ...]:
    return tuple(-metric.value for metric in results), entry.params or 0


def _unknown(entry: Entry, results: tuple[Metric, ...]) -> list[str]:
    found = [] if entry.license != UNKNOWN_LICENSE else ["its licence"]
    found += [f"the image size of its {metric.name}" for metric in results if metric.image_size is None]
    found += [] if entry.data.get("pretrain") else ["its training data"]
    if entry.sources[0].sha256 is None:
        found.append("the hash of its file: what is fetched first is recorded, and compared from then on")
    return found
