"""Facts that programs of ``vit-hub export`` state about themselves: ONNX, OpenVINO and ``torch.export`` files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from vit_hub.converters.containers.archive import read_member, read_members
from vit_hub.converters.containers.mapped import MappedFile
from vit_hub.converters.containers.onnx_file import looks_like_onnx, read_metadata
from vit_hub.converters.containers.together import finish_interrupted
from vit_hub.errors import CheckpointError
from vit_hub.untrusted import HEADER_BYTES, read_bytes

__all__ = ["FACTS_KEY", "LABELS_KEY", "ProgramFacts", "program_facts"]

FACTS_KEY = "vit_hub"
"""The key, in a file's metadata, of the config, passport and settings, as JSON."""
LABELS_KEY = "labels"
"""That of the class names, as a JSON list."""
_KEYS = (FACTS_KEY, LABELS_KEY)
_HEAD = 64


class ProgramFacts(NamedTuple):
    """The metadata of a program.

    Attributes:
        target: ``onnx``, ``openvino`` or ``torch-export``.
        texts: those of the keys above that it has.
    """

    target: str
    texts: Mapping[str, str]


def program_facts(path: Path) -> ProgramFacts | None:
    """Return the metadata of a program that ``vit-hub export`` wrote; None: it is anything else, or damaged.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        if not path.is_file():
            finish_interrupted(path)
        if not path.is_file():
            return None
    except OSError:  # a name that is too long for a file
        return None
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if head.startswith(b"PK\x03\x04"):
        found = ProgramFacts("torch-export", _of_archive(path))
    elif head.lstrip().startswith(b"<?xml"):
        found = ProgramFacts("openvino", _of_xml(path))
    elif looks_like_onnx(head):
        found = ProgramFacts("onnx", _of_onnx(path))
    else:
        return None
    return found if FACTS_KEY in found.texts else None


def _of_archive(path: Path) -> dict[str, str]:
    try:
        file = MappedFile(path)
        members = read_members(file)
        extra = {name.rpartition("/extra/")[2]: member for name, member in members.items() if "/extra/" in name}
        return {key: read_member(file, extra[key]).decode() for key in _KEYS if key in extra}
    except (CheckpointError, UnicodeDecodeError):
        return {}  # which the reader of weights says better


def _of_xml(path: Path) -> dict[str, str]:
    from xml.parsers import expat

    found: dict[str, str] = {}
    above: list[str] = []

    def enter(name: str, attributes: dict[str, str]) -> None:
        if len(above) == 2 and above[1] == "rt_info" and name in _KEYS:
            found[name] = attributes.get("value", "")
        above.append(name)

    parser = expat.ParserCreate()
    parser.StartElementHandler = enter
    parser.EndElementHandler = lambda name: above.pop()
    try:
        parser.Parse(read_bytes(path, most=HEADER_BYTES.most), True)
    except (expat.ExpatError, LookupError, ValueError):  # the last two of encodings that are none
        return {}
    return found


def _of_onnx(path: Path) -> dict[str, str]:
    try:
        items = read_metadata(path)
    except CheckpointError:
        return {}
    return {key: items[key] for key in _KEYS if key in items}
