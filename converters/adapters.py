"""Adapters of peft: LoRA, rsLoRA and DoRA, merged into their base model as peft merges them.

An adapter names the modules that it changes by their paths in the model that was trained, while the base model's file
may have other names, or another format. So the base's tensors are written, lazily, under the names of each format in
turn; the spelling in which the adapter's modules are found is merged and read again.
Source: peft/tuners/lora/{layer,dora,variants,model}.py, peft/utils/{other,save_and_load}.py.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_hub.converters.casting import from_tensor, to_torch
from vit_hub.converters.containers import RawCheckpoint, open_raw
from vit_hub.converters.containers.folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from vit_hub.converters.containers.mapped import MappedFile
from vit_hub.converters.formats import all_formats
from vit_hub.converters.read import Checkpoint, read_raw
from vit_hub.converters.rules.extras import beside_reason
from vit_hub.converters.rules.format import Dialect, Format, axis_sizes
from vit_hub.converters.tensors import Array, LazyTensor
from vit_hub.errors import CheckpointError
from vit_hub.model.config import ViTConfig
from vit_hub.untrusted import SIZE, parse_json, read_bytes

if TYPE_CHECKING:
    import torch

__all__ = ["Adapter", "find_adapter", "merged"]

# A folder with these holds the whole model, whatever is beside it.
_WHOLE = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_MERGE = "merge it with peft: model.merge_and_unload().save_pretrained(...), and give that folder"
_PREFIX = re.compile(r"base_model\.(model\.)?")
# Wrappers of peft in the names of modules that are replaced as a whole.
_WRAPPERS = re.compile(r"\.(base_layer|modules_to_save(\.default)?)(?=\.)")
_PART = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_magnitude_vector|lora_embedding_A|lora_embedding_B)"
    r"(\.default)?(\.(?P<end>weight|bias))?"
)
# Variants that change more than the product of two matrices, and initial values that change the base model.
_UNSUPPORTED = (
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "velora_config",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
)
_INITIAL_VALUES = (True, False, None, "gaussian", "eva", "orthogonal")
# A group that repeats and is repeated takes for ever to match.
_ENDLESS = re.compile(r"\)[*+{?]")
# Config fields that a classifier in place of another, or of none, may change.
_OF_HEADS = ("num_classes", "pool", "representation_dim", "head_input", "head_layers", "head_norm", "final_norm")


@dataclass(frozen=True)
class _Change:
    """The change that an adapter makes to one module."""

    scaling: float
    parts: Mapping[str, LazyTensor]


@dataclass(frozen=True)
class Adapter:
    """An opened adapter.

    Attributes:
        path: the folder, or the file of the weights.
        base: name or path of the base model, as the adapter gives it; empty if it does not.
        revision: of the base model's repository.
        changes: module -> what is merged into it.
        replaced: full name -> tensor that takes the place of the base model's.
        files: the files of the adapter.
        held: those of them that are open.
        documents: those that were read at once, with the sha256 of what was read.
    """

    path: Path
    base: str
    revision: str | None
    changes: Mapping[str, _Change] = field(default_factory=dict)
    replaced: Mapping[str, LazyTensor] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    held: Mapping[Path, MappedFile] = field(default_factory=dict)
    documents: Mapping[Path, str] = field(default_factory=dict)


def find_adapter(path: Path) -> Adapter | None:
    """Return the adapter in a folder, or beside whose config a file of weights lies; None if it is none.

    Raises:
        CheckpointError: damaged, or of a kind that cannot be merged here.
    """
    folder = path if path.is_dir() else path.parent
    config = folder / ADAPTER_CONFIG
    if not config.is_file() or (path.is_file() and path.name not in (*ADAPTER_WEIGHTS, ADAPTER_CONFIG)):
        return None
    if path.is_dir() and any((folder / name).is_file() for name in _WHOLE):
        return None
    weights = next((folder / name for name in ADAPTER_WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        raise CheckpointError(f"{path}: an adapter without its weights", hint=f"fetch {ADAPTER_WEIGHTS[0]}, too")
    try:
        content = read_bytes(config)
        settings = parse_json(content, finite=False)
        if not isinstance(settings, dict):
            raise ValueError("a JSON object is expected")
        _refuse(path, settings)
        raw = open_raw(weights)
        changes, replaced = _sorted(raw, settings)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError, re.error) as error:
        raise CheckpointError(f"{path}: a damaged adapter of peft: {error}", hint="fetch it again") from error
    base, revision = settings.get("base_model_name_or_path"), settings.get("revision")
    return Adapter(
        path,
        base if isinstance(base, str) else "",
        revision if isinstance(revision, str) else None,
        changes,
        replaced,
        (config, *raw.files),
        raw.held,
        {config: hashlib.sha256(content).hexdigest()},  # the other JSON files there are not about the adapter
    )


def _refuse(path: Path, settings: Mapping[str, Any]) -> None:
    """Refuse the kinds of adapters that are not merged as a product of two matrices.

    Raises:
        CheckpointError: it is one.
    """
    kind = str(settings.get("peft_type"))
    named = f"an adapter of peft of the kind {kind}"
    if kind != "LORA":
        raise CheckpointError(f"{path}: {named}, which is not merged here (LoRA, rsLoRA and DoRA are)", hint=_MERGE)
    variant = next((name for name in _UNSUPPORTED if settings.get(name)), None)
    if variant is not None:
        raise CheckpointError(f"{path}: {named} with {variant}, which is not merged here", hint=_MERGE)
    start = settings.get("init_lora_weights")
    if not any(start is known or (isinstance(start, str) and start == known) for known in _INITIAL_VALUES):
        raise CheckpointError(
            f"{path}: {named}, whose initial values ({start}) changed the base model, too", hint=_MERGE
        )


def _sorted(raw: RawCheckpoint, settings: Mapping[str, Any]) -> tuple[dict[str, _Change], dict[str, LazyTensor]]:
    """Return what the tensors of an adapter do to modules, and those that replace others."""
    parts: dict[str, dict[str, LazyTensor]] = {}
    replaced: dict[str, LazyTensor] = {}
    for name, tensor in raw.tensors.items():
        plain = _PREFIX.sub("", name, count=1) if _PREFIX.match(name) else name
        found = _PART.fullmatch(plain)
        if found:
            bias = found["part"] == "lora_B" and found["end"] == "bias"
            parts.setdefault(found["module"], {})["bias" if bias else found["part"]] = tensor
        elif ".lora_" in plain or ".original_module." in plain:
            raise ValueError(f"the tensor {name!r} is unknown")
        else:
            replaced[_WRAPPERS.sub("", plain)] = tensor
    return {module: _Change(_scaling(module, found, settings), found) for module, found in parts.items()}, replaced


def _scaling(module: str, parts: Mapping[str, LazyTensor], settings: Mapping[str, Any]) -> float:
    first = parts.get("lora_A") or parts.get("lora_embedding_A")
    second = parts.get("lora_B") or parts.get("lora_embedding_B")
    if first is None or second is None or not first.shape or not first.shape[0]:
        raise ValueError(f"the matrices of {module!r} are incomplete")
    rank = first.shape[0]
    alpha = _of_pattern(settings.get("alpha_pattern") or {}, module, settings.get("lora_alpha", 8))
    scaling = float(alpha) / (math.sqrt(rank) if settings.get("use_rslora") else rank)
    if not abs(scaling) <= SIZE.most:  # neither what float32 cannot hold, nor NaN, which JSON from Python may have
        raise ValueError(f"the scaling of {module!r} is {scaling}")
    return scaling


def _of_pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """Return the value of the first pattern that the end of a module's path matches."""
    for pattern, value in patterns.items():
        if _ENDLESS.search(pattern):
            raise ValueError(f"the pattern {pattern!r} is too involved")
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


# Finding the modules in the base model


@dataclass(frozen=True)
class _Spelling:
    """The base model's tensors under the names of one dialect, and what the adapter has before these names."""

    format: Format
    dialect: Dialect
    tensors: dict[str, LazyTensor]
    before: str
    found: int

    def name(self, adapted: str) -> str:
        """Return the name here of a tensor or module that the adapter names."""
        return adapted.removeprefix(self.before)


def merged(base: Checkpoint, adapter: Adapter, overrides: Mapping[str, Any] | None = None) -> Checkpoint:
    """Return the base model with an adapter merged into it, tensor by tensor as they are read.

    Args:
        base: the base model, of any format.
        adapter: from :func:`find_adapter`.
        overrides: config fields that the base does not tell.

    Raises:
        CheckpointError: the adapter is of another model.
    """
    spelling = _spelling(base, adapter)
    tensors, dropped = dict(spelling.tensors), dict(base.dropped)
    for module, change in adapter.changes.items():
        name = spelling.name(module)
        weight, bias = f"{name}.weight", f"{name}.bias"
        if weight not in tensors:
            dropped[f"{module}.lora"] = beside_reason(name)
            continue
        tensors[weight] = _merged_weight(adapter, tensors[weight], change)
        if "bias" in change.parts:
            if bias not in tensors:
                raise _other_model(base, adapter, module)
            tensors[bias] = _merged_bias(tensors[bias], change)
    replaced = False
    for name, tensor in adapter.replaced.items():
        plain = spelling.name(name)
        target = plain if plain in tensors else name
        replaced = replaced or target not in tensors or tensors[target].shape != tensor.shape
        tensors[target] = tensor
    ckpt = _read(base, adapter, spelling, tensors, overrides or {}, replaced)
    own = base.passport
    passport = dataclasses.replace(
        ckpt.passport,
        preprocess=ckpt.passport.preprocess or own.preprocess,
        labels=ckpt.passport.labels or (own.labels if ckpt.config.num_classes == base.config.num_classes else None),
        license=own.license,
    )
    rest = {name: base.source.tensors[name] for name in base.dropped if name in base.source.tensors}
    return dataclasses.replace(
        ckpt,
        passport=passport,
        dropped={**dropped, **ckpt.dropped},
        warnings=tuple(dict.fromkeys((*base.warnings, *ckpt.warnings))),
        source=dataclasses.replace(ckpt.source, tensors={**rest, **ckpt.source.tensors}),
    )


def _spelling(base: Checkpoint, adapter: Adapter) -> _Spelling:
    """Return the names of the base model's tensors under which most of the adapter's modules are found.

    Raises:
        CheckpointError: none are, or one inside of the encoder is not.
    """
    possible = list(_spellings(base, adapter))
    # The first of equals: the base's own format, with the longest names.
    best = max(possible, key=lambda spelling: (spelling.found, -len(spelling.before)), default=None)
    if best is None or not best.found:
        raise _other_model(base, adapter, next(iter(adapter.changes), next(iter(adapter.replaced), "")))
    modules = {name.rpartition(".")[0] for name in best.tensors}
    roots = {module.split(".")[0] for module in modules}
    for module in adapter.changes:
        name = best.name(module)
        inside = module.startswith(best.before) and name.split(".")[0] in roots
        if name not in modules and inside:
            raise _other_model(base, adapter, module)
    return best


def _spellings(base: Checkpoint, adapter: Adapter) -> Iterator[_Spelling]:
    family = base.format.partition("-")[0]
    formats = sorted(all_formats(), key=lambda fmt: fmt.name != family)
    wanted = [*adapter.changes, *(name.rpartition(".")[0] for name in adapter.replaced)]
    starts = {""} | {module[: at + 1] for module in wanted for at, letter in enumerate(module) if letter == "."}
    ordered = sorted(starts, key=len)
    for fmt in formats:
        for dialect in fmt.dialects:
            restored = fmt.restore(base.tensors, base.config)
            tensors, left = fmt.table(dialect).write(restored, axis_sizes(base.config))
            if any(name not in base.passport.carried for name in left):
                continue
            modules = {name.rpartition(".")[0] for name in tensors}
            for before in ordered:
                found = sum(module.startswith(before) and module.removeprefix(before) in modules for module in wanted)
                if found:
                    yield _Spelling(fmt, dialect, tensors, before, found)
                if found == len(wanted) and not before:
                    return  # there is no better one


def _other_model(base: Checkpoint, adapter: Adapter, module: str) -> CheckpointError:
    return CheckpointError(
        f"{adapter.path}: an adapter that changes {module!r}, which is no module of its base model {base.path}",
        hint="give its own base model: base=..., on the command line --base; or merge it with peft "
        "(model.merge_and_unload())",
    )


def _read(
    base: Checkpoint,
    adapter: Adapter,
    spelling: _Spelling,
    tensors: dict[str, LazyTensor],
    overrides: Mapping[str, Any],
    replaced: bool,
) -> Checkpoint:
    """Return the merged tensors as a checkpoint of the base's config, but for a classifier that was replaced."""
    raw = RawCheckpoint(
        adapter.path,
        "safetensors",
        tensors,
        {},
        dict(base.passport.sidecars),
        (*base.source.files, *adapter.files),
        {**base.source.held, **adapter.held},
        documents={**base.source.documents, **adapter.documents},
    )
    label = spelling.format.label(spelling.dialect)
    known = {item.name: getattr(base.config, item.name) for item in dataclasses.fields(ViTConfig)}
    given = {**base.passport.overrides, **overrides}
    ckpt = read_raw(raw, format=label, overrides=given, hints={"num_heads": base.config.num_heads})
    differing = {
        name: value
        for name, value in known.items()
        if getattr(ckpt.config, name) != value and not (replaced and name in _OF_HEADS) and name not in overrides
    }
    return read_raw(raw, format=label, overrides={**given, **differing}) if differing else ckpt


# The arithmetic, in torch so that it rounds as peft's does


def _floats(tensor: LazyTensor) -> torch.Tensor:
    """Return a matrix of the adapter; peft loads those of half precision as float32."""
    import torch

    values = to_torch(tensor)
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def _merged_weight(adapter: Adapter, weight: LazyTensor, change: _Change) -> LazyTensor:
    def read() -> Array:
        return from_tensor(_merge(adapter.path, to_torch(weight), change)).read()

    return LazyTensor(weight.dtype, weight.shape, read)


def _merged_bias(bias: LazyTensor, change: _Change) -> LazyTensor:
    def read() -> Array:
        values = to_torch(bias).clone()
        values += _floats(change.parts["bias"]) * change.scaling
        return from_tensor(values).read()

    return LazyTensor(bias.dtype, bias.shape, read)


def _merge(path: Path, weight: torch.Tensor, change: _Change) -> torch.Tensor:
    import torch

    parts = {name: _floats(tensor) for name, tensor in change.parts.items()}
    try:
        delta = _delta(weight, parts, change.scaling)
        if delta.shape != weight.shape:
            raise RuntimeError(f"{tuple(delta.shape)} in place of {tuple(weight.shape)}")
        magnitude = parts.get("lora_magnitude_vector")
        if magnitude is None:
            changed = weight.clone()
            changed += delta
            return changed
        # The norm of each output's weights, all axes but the first.
        whole = weight + delta
        norm: torch.Tensor
        if weight.dim() > 2:
            norm = whole.norm(p=2, dim=tuple(range(1, weight.dim())), keepdim=True).transpose(1, 0)
        else:
            norm = torch.linalg.norm(whole, dim=1)
        factor = (magnitude / norm.to(whole.dtype)).view(-1, *(1,) * (weight.dim() - 1))
        return (factor * whole).to(weight.dtype)
    except RuntimeError as error:
        raise CheckpointError(
            f"{path}: the adapter's matrices do not fit its base model: {str(error).splitlines()[0]}",
            hint="give its own base model: base=..., on the command line --base",
        ) from error


def _delta(weight: torch.Tensor, parts: Mapping[str, torch.Tensor], scaling: float) -> torch.Tensor:
    import torch

    if "lora_embedding_A" in parts:
        embedded: torch.Tensor = parts["lora_embedding_B"] @ parts["lora_embedding_A"]
        return embedded.T * scaling
    first, second = parts["lora_A"], parts["lora_B"]
    if weight.dim() == 4 and tuple(weight.shape[2:]) != (1, 1):
        filtered: torch.Tensor = torch.nn.functional.conv2d(first.transpose(0, 1), second)
        return filtered.transpose(0, 1) * scaling
    product: torch.Tensor = second.flatten(1) @ first.flatten(1)
    return product.reshape(product.shape + (1,) * (weight.dim() - 2)) * scaling
