"""Hugging Face transformers' TensorFlow classes: ViT, DeiT, ViTMAE, Data2VecVision and CLIP's image tower.

A file of Keras has the layer and the model's class before each name, which safetensors and files of several parts have
not. Up to transformers 4. Sources: transformers 4.48, modeling_tf_utils.py and models/*/modeling_tf_*.py.
"""

from __future__ import annotations

import re

from vit_hub.converters.formats import hf_beit, hf_clip, hf_vit
from vit_hub.converters.formats._transformers_spelled import POOLER, TOWER, Framework, spelled
from vit_hub.converters.rules.format import Requirement, Sidecars


def _stored(name: str, container: str, sidecars: Sidecars) -> str:
    """Return the path in a file of Keras 2: layer, model and layer again; the model is that of ``config.json``."""
    if container != "hdf5" or re.fullmatch(r"([^/]+)/[^/]+/\1/.+", name):
        return name
    kind = next(iter(sidecars.get("config.json", {}).get("architectures", [])), "Model")
    words = re.sub(r"(.)([A-Z][a-z0-9]+)", r"\1_\2", f"TF{kind}")
    model = re.sub(r"([a-z])([A-Z])", r"\1_\2", words).lower()
    return f"{name.partition('/')[0]}/{model}/{name}"


_TF = Framework(
    name="hf_tf",
    title="TensorFlow",
    layer="_._{i}",
    norm={"weight": "gamma", "bias": "beta"},
    embedding="embeddings",
    suffix=":0",
    rooted=True,
    activations={"gelu_python": "gelu", "gelu_pytorch_tanh": "gelu_new"},
    options={
        "container": "hdf5",
        "filename": "tf_model.h5",
        "others": {"safetensors": "model.safetensors"},
        "shard": "tf_model-00001-of-00001.h5",
        "metadata": {"format": "tf"},
        "stored": _stored,
    },
)
# Its class fails where it does not pool the patches.
_MEAN = Requirement(
    "pool", lambda c: (c.pool, c.num_classes > 0) == ("avg", True), "it has a classifier of the mean of the patches"
)

FORMATS = (
    spelled(_TF, hf_vit.FORMATS[0], hf_vit.TYPES[:3], requires=(POOLER,)),
    spelled(_TF, hf_beit.FORMATS[1], hf_beit.TYPES[1:], requires=(_MEAN,)),
    spelled(_TF, hf_clip.FORMATS[0], hf_clip.TYPES, TOWER, prefixes=("clip/",)),
)
