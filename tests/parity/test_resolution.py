"""The same numbers at new sizes as timm and transformers resize to themselves, in float64.

They resize some tables in float32, and compute rotations in it: 1e-6 then, rounding of float64 else.
"""

from __future__ import annotations

import copy
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers
from golden_cases import CASES, Case
from hypothesis import given
from hypothesis import strategies as st
from small_models import examples, randomise, relative_error
from torch import Tensor
from transformers.models.siglip2.image_processing_siglip2 import get_image_size_for_max_num_patches

import vit_hub
from vit_hub.errors import ConfigError
from vit_hub.preprocessing.project_files import CONVENTIONS, from_hf

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*default .* is used",
    "ignore:.*have the same tensor names",
    "ignore:torch.searchsorted",
    "ignore:Using a non-tuple sequence",
)

EXACT = 1e-10
SINGLE = 1e-6
# Of 16x16 pixels and 4x4 patches: larger, another aspect, as many patches in another grid, smaller.
SIZES = ((24, 24), (24, 20), (32, 8), (12, 8))
every_size = pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))


def images_of(size: tuple[int, int]) -> Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class TestTimm:
    # timm's loader counts patches and leaves 4x4 alone where 8x2 is wanted; its models, which resize in place, do not.
    # A training state holds two sets of weights, and timm's loader takes the other one.
    @pytest.mark.parametrize("size", [size for size in SIZES if size != (32, 8)], ids=str)
    @pytest.mark.parametrize(
        "case", [c for c in CASES if c.name.startswith("timm") and c.checkpoint.suffix == ".safetensors"], ids=str
    )
    def test_checkpoints_that_timm_resizes_when_it_loads_them(self, case: Case, size: tuple[int, int]) -> None:
        """Its table rules for ViT, BEiT, EVA-02, DINOv3 and PE, at the new size from the start."""
        config = case.meta["config"]
        size = size[0] * config["image_size"][0] // 16, size[1] * config["image_size"][1] // 16
        theirs = timm.create_model(
            config["arch"],
            pretrained=True,
            pretrained_cfg_overlay={"file": str(case.checkpoint), "num_classes": config["num_classes"]},
            **{**config["model_kwargs"], "img_size": size},
        )
        theirs = theirs.double().eval()
        ours = vit_hub.load(case.checkpoint, overrides=case.overrides, image_size=size, dtype="float64")
        with torch.inference_mode():
            images = images_of(size)
            assert relative_error(ours.forward_features(images), theirs.forward_features(images)) <= SINGLE
            assert relative_error(ours(images), theirs(images)) <= SINGLE

    @every_size
    def test_relative_tables_that_timm_resizes_in_place(self, size: tuple[int, int]) -> None:
        theirs = timm.create_model(
            "beit_base_patch16_224", img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=3, num_classes=5
        )
        theirs = theirs.double().eval()
        randomise(theirs)
        ours = vit_hub.from_module(copy.deepcopy(theirs)).set_image_size(size)
        theirs.set_input_size(img_size=size)
        with torch.inference_mode():
            assert relative_error(ours(images_of(size)), theirs(images_of(size))) <= SINGLE

    @every_size
    @pytest.mark.parametrize(
        "name",
        [
            "vit_base_patch16_224",
            "vit_small_patch16_rope_224",
            "vit_small_patch16_rope_ape_224",
            "vit_small_patch16_rope_mixed_224",
            "vit_small_patch16_rope_mixed_ape_224",
            "vit_base_patch16_rope_reg1_gap_256",
            "eva02_tiny_patch14_336",
            "vit_pe_core_small_patch16_384",
            "vit_small_patch16_dinov3",
        ],
    )
    def test_dynamic_models(self, name: str, size: tuple[int, int]) -> None:
        """A size per batch, as with timm's dynamic_img_size."""
        theirs = timm.create_model(
            name, img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=3, num_classes=5, dynamic_img_size=True
        )
        theirs = theirs.double().eval()
        randomise(theirs)
        ours = vit_hub.from_module(theirs)
        ours.dynamic = True
        with torch.inference_mode():
            assert relative_error(ours(images_of(size)), theirs(images_of(size))) <= SINGLE
            assert relative_error(ours(images_of((16, 16))), theirs(images_of((16, 16)))) <= SINGLE

    @pytest.mark.parametrize("patch", [(6, 6), (8, 5), (3, 3)], ids=str)
    def test_patch_sizes(self, patch: tuple[int, int], tmp_path: Path) -> None:
        """Both tables and kernels, as by timm's set_input_size. 4x4 is enlarged, enlarged unevenly, shrunk."""
        theirs = timm.create_model(
            "vit_base_patch16_224", img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=3, num_classes=5
        )
        theirs = theirs.double().eval()
        randomise(theirs)
        file = vit_hub.from_module(copy.deepcopy(theirs)).save(tmp_path / "model.safetensors")
        size = 5 * patch[0], 6 * patch[1]
        ours = vit_hub.load(file, image_size=size, patch_size=patch, dtype="float64")
        theirs.set_input_size(img_size=size, patch_size=patch)
        with torch.inference_mode():
            assert (
                relative_error(ours(images_of(size)), theirs(images_of(size))) <= 10 * SINGLE
            )  # timm inverts a matrix in float32


def _transformers_models() -> dict[str, tuple[Any, Any, float]]:
    """Name -> class, config, limit."""
    hf = transformers
    base: dict[str, Any] = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "patch_size": 4}
    base["num_labels"] = 4
    plain = {**base, "intermediate_size": 40, "image_size": 16}
    gated = {**base, "mlp_ratio": 2, "image_size": 16}
    square = {**base, "intermediate_size": 40, "num_patches": 16}
    relative = {**plain, "use_relative_position_bias": True}
    return {
        "vit": (hf.ViTForImageClassification, hf.ViTConfig(**plain), EXACT),
        "deit": (hf.DeiTForImageClassificationWithTeacher, hf.DeiTConfig(**plain), EXACT),
        "vit_msn": (hf.ViTMSNModel, hf.ViTMSNConfig(**plain), EXACT),
        "vit_mae": (hf.ViTMAEModel, hf.ViTMAEConfig(**plain, mask_ratio=0.0), EXACT),
        "ijepa": (hf.IJepaModel, hf.IJepaConfig(**plain), EXACT),
        "clip": (hf.CLIPVisionModelWithProjection, hf.CLIPVisionConfig(**plain, projection_dim=6), EXACT),
        "siglip": (hf.SiglipVisionModel, hf.SiglipVisionConfig(**plain), EXACT),
        "siglip2": (hf.Siglip2VisionModel, hf.Siglip2VisionConfig(**square), SINGLE),
        "dinov2": (hf.Dinov2Model, hf.Dinov2Config(**gated), SINGLE),
        "dinov2_with_registers": (
            hf.Dinov2WithRegistersModel, hf.Dinov2WithRegistersConfig(**gated, num_register_tokens=2), SINGLE,
        ),
        "dinov3": (hf.DINOv3ViTModel, hf.DINOv3ViTConfig(**plain, num_register_tokens=2), SINGLE),
        "beit": (hf.BeitForImageClassification, hf.BeitConfig(**relative), EXACT),
        "beit shared": (hf.BeitModel, hf.BeitConfig(**plain, use_shared_relative_position_bias=True), EXACT),
        "beit with both tables": (
            hf.BeitForImageClassification, hf.BeitConfig(**relative, use_absolute_position_embeddings=True), EXACT,
        ),
        "data2vec": (hf.Data2VecVisionForImageClassification, hf.Data2VecVisionConfig(**relative), EXACT),
    }  # fmt: skip


MODELS = _transformers_models()


def arguments_of(theirs: Any, images: Tensor) -> dict[str, Any]:
    """Arguments of a transformers model, beside or instead of images, to run at another size."""
    batch, chans, height, width = images.shape
    found: dict[str, Any] = {"pixel_values": images}
    if type(theirs).__name__ == "Siglip2VisionModel":
        grid = images.reshape(batch, chans, height // 4, 4, width // 4, 4).permute(0, 2, 4, 3, 5, 1)
        found = {"pixel_values": grid.reshape(batch, -1, 16 * chans)}
        found["pixel_attention_mask"] = torch.ones(found["pixel_values"].shape[:2])
        found["spatial_shapes"] = torch.tensor([[height // 4, width // 4]] * batch)
    if type(theirs).__name__ == "ViTMAEModel":  # masks nothing, but shuffles
        found["noise"] = torch.arange(height * width // 16).repeat(batch, 1)
    if "interpolate_pos_encoding" in inspect.signature(theirs.forward).parameters:
        found["interpolate_pos_encoding"] = True
    return found


@every_size
@pytest.mark.parametrize("name", MODELS)
def test_transformers(name: str, size: tuple[int, int]) -> None:
    made, config, limit = MODELS[name]
    theirs = made(config).double().eval()
    randomise(theirs)
    ours = vit_hub.from_module(copy.deepcopy(theirs)).set_image_size(size)
    images = images_of(size)
    with torch.inference_mode():
        given = theirs(**arguments_of(theirs, images))
        outputs = {"logits": ours, "image_embeds": ours, "last_hidden_state": ours.forward_features}
        outputs["pooler_output"] = ours.embed
        found = [key for key in outputs if getattr(given, key, None) is not None]
        assert found
        for key in found:
            assert relative_error(outputs[key](images), getattr(given, key)) <= limit, key


class TestNativeAspect:
    """Images of any shape with a bounded number of patches, as NaFlex and SigLIP 2 take them."""

    @examples(300)
    @given(
        size=st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
        patch=st.sampled_from((8, 14, 16, 32)),
        limit=st.integers(1, 1024),
    )
    def test_sizes_are_those_of_the_original_processor(self, size: tuple[int, int], patch: int, limit: int) -> None:
        found = vit_hub.native_size(size, patch, limit)
        assert found == get_image_size_for_max_num_patches(*size, patch, limit)
        rows, columns = found[0] // patch, found[1] // patch
        assert (rows * patch, columns * patch) == found
        assert rows * columns <= limit

    def test_sides_may_differ(self) -> None:
        assert vit_hub.native_size((480, 640), (16, 8), 256) == (160, 200)
        for wrong in ({"size": (0, 4)}, {"patch_size": 0}, {"max_patches": 0}):
            with pytest.raises(ConfigError, match=next(iter(wrong))):
                vit_hub.native_size(**{"size": (4, 4), "patch_size": 2, "max_patches": 4} | wrong)  # type: ignore[arg-type]

    def test_a_picture_through_a_dynamic_model(self) -> None:
        made, config, _ = MODELS["siglip2"]
        theirs = made(config).eval()
        randomise(theirs)
        ours = vit_hub.from_module(theirs)
        ours.dynamic = True
        picture = np.random.default_rng(0).integers(0, 256, (37, 90, 3), dtype=np.uint8)
        processor = transformers.Siglip2ImageProcessor(patch_size=4, max_num_patches=16)
        size = vit_hub.native_size((37, 90), ours.config.patch_size, 16)
        images = from_hf(processor.to_dict()).with_image_size(size)(picture)
        inputs = processor(torch.from_numpy(picture).permute(2, 0, 1), return_tensors="pt")
        wanted = arguments_of(theirs, images)
        assert wanted["spatial_shapes"].tolist() == inputs["spatial_shapes"].tolist()
        with torch.inference_mode():
            # Its tokens are padded to 16 and masked; ours are as many as the picture has.
            found, padded = ours.embed(images), theirs(**inputs).pooler_output
        # Pillow and torchvision round some pixels to neighbouring values.
        assert relative_error(found, padded) <= 0.02
        with torch.inference_mode():
            assert relative_error(found, theirs(**wanted).pooler_output) <= 1e-5
        assert CONVENTIONS["siglip"].mean == from_hf(processor.to_dict()).mean
