"""Write the keys and values that transformers' own save_pretrained writes for a model of each type by default.

converters/formats/_transformers_defaults.json holds them, so that written folders have every key without importing
transformers. Run this after an update of transformers: python tools/transformers_defaults.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent.parent / "converters" / "formats" / "_transformers_defaults.json"
MODEL_TYPES = (
    "aimv2",
    "aimv2_vision_model",
    "altclip_vision_model",
    "beit",
    "blip_2_vision_model",
    "blip_vision_model",
    "chinese_clip_vision_model",
    "clip",
    "clip_vision_model",
    "clipseg_vision_model",
    "cohere_compass_vision",
    "data2vec-vision",
    "deit",
    "dinov2",
    "dinov2_with_registers",
    "dinov3_vit",
    "dpt",
    "exaone4_5_vision",
    "flava_image_model",
    "git_vision_model",
    "got_ocr2_vision",
    "granite_docling_vision",
    "idefics2_vision",
    "idefics3_vision",
    "ijepa",
    "instructblip_vision_model",
    "instructblipvideo_vision_model",
    "internvl_vision",
    "janus_vision_model",
    "kimi_k25_vision",
    "kosmos_2_vision_model",
    "metaclip_2_vision_model",
    "minicpmv4_6_vision",
    "mlcd_vision_model",
    "ovis2_vision",
    "owlv2_vision_model",
    "owlvit_vision_model",
    "pixtral",
    "qianfan_ocr_vision",
    "qwen2_5_omni_vision_encoder",
    "qwen2_5_vl_vision",
    "qwen2_vl_vision",
    "qwen3_5_moe_vision",
    "qwen3_5_vision",
    "qwen3_omni_moe_vision_encoder",
    "qwen3_vl_moe_vision",
    "qwen3_vl_vision",
    "qwen4_exp_vision",
    "radio",
    "sam_hq_vision_model",
    "sam_vision_model",
    "sapiens2",
    "siglip",
    "siglip2",
    "siglip2_vision_model",
    "siglip_vision_model",
    "slanext_vision",
    "smolvlm_vision",
    "tipsv2_vision_model",
    "videomae",
    "vit",
    "vit_mae",
    "vit_msn",
    "vitdet",
    "vjepa2",
)
# About the library that wrote a file, not about the model.
_IGNORED = ("transformers_version", "dtype", "torch_dtype", "_name_or_path")


def defaults() -> dict[str, Any]:
    """Return the version of transformers, and model type -> key -> value."""
    import transformers

    transformers.logging.set_verbosity_error()
    found = {}
    for name in MODEL_TYPES:
        keys = transformers.AutoConfig.for_model(name).to_diff_dict()
        found[name] = {key: value for key, value in keys.items() if key not in _IGNORED}
    return {"transformers": transformers.__version__, "model_types": found}


def text() -> str:
    """Return the contents of the file."""
    return json.dumps(defaults(), indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
