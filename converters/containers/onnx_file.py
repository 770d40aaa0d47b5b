"""ONNX files: the weights and the graph, read from their protobuf encoding without the onnx package.

Only what names weights is decoded: initialisers, nodes with their attributes, and the shape of the input. Values stay
in the mapped file, or in the files of external data beside it. Source: onnx/onnx.proto, protobuf's "Encoding".
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from vit_hub.converters.containers.folder import is_name
from vit_hub.converters.containers.mapped import MappedFile
from vit_hub.converters.tensors import DTYPES, LazyTensor
from vit_hub.errors import CheckpointError

__all__ = ["Graph", "Node", "looks_like_onnx", "read_graph", "read_metadata"]

_DAMAGED = "the file is damaged, or no ONNX model: download it again"
# TensorProto.DataType -> safetensors' name.
_DTYPES = {1: "F32", 2: "U8", 3: "I8", 5: "I16", 6: "I32", 7: "I64", 9: "BOOL", 10: "F16", 11: "F64", 16: "BF16"}
# Wire types of protobuf.
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_FIELDS = 3_000_000
# Longer lists are weights, not shapes.
_MAX_VALUES = 16

Span = tuple[int, int]


def looks_like_onnx(head: bytes) -> bool:
    """Return whether a file begins as a ModelProto does: with a version, and the number of another of its fields."""
    return len(head) > 8 and head[0] == 0x08 and 0 < head[1] < 0x20 and head[2] in b"\x12\x1a\x22\x28\x32\x3a\x42\x72"


@dataclass
class Node:
    """One operation.

    Attributes:
        op: its type, such as ``MatMul``.
        module: the module of the original model that it is part of, as far as the exporter said; else empty.
        inputs: names of its inputs.
        outputs: names of its outputs.
        attributes: whole numbers, fractions, texts and short lists of whole numbers, by name.
    """

    op: str = ""
    name: str = ""
    module: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    attributes: dict[str, object] = field(default_factory=dict)


@dataclass
class Graph:
    """A model.

    Attributes:
        nodes: in order of execution.
        tensors: initialisers and Constant nodes' values, by name.
        constants: short lists of whole numbers, and single fractions, by name: of initialisers and Constant nodes.
        inputs: the sizes of each input, None where they are free.
    """

    nodes: list[Node] = field(default_factory=list)
    tensors: dict[str, LazyTensor] = field(default_factory=dict)
    constants: dict[str, list[int] | float] = field(default_factory=dict)
    inputs: dict[str, list[int | None]] = field(default_factory=dict)

    @cached_property
    def makers(self) -> dict[str, Node]:
        """The node that makes each value."""
        return {name: node for node in self.nodes for name in node.outputs}


@dataclass
class _Tensor:
    """A TensorProto; its values are in one of three places, or in a list of whole numbers."""

    name: str = ""
    code: int = 0
    dims: list[int] = field(default_factory=list)
    values: Span | None = None
    numbers: list[int] = field(default_factory=list)
    external: dict[str, str] = field(default_factory=dict)


def read_graph(path: Path) -> tuple[Graph, tuple[Path, ...]]:
    """Return the graph of an ONNX file, and all files that hold its values.

    Raises:
        CheckpointError: it is damaged, or external data is missing, too short or outside of its folder.
    """
    reader = _Reader(MappedFile(path))
    try:
        spans = [span for number, span in reader.messages((0, reader.file.size)) if number == 7]
        if len(spans) != 1:
            raise CheckpointError(f"{path}: holds no graph", hint=_DAMAGED)
        return reader.graph(spans[0]), (path, *(other.path for other in reader.others.values()))
    except (IndexError, ValueError, OverflowError, struct.error) as error:
        raise CheckpointError(f"{path}: not a readable ONNX file: {error}", hint=_DAMAGED) from error


def read_metadata(path: Path) -> dict[str, str]:
    """Return the texts that an ONNX file's author put into its properties.

    Raises:
        CheckpointError: it is damaged.
    """
    reader = _Reader(MappedFile(path))
    try:
        return reader.metadata()
    except (IndexError, ValueError, OverflowError, struct.error) as error:
        raise CheckpointError(f"{path}: not a readable ONNX file: {error}", hint=_DAMAGED) from error


class _Reader:
    def __init__(self, file: MappedFile) -> None:
        self.file = file
        self.others: dict[str, MappedFile] = {}
        self._bytes = memoryview(file.array(0, np.dtype(np.uint8), (file.size,)))  # type: ignore[arg-type]
        self._room = _MAX_FIELDS

    def _varint(self, at: int, stop: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            if at >= stop:
                break
            byte = self._bytes[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & (1 << 64) - 1, at
        raise ValueError("a number without an end")

    def _fields(self, span: Span) -> Iterator[tuple[int, int, int, Span]]:
        """Yield number, wire type, value (of a varint) and span (of anything else) of each field of a message."""
        at, stop = span
        while at < stop:
            self._room -= 1
            if self._room < 0:
                raise ValueError(f"more than {_MAX_FIELDS:,} fields")
            key, at = self._varint(at, stop)
            kind, value, begin = key & 7, 0, at
            if kind == _VARINT:
                value, at = self._varint(at, stop)
            elif kind == _BYTES:
                size, begin = self._varint(at, stop)
                at = begin + size
            elif kind in (_FIXED32, _FIXED64):
                at += 4 if kind == _FIXED32 else 8
            else:
                raise ValueError(f"wire type {kind} is not known")
            if at > stop:
                raise ValueError("a field reaches beyond its message")
            yield key >> 3, kind, value, (begin, at)

    def messages(self, span: Span) -> Iterator[tuple[int, Span]]:
        """Yield number and span of each field with a length: texts, messages, packed numbers."""
        return ((number, inner) for number, kind, _, inner in self._fields(span) if kind == _BYTES)

    def _text(self, span: Span) -> str:
        return bytes(self._bytes[slice(*span)]).decode("utf-8", "replace")

    def _packed(self, kind: int, value: int, span: Span, most: int) -> list[int]:
        """Return the whole numbers of a repeated field, signed, packed or not; the first ``most + 1`` of them."""
        found, at = [value] if kind == _VARINT else [], span[0]
        while kind == _BYTES and at < span[1] and len(found) <= most:
            number, at = self._varint(at, span[1])
            found.append(number)
        return [number - (1 << 64) if number >> 63 else number for number in found]

    def metadata(self) -> dict[str, str]:
        found = {}
        for number, inner in self.messages((0, self.file.size)):
            if number == 14:
                texts = {number: self._text(text) for number, text in self.messages(inner) if number in (1, 2)}
                found[texts.get(1, "")] = texts.get(2, "")
        return found

    def graph(self, span: Span) -> Graph:
        graph = Graph()
        for number, inner in self.messages(span):
            if number == 1:
                self._node(inner, graph)
            elif number == 5:
                self._keep(self._tensor(inner), graph)
            elif number == 11:
                name, sizes = self._input(inner)
                graph.inputs[name] = sizes
        return graph

    def _node(self, span: Span, graph: Graph) -> None:
        node, scopes, value = Node(), "", None
        for number, inner in self.messages(span):
            if number in (1, 2):
                (node.inputs if number == 1 else node.outputs).append(self._text(inner))
            elif number == 3:
                node.name = self._text(inner)
            elif number == 4:
                node.op = self._text(inner)
            elif number == 5:
                name, attribute, tensor = self._attribute(inner)
                node.attributes[name] = attribute
                value = tensor or value
            elif number == 9:
                texts = {number: self._text(text) for number, text in self.messages(inner) if number in (1, 2)}
                scopes = texts.get(2, "") if texts.get(1) == "pkg.torch.onnx.name_scopes" else scopes
        node.module = _module(node.name, scopes)
        graph.nodes.append(node)
        if node.op == "Constant" and node.outputs and value is not None:
            value.name = node.outputs[0]
            self._keep(value, graph)

    def _keep(self, tensor: _Tensor, graph: Graph) -> None:
        if tensor.name in graph.tensors:
            raise ValueError(f"two values are named {tensor.name!r}")
        if tensor.code in _DTYPES:
            graph.tensors[tensor.name] = self._lazy(tensor)
        constant = self._constant(tensor)
        if constant is not None:
            graph.constants[tensor.name] = constant

    def _attribute(self, span: Span) -> tuple[str, object, _Tensor | None]:
        name, value, tensor, numbers = "", None, None, list[int]()
        for number, kind, whole, inner in self._fields(span):
            if number == 1 and kind == _BYTES:
                name = self._text(inner)
            elif number == 2 and kind == _FIXED32:
                (value,) = struct.unpack("<f", bytes(self._bytes[slice(*inner)]))
            elif number == 3 and kind == _VARINT:
                value = whole - (1 << 64) if whole >> 63 else whole
            elif number == 4 and kind == _BYTES and inner[1] - inner[0] < 1000:
                value = self._text(inner)
            elif number == 5 and kind == _BYTES:
                tensor = self._tensor(inner)
            elif number == 8 and kind in (_VARINT, _BYTES) and len(numbers) <= _MAX_VALUES:
                numbers += self._packed(kind, whole, inner, _MAX_VALUES)
                value = numbers
        return name, value, tensor

    def _tensor(self, span: Span) -> _Tensor:
        tensor = _Tensor()
        for number, kind, value, inner in self._fields(span):
            if number == 1 and kind in (_VARINT, _BYTES):
                tensor.dims += self._packed(kind, value, inner, _MAX_VALUES)
                if len(tensor.dims) > _MAX_VALUES:
                    raise ValueError("a tensor with too many axes")
            elif number == 2 and kind == _VARINT:
                tensor.code = value
            elif number == 7 and kind in (_VARINT, _BYTES) and len(tensor.numbers) <= _MAX_VALUES:
                tensor.numbers += self._packed(kind, value, inner, _MAX_VALUES)
            elif number == 8 and kind == _BYTES:
                tensor.name = self._text(inner)
            elif number in (4, 9, 10) and kind == _BYTES:
                # Raw values, or floats and doubles packed: the same bytes.
                tensor.values = inner
            elif number == 13 and kind == _BYTES:
                entry = {number: self._text(text) for number, text in self.messages(inner) if number in (1, 2)}
                tensor.external[entry.get(1, "")] = entry.get(2, "")
        return tensor

    def _input(self, span: Span) -> tuple[str, list[int | None]]:
        name, sizes = "", list[int | None]()
        for number, inner in self.messages(span):
            if number == 1:
                name = self._text(inner)
            elif number == 2:
                shapes = (
                    shape for n, kind in self.messages(inner) if n == 1 for n, shape in self.messages(kind) if n == 2
                )
                dims = (dim for shape in shapes for n, dim in self.messages(shape) if n == 1)
                sizes = [
                    next((v for n, kind, v, _ in self._fields(dim) if n == 1 and kind == _VARINT), None) for dim in dims
                ]
        return name, sizes

    def _constant(self, tensor: _Tensor) -> list[int] | float | None:
        """Return a short list of whole numbers or a single fraction; None for anything else."""
        count = math.prod(tensor.dims)
        if tensor.code == 7 and 0 <= count <= _MAX_VALUES and not tensor.external:
            if tensor.values is None:
                return tensor.numbers if len(tensor.numbers) == count else None
            raw = bytes(self._bytes[slice(*tensor.values)])
            return list(struct.unpack(f"<{count}q", raw)) if len(raw) == 8 * count else None
        if tensor.code == 1 and count == 1 and tensor.values is not None and tensor.values[1] - tensor.values[0] == 4:
            return float(struct.unpack("<f", bytes(self._bytes[slice(*tensor.values)]))[0])
        return None

    def _lazy(self, tensor: _Tensor) -> LazyTensor:
        dtype, shape = _DTYPES[tensor.code], tuple(tensor.dims)
        if any(size < 0 for size in shape):
            raise ValueError(f"{tensor.name!r} has the shape {shape}")
        carrier = DTYPES[dtype].carrier
        size = math.prod(shape) * carrier.itemsize
        if tensor.external:
            file, offset, room = self._outside(tensor, size)
        elif tensor.values is not None:
            file, offset, room = self.file, tensor.values[0], tensor.values[1] - tensor.values[0]
        elif len(tensor.numbers) == math.prod(shape) and dtype == "I64":
            values = np.array(tensor.numbers, carrier).reshape(shape)
            return LazyTensor(dtype, shape, lambda: values)
        elif size == 0:
            file, offset, room = self.file, 0, 0
        else:
            # Whole numbers other than shapes, one by one: no exporter stores weights so.
            return LazyTensor(dtype, shape, partial(_unreadable, self.file.path, tensor.name))
        if room != size:
            raise ValueError(f"{tensor.name!r} has {room:,} bytes, and {shape} of {dtype} need {size:,}")
        return LazyTensor(dtype, shape, partial(file.array, offset, carrier, shape))

    def _outside(self, tensor: _Tensor, size: int) -> tuple[MappedFile, int, int]:
        """Return the file of a tensor's external data, where it begins there, and its length."""
        path, name = self.file.path, tensor.external.get("location", "")
        if not is_name(name):
            raise CheckpointError(
                f"{path}: the values of {tensor.name!r} are in {name!r}, which is not a name in this folder",
                hint="the file is damaged or malicious",
            )
        if name not in self.others:
            other = path.parent / name
            if not other.is_file() or other.resolve().parent != path.parent.resolve():
                raise CheckpointError(
                    f"{path}: the file {name} with its values is not beside it",
                    hint="fetch it as well, and keep its name",
                )
            self.others[name] = MappedFile(other)
        offset, length = (
            int(tensor.external.get(key) or default) for key, default in (("offset", 0), ("length", size))
        )
        if offset < 0 or length < 0 or offset + length > self.others[name].size:
            raise CheckpointError(
                f"{self.others[name].path}: too short for the values of {tensor.name!r}", hint="fetch the file again"
            )
        return self.others[name], offset, length


def _unreadable(path: Path, name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    raise CheckpointError(f"{path}: the values of {name!r} are stored in a way that is not read", hint=_DAMAGED)


def _module(name: str, scopes: str) -> str:
    """Return the path of a module from what exporters say of a node: a list of scopes, or a name like a path.

    Both ``['', 'blocks', 'blocks.0', 'blocks.0.attn', 'linear']`` and ``/blocks/blocks.0/attn/MatMul`` are of
    ``blocks.0.attn``.
    """
    if scopes:
        parts = [part.strip(" '\"") for part in scopes.strip("[]").split(",")]
        return parts[-2] if len(parts) > 1 else ""
    path: list[str] = []
    for part in name.split("/")[1:-1]:
        # The scope of a list's member repeats the list's.
        if path and part.startswith(f"{path[-1]}."):
            path.pop()
        path.append(part)
    return ".".join(path)
