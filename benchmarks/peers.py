"""The same work done by timm and transformers; to be imported before them, see torchvision_operators.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import make_checkpoint
import numpy as np
import torch
import torchvision_operators  # noqa: F401
from torch import Tensor

# transformers 5 calls modules otherwise than the files do, which keep the names of transformers 4.
_FILE_NAMES = (
    ("vit.layers.", "vit.encoder.layer."),
    ("attention.q_proj", "attention.attention.query"),
    ("attention.k_proj", "attention.attention.key"),
    ("attention.v_proj", "attention.attention.value"),
    ("attention.o_proj", "attention.output.dense"),
    ("mlp.fc1", "intermediate.dense"),
    ("mlp.fc2", "output.dense"),
)


def timm_model(size: str, image: int = 224, **options: Any) -> Any:
    """Make timm's model of a size of make_checkpoint.py; every width is given, so the name does not matter."""
    import timm

    width, depth, heads, hidden = make_checkpoint.SIZES[size]
    return timm.create_model(
        "vit_base_patch16_224",
        img_size=image,
        patch_size=make_checkpoint.usual_patch(size),
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        mlp_ratio=hidden / width,
        num_classes=1000,
        **options,
    )


def read_and_transpose(npz: Path) -> dict[str, Tensor]:
    """Read every array of the file in torch's layout, contiguous: the least work that loading takes."""
    found: dict[str, Tensor] = {}
    with np.load(npz) as arrays:
        for name in arrays.files:
            array = arrays[name]
            if array.ndim == 4 and name.endswith("kernel"):  # [p, q, C, D]
                array = array.transpose(3, 2, 0, 1)
            elif name.endswith("out/kernel"):  # [H, d, D]
                array = array.reshape(-1, array.shape[-1]).T
            elif name.endswith("kernel"):  # [D, H, d] or [I, O]
                array = array.reshape(array.shape[0], -1).T
            found[name] = torch.from_numpy(np.ascontiguousarray(array))
    return found


def npz_to_timm(source: Path, destination: Path, size: str) -> None:
    from safetensors.torch import save_file

    model = timm_model(size)
    model.load_pretrained(str(source))
    save_file(model.state_dict(), destination)


def timm_to_transformers(source: Path, destination: Path, size: str) -> None:
    from safetensors.torch import load_file
    from transformers import ViTConfig, ViTForImageClassification

    width, depth, heads, hidden = make_checkpoint.SIZES[size]
    config = ViTConfig(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=hidden,
        layer_norm_eps=1e-6,
        patch_size=make_checkpoint.usual_patch(size),
        num_labels=1000,
    )
    embeddings = {
        "cls_token": "vit.embeddings.cls_token",
        "pos_embed": "vit.embeddings.position_embeddings",
        "patch_embed.proj": "vit.embeddings.patch_embeddings.projection",
        "norm": "vit.layernorm",
        "head": "classifier",
    }
    parts = {
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "attn.proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
    state: dict[str, Tensor] = {}
    for name, tensor in load_file(source).items():
        module, _, kind = name.rpartition(".")
        if not name.startswith("blocks."):
            state[f"{embeddings[module]}.{kind}" if module else embeddings[kind]] = tensor
            continue
        _, index, part = module.split(".", 2)
        block = f"vit.encoder.layer.{index}"
        if part == "attn.qkv":
            for head, piece in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                state[f"{block}.attention.attention.{head}.{kind}"] = piece
        else:
            state[f"{block}.{parts[part]}.{kind}"] = tensor
    ViTForImageClassification.from_pretrained(None, config=config, state_dict=state).save_pretrained(destination)


def transformers_to_npz(source: Path, destination: Path, size: str) -> None:
    from transformers import ViTForImageClassification

    width, depth, heads, _ = make_checkpoint.SIZES[size]
    state: dict[str, Any] = {}
    for name, tensor in ViTForImageClassification.from_pretrained(source).state_dict().items():
        for new, old in _FILE_NAMES:
            name = name.replace(new, old)
        state[name] = tensor.numpy()
    found = {
        "cls": state["vit.embeddings.cls_token"],
        "Transformer/posembed_input/pos_embedding": state["vit.embeddings.position_embeddings"],
        "embedding/kernel": state["vit.embeddings.patch_embeddings.projection.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": state["vit.embeddings.patch_embeddings.projection.bias"],
        "Transformer/encoder_norm/scale": state["vit.layernorm.weight"],
        "Transformer/encoder_norm/bias": state["vit.layernorm.bias"],
        "head/kernel": state["classifier.weight"].T,
        "head/bias": state["classifier.bias"],
    }
    for index in range(depth):
        old, new = f"vit.encoder.layer.{index}", f"Transformer/encoderblock_{index}"
        attention = f"{new}/MultiHeadDotProductAttention_1"
        for part in ("query", "key", "value"):
            linear = f"{old}.attention.attention.{part}"
            found[f"{attention}/{part}/kernel"] = state[f"{linear}.weight"].T.reshape(width, heads, -1)
            found[f"{attention}/{part}/bias"] = state[f"{linear}.bias"].reshape(heads, -1)
        out = f"{old}.attention.output.dense"
        found[f"{attention}/out/kernel"] = state[f"{out}.weight"].T.reshape(heads, -1, width)
        found[f"{attention}/out/bias"] = state[f"{out}.bias"]
        for layer, dense in (("intermediate", "Dense_0"), ("output", "Dense_1")):
            found[f"{new}/MlpBlock_3/{dense}/kernel"] = state[f"{old}.{layer}.dense.weight"].T
            found[f"{new}/MlpBlock_3/{dense}/bias"] = state[f"{old}.{layer}.dense.bias"]
        for layer, norm in (("layernorm_before", "LayerNorm_0"), ("layernorm_after", "LayerNorm_2")):
            found[f"{new}/{norm}/scale"] = state[f"{old}.{layer}.weight"]
            found[f"{new}/{norm}/bias"] = state[f"{old}.{layer}.bias"]
    # numpy.savez would keep transposed arrays in Fortran order; the files that jax writes are in C order.
    arrays: dict[str, Any] = {name: np.ascontiguousarray(array) for name, array in found.items()}
    np.savez(destination, **arrays)
