"""Models at other image and patch sizes: the numbers of the original code, and one result whichever way one asks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_cases import CASES, OUTPUTS, RESIZED, Case
from grids import resize_grid
from hypothesis import given
from hypothesis import strategies as st
from small_models import configs, examples, random_images, random_model
from torch import Tensor

import vit_hub
from vit_hub.converters.passport import Passport
from vit_hub.converters.resize import TableDifference, table_differences
from vit_hub.errors import ConfigError, UnsupportedByFormatError
from vit_hub.model.config import RESIZE_METHODS, Rope, ViTConfig
from vit_hub.model.resample import axis_matrix, kernel_matrix
from vit_hub.model.resize import resize_tensor, resized_config

pytestmark = pytest.mark.filterwarnings("ignore:.*default .* is used", "ignore:.*have the same tensor names")

SMALL: dict[str, Any] = {
    "image_size": (12, 8), "patch_size": (4, 2), "embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_dim": 24,
    "num_classes": 5,
}  # fmt: skip
NO_PREFIX: dict[str, Any] = {"class_token": False, "pos_embed_prefix": False, "pool": "avg"}
NO_TABLE: dict[str, Any] = {"pos_embed": "none", "pos_embed_prefix": False}
# Every kind of position information.
VARIETIES: dict[str, dict[str, Any]] = {
    "class row": {},
    "registers": {"num_registers": 3, "pos_embed_registers": True, "resize": "bicubic-offset"},
    "distilled": {"distilled": True, "pool": "cls_dist", "resize": "bilinear-align-corners"},
    "patches only": {**NO_PREFIX, "resize": "bilinear"},
    "sincos": {**NO_PREFIX, "pos_embed": "sincos2d"},
    "relative": {**NO_TABLE, "rel_pos": "block", "resize": "relpos-geometric"},
    "shared relative": {"rel_pos": "shared", "resize": "relpos-bilinear"},
    "rotary": {"rope": Rope(reference_grid=(3, 4))},
    "stored periods": {**NO_TABLE, "rope": Rope(coordinates="centered", pairs="half", stored_periods=True)},
    "mixed rotary": {**NO_TABLE, "rope": Rope(mixed=True)},
    "nothing": NO_TABLE,
    "hybrid": {"stem": "resnet", "stem_stages": (1, 1), "stem_width": 32, "image_size": (48, 32), "patch_size": (2, 1)},
    "convolutions": {"stem": "conv", "stem_convs": ((8, 3, 2), (8, 3, 1)), "patch_size": (2, 1)},
}
CONFIGS = [ViTConfig(**SMALL | fields) for fields in VARIETIES.values()]
every_variety = pytest.mark.parametrize("config", CONFIGS, ids=VARIETIES)


def another_size(config: ViTConfig, rows: int = 2, columns: int = 1) -> tuple[int, int]:
    """An image with so many more rows and columns of patches."""
    (p, q), (height, width) = config.pixels_per_patch, config.grid_size
    return (height + rows) * p, (width + columns) * q


def images_of(config: ViTConfig, size: tuple[int, int]) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(2, config.in_chans, *size, generator=generator)


def assert_equal(first: vit_hub.VisionTransformer, second: vit_hub.VisionTransformer) -> None:
    a, b = first.state_dict(), second.state_dict()
    assert a.keys() == b.keys()
    assert all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)
    assert first.config == second.config


class TestRecorded:
    """Outputs that the projects' own code gave at another size than the checkpoint's."""

    @staticmethod
    def load(case: Case) -> vit_hub.VisionTransformer:
        resize, arguments = case.meta["resize"], dict[str, Any]()
        if "to_patch" in resize:
            arguments["patch_size"] = tuple(resize["to_patch"])
        if "at run time" in resize.get("method", ""):
            # FlexiViT resizes tables in another way when it trains than when it loads a checkpoint.
            arguments["resize"] = "bilinear-antialias"
        options = {name: value for name, value in case.overrides.items() if name != "image_size"}
        return vit_hub.load(case.checkpoint, image_size=tuple(case.images().shape[-2:]), overrides=options, **arguments)

    def test_there_are_cases_of_every_project_that_resizes(self) -> None:
        projects = {"vitjax", "bv", "timm", "hf", "fb", "openclip", "torchvision"}
        assert {case.name.split("_")[0] for case in RESIZED} == projects
        assert len(RESIZED) == 13

    @pytest.mark.parametrize("case", RESIZED, ids=lambda case: case.name)
    def test_outputs_are_those_of_the_original_code(self, case: Case) -> None:
        model, wanted = self.load(case), case.outputs()
        with torch.inference_mode():
            found = {name: OUTPUTS[name](model, case.images()) for name in wanted if name in OUTPUTS}
        assert found
        for name, value in found.items():
            assert value.shape == wanted[name].shape
            assert float((value - wanted[name]).abs().max()) <= 2e-5, name

    @pytest.mark.parametrize("case", RESIZED, ids=lambda case: case.name)
    def test_tensors_are_those_of_the_original_code(self, case: Case) -> None:
        model, wanted = self.load(case), case.outputs()
        kernel = model.patch_embed.proj.weight.detach()
        found = {
            "pos_embed_resized": model.pos_embed,
            "patch_kernel_resized_oihw": kernel,
            "patch_kernel_resized_hwio": kernel.permute(2, 3, 1, 0),
        }
        assert {name for name in wanted if "resized" in name} <= set(found)
        for name in found.keys() & wanted.keys():
            table, reference = found[name], wanted[name]
            assert table is not None
            error = (table.detach().reshape(reference.shape) - reference).abs().max()
            assert float(error) <= 1e-6 * max(1.0, float(reference.abs().max())), name


class TestAgreement:
    """Loading at a size, setting it later, and being dynamic are the same."""

    @every_variety
    def test_three_ways_to_a_size(self, config: ViTConfig, tmp_path: Path) -> None:
        file = random_model(config).save(tmp_path / "model.safetensors")
        for size in (another_size(config), another_size(config, -1, 2)):
            loaded = vit_hub.load(file, image_size=size)
            changed = vit_hub.load(file).set_image_size(size)
            dynamic = vit_hub.load(file, dynamic=True)
            assert_equal(loaded, changed)
            assert loaded.config.image_size == loaded.input_size == changed.input_size == size
            images = images_of(config, size)
            with torch.inference_mode():
                wanted = loaded(images)
                for model in (changed, dynamic):
                    assert torch.equal(model(images), wanted)
                    assert torch.equal(model.forward_features(images), loaded.forward_features(images))
                    maps = model.forward_intermediates(images, [0])[0]
                    assert torch.equal(maps, loaded.forward_intermediates(images, [0])[0])
                    assert maps.shape[-2:] == loaded.config.grid_size
                    for ours, theirs in zip(model.attention_maps(images), loaded.attention_maps(images), strict=True):
                        assert torch.equal(ours, theirs)

    @every_variety
    def test_the_same_size_changes_nothing(self, config: ViTConfig) -> None:
        model = random_model(config)
        before = {name: (value.data_ptr(), value.clone()) for name, value in model.named_parameters()}
        model.set_image_size(config.image_size, resize="bicubic-offset")
        assert model.config == config
        for name, value in model.named_parameters():
            assert (value.data_ptr(), True) == (before[name][0], torch.equal(value, before[name][1])), name

    @every_variety
    def test_a_saved_model_has_its_new_size(self, config: ViTConfig, tmp_path: Path) -> None:
        model = random_model(config).set_image_size(another_size(config))
        again = vit_hub.load(model.save(tmp_path / "model.safetensors"))
        assert_equal(again, model)
        assert again.input_size == model.input_size

    @pytest.mark.parametrize("resize", RESIZE_METHODS)
    def test_a_method_by_name(self, resize: str, tmp_path: Path) -> None:
        config = ViTConfig(**SMALL)
        model = random_model(config)
        file, size = model.save(tmp_path / "model.safetensors"), another_size(config)
        method = {"relpos-geometric": "bicubic-antialias", "relpos-bilinear": "bicubic"}.get(resize, resize)
        assert model.pos_embed is not None
        wanted = resize_grid(model.pos_embed[0, 1:].detach().numpy(), (3, 4), (5, 5), method)
        loaded = vit_hub.load(file, image_size=size, resize=resize)
        assert loaded.pos_embed is not None
        assert np.array_equal(loaded.pos_embed[0, 1:].detach().numpy(), wanted.astype(np.float32))
        dynamic = vit_hub.load(file, dynamic=True, resize=resize)
        with torch.inference_mode():
            assert torch.equal(dynamic(images_of(config, size)), loaded(images_of(config, size)))
        assert_equal(vit_hub.load(file).set_image_size(size, resize=resize), loaded)

    @examples(60)
    @given(config=configs(pos_embed="learned", class_token=True, pos_embed_prefix=True), data=st.data())
    def test_prefix_rows_are_carried_over(self, config: ViTConfig, data: st.DataObject) -> None:
        model = random_model(config)
        assert model.pos_embed is not None
        rows, before = config.num_prefix_rows, model.pos_embed.detach().clone()
        grid = data.draw(st.tuples(st.integers(1, 6), st.integers(1, 6)))
        size = (grid[0] * config.pixels_per_patch[0], grid[1] * config.pixels_per_patch[1])
        model.set_image_size(size, resize=data.draw(st.sampled_from(RESIZE_METHODS)))
        assert model.pos_embed.shape == (1, rows + grid[0] * grid[1], config.embed_dim)
        assert torch.equal(model.pos_embed[:, :rows], before[:, :rows])
        assert torch.isfinite(model(random_images(model.config))).all()

    def test_class_rows_of_relative_tables_are_carried_over(self) -> None:
        config = ViTConfig(**SMALL | VARIETIES["relative"])
        model = random_model(config)
        before = [block.attn.relative_position_bias_table[-3:].clone() for block in model.blocks]
        model.set_image_size(another_size(config))
        for block, rows in zip(model.blocks, before, strict=True):
            assert torch.equal(block.attn.relative_position_bias_table[-3:], rows)

    def test_bfloat16_is_rounded_once(self, tmp_path: Path) -> None:
        config = ViTConfig(**SMALL)
        model = random_model(config).to(torch.bfloat16)
        file, size = model.save(tmp_path / "model.safetensors"), another_size(config)
        assert model.pos_embed is not None
        exact = resize_grid(model.pos_embed[0, 1:].double().detach().numpy(), (3, 4), (5, 5), config.resize)
        loaded = vit_hub.load(file, image_size=size, dtype="auto")
        assert loaded.pos_embed is not None
        assert loaded.pos_embed.dtype == torch.bfloat16
        assert torch.equal(loaded.pos_embed[0, 1:], torch.from_numpy(exact).to(torch.bfloat16))
        assert_equal(vit_hub.load(file, dtype="auto").set_image_size(size), loaded)
        dynamic = vit_hub.load(file, dtype="auto", dynamic=True)
        images = images_of(config, size).to(torch.bfloat16)
        with torch.inference_mode():
            assert torch.equal(dynamic(images), loaded(images))


class TestSources:
    """Resizing by a checkpoint's own project, beyond the seven methods for tables."""

    @pytest.mark.parametrize(("resize", "changes"), [("source", False), ("bilinear-align-corners", True)])
    def test_some_projects_count_patches(self, resize: str, changes: bool) -> None:
        """4x4 to 2x8 is left alone by vit_jax, big_vision and open_clip; a method asked for by name resizes."""
        config = ViTConfig(
            **SMALL | {"image_size": 16, "patch_size": 4}, resize="bilinear-align-corners", resize_by_count=True
        )
        model = random_model(config)
        assert model.pos_embed is not None
        before = model.pos_embed.detach().clone()
        model.set_image_size((8, 32), resize=resize)
        assert torch.equal(model.pos_embed, before) is not changes
        grids = random_model(config.replace(resize_by_count=False)).set_image_size((8, 32))
        assert grids.pos_embed is not None
        assert not torch.equal(grids.pos_embed, before)

    def test_which_projects_those_are(self) -> None:
        counting = {case.name.split("_")[0] for case in CASES if opened(case).config.resize_by_count}
        assert counting == {"vitjax", "bv", "openclip"}

    @pytest.mark.parametrize(
        "case", [c for c in CASES if c.name.startswith(("vitjax_hybrid", "bv_tok_sincos2d"))], ids=str
    )
    def test_hybrids_and_computed_tables(self, case: Case) -> None:
        config = opened(case).config
        size = another_size(config)
        model = vit_hub.load(case.checkpoint, overrides=case.overrides, image_size=size)
        assert model.config.grid_size == (config.grid_size[0] + 2, config.grid_size[1] + 1)
        if config.pos_embed == "sincos2d":
            wanted = torch.from_numpy(
                vit_hub.model.positions.sincos2d(model.config.grid_size, config.embed_dim)
            ).float()
            assert torch.equal(model.pos_table[0], wanted)
        with torch.inference_mode():
            assert torch.isfinite(model(images_of(config, size))).all()

    def test_a_size_that_leaves_pixels_over_can_be_kept(self) -> None:
        """SigLIP's so400m has patches of 14 pixels at 384: 27x27 of them, and six pixels that nobody reads."""
        config = ViTConfig(**SMALL | {"image_size": (13, 9)})
        assert resized_config(config, (13, 9)) == config
        assert resized_config(config, patch_size=(4, 2)) == config
        model = random_model(config).set_image_size((13, 9))
        assert model(images_of(config, (13, 9))).shape == (2, 5)


def opened(case: Case) -> Any:
    return vit_hub.open_checkpoint(case.checkpoint, overrides=case.overrides)


class TestPatchSize:
    @pytest.mark.parametrize("resize", ["bilinear-align-corners", "bicubic-antialias"])
    def test_a_new_patch_size_keeps_the_grid(self, resize: str, tmp_path: Path) -> None:
        """The kernel follows the source's own image resize, whatever is asked for tables."""
        config = ViTConfig(**SMALL, resize=resize)
        model = random_model(config)
        file = model.save(tmp_path / "model.safetensors")
        larger = vit_hub.load(file, patch_size=(6, 3), resize="bicubic")
        assert larger.config.patch_size == (6, 3)
        assert larger.config.image_size == (18, 12)
        assert larger.config.grid_size == config.grid_size
        assert torch.equal(larger.pos_embed, model.pos_embed)  # type: ignore[arg-type]
        method = "bilinear" if resize.startswith("bilinear") else resize
        by, bx = (torch.from_numpy(kernel_matrix(method, *side)) for side in ((4, 6), (2, 3)))
        wanted = torch.einsum("yh,xw,dchw->dcyx", by, bx, model.patch_embed.proj.weight.double()).float()
        assert torch.equal(larger.patch_embed.proj.weight, wanted)

    def test_enlarged_images_give_the_same_tokens(self, tmp_path: Path) -> None:
        """FlexiViT's property, on a whole model: patches resized by B under the resized kernel are the same tokens."""
        config = ViTConfig(**SMALL)
        model = random_model(config, dtype=torch.float64)
        file = model.save(tmp_path / "model.safetensors")
        larger = vit_hub.load(file, patch_size=(7, 5), dtype="float64")
        images = random_images(config, torch.float64)
        grown = torch.empty(2, 3, 3 * 7, 4 * 5, dtype=torch.float64)
        for row in range(3):
            for column in range(4):
                patch = images[:, :, 4 * row : 4 * row + 4, 2 * column : 2 * column + 2]
                flat = patch.permute(2, 3, 0, 1).reshape(8, -1).numpy()
                resized = resize_grid(flat, (4, 2), (7, 5), "bicubic-antialias").reshape(7, 5, 2, 3)
                target = grown[:, :, 7 * row : 7 * row + 7, 5 * column : 5 * column + 5]
                target.copy_(torch.from_numpy(resized).permute(2, 3, 0, 1))
        assert torch.allclose(larger(grown), model(images), rtol=1e-9, atol=1e-9)

    def test_both_sizes(self, tmp_path: Path) -> None:
        file = random_model(ViTConfig(**SMALL)).save(tmp_path / "model.safetensors")
        model = vit_hub.load(file, image_size=(18, 24), patch_size=6)
        assert model.config.grid_size == (3, 4)
        assert vit_hub.load(file, patch_size=40).config.image_size == (120, 160)


class TestDynamic:
    def test_the_cache_is_bounded(self) -> None:
        model = random_model(ViTConfig(**SMALL))
        model.dynamic = True
        with torch.inference_mode():
            for _ in range(2):
                for rows in range(1, 21):
                    size = (4 * rows, 2 * rows)
                    assert model(images_of(model.config, size)).shape == (2, 5)
                    assert len(model._resized) <= 8
        assert len(model._resized) == 8

    def test_a_size_seen_before_is_not_resized_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = random_model(ViTConfig(**SMALL))
        model.dynamic = True
        images = images_of(model.config, (20, 10))
        with torch.inference_mode():
            wanted = model(images)
            monkeypatch.setattr("vit_hub.model.vit.resize_table", None)
            assert torch.equal(model(images), wanted)

    def test_changed_weights_are_seen(self) -> None:
        model = random_model(ViTConfig(**SMALL))
        model.dynamic = True
        images = images_of(model.config, (20, 10))
        with torch.inference_mode():
            before = model(images)
        assert model.pos_embed is not None
        with torch.no_grad():
            model.pos_embed.mul_(2)
        after = model(images)
        assert not torch.equal(before, after)
        assert torch.equal(after, model.set_image_size((20, 10))(images))
        assert model(images.double()[..., :5].repeat(1, 1, 1, 2).float()).shape == (2, 5)

    def test_gradients_reach_the_stored_tables_whatever_was_cached(self) -> None:
        config = ViTConfig(**SMALL | {"rel_pos": "block", "resize": "relpos-bilinear"})
        model = random_model(config)
        model.dynamic = True
        images = images_of(config, (20, 10))
        with torch.inference_mode():
            model(images)
        model(images).sum().backward()
        for name in ("pos_embed", "blocks.1.attn.relative_position_bias_table"):
            gradient = model.get_parameter(name).grad
            assert gradient is not None
            assert gradient.abs().sum() > 0

    def test_frozen_tables_are_cached_while_training(self) -> None:
        model = random_model(ViTConfig(**SMALL))
        model.dynamic = True
        assert model.pos_embed is not None
        model.pos_embed.requires_grad_(False)
        images = images_of(model.config, (20, 10))
        with torch.inference_mode():
            model(images)
        model(images).sum().backward()
        model(images).sum().backward()
        assert len(model._resized) == 2

    def test_a_model_made_in_inference_mode(self) -> None:
        with torch.inference_mode():
            model = random_model(ViTConfig(**SMALL))
            model.dynamic = True
            assert model(images_of(model.config, (20, 10))).shape == (2, 5)

    def test_other_dtypes_and_sizes_that_do_not_fit(self) -> None:
        model = random_model(ViTConfig(**SMALL))
        model.dynamic = True
        with torch.inference_mode():
            model(images_of(model.config, (20, 10)))
            model.double()
            assert model(images_of(model.config, (20, 10)).double()).dtype == torch.float64
            with pytest.raises(ConfigError, match=r"nearest sizes that are: \(20, 10\) and \(24, 12\)"):
                model(images_of(model.config, (21, 11)).double())


class TestPadding:
    def test_images_are_padded_with_zeros(self, tmp_path: Path) -> None:
        config = ViTConfig(**SMALL)
        file = random_model(config).save(tmp_path / "model.safetensors")
        images = images_of(config, (17, 9))
        padded = torch.nn.functional.pad(images, (0, 1, 0, 3))
        with torch.inference_mode():
            wanted = vit_hub.load(file, image_size=(20, 10))(padded)
            model = vit_hub.load(file, image_size=(17, 9), pad=True)
            assert model.input_size == (17, 9)
            assert model.config.image_size == (20, 10)
            assert torch.equal(model(images), wanted)
            assert torch.equal(vit_hub.load(file).set_image_size((17, 9), pad=True)(images), wanted)
            assert torch.equal(vit_hub.load(file, dynamic=True, pad=True)(images), wanted)
            with pytest.raises(ConfigError, match=r"the model takes \[batch, 3, 17, 9\]"):
                model(padded)

    def test_an_image_smaller_than_a_patch(self, tmp_path: Path) -> None:
        file = random_model(ViTConfig(**SMALL)).save(tmp_path / "model.safetensors")
        model = vit_hub.load(file, image_size=(1, 1), pad=True)
        assert (model.input_size, model.config.grid_size) == ((1, 1), (1, 1))
        assert model(images_of(model.config, (1, 1))).shape == (2, 5)

    @pytest.mark.filterwarnings("ignore:no preprocessing is recorded")
    def test_preprocessing_makes_what_the_model_takes(self, tmp_path: Path) -> None:
        file = random_model(ViTConfig(**SMALL)).save(tmp_path / "model.safetensors")
        model = vit_hub.load(file, image_size=(17, 9), pad=True)
        picture = np.zeros((30, 40, 3), np.uint8)
        assert model(vit_hub.preprocess(model)(picture)).shape == (1, 5)
        model.set_image_size((24, 16))
        assert model(vit_hub.preprocess(model)(picture)).shape == (1, 5)


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            ({"image_size": (13, 8)}, r"image_size=\(13, 8\) is not a whole number of patches of \(4, 2\) pixels.*"
             r"nearest sizes that are: \(12, 8\) and \(16, 8\); or pad=True in vit_hub.load"),
            ({"image_size": 1}, r"nearest sizes that are: \(4, 2\); or pad"),
            ({"image_size": 12, "patch_size": 5}, r"patches of \(5, 5\) pixels.*\(10, 10\) and \(15, 15\)"),
            ({"image_size": (8, 8, 8)}, r"image_size must be one number or \(height, width\), not \(8, 8, 8\)"),
            ({"image_size": (8, -2)}, r"image_size must hold whole numbers >= 1, not \(8, -2\)"),
            ({"image_size": 8.0}, r"image_size must be one number or \(height, width\), not 8.0"),
            ({"patch_size": 0}, r"patch_size must hold whole numbers >= 1, not 0"),
            ({"resize": "cubic"}, r"resize='cubic' is not known \(source, bilinear-align-corners, "),
            ({"image_size": 16, "resize": "cubic"}, r"resize='cubic' is not known"),
        ],
    )  # fmt: skip
    def test_one_clear_error(self, arguments: dict[str, Any], expected: str, tmp_path: Path) -> None:
        file = random_model(ViTConfig(**SMALL)).save(tmp_path / "model.safetensors")
        with pytest.raises(ConfigError, match=expected):
            vit_hub.load(file, **arguments)
        with pytest.raises(ConfigError, match=expected):
            vit_hub.convert(file, tmp_path / "out", to="timm", **arguments)
        assert not (tmp_path / "out").exists()
        if "patch_size" not in arguments:
            arguments.setdefault("image_size", 16)
            model = random_model(ViTConfig(**SMALL))
            before = {name: value.clone() for name, value in model.state_dict().items()}
            with pytest.raises(ConfigError, match=expected):
                model.set_image_size(arguments.pop("image_size"), **arguments)
            assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
            assert model.config.image_size == (12, 8)


class TestConversion:
    """A checkpoint written at another size is the one that loading at that size gives."""

    @pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
    def test_written_for_its_own_project(self, case: Case, tmp_path: Path) -> None:
        ckpt = opened(case)
        size = another_size(ckpt.config, 2, 2)
        wanted = vit_hub.load(case.checkpoint, overrides=case.overrides, image_size=size)
        report = vit_hub.convert(
            case.checkpoint, tmp_path / "out", to=ckpt.format, overrides=case.overrides, image_size=size
        )
        options = {name: value for name, value in case.overrides.items() if name not in ("image_size", "num_heads")}
        options |= {
            name: getattr(report.config, name) for name in ("image_size", "num_heads") if name in str(report.warnings)
        }
        assert_equal(vit_hub.load(report.path, overrides=options), wanted)

    def test_by_way_of_the_canonical_file(self, tmp_path: Path) -> None:
        """The record of the source follows, so that the way back needs no hint at the new size either."""
        case = next(case for case in RESIZED if case.name == "bv_naflex_grid6x4_from5")
        wanted = vit_hub.load(case.checkpoint, image_size=(32, 24), patch_size=2)
        middle = vit_hub.convert(case.checkpoint, tmp_path / "middle.safetensors", image_size=(32, 24), patch_size=2)
        back = vit_hub.convert(middle.path, tmp_path / "back.npz", to="big_vision")
        with np.load(back.path) as archive:
            assert archive["params/img/pos_embedding"].shape[:2] == (16, 12)
            assert archive["params/img/embedding/kernel"].shape[0] == 2 * 2 * 3
        assert_equal(vit_hub.load(back.path, overrides={"image_size": (32, 24)}), wanted)

    def test_the_record_names_the_size_it_was_resized_from(self, tmp_path: Path) -> None:
        preprocess = {**vit_hub.preprocessing.project_files.CONVENTIONS["timm"].to_dict(), "image_size": [12, 8]}
        model = random_model(ViTConfig(**SMALL))
        model.passport = Passport(format="timm", preprocess=preprocess)
        file = model.save(tmp_path / "model.safetensors")
        resized = vit_hub.convert(file, tmp_path / "resized.safetensors", image_size=(20, 10))
        assert "image_size" not in resized.inferred
        for found in (
            vit_hub.open_checkpoint(resized.path).passport,
            vit_hub.load(file, image_size=(20, 10)).passport,
            vit_hub.load(resized.path).set_image_size((24, 12)).passport,
        ):
            assert found is not None
            assert found.resized_from == {"image_size": [12, 8], "patch_size": [4, 2]}
            assert found.preprocess is not None
            assert found.preprocess["crop_pct"] == preprocess["crop_pct"]
        untouched = vit_hub.load(file).passport
        assert untouched is not None
        assert (untouched.resized_from, untouched.preprocess) == ({}, preprocess)

    @pytest.mark.parametrize(
        ("processor", "expected"),
        [
            ({"size": {"height": 16, "width": 16}}, {"size": {"height": 24, "width": 24}}),
            ({"size": 16}, {"size": 24}),
            ({"size": {"shortest_edge": 20}, "crop_size": {"height": 16, "width": 16}},
             {"size": {"shortest_edge": 30}, "crop_size": {"height": 24, "width": 24}}),
            ({"size": {"height": 20, "width": 20}, "crop_size": 16, "do_center_crop": True},
             {"size": {"height": 30, "width": 30}, "crop_size": {"height": 24, "width": 24}}),
            ({"size": {"height": 16, "width": 16}, "crop_size": 16, "do_center_crop": False},
             {"size": {"height": 24, "width": 24}, "crop_size": 16}),
            ({"max_num_patches": 256}, {"max_num_patches": 256}),
            ({"size": {"longest_edge": 16}}, {"size": {"longest_edge": 16}}),
        ],
    )  # fmt: skip
    def test_image_processors_follow(self, processor: dict[str, Any], expected: dict[str, Any], tmp_path: Path) -> None:
        case = next(case for case in CASES if case.name == "hf_vit_cls_v5names")
        folder = tmp_path / "hf"
        folder.mkdir()
        for file in case.checkpoint.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        rest = {"image_processor_type": "ViTImageProcessor", "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
        (folder / "preprocessor_config.json").write_text(json.dumps(rest | processor))
        vit_hub.convert(folder, tmp_path / "out", to="hf", image_size=24)
        assert json.loads((tmp_path / "out" / "preprocessor_config.json").read_text()) == rest | processor | expected
        assert json.loads((tmp_path / "out" / "config.json").read_text())["image_size"] == 24

    def test_a_size_that_the_project_cannot_have(self, tmp_path: Path) -> None:
        case = next(case for case in CASES if case.name == "hf_siglip_vision")
        with pytest.raises(UnsupportedByFormatError, match=r"image_size: its images and patches are square.*canonical"):
            vit_hub.convert(case.checkpoint, tmp_path / "out", to="hf-v5", image_size=(24, 20))


class TestDifferences:
    def test_methods_are_compared_with_the_sources_own(self, tmp_path: Path) -> None:
        config = ViTConfig(**SMALL)
        model = random_model(config)
        ckpt = vit_hub.open_checkpoint(model.save(tmp_path / "model.safetensors"))
        new = resized_config(config, (20, 10))
        found = table_differences(ckpt, new)
        assert list(found) == [method for method in RESIZE_METHODS if not method.startswith("relpos-")]
        assert found[config.resize] == TableDifference(0, 0, 0)
        assert model.pos_embed is not None
        tables = [
            resize_grid(model.pos_embed[0, 1:].detach().numpy(), (3, 4), (5, 5), method)
            for method in ("bicubic", config.resize)
        ]
        errors = np.abs(tables[0] - tables[1])
        assert found["bicubic"].maximum == pytest.approx(errors.max())
        assert found["bicubic"].mean == pytest.approx(errors.mean())
        assert found["bicubic"].relative == pytest.approx(errors.mean() / np.abs(tables[1]).mean())
        assert table_differences(ckpt, config) == {}

    def test_relative_tables(self, tmp_path: Path) -> None:
        config = ViTConfig(**SMALL | VARIETIES["relative"])
        ckpt = vit_hub.open_checkpoint(random_model(config).save(tmp_path / "model.safetensors"))
        found = table_differences(ckpt, resized_config(config, (20, 10)))
        assert list(found) == list(RESIZE_METHODS)
        assert found["relpos-geometric"].maximum == 0
        assert found["relpos-bilinear"].maximum > 0

    def test_models_without_a_table(self, tmp_path: Path) -> None:
        config = ViTConfig(**SMALL | VARIETIES["sincos"])
        ckpt = vit_hub.open_checkpoint(random_model(config).save(tmp_path / "model.safetensors"))
        assert table_differences(ckpt, resized_config(config, (20, 10))) == {}


@pytest.mark.parametrize("variety", [{}, VARIETIES["sincos"]], ids=["learned", "sincos"])
def test_the_default_device_of_torch_is_not_asked_for_host_memory(variety: dict[str, Any], tmp_path: Path) -> None:
    file = random_model(ViTConfig(**SMALL | variety)).save(tmp_path / "model.safetensors")
    images = torch.ones(1, 3, 20, 10)
    wanted = vit_hub.load(file, image_size=(20, 10))(images)
    axis_matrix.cache_clear()
    with torch.device("meta"):
        found = vit_hub.load(file, image_size=(20, 10))
    assert torch.equal(found(images), wanted)


def test_tensors_that_do_not_depend_on_the_size_are_the_same_objects() -> None:
    config = ViTConfig(**SMALL)
    new = resized_config(config, (20, 10))
    for name, tensor in random_model(config).state_dict().items():
        assert (resize_tensor(name, tensor, config, new) is tensor) == (name != "pos_embed")
