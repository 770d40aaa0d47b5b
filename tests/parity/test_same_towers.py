"""Towers of other models of transformers with the tensors of known ones: the same numbers, or refused by name."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_models import random_images, randomise, relative_error
from torch import Tensor

import vit_hub
from vit_hub.errors import ConfigError

SMALL: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "image_size": 32,
    "patch_size": 8, "mlp_dim": 64, "depth": 2, "num_heads": 2, "out_hidden_size": 16, "num_position_embeddings": 16,
    "global_attn_indexes": [1], "fullatt_block_indexes": [1], "output_channels": 8, "embed_dim": 32,
    "deepstack_visual_indexes": [], "hidden_dropout_prob": 0.0, "temporal_patch_size": 2, "spatial_merge_size": 2,
    "downsample_channels": [8, 4],
}  # fmt: skip


def tower(module: str, name: str, **fields: Any) -> Any:
    found = importlib.import_module(f"transformers.models.{module}.modeling_{module}")
    cls = getattr(found, name)
    known = cls.config_class()
    config = cls.config_class(**{key: value for key, value in {**SMALL, **fields}.items() if hasattr(known, key)})
    theirs = cls(config).eval()
    randomise(theirs)
    return theirs


def maps(theirs: Any, images: Tensor) -> Tensor:
    return theirs(images).last_hidden_state  # type: ignore[no-any-return]


def neck(theirs: Any, images: Tensor) -> Tensor:
    """The map before further convolutions."""
    kept: list[Tensor] = []
    hook = theirs.neck.register_forward_hook(lambda module, given, found: kept.append(found))
    theirs(images)
    hook.remove()
    return kept[0]


def merged(theirs: Any, images: Tensor) -> Tensor:
    config, t = theirs.config, 2
    p, m = config.patch_size, config.spatial_merge_size
    videos = images.unsqueeze(1).expand(-1, t, -1, -1, -1)
    batch, _, chans, height, width = videos.shape
    grid = (1, height // p, width // p)
    boxes = videos.reshape(batch, 1, t, chans, grid[1] // m, m, p, grid[2] // m, m, p)
    flat = boxes.permute(0, 1, 4, 7, 5, 8, 3, 2, 6, 9).reshape(-1, chans * t * p * p)
    found = theirs(flat, torch.tensor([grid] * batch)).pooler_output
    return found.reshape(batch, -1, found.shape[-1])  # type: ignore[no-any-return]


def tokens(theirs: Any, images: Tensor) -> Tensor:
    return theirs(pixel_values=images).last_hidden_state  # type: ignore[no-any-return]


def words(theirs: Any, images: Tensor) -> Tensor:
    """The tokens before the layer of visual words."""
    return theirs.transformer(images)[0]  # type: ignore[no-any-return]


TOWERS = {
    "JanusVisionModel": ("janus", tokens),
    "QianfanOCRVisionModel": ("qianfan_ocr", tokens),
    "Ovis2VisionModel": ("ovis2", words),
    "FlavaImageModel": ("flava", tokens),
    "DPTModel": ("dpt", tokens),
    "GotOcr2VisionEncoder": ("got_ocr2", maps),
    "SLANeXtVisionEncoder": ("slanext", maps),
    "SamHQVisionModel": ("sam_hq", maps),
    "DeepseekOcr2SamVisionEncoder": ("deepseek_ocr2", neck),
    "Qwen3_5VisionModel": ("qwen3_5", merged),
    "Qwen3_5MoeVisionModel": ("qwen3_5_moe", merged),
    "Qwen4ExpVisionModel": ("qwen4_exp", merged),
    "CohereCompassVisionModel": ("cohere_compass", merged),
    "Qwen3OmniMoeVisionEncoder": ("qwen3_omni_moe", merged),
    "Qwen2_5OmniVisionEncoder": ("qwen2_5_omni", merged),
    "Exaone4_5_VisionModel": ("exaone4_5", merged),
}


@pytest.mark.parametrize("name", TOWERS)
def test_the_same_numbers_and_bytes(name: str, tmp_path: Path) -> None:
    module, run = TOWERS[name]
    fields: dict[str, Any] = {"window_size": 32} if module in ("qwen2_5_omni", "exaone4_5") else {"window_size": 3}
    theirs = tower(module, name, num_key_value_heads=1, **fields)
    theirs.save_pretrained(tmp_path / "hf")
    ckpt = vit_hub.open_checkpoint(tmp_path / "hf")
    assert not [text for text in ckpt.warnings if "not known here" in text or "guess" in text]
    ours = vit_hub.load(ckpt, dtype="float64")
    images = random_images(ours.config, torch.float64)
    with torch.inference_mode():
        wanted = run(theirs.double(), images)
        found = ours.forward_features(images) if run in (tokens, words) else ours(images)
    assert relative_error(found, wanted) <= 1e-6  # some compute rotations and relative positions in float32
    vit_hub.convert(tmp_path / "hf", tmp_path / "middle.safetensors", keep_rest=True)
    vit_hub.convert(tmp_path / "middle.safetensors", tmp_path / "back", to=ckpt.format, keep_rest=True)
    before, after = (load_file(tmp_path / folder / "model.safetensors") for folder in ("hf", "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    again = type(theirs).from_pretrained(tmp_path / "back").double().eval()
    with torch.inference_mode():
        assert relative_error(run(again, images), wanted) <= 1e-6


def test_convolutions_after_segment_anythings_neck_are_listed(tmp_path: Path) -> None:
    theirs = tower("unlimited_ocr", "UnlimitedOcrSamVisionEncoder", window_size=3)
    theirs.save_pretrained(tmp_path / "hf")  # under Segment Anything's own names
    ckpt = vit_hub.open_checkpoint(tmp_path / "hf", overrides={"num_heads": 2})
    assert ckpt.dropped.keys() == {"net_2.weight", "net_3.weight"}
    images = random_images(ckpt.config)
    torch.testing.assert_close(vit_hub.load(ckpt)(images), neck(theirs, images), atol=2e-5, rtol=1e-5)


REFUSED = {
    "PaddleOCRVisionModel": "paddleocr_vl",
    "Phi4MultimodalVisionModel": "phi4_multimodal",
    "VideoLlama3VisionModel": "video_llama_3",
    "RfDetrDinov2Backbone": "rf_detr",
    "PixioModel": "pixio",
    "Sam3ViTModel": "sam3",
    "TimesformerModel": "timesformer",
    "VivitModel": "vivit",
    "XCLIPVisionModel": "x_clip",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_computes_otherwise_is_refused(name: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = tower(REFUSED[name], name)
    theirs.save_pretrained(tmp_path / "hf")
    with pytest.raises(ConfigError, match=r"model type '\w+' is not supported"):
        vit_hub.open_checkpoint(tmp_path / "hf")
