"""Names of an ONNX graph's weights in the model it was exported from, and config fields that the graph tells.

Exporters store the weight of a linear layer transposed under a name of their own. The bias that is added next keeps its
name and tells the layer; without a bias, the module of the node does. A class token that is repeated for a fixed number
of images becomes a constant that is put before the patches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vit_hub.converters.containers.onnx_file import Graph, Node, read_graph
from vit_hub.converters.tensors import DTYPES, LazyTensor, copied, from_array
from vit_hub.errors import CheckpointError

__all__ = ["read_onnx"]

# Parameters of whole models; any other name without a module, or with the path of a node, is made by an exporter.
_OWN = {
    *("cls_token", "class_token", "class_embedding", "dist_token", "reg_token", "storage_tokens", "mask_token"),
    *("pos_embed", "positional_embedding", "proj", "logit_scale", "logit_bias"),
}
_QUANTIZED = {"DequantizeLinear", "QLinearMatMul", "MatMulInteger", "DynamicQuantizeLinear", "MatMulNBits"}
# Patch embedding -> what its project calls the tokens beside it: class token, registers; and a table with an axis more.
_TOKENS = {
    "patch_embed.proj.weight": ("cls_token", "reg_token", ""),
    "embeddings.patch_embeddings.projection.weight": ("embeddings.cls_token", "embeddings.register_tokens", ""),
    "embeddings.patch_embedding.weight": ("embeddings.class_embedding", "", "embeddings.position_embedding.weight"),
    "conv1.weight": ("class_embedding", "", "positional_embedding"),
    "conv_proj.weight": ("class_token", "", ""),
}
_QUICK = 1.702  # arXiv 1606.08415, section 2

_HINT = "export the model again with do_constant_folding=False, or give the checkpoint that it was exported from"


def read_onnx(path: Path) -> tuple[dict[str, LazyTensor], dict[str, Any], tuple[Path, ...]]:
    """Return the weights by their names in the original model, config fields that the graph tells, and the files.

    Raises:
        CheckpointError: the file is damaged or quantized, or it cannot be told what a weight is.
    """
    graph, files = read_graph(path)
    quantized = sorted(_QUANTIZED & {node.op for node in graph.nodes})
    if quantized:
        raise CheckpointError(
            f"{path}: a quantized ONNX model ({', '.join(quantized)})", hint="give the model that was quantized"
        )
    stored = dict(graph.tensors)
    for node in graph.nodes:
        # Equal parameters are stored once; the others are copies by name.
        if node.op == "Identity" and node.inputs and node.outputs and node.inputs[0] in stored:
            stored[node.outputs[0]] = stored[node.inputs[0]]
    names = _Names(path, graph, stored)
    for node in graph.nodes:
        names.take(node)
    names.check()
    tensors = {name: tensor for name, tensor in names.known.items() if DTYPES[tensor.dtype].floating}
    return tensors, _facts(graph, tensors), files


class _Names:
    """The weights whose names in the original model are known, and where the others came from."""

    def __init__(self, path: Path, graph: Graph, stored: Mapping[str, LazyTensor]) -> None:
        self._path, self._graph, self._stored = path, graph, stored
        self.known = {name: tensor for name, tensor in stored.items() if not _made(name)}
        self._sources: dict[str, str] = {}
        kernels = [(name, end) for name in self.known for end in _TOKENS if name == end or name.endswith(f".{end}")]
        # The patch embedding, and what of its name is its project's.
        self._kernel = kernels[0] if len(kernels) == 1 and self.known[kernels[0][0]].shape else None
        self._readers: dict[str, list[Node]] = {}
        for node in graph.nodes:
            for name in node.inputs:
                self._readers.setdefault(name, []).append(node)

    def take(self, node: Node) -> None:
        """Name the weights that a node reads, as far as it tells."""
        if node.op in ("MatMul", "Gemm") and len(node.inputs) > 1 and node.outputs:
            self._linear(node, node.inputs[1])
        elif node.op == "LayerNormalization":
            for name, part in zip(node.inputs[1:3], ("weight", "bias"), strict=False):
                self._shared(node.module, part, name)
        elif node.op == "Concat" and node.attributes.get("axis") == 1:
            for place, name in enumerate(node.inputs):
                self._tokens(name, place)
        elif node.op == "Add":
            for name in node.inputs:
                self._table(name)

    def check(self) -> None:
        """Raise CheckpointError if there is a weight that no node told the name of."""
        named = set(self._sources.values())
        for name, tensor in self._stored.items():
            # Scalars and whole numbers belong to the program.
            weight = DTYPES[tensor.dtype].floating and math.prod(tensor.shape) > 1
            if not weight or not _made(name) or name in named:
                continue
            users = {node.op for node in self._readers.get(name, ())}
            # So do zeros that are added, or that stand for a bias of keys.
            zeros = users == {"Add"} or (users == {"Concat"} and len(tensor.shape) == 1)
            if users and not (zeros and not tensor.read().any()):
                raise CheckpointError(
                    f"{self._path}: it cannot be told which weight of the model {name} {tensor.shape} is "
                    f"(used by {', '.join(sorted(users))})",
                    hint=_HINT,
                )

    def _add(self, name: str, source: str, tensor: LazyTensor) -> None:
        before = self._sources.get(name, name if name in self.known else source)
        if before != source:
            raise CheckpointError(f"{self._path}: {before} and {source} both seem to be {name}", hint=_HINT)
        self.known[name], self._sources[name] = tensor, source

    def _linear(self, node: Node, made: str) -> None:
        """Name the weight of a linear layer: by the bias added next, or by the module of the node."""
        weight = self._stored.get(made)
        after = (
            [node] if node.op == "Gemm" else [one for one in self._readers.get(node.outputs[0], ()) if one.op == "Add"]
        )
        biases = {name for one in after for name in one.inputs if name in self.known and name.endswith("bias")}
        bias = biases.pop() if len(biases) == 1 else ""
        # Equal biases are stored once, under the name of the first.
        own = bias if bias.startswith(f"{node.module}.") or not node.module else f"{node.module}.bias"
        if bias:
            self._shared(node.module, "bias", bias)
        stem = own.removesuffix("bias")
        if weight is not None and _made(made) and len(weight.shape) == 2 and stem:
            as_is = node.op == "Gemm" and node.attributes.get("transB") == 1
            self._add(f"{stem}weight", made, weight if as_is else weight.permute((1, 0)))

    def _shared(self, module: str, part: str, name: str) -> None:
        """Name a parameter that is stored under the name of an equal one of another module."""
        elsewhere = module and name in self.known and not name.startswith(f"{module}.")
        if elsewhere and f"{module}.{part}" not in self.known and len(self._readers[name]) > 1:
            self.known[f"{module}.{part}"] = copied(self._stored[name])

    def _tokens(self, made: str, place: int) -> None:
        """Name tokens that are put before the patches, repeated for each image."""
        tokens, kernel = self._stored.get(made), self._kernel
        if tokens is None or kernel is None or not _made(made) or len(tokens.shape) != 3 or not tokens.shape[0]:
            return
        values = tokens.read()
        if any(image.tobytes() != values[0].tobytes() for image in values[1:]):
            return
        single, several, _ = _TOKENS[kernel[1]]
        found = several
        if tokens.shape[1] == 1 and place == 0:
            found = single
        elif tokens.shape[1] == 1 and any(name.endswith("head_dist.weight") for name in self.known):
            found = "dist_token"
        name = kernel[0].removesuffix(kernel[1]) + found
        shape = tokens.shape[-1:] if found.endswith("embedding") else (1, *tokens.shape[1:])
        if found and name not in self.known:
            self._add(name, made, from_array(values[:1].reshape(shape), tokens.dtype))

    def _table(self, made: str) -> None:
        """Name a position table that was looked up for every position."""
        table, kernel = self._stored.get(made), self._kernel
        if table is None or kernel is None or not _made(made) or len(table.shape) != 3 or table.shape[0] != 1:
            return
        found = _TOKENS[kernel[1]][2]
        name = kernel[0].removesuffix(kernel[1]) + found
        if found and name not in self.known and table.shape[2] == self.known[kernel[0]].shape[0]:
            self._add(name, made, table.reshape(table.shape[1:]))


def _made(name: str) -> bool:
    """Return whether a name is one that an exporter made, for what is no parameter as it was."""
    return name.startswith(("/", "onnx::")) or ("." not in name and name not in _OWN)


def _facts(graph: Graph, tensors: Mapping[str, LazyTensor]) -> dict[str, Any]:
    """Return the config fields that the operations tell."""
    found: dict[str, Any] = {}
    eps = {node.attributes.get("epsilon") for node in graph.nodes if node.op == "LayerNormalization"}
    # Norms written out: what is added below the root.
    roots = (graph.makers.get(node.inputs[0]) for node in graph.nodes if node.op == "Sqrt" and node.inputs)
    added = (graph.constants.get(name) for maker in roots if maker and maker.op == "Add" for name in maker.inputs)
    eps |= {value for value in added if isinstance(value, float)}
    if len(eps) == 1 and isinstance(value := eps.pop(), float):
        # Stored in single precision.
        found["norm_eps"] = float(f"{value:.6g}")
    act = _activation(graph)
    if act:
        found["act"] = act
    means = [
        name for node in graph.nodes if node.op == "ReduceMean" and _axes(graph, node) == [1] for name in node.outputs
    ]
    # Beside the class token it is one half of what a classifier reads.
    if means and not any(node.op == "Concat" and {*means} & {*node.inputs} for node in graph.nodes):
        found["pool"] = "avg"
    convolutions = [node.inputs[1] for node in graph.nodes if node.op == "Conv" and len(node.inputs) > 1]
    kernel = tensors.get(convolutions[-1]) if convolutions else None
    heads = (
        {_heads(graph, node, kernel.shape[0]) for node in graph.nodes if node.op == "Reshape"}
        if kernel and kernel.shape
        else set()
    )
    heads.discard(0)
    if len(heads) == 1:
        found["num_heads"] = heads.pop()
    sizes = [sizes[2:] for sizes in graph.inputs.values() if len(sizes) == 4]
    if len(sizes) == 1 and all(sizes[0]):
        found["image_size"] = tuple(sizes[0])
    return found


def _activation(graph: Graph) -> str:
    """Return the activation of the MLPs by its operations; empty if they do not tell."""
    ops = {node.op for node in graph.nodes}
    forms = {node.attributes.get("approximate", "none") for node in graph.nodes if node.op == "Gelu"}
    if forms:
        return {"none": "gelu", "tanh": "gelu_tanh"}.get(str(forms.pop()), "") if len(forms) == 1 else ""
    if any(isinstance(value, float) and abs(value - _QUICK) < 1e-6 for value in graph.constants.values()):
        return "quick_gelu"
    return "gelu" if "Erf" in ops else "gelu_tanh" if "Tanh" in ops else ""


def _axes(graph: Graph, node: Node) -> object:
    """Return the axes of a reduction: an attribute once, an input since."""
    return node.attributes.get("axes") or (graph.constants.get(node.inputs[1]) if len(node.inputs) > 1 else None)


def _heads(graph: Graph, node: Node, width: int) -> int:
    """Return the heads that a Reshape parts a width into; 0 if it does something else."""
    shape = _integers(graph, node.inputs[1]) if len(node.inputs) > 1 else []
    if len(shape) == 5 and shape[2] == 3:
        shape = shape[1:]
    heads, each = shape[2:] if len(shape) == 4 else (None, None)
    if not heads or not each or each < 1 or width % each:
        return 0
    return width // each if heads in (-1, width // each) else 0


def _integers(graph: Graph, name: str) -> list[int | None]:
    """Return the whole numbers that a value is made of, None where they depend on the input; empty if it is no list."""
    constant, maker = graph.constants.get(name), graph.makers.get(name)
    if isinstance(constant, list):
        return [*constant]
    if maker is None or maker.op != "Concat" or len(maker.inputs) > 5:
        return []
    return [_integer(graph, part) for part in maker.inputs]


def _integer(graph: Graph, name: str) -> int | None:
    """Return a single whole number, with an axis or without."""
    maker = graph.makers.get(name)
    if maker and maker.op == "Unsqueeze" and maker.inputs:
        name = maker.inputs[0]
    constant = graph.constants.get(name)
    return constant[0] if isinstance(constant, list) and len(constant) == 1 else None
