"""The weights of TorchScript archives, read without executing the program that they hold.

An archive is a zip of code, constants and ``data.pkl``, the pickled module. The pickle names classes of the program
(``__torch__.*``), here read as plain holders of attributes, and a few functions of torch that build tensors; every
other name is refused. Names are those of ``torch.jit.load(file).state_dict()``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from vit_hub.converters.containers.archive import Member, check_expansion
from vit_hub.converters.containers.mapped import MappedFile
from vit_hub.converters.containers.pickles import (
    DEQUANTIZE,
    Inert,
    Name,
    Pickle,
    Refused,
    StoredTensor,
    Unreadable,
)
from vit_hub.converters.containers.zipped_values import joined, unpickled
from vit_hub.converters.tensors import LazyTensor
from vit_hub.errors import CheckpointError, UnsafeCheckpointError

__all__ = ["is_torchscript", "read_torchscript"]

_DAMAGED = "the file is damaged or malicious: download it again"
# Modules nest about ten levels; these bounds end the walk through one that contains itself.
_MAX_DEPTH = 64
_MAX_OBJECTS = 1_000_000
_QUANTIZED = "__torch__.torch.classes.quantized"


def is_torchscript(members: Mapping[str, Member]) -> bool:
    """Return whether a zip archive holds a program beside its pickle."""
    return any(name.endswith("/constants.pkl") or "/code/" in name for name in members)


class _Pickle(Pickle):
    """A pickle of objects of the program, dicts, lists and tensors."""

    def allowed(self, name: Name, *, called: bool) -> bool:
        """Return whether a name may be referred to, or called."""
        if name.module.split(".")[0] == "__torch__":
            return True
        return (
            name.module in ("torch._utils", "torch.jit._pickle")
            or str(name) == "collections.OrderedDict"
            or (name.module == "torch" and not called)
        )


def read_torchscript(
    file: MappedFile, members: Mapping[str, Member]
) -> tuple[dict[str, LazyTensor], dict[str, Unreadable]]:
    """Return the parameters and buffers of a TorchScript archive as views of the mapped file, and those without values.

    Raises:
        CheckpointError: the archive is damaged or without parameters.
        UnsafeCheckpointError: the pickle names something that weights do not need.
    """
    try:
        module = unpickled(file, members, _Pickle)
    except CheckpointError:
        raise
    except Refused as error:
        raise UnsafeCheckpointError(
            f"{file.path}: refused: this TorchScript archive asks for {error}",
            hint="on a machine you trust, load it with torch.jit.load and save its state_dict() as safetensors",
        ) from error
    # A damaged pickle can raise anything.
    except Exception as error:
        raise CheckpointError(f"{file.path}: not a readable TorchScript archive: {error}", hint=_DAMAGED) from error
    tensors: dict[str, LazyTensor] = {}
    unreadable: dict[str, Unreadable] = {}
    for count, (names, value) in enumerate(_walk(module, ())):
        if len(names) > _MAX_DEPTH or count > _MAX_OBJECTS:
            raise CheckpointError(
                f"{file.path}: modules nested deeper than {_MAX_DEPTH} levels or more than {_MAX_OBJECTS:,} objects",
                hint=_DAMAGED,
            )
        if isinstance(value, StoredTensor):
            name = joined(file.path, names, ".", len(tensors))
            tensors[name] = value.lazy()
            check_expansion(file.path, f"tensor {name!r}", tensors[name].nbytes, file.size)
        elif isinstance(value, Unreadable):
            unreadable[joined(file.path, names, ".", len(unreadable))] = value
        elif isinstance(value, Inert) and str(value.kind).startswith(_QUANTIZED):
            quantized = f"is quantized by PyTorch ({str(value.kind).rpartition('.')[2]})"
            unreadable[joined(file.path, names, ".", len(unreadable))] = Unreadable(quantized, DEQUANTIZE)
    if not tensors and not unreadable:
        raise CheckpointError(
            f"{file.path}: a TorchScript archive whose module has no parameters",
            hint="a frozen module keeps them among the constants of its program: save the module before freezing it",
        )
    return tensors, unreadable


def _walk(value: object, names: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], object]]:
    """Yield the attributes of modules below ``value``; as in a state dict, lists and dicts are not entered."""
    yield names, value
    if isinstance(value, Inert) and isinstance(value.state, dict):
        for name, item in value.state.items():
            yield from _walk(item, (*names, str(name)))
