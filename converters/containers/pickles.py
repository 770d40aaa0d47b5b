"""Pickles read as plain data: an interpreter of their opcodes that imports nothing and calls nothing.

Dicts, lists, numbers and texts come out as they are, and torch's tensors as descriptions of where their values lie.
Every other object becomes an :class:`Inert` record of its class and of what it was made from. Names of functions, and
of most of Python's own library, are refused: a pickle that needs them is a program.
"""

from __future__ import annotations

import pickletools
import re
import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from vit_hub.converters.tensors import DTYPES, DTYPES_HINT, TORCH_DTYPES, Array, LazyTensor
from vit_hub.errors import CheckpointError, UnsafeCheckpointError, first_line
from vit_hub.untrusted import NAME_LENGTH, PICKLE_COPIES, PICKLE_OPCODES

__all__ = [
    "DEQUANTIZE",
    "PLAIN_ONLY",
    "Inert",
    "Name",
    "Pickle",
    "PickleStream",
    "Refused",
    "Storage",
    "StoredTensor",
    "Unreadable",
    "storage_dtype",
    "storage_itemsize",
    "strided_tensor",
]

# What Python's own library may be asked for: records of plain data.
_PLAIN = re.compile(
    r"argparse\.Namespace|array\.(array|_array_reconstructor)|_codecs\.encode"
    r"|collections\.(abc\.[A-Z]\w+|OrderedDict|defaultdict|Counter|deque|ChainMap|User(Dict|List|String))"
    r"|copyreg\.(_reconstructor|__newobj__|__newobj_ex__)|dataclasses\._\w+|datetime\.(datetime|date|time|timedelta|timezone)"
    r"|decimal\.Decimal|enum\.[A-Z]\w+|fractions\.Fraction|functools\.partial|ipaddress\.IPv\w+|logging\.(getLogger|Logger)"
    r"|numbers\.[A-Z]\w+|pathlib(\._local)?\.\w*Path|random\.Random|re\._compile|string\.Template|time\.struct_time"
    r"|types\.(SimpleNamespace|MappingProxyType|GenericAlias|UnionType|NoneType)|typing\.[A-Z_]\w+|uuid\.(UUID|SafeUUID)"
    r"|zoneinfo\.ZoneInfo(\._unpickle)?"
    r"|builtins\.(object|type|dict|list|tuple|set|frozenset|bytearray|bytes|complex|int|float|str|bool|range|slice"
    r"|Ellipsis|NotImplemented|\w+(Error|Exception|Warning))"
)
# Functions of other libraries that put plain data together.
_BUILDERS = re.compile(
    r"torch\._utils\._rebuild_\w+|torch\._tensor\._rebuild_from_type(_v2)?|torch\.(device|dtype)"
    r"|torch\.serialization\._get_layout|torch\.jit\._pickle\.\w+"
    r"|numpy\.(dtype|ndarray)|numpy\.(_core|core)\.(multiarray|numeric)\.(scalar|_reconstruct|_frombuffer)"
    r"|numpy\.random\._pickle\.__\w+_ctor|numpy\.ma\.core\._mareconstruct"
    r"|(pandas|pyarrow|jax|jaxlib|omegaconf)\.([\w.]+\.)?_?(_unpickle|_reconstruct|_rebuild|_new|_get)\w*"
)
# Not in sys.stdlib_module_names of every version.
_LIBRARY = frozenset({*sys.stdlib_module_names, "distutils", "lib2to3", "asyncore", "imp", "pip", "setuptools", "nt"})
# torch's classes of storages, by dtype.
_STORAGES = {dtype.storage: dtype.torch for dtype in DTYPES.values()} | {
    "UntypedStorage": "uint8",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "QInt8Storage": "qint8",
    "QUInt8Storage": "quint8",
    "QInt32Storage": "qint32",
    "QUInt4x2Storage": "quint4x2",
    "QUInt2x4Storage": "quint2x4",
}
DEQUANTIZE = "load it where it was quantized, dequantize it and save it again, or give the file that was quantized"
PLAIN_ONLY = "only plain tensors are supported"
# Hashes of larger numbers can be made to collide.
_LARGEST_KEY = sys.hash_info.modulus
# Keys become parts of names, and a pickle may set the same one many times.
_LONGEST_KEY, _MOST_PARTS = 10_000, 16
_SHOWN = 8
_AT_ONCE = 1 << 20  # bytes


class Refused(Exception):
    """A pickle that would run code; the message is the functions and classes that it asks for."""

    def __init__(self, names: list[str]) -> None:
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        super().__init__(", ".join(names[:_SHOWN]) + more)


@contextmanager
def explained(path: Path, what: str, *, refused: str, damaged: str) -> Iterator[None]:
    """Turn what reading a pickle raises into errors about its file.

    Args:
        path: of the file.
        what: the file is, in a message about a damaged one, such as ``not a readable PyTorch file``.
        refused: the remedy where the pickle would run code.
        damaged: the remedy where it is damaged.

    Raises:
        UnsafeCheckpointError: the pickle would run code.
        CheckpointError: it is damaged.
    """
    try:
        yield
    except Refused as error:
        raise UnsafeCheckpointError(f"{path}: refused: reading it would run {error}", hint=refused) from error
    except (CheckpointError, OSError):
        raise
    # A damaged pickle can raise anything.
    except Exception as error:
        raise CheckpointError(f"{path}: {what}: {first_line(error)}", hint=damaged) from error


class Name(NamedTuple):
    """A class or function that a pickle refers to, not imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False, repr=False)  # A pickle of a few bytes can nest objects whose text is endless.
class Inert:
    """An object of a class that is not imported.

    Attributes:
        kind: its class, or the function that it comes from.
        state: its attributes, a dict in most cases.
        mapping: its items, if it is a dict.
    """

    kind: Name
    state: Any = None
    mapping: dict[Any, Any] = field(default_factory=dict)


@dataclass(eq=False)
class Storage:
    """The values that tensors are views of.

    Attributes:
        dtype: torch's name.
        nbytes: size of the values.
        read: returns a number of values of a dtype from an offset in bytes.
    """

    dtype: str
    nbytes: int
    read: Callable[[int, np.dtype[np.generic], int], Array]


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A strided view of a storage; offset and strides count values.

    Attributes:
        dtype: torch's name.
        span: number of values from the first to the last.
    """

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    span: int

    def lazy(self) -> LazyTensor:
        """Return the tensor, read on demand."""
        return LazyTensor(TORCH_DTYPES[self.dtype], self.shape, self._read)

    def _read(self) -> Array:
        dtype = DTYPES[TORCH_DTYPES[self.dtype]].carrier
        flat = self.storage.read(self.offset * dtype.itemsize, dtype, self.span)
        return np.lib.stride_tricks.as_strided(flat, self.shape, [stride * dtype.itemsize for stride in self.strides])


class Unreadable(NamedTuple):
    """A tensor without plain values in the file.

    Attributes:
        what: predicate of a sentence about the tensor.
        remedy: advice on what to do.
    """

    what: str
    remedy: str


class PickleStream:
    """A stream of pickles that reads no more than there is: a stream of Python's makes room for all that is asked for.

    Args:
        stream: to read from its position on.
        size: its bytes.
    """

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream, self._size = stream, size

    def read(self, count: int) -> bytes:
        """Return so many bytes, fewer at the end."""
        if count > _AT_ONCE:
            count = min(count, self._size - self._stream.tell())
        return self._stream.read(count)

    def readline(self) -> bytes:
        """Return a line, or as much of it as any opcode may have."""
        return self._stream.readline(_AT_ONCE)

    def tell(self) -> int:
        """Return the position."""
        return self._stream.tell()


class Pickle:
    """One run of the interpreter; subclasses narrow what a pickle may ask for.

    Args:
        persistent: returns what a persistent id stands for.
    """

    def __init__(self, persistent: Callable[[Any], object] | None = None) -> None:
        self._persistent = persistent
        self._refused: dict[str, None] = {}
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._copied = 0

    def load(self, stream: BinaryIO | PickleStream) -> object:
        """Return the object of the next pickle in a stream, which then stands behind it.

        Raises:
            Refused: it would run code.
            Exception: of any kind, if it is damaged.
        """
        self._stack, self._marks, self._memo, self._copied = [], [], {}, 0
        try:
            opcodes = pickletools.genops(stream)  # type: ignore[arg-type]  # needs no more than a PickleStream has
            for count, (opcode, argument, _) in enumerate(opcodes, 1):
                if said := PICKLE_OPCODES.exceeded(count):
                    raise ValueError(f"it {said}")
                if opcode.name == "STOP":
                    break
                self._run(opcode.name, argument)
            found = self._stack[-1]
        except Exception:
            # What it asked for before it broke says more than how it broke.
            if self._refused:
                raise Refused(list(self._refused)) from None
            raise
        if self._refused:
            raise Refused(list(self._refused))
        return found

    def allowed(self, name: Name, *, called: bool) -> bool:
        """Return whether a name may be referred to, or called."""
        root = name.module.split(".")[0]
        if root in _LIBRARY or root == "vit_hub":
            return bool(_PLAIN.fullmatch(str(name)))
        # By convention, names of classes have capitals.
        return (
            not called or name.name.rpartition(".")[2].lstrip("_")[:1].isupper() or bool(_BUILDERS.fullmatch(str(name)))
        )

    def _name(self, module: str, name: str) -> object:
        # Old protocols have the names of Python 2.
        if NAME_LENGTH.exceeded(len(module) + len(name)):
            raise ValueError("the name of a class is too long")
        found = Name(*NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name)))
        # Resolved when it is called, with its arguments.
        if str(found) != "builtins.getattr" and not self.allowed(found, called=False):
            self._refused[str(found)] = None
        return found

    def _run(self, code: str, argument: Any) -> None:
        """Run one opcode; their meanings are documented in :mod:`pickletools`."""
        stack = self._stack
        if code in _LITERALS:
            stack.append(argument)
        elif code in _CONSTANTS:
            stack.append(_CONSTANTS[code])
        elif code in _PUTS:
            self._memo[len(self._memo) if argument is None else argument] = stack[-1]
        elif code in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(self._memo[argument])
        elif code == "MARK":
            self._marks.append(len(stack))
        elif code in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE"):
            stack.append({"D": dict, "L": list, "T": tuple}[code[6]]())
        elif code == "EMPTY_SET":
            stack.append(Inert(Name("builtins", "set")))
        elif code in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(code[-1])
            stack[-count:] = [tuple(self._last(count))]
        elif code in ("TUPLE", "LIST", "DICT", "FROZENSET"):
            items = self._marked()
            if code == "DICT":
                made: object = {}
                _put(made, items)
            elif code == "FROZENSET":
                made = Inert(Name("builtins", "frozenset"))
            else:
                made = tuple(items) if code == "TUPLE" else items
            stack.append(made)
        elif code in ("SETITEM", "SETITEMS"):
            items = self._marked() if code == "SETITEMS" else self._popped(2)
            _put(stack[-1], items)
        elif code in ("APPEND", "APPENDS", "ADDITEMS"):
            items = self._popped(1) if code == "APPEND" else self._marked()
            if isinstance(stack[-1], list):
                stack[-1].extend(items)
            else:
                _inert(stack[-1])
        elif code == "GLOBAL":
            stack.append(self._name(*argument.split(" ", 1)))
        elif code == "STACK_GLOBAL":
            module, name = self._popped(2)
            stack.append(self._name(_text(module), _text(name)))
        elif code == "INST":
            arguments = tuple(self._marked())
            stack.append(self._call(self._name(*argument.split(" ", 1)), arguments))
        elif code == "OBJ":
            kind, *rest = self._marked()
            stack.append(self._call(kind, tuple(rest)))
        elif code == "REDUCE":
            function, arguments = self._popped(2)
            stack.append(self._call(function, self._copy(arguments)))
        elif code == "NEWOBJ":
            kind, arguments = self._popped(2)
            stack.append(self._new(kind, self._copy(arguments)))
        elif code == "NEWOBJ_EX":
            kind, arguments, options = self._popped(3)
            self._spend(len(_tuple(arguments)))
            stack.append(self._new(kind, (*arguments, options)))
        elif code == "BUILD":
            (state,) = self._popped(1)
            # A dict that stands for a subclass (OrderedDict) needs no attributes.
            if isinstance(stack[-1], Inert):
                stack[-1].state = state
        elif code in ("PERSID", "BINPERSID"):
            identity = argument if code == "PERSID" else self._popped(1)[0]
            if self._persistent is None:
                raise ValueError("a persistent id")
            stack.append(self._persistent(identity))
        elif code == "DUP":
            stack.append(stack[-1])
        elif code == "POP":
            if self._marks and self._marks[-1] == len(stack):
                self._marks.pop()
            else:
                self._popped(1)
        elif code == "POP_MARK":
            self._marked()
        elif code not in ("PROTO", "FRAME", "READONLY_BUFFER"):
            raise ValueError(f"opcode {code}")

    def _copy(self, value: object) -> tuple[Any, ...]:
        """Return a sequence as a tuple. A few opcodes can ask for the same long list many times: all are counted."""
        items = _tuple(value)
        if items is not value:
            self._spend(len(items))
        return items

    def _spend(self, items: int) -> None:
        self._copied += items
        if said := PICKLE_COPIES.exceeded(self._copied):
            raise ValueError(f"it copies more than it may: it {said}")

    def _last(self, count: int) -> list[Any]:
        floor = self._marks[-1] if self._marks else 0
        if len(self._stack) - floor < count:
            raise ValueError("the stack is empty")
        return self._stack[-count:]

    def _popped(self, count: int) -> list[Any]:
        items = self._last(count)
        del self._stack[-count:]
        return items

    def _marked(self) -> list[Any]:
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def _new(self, kind: object, arguments: tuple[object, ...]) -> object:
        """Return an object of a class, whose constructor is not run."""
        if isinstance(kind, Name) and str(kind) in _CONTAINERS:
            return self._call(kind, arguments)
        return Inert(_known(kind))

    def _call(self, function: object, arguments: tuple[Any, ...]) -> object:
        """Return what a call stands for."""
        if not isinstance(function, Name):
            # What a placeholder would do when it is called is unknown.
            self._refused[str(_known(function))] = None
            return Inert(_known(function))
        name = str(function)
        if name == "builtins.getattr":
            if len(arguments) == 2 and isinstance(arguments[0], Name) and isinstance(arguments[1], str):
                return self._name(arguments[0].module, f"{arguments[0].name}.{arguments[1]}")
            self._refused[name] = None
        elif not self.allowed(function, called=True):
            self._refused[name] = None
        elif name in ("copyreg._reconstructor", "copyreg.__newobj__", "copyreg.__newobj_ex__"):
            self._spend(len(arguments))
            return self._new(arguments[0], arguments[1:])
        elif name in _CONTAINERS:
            made: dict[Any, Any] = {}
            if name != "collections.defaultdict" and arguments:
                items = [part for pair in _pairs(arguments[0]) for part in pair]
                self._spend(len(items))
                _put(made, items)
            return made
        elif name == "torch.Size":
            return self._copy(arguments[0])
        elif name in _TENSOR_BUILDERS:
            return _TENSOR_BUILDERS[name](*arguments)
        elif name.startswith("torch._utils._rebuild_"):
            return Unreadable(f"is built by {name}", PLAIN_ONLY)
        elif name.startswith("torch.jit._pickle."):
            return arguments[0]
        return Inert(function)


# Opcodes whose argument is the object.
_LITERAL = "(SHORT_)?BIN(STRING|BYTES|UNICODE)8?|STRING|UNICODE|BYTEARRAY8|INT|BININT[12]?|LONG[14]?|(BIN)?FLOAT"
_LITERALS = frozenset(code.name for code in pickletools.opcodes if re.fullmatch(_LITERAL, code.name))
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_PUTS = frozenset(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"))
# Read as plain dicts.
_CONTAINERS = ("collections.OrderedDict", "collections.defaultdict", "builtins.dict")


def _known(kind: object) -> Name:
    """Return a class or the class of an object, as a name."""
    if isinstance(kind, Name):
        return kind
    return kind.kind if isinstance(kind, Inert) else Name("builtins", type(kind).__name__)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("a name that is no text")
    return value


def _tuple(value: object) -> tuple[Any, ...]:
    if not isinstance(value, (tuple, list)):
        raise ValueError("arguments that are no tuple")
    return tuple(value)


def _inert(value: object) -> Inert:
    if not isinstance(value, Inert):
        raise ValueError(f"items of a {type(value).__name__}")
    return value


def _pairs(value: object) -> Iterator[tuple[object, object]]:
    if isinstance(value, dict):
        yield from value.items()
    else:
        for item in _tuple(value):
            key, found = _tuple(item)
            yield key, found


def _put(target: object, items: list[Any]) -> None:
    """Set items, given as key, value, key, value; keys whose hash takes long or may collide get another."""
    mapping = target if isinstance(target, dict) else _inert(target).mapping
    for key, value in zip(items[::2], items[1::2], strict=True):
        flat = isinstance(key, tuple) and len(key) <= _MOST_PARTS and all(_is_key(part) for part in key)
        mapping[key if flat or _is_key(key) else Inert(_known(key))] = value


def _is_key(value: object) -> bool:
    if isinstance(value, Name):
        return True
    if isinstance(value, int):
        return abs(value) < _LARGEST_KEY
    if isinstance(value, (str, bytes)):
        return len(value) <= _LONGEST_KEY
    return value is None or isinstance(value, (float, Inert))


# torch's functions that build tensors


def strided_tensor(storage: object, offset: Any, shape: Any, strides: Any, *_: object, dtype: str = "") -> object:
    """Stand for ``torch._utils._rebuild_tensor_v2``: a strided view of a storage.

    Raises:
        ValueError: it reaches beyond its storage.
    """
    if not isinstance(storage, Storage):
        raise ValueError("a tensor without values")
    shape, strides, dtype = _tuple(shape), _tuple(strides), dtype or storage.dtype
    numbers = (offset, *shape, *strides)
    if len(shape) != len(strides) or any(type(number) is not int or number < 0 for number in numbers):
        raise ValueError("shape, strides and offset must be whole numbers")
    if dtype not in TORCH_DTYPES:
        return Unreadable(f"has dtype torch.{dtype}", DTYPES_HINT)
    itemsize = DTYPES[TORCH_DTYPES[dtype]].carrier.itemsize
    span = 0 if 0 in shape else 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if (offset + span) * itemsize > storage.nbytes:
        raise ValueError(f"shape {shape} with strides {strides} at {offset} reaches beyond {storage.nbytes:,} bytes")
    # What no value is reached by may be any number.
    strides = tuple(stride if span and size > 1 else 0 for size, stride in zip(shape, strides, strict=True))
    return StoredTensor(storage, dtype, offset, shape, strides, span)


def _tensor_of_dtype(
    storage: object, offset: Any, shape: Any, strides: Any, gradient: object, hooks: object, dtype: Any, *_: object
) -> object:
    """Stand for ``torch._utils._rebuild_tensor_v3``, where the storage has no dtype."""
    return strided_tensor(storage, offset, shape, strides, dtype=dtype.name)


def _first(value: object, *_: object) -> object:
    return value


def _quantized_tensor(storage: Any, *_: object) -> object:
    return Unreadable(f"is quantized by PyTorch (torch.{storage.dtype})", DEQUANTIZE)


def _sparse(*_: object) -> object:
    return Unreadable("is sparse", PLAIN_ONLY)


def _without_values(*_: object) -> object:
    return Unreadable("is without values (on the meta device)", PLAIN_ONLY)


def _of_subclass(function: Any, kind: Any, arguments: Any, *_: object) -> object:
    """Stand for ``torch._tensor._rebuild_from_type_v2``: a tensor of a subclass."""
    build = _TENSOR_BUILDERS.get(str(_known(function)))
    if build in (strided_tensor, _tensor_of_dtype, _first):
        return build(*_tuple(arguments))
    return _wrapper(kind)


def _wrapper(kind: Any, *_: object) -> object:
    """Stand for a tensor whose class keeps other tensors in place of plain values."""
    name = str(_known(kind))
    if name.startswith("torch.distributed"):
        return Unreadable(
            f"is one process' part of a distributed tensor ({name})",
            "save the full state dict, or with torch.distributed.checkpoint",
        )
    if re.search(r"torchao|quant|Quant|Float8|Int8|Int4|NF4", name):
        return Unreadable(f"is quantized ({name})", DEQUANTIZE)
    return Unreadable(f"is of the tensor subclass {name}", PLAIN_ONLY)


_TENSOR_BUILDERS: dict[str, Callable[..., object]] = {
    "torch._utils._rebuild_tensor": strided_tensor,
    "torch._utils._rebuild_tensor_v2": strided_tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_dtype,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _first,
    "torch._utils._rebuild_qtensor": _quantized_tensor,
    "torch._utils._rebuild_sparse_tensor": _sparse,
    "torch._utils._rebuild_sparse_csr_tensor": _sparse,
    "torch._utils._rebuild_meta_tensor_no_storage": _without_values,
    "torch._utils._rebuild_wrapper_subclass": _wrapper,
    "torch._tensor._rebuild_from_type": _of_subclass,
    "torch._tensor._rebuild_from_type_v2": _of_subclass,
}


def storage_dtype(kind: object) -> str:
    """Return torch's name of the dtype of a class of storages.

    Raises:
        ValueError: it is none.
    """
    found = _STORAGES.get(kind.name) if isinstance(kind, Name) and kind.module in ("torch", "torch.storage") else None
    if found is None:
        raise ValueError("values of an unknown kind")
    return found


def storage_itemsize(dtype: str) -> int:
    """Return the bytes of one value of a torch dtype, also of those that have no numpy dtype."""
    if dtype in TORCH_DTYPES:
        return DTYPES[TORCH_DTYPES[dtype]].carrier.itemsize
    return {"complex64": 8, "complex128": 16, "qint32": 4}.get(dtype, 1)
