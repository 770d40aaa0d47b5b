"""Models of transformers with a Vision Transformer inside, made small as their classes are: read as they are saved.

What the encoder gives is compared with what any module of the model gives; models of other kinds are refused by name.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from small_models import randomise, relative_error
from transformers.models.auto import modeling_auto as auto

import vit_hub
from vit_hub.errors import VitHubError

pytestmark = pytest.mark.filterwarnings("ignore")
CLOSE = 1e-5

_SMALL = {
    2: ("num_hidden_layers", "num_layers", "depth", "num_attention_heads", "num_heads", "num_key_value_heads",
        "encoder_layers", "decoder_layers", "encoder_attention_heads", "decoder_attention_heads", "n_heads",
        "resampler_depth", "perceiver_depth", "num_local_experts", "attention_heads"),
    8: ("patch_size",),
    16: ("head_dim",),
    32: ("hidden_size", "embed_dim", "d_model", "projection_dim", "image_size", "embedding_size"),
    48: ("intermediate_size", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "mlp_dim"),
    100: ("vocab_size",),
}  # fmt: skip
_BY_KEY = {key: value for value, keys in _SMALL.items() for key in keys}
# Keys that follow from others, or that name layers which a small model has not.
_DERIVED = ("rope_scaling", "layer_types", "out_features", "out_indices", "stage_names", "architectures", "dtype")
_LLM = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 64}
_MAPPINGS = (
    auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    auto.MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES,
    auto.MODEL_MAPPING_NAMES,
    auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES,
)

_DINOV2 = {
    "model_type": "dinov2",
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
_PERCEPTION = {
    "model_type": "timm_wrapper",
    "architecture": "vit_pe_core_tiny_patch16_384",
    "model_args": {
        "embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": [64, 64], "global_pool": "", "init_values": 0.1,
        "use_post_transformer_norm": False, "ref_feat_shape": [4, 4],
    },
}  # fmt: skip
_PARTS = {"neck_hidden_sizes": [8] * 4, "fusion_hidden_size": 8}
# Model type -> what else its config has.
READ: dict[str, dict[str, Any]] = {
    **{
        name: {}
        for name in (
            "aimv2", "altclip", "aria", "aya_vision", "beit", "blip", "blip-2", "chinese_clip", "clip", "clipseg",
            "cohere2_vision", "data2vec-vision", "deepseek_vl", "deit", "depth_anything", "dinov2", "dinov3_vit",
            "gemma3", "git", "got_ocr2", "idefics", "idefics3", "ijepa",
            "instructblip", "internvl", "kosmos-2", "llava", "llava_onevision", "metaclip_2", "mistral3",
            "mlcd", "owlv2", "owlvit", "paligemma", "prompt_depth_anything", "radio", "sam", "shieldgemma2", "siglip",
            "smolvlm", "tipsv2", "video_llava", "vision-text-dual-encoder", "vit", "vit_msn", "yolos",
            "zoedepth",
        )
    },
    "dpt": {**_PARTS, "backbone_out_indices": [0, 0, 1, 1]},
    "dpt of dinov2": {**_PARTS, "backbone_config": {**_DINOV2, "reshape_hidden_states": False}},
    "flava": {"image_codebook_config": {"hidden_size": 8, "num_groups": 2, "num_blocks_per_group": 1}},
    "granite_docling": {"vision_config": {"out_hidden_size": 32}},
    "janus": {"text_config": _LLM, "vq_config": {"base_channels": 32, "channel_multiplier": [1, 1], "num_patches": 4}},
    "ovis2": {"vision_config": {"hidden_stride": 1, "num_visual_indicator_tokens": 3}},
    "perception_lm": {"vision_config": _PERCEPTION, "text_config": _LLM},
    "upernet": {"backbone_config": _DINOV2, "hidden_size": 16, "auxiliary_in_channels": 32},
}  # fmt: skip
# What another kind of model computes.
REFUSED = (
    "glm4v", "groupvit", "hiera", "mllama", "sam2", "sam3", "segformer", "swin", "timesformer", "vilt",
    "xclip",
)  # fmt: skip


def _small(values: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for key, value in values.items():
        if key in _DERIVED:
            continue
        if isinstance(value, dict) and not str(key).startswith("rope"):
            value = _small(value)
        elif key in _BY_KEY and isinstance(value, int) and not isinstance(value, bool):
            value = min(value, _BY_KEY[key])
        elif str(key).endswith("_token_id") and isinstance(value, int):
            value = min(value, 99)
        found[key] = value
    return found


def _merged(values: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    known = {key: value for key, value in values.items() if key in more and isinstance(value, dict)}
    same = {
        key: value.get("model_type") == more[key].get("model_type", value.get("model_type"))
        for key, value in known.items()
    }
    return {**values, **{key: {**known[key], **value} if same.get(key) else value for key, value in more.items()}}


def build(name: str, more: dict[str, Any]) -> Any:
    """A random model of the first class of a model type that can be made so small."""
    kind = name.split(" ")[0]
    cls = transformers.models.auto.configuration_auto.CONFIG_MAPPING[kind]
    config = cls.from_dict(_merged(_small(cls().to_dict()), more))
    classes = (names.get(kind) for names in _MAPPINGS)
    flat = [one for found in classes if found for one in ((found,) if isinstance(found, str) else found)]
    model = getattr(transformers, flat[0])(copy.deepcopy(config))
    randomise(model)
    return model.eval()


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif hasattr(value, "values"):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def outputs(model: Any, images: torch.Tensor) -> list[torch.Tensor]:
    """Everything that modules give while those that take images run."""
    found: list[torch.Tensor] = []
    for module in model.modules():
        module.register_forward_hook(lambda _, inputs, output: found.extend(_tensors(output)))
    for module in model.modules():
        if "pixel_values" in inspect.signature(module.forward).parameters:
            try:
                module(images)
            except Exception:  # it needs a text, too
                continue
    return found


def nearest(value: torch.Tensor, found: list[torch.Tensor]) -> float:
    same = [one.reshape(value.shape) for one in found if one.numel() == value.numel() and one.is_floating_point()]
    return min((relative_error(value, one) for one in same), default=float("inf"))


@pytest.mark.parametrize("name", READ)
def test_the_encoder_is_read_as_it_is(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = build(name, READ[name])
    source = tmp_path / "source"
    theirs.save_pretrained(source)
    ckpt = vit_hub.open_checkpoint(source)
    assert not any("not known here" in text for text in ckpt.warnings)
    ours = vit_hub.load(ckpt)
    size = (32, 32) if ours.dynamic else ours.config.image_size
    images = torch.randn(2, ours.config.in_chans, *size, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        found = outputs(theirs, images)
        given = [ours(images)] if ours.config.neck else [ours.forward_features(images)]
        if "attn_pool.latent" in ckpt.tensors:
            given.append(ours.embed(images))
        elif "pre_logits.fc.weight" in ckpt.tensors or "head.weight" in ckpt.tensors:
            given.append(ours(images))
        assert max(nearest(value, found) for value in given) <= CLOSE
    # A folder is for the class of the encoder alone, whose names lack what stands before them here.
    back = vit_hub.convert(source, tmp_path / "back", to=ckpt.format).path
    before, after = (
        {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()} for folder in (source, back)
    )
    prefix = "" if next(iter(after)).startswith(ckpt.passport.prefix) else ckpt.passport.prefix
    names = {name for parts in ckpt.origin.values() for name in parts}
    assert all(torch.equal(after[name.removeprefix(prefix)], before[name]) for name in names)


@pytest.mark.parametrize("name", REFUSED)
def test_other_kinds_of_models_are_refused_by_name(name: str, tmp_path: Path) -> None:
    build(name, {}).save_pretrained(tmp_path)
    with pytest.raises(VitHubError, match=f"config.json.* the model type '?{name}"):
        vit_hub.open_checkpoint(tmp_path)
