"""Hugging Face transformers' Flax classes: ViT, BEiT, Dinov2 and CLIP's image tower; up to transformers 4.

Files of safetensors, which it writes on demand, have dots where msgpack has nested dicts.
Sources: transformers 4.48, models/*/modeling_flax_*.py; flax/serialization.py.
"""

from __future__ import annotations

from vit_hub.converters.formats import _transformers as hf
from vit_hub.converters.formats import hf_beit, hf_clip, hf_dinov2, hf_vit
from vit_hub.converters.formats._transformers_spelled import POOLER, TOWER, Framework, spelled
from vit_hub.converters.rules.format import Dialect, Requirement
from vit_hub.model.config import ViTConfig

_FLAX = Framework(
    name="hf_flax",
    title="Flax",
    layer="/{i}",
    norm={"weight": "scale", "bias": "bias"},
    embedding="embedding",
    suffix="",
    rooted=False,
    activations={"gelu_python": "gelu", "gelu_fast": "gelu_new"},
    options={
        "container": "msgpack",
        "filename": "flax_model.msgpack",
        "others": {"safetensors": "model.safetensors"},
        "metadata": {"format": "flax"},
    },
)


def _mask_token(config: ViTConfig, dialect: Dialect) -> dict[str, tuple[int, ...]]:
    return {f"{dialect.variables['root']}embeddings/mask_token": (1, config.embed_dim)}


_NORMED = Requirement("final_norm", lambda c: c.final_norm != "none", "it has a final norm")

FORMATS = (
    spelled(_FLAX, hf_vit.FORMATS[0], hf_vit.TYPES[:1], {"distilled": False}, (hf.SQUARE, POOLER)),
    spelled(_FLAX, hf_beit.FORMATS[0], hf_beit.TYPES[:1], requires=(_NORMED,)),
    # Its class cannot be built with a gated feed-forward layer.
    spelled(_FLAX, hf_dinov2.FORMATS[0], hf_dinov2.TYPES[:1], {"ffn": "mlp"}, (hf.SQUARE,), zeros=_mask_token),
    spelled(_FLAX, hf_clip.FORMATS[0], hf_clip.TYPES, TOWER),
)
