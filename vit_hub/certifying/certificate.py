"""The certificate: findings, what they were made with, and the comparison of two of them."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

from vit_hub.conversion import Opening
from vit_hub.converters.containers import atomic_path
from vit_hub.errors import CheckpointError, VitHubError
from vit_hub.untrusted import SIZE, Between, conform, read_json

__all__ = ["Certificate", "Change", "Finding", "Verdict", "changes", "read_record", "write_record"]

Verdict = Literal["pass", "fail", "none"]
_VERSION = 1
# Two runs of one program in float64 agree to this, whatever the machine.
_SAME = 1e-9


class _Opening(Opening, total=False):
    """Arguments of :func:`vit_hub.open_checkpoint`, as JSON has them."""

    locked: bool | str
    offline: bool


class _Settings(TypedDict):
    device: str
    dtype: str
    compile: str | None
    runtime: str
    images: str | None
    limit: Annotated[int, Between(0, SIZE.most)]
    against: list[str]
    opening: _Opening


class _Line(TypedDict):
    name: str
    verdict: Verdict
    figures: dict[str, Any]


class _Record(TypedDict):
    """The part of a certificate that is read; it has more."""

    source: str
    settings: _Settings
    weights: dict[str, Any]
    config: dict[str, Any]
    reference: dict[str, list[Any]]
    findings: list[_Line]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of a certificate.

    Attributes:
        name: of what was looked at.
        verdict: ``pass``, ``fail``, or ``none`` where it proves nothing either way, with the reason in ``text``.
        text: the result in words.
        figures: the numbers behind it; errors are relative to the largest value of the exact output.
        tolerance: the largest figure that passes, where there is one.
    """

    name: str
    verdict: Verdict
    text: str
    figures: dict[str, float] = field(default_factory=dict)
    tolerance: float | None = None


@dataclass(frozen=True, kw_only=True)
class Change:
    """A difference between a certificate and its repetition.

    Attributes:
        name: of the figure or fact.
        then: the value in the record.
        now: the value now.
        fails: the two cannot be of the same model.
    """

    name: str
    then: Any
    now: Any
    fails: bool


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """The record of what a model computes here.

    Attributes:
        source: what the caller named.
        settings: arguments of :func:`vit_hub.check` that decide about the figures.
        machine: hardware and versions.
        weights: ``sha256`` of all values under their canonical names, whatever the file's format; and the ``files``.
        config: the model.
        reference: of each output, computed in float64 on the CPU, the root mean square and some values.
        findings: the lines.
        changes: what differs from the record that was repeated; empty if none was, or nothing differs.
    """

    source: str
    settings: dict[str, Any]
    machine: dict[str, Any]
    weights: dict[str, Any]
    config: dict[str, Any]
    reference: dict[str, list[float]]
    findings: list[Finding]
    changes: list[Change] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """The verdict of all lines and changes: none fails."""
        return not any(finding.verdict == "fail" for finding in self.findings) and not any(
            change.fails for change in self.changes
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain data: the record that is kept."""
        return {"certificate": _VERSION, "passed": self.passed, **dataclasses.asdict(self)}


def write_record(path: Path, certificate: Certificate) -> None:
    """Write a certificate as a JSON file.

    Raises:
        VitHubError: it cannot be written.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(_finite(certificate.to_dict()), indent=2) + "\n", encoding="utf-8")


def _finite(value: Any) -> Any:
    """Plain data for JSON, which has no infinite numbers."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_record(path: Path) -> dict[str, Any]:
    """Read what :func:`write_record` wrote.

    Raises:
        CheckpointError: the file is no certificate.
    """
    try:
        found: dict[str, Any] = read_json(path)
        if not isinstance(found, dict) or found.get("certificate") != _VERSION:
            raise ValueError("it is none, or of another version")
        conform(found, _Record, "it")
        unknown = found["settings"]["opening"].keys() - _Opening.__annotations__.keys()
        if unknown:
            raise ValueError(f"it.settings.opening: {min(unknown)!r} is no option")
    except OSError as error:
        raise VitHubError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: not a certificate: {error}", hint=_WRITES) from error
    return found


_WRITES = "`vit-hub check MODEL --certificate FILE` writes one"


def changes(record: Mapping[str, Any], now: Certificate) -> list[Change]:
    """Return what differs between a record and its repetition.

    Weights, config and exact outputs must be the same: they do not depend on the machine. Other figures may differ, and
    each passes or fails by its own tolerance.
    """
    data = _finite(now.to_dict())
    found = []
    if record["weights"].get("sha256") != data["weights"]["sha256"]:
        found.append(_change("weights sha256", record["weights"].get("sha256"), data["weights"]["sha256"], fails=True))
    for name in sorted({*record["config"], *data["config"]}):
        then, value = record["config"].get(name), data["config"].get(name)
        if then != value:
            found.append(_change(f"config: {name}", then, value, fails=True))
    for name in sorted({*record["reference"], *data["reference"]}):
        then, value = record["reference"].get(name), data["reference"].get(name)
        if not _close(then, value):
            found.append(_change(f"exact {name}", then, value, fails=True))
    before, after = (dict(_figures(findings)) for findings in (record["findings"], data["findings"]))
    for name in [*after, *(name for name in before if name not in after)]:
        if before.get(name) != after.get(name):
            found.append(_change(name, before.get(name), after.get(name), fails=False))
    return found


def _change(name: str, then: Any, now: Any, *, fails: bool) -> Change:
    return Change(name=name, then=then, now=now, fails=fails)


def _close(then: Any, now: Any) -> bool:
    if not isinstance(then, list) or not isinstance(now, list) or len(then) != len(now):
        return False
    if not all(isinstance(value, (int, float)) for value in (*then, *now)):
        return then == now
    largest = max((abs(value) for value in now), default=0.0)
    return all(abs(a - b) <= _SAME * largest for a, b in zip(then, now, strict=True))


def _figures(findings: list[dict[str, Any]]) -> Iterator[tuple[str, Any]]:
    for finding in findings:
        yield f"{finding['name']}: verdict", finding["verdict"]
        for key, value in finding["figures"].items():
            yield f"{finding['name']}: {key}", value
