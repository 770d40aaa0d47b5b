"""The matrices that resize: equal to what the projects' own functions gave, and their properties."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from grids import resize_grid
from hypothesis import given
from hypothesis import strategies as st
from small_models import examples
from timm.layers import resample_patch_embed, resize_rel_pos_bias_table

from vit_hub.errors import ConfigError
from vit_hub.model.config import RESIZE_METHODS
from vit_hub.model.resample import axis_matrix, kernel_matrix

Table = npt.NDArray[Any]

GOLDEN = Path(__file__).parents[1] / "golden" / "posembed_resize_table"
with np.load(GOLDEN / "tables.npz", allow_pickle=False) as archive:
    TABLES = {name: archive[name] for name in archive.files}
GRID, KERNEL = TABLES.pop("grid_4x4")[0], TABLES.pop("patch_kernel_8x8_hwio")

# What a project's function is called in the recorded tables -> the method that stands for it.
SOURCES = {
    "vit_jax_interpolate_posembed": "bilinear-align-corners",
    "big_vision_resample_posemb": "bilinear-align-corners",
    "big_vision_flexi_runtime_jax_image_linear": "bilinear-antialias",
    "big_vision_naflex": "bilinear-antialias",
    "hf_siglip2": "bilinear-antialias",
    "timm_npz_loader_bilinear_noaa": "bilinear",
    "hf_vit": "bicubic",
    "hf_dinov2": "bicubic",
    "fb_dinov2_offset0_noaa": "bicubic",
    "mae_deit_interpolate_pos_embed": "bicubic",
    "timm_default_bicubic_antialias": "bicubic-antialias",
    "hf_dinov2_with_registers": "bicubic-antialias",
    "fb_dinov2_reg_offset0_antialias": "bicubic-antialias",
    "open_clip_resize_pos_embed": "bicubic-antialias",
    "fb_dino": "bicubic-offset",
    "fb_dinov2_offset0.1": "bicubic-offset",
    "torchvision_interpolate_embeddings": "bicubic-align-corners",
}
# The method of the image resize that a project derives its patch kernels from.
KERNELS = {
    "flexi_resample_patchemb_HWIO": "bilinear",
    "timm_npz_resample_patch_embed_bilinear_noaa_OIHW": "bilinear",
    "timm_resample_patch_embed_bicubic_aa_OIHW": "bicubic-antialias",
}
KERNEL_METHODS = sorted(set(KERNELS.values()))
TABLE_METHODS = [method for method in RESIZE_METHODS if not method.startswith("relpos-")]

SIZES = st.integers(1, 20)
every_method = pytest.mark.parametrize("method", RESIZE_METHODS)
every_kernel_method = pytest.mark.parametrize("method", KERNEL_METHODS)


def sizes(rows: int, columns: int) -> tuple[int, int]:
    return rows, columns


def axes(method: str) -> st.SearchStrategy[int]:
    """Sizes of an axis; a relative table has an odd number of offsets, and more than one of them."""
    return st.integers(1, 8).map(lambda half: 2 * half + 1) if method == "relpos-geometric" else SIZES


def noise(*shape: int) -> Table:
    return np.random.default_rng(0).standard_normal(shape)


def wanted_size(name: str) -> tuple[int, int]:
    rows, columns = name.rpartition("__")[2].split("x")
    return int(rows), int(columns)


def test_every_recorded_table_and_every_method_is_compared() -> None:
    assert {name.rpartition("__")[0] for name in TABLES} == {*SOURCES, *KERNELS}
    assert set(SOURCES.values()) == set(TABLE_METHODS)
    assert len(TABLE_METHODS) == 7
    assert json.loads((GOLDEN / "meta.json").read_text())["verify"]["how"] == "direct call of the originals"


@pytest.mark.parametrize("name", [name for name in TABLES if name.rpartition("__")[0] in SOURCES])
def test_tables_are_those_of_the_original_functions(name: str) -> None:
    if name == "open_clip_resize_pos_embed__2x8":
        # It counts tokens and sees no change. That is a property of the source (resize_by_count), not of the method.
        assert np.array_equal(TABLES[name][0], GRID)
        return
    found = resize_grid(GRID, (4, 4), wanted_size(name), SOURCES[name.rpartition("__")[0]])
    assert np.abs(found - TABLES[name].reshape(found.shape)).max() <= 1e-6


@pytest.mark.parametrize("name", [name for name in TABLES if name.rpartition("__")[0] in KERNELS])
def test_kernels_are_those_of_the_original_functions(name: str) -> None:
    """The originals invert one matrix over both axes, in float32."""
    method = KERNELS[name.rpartition("__")[0]]
    by, bx = (kernel_matrix(method, 8, side) for side in wanted_size(name))
    found = np.einsum("yh,xw,hwio->yxio", by, bx, KERNEL.astype(np.float64))
    wanted = TABLES[name] if name.rpartition("__")[0].endswith("HWIO") else TABLES[name].transpose(2, 3, 1, 0)
    assert np.abs(found - wanted).max() <= 2e-6 * np.abs(wanted).max()


@pytest.mark.parametrize(
    ("method", "mode", "options"),
    [
        ("bilinear-align-corners", "bilinear", {"align_corners": True}),
        ("bilinear-antialias", "bilinear", {"antialias": True}),
        ("bilinear", "bilinear", {}),
        ("bicubic", "bicubic", {}),
        ("bicubic-antialias", "bicubic", {"antialias": True}),
        ("bicubic-offset", "bicubic", {"offset": 0.1}),
        ("bicubic-align-corners", "bicubic", {"align_corners": True}),
        ("relpos-bilinear", "bilinear", {}),
    ],
)
@examples(60)
@given(old=st.builds(sizes, SIZES, SIZES), new=st.builds(sizes, SIZES, SIZES))
def test_as_torch_interpolates(
    method: str, mode: str, options: dict[str, Any], old: tuple[int, int], new: tuple[int, int]
) -> None:
    """torch is what nearly all projects call; here in float64, so that only rounding is left."""
    if old == new:
        return  # no project calls it then
    table, options = noise(old[0] * old[1], 3), dict(options)
    images = torch.from_numpy(table.reshape(1, *old, 3)).permute(0, 3, 1, 2)
    if "offset" in options:
        offset = options.pop("offset")
        options["scale_factor"] = tuple((after + offset) / before for before, after in zip(old, new, strict=True))
    else:
        options["size"] = new
    wanted = F.interpolate(images, mode=mode, **options).permute(0, 2, 3, 1).reshape(-1, 3).numpy()
    found = resize_grid(table, old, new, method)
    assert np.abs(found - wanted).max() <= 1e-12


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence", "ignore:torch.searchsorted")
@examples(30)
@given(old=st.builds(sizes, st.integers(2, 9), st.integers(2, 9)), new=st.builds(sizes, SIZES, SIZES))
def test_relative_tables_as_timm_resamples_them(old: tuple[int, int], new: tuple[int, int]) -> None:
    before, after = ((2 * rows - 1, 2 * columns - 1) for rows, columns in (old, new))
    table = noise(before[0] * before[1] + 3, 2)
    wanted = resize_rel_pos_bias_table(
        torch.from_numpy(table).float(), new, (after[0] * after[1] + 3, 2), old_window_size=old
    )
    found = resize_grid(table[:-3], before, after, "relpos-geometric")
    assert np.abs(found - wanted.numpy()[:-3]).max() <= 1e-5


@every_method
@given(data=st.data())
@examples(40)
def test_equal_grids_are_left_alone(method: str, data: st.DataObject) -> None:
    size = data.draw(axes(method)), data.draw(axes(method))
    table = noise(size[0] * size[1], 2).astype(np.float32)
    assert np.array_equal(resize_grid(table, size, size, method).astype(np.float32), table)


@pytest.mark.parametrize("method", [m for m in RESIZE_METHODS if m not in ("bicubic-offset", "relpos-geometric")])
@examples(20)
@given(size=SIZES)
def test_an_axis_that_keeps_its_length_keeps_its_values(method: str, size: int) -> None:
    assert np.abs(axis_matrix(method, size, size) - np.eye(size)).max() <= 1e-15


def test_the_offset_moves_an_axis_that_keeps_its_length() -> None:
    """DINO's scale is (n + 0.1) / n there: 4x4 to 4x6 changes the rows, too, in its own code as well."""
    assert np.abs(axis_matrix("bicubic-offset", 4, 4) - np.eye(4)).max() > 0.01


@every_method
@given(data=st.data())
@examples(60)
def test_constants_are_preserved(method: str, data: st.DataObject) -> None:
    old, new = data.draw(axes(method)), data.draw(axes(method))
    matrix = axis_matrix(method, old, new)
    assert matrix.shape == (new, old)
    assert matrix.dtype == np.float64
    assert np.abs(matrix.sum(axis=1) - 1).max() <= 1e-12


@pytest.mark.parametrize("method", [m for m in RESIZE_METHODS if m != "bicubic-offset"])
@given(data=st.data())
@examples(60)
def test_flipping_before_is_flipping_after(method: str, data: st.DataObject) -> None:
    """The offset of DINO shifts every place in one direction, so that only its tables have a left and a right."""
    old, new = data.draw(axes(method)), data.draw(axes(method))
    if new == 1 and method.endswith("align-corners"):
        return  # the one place is the first corner, as in torch and scipy
    matrix = axis_matrix(method, old, new)
    assert np.abs(matrix[::-1, ::-1] - matrix).max() <= 1e-12


@every_method
@given(data=st.data())
@examples(30)
def test_a_rectangle_is_the_product_of_its_axes(method: str, data: st.DataObject) -> None:
    (h, w), (rows, columns) = ((data.draw(axes(method)), data.draw(axes(method))) for _ in range(2))
    if (h, w) == (rows, columns):
        return
    table = noise(h * w, 2)
    both = np.kron(axis_matrix(method, h, rows), axis_matrix(method, w, columns))
    found = resize_grid(table, (h, w), (rows, columns), method)
    assert np.abs(found - both @ table).max() <= 1e-12
    turned = table.reshape(h, w, 2).transpose(1, 0, 2).reshape(-1, 2)
    back = resize_grid(turned, (w, h), (columns, rows), method).reshape(columns, rows, 2).transpose(1, 0, 2)
    assert np.abs(found - back.reshape(-1, 2)).max() <= 1e-12


@every_kernel_method
@given(old=st.builds(sizes, SIZES, SIZES), data=st.data())
@examples(60)
def test_enlarging_patches_preserves_every_token(method: str, old: tuple[int, int], data: st.DataObject) -> None:
    """FlexiViT, section 3.4: for enlarged patches B x and the new kernel w', <B x, w'> = <x, w> for every patch x."""
    new = data.draw(st.integers(old[0], 24)), data.draw(st.integers(old[1], 24))
    patch, kernel = noise(*old), np.random.default_rng(1).standard_normal(old)
    larger = resize_grid(patch.reshape(-1, 1), old, new, method)[:, 0]
    by, bx = (kernel_matrix(method, *side) for side in zip(old, new, strict=True))
    assert np.sum(larger * (by @ kernel @ bx.T).ravel()) == pytest.approx(np.sum(patch * kernel), abs=1e-8)


@every_kernel_method
@given(old=st.builds(sizes, SIZES, SIZES), new=st.builds(sizes, SIZES, SIZES))
@examples(60)
def test_shrinking_patches_preserves_tokens_in_least_squares(
    method: str, old: tuple[int, int], new: tuple[int, int]
) -> None:
    """FlexiViT, section 3.4: w' minimises E (<x, w> - <B x, w'>)^2 over x ~ N(0, 1), the norm of w - B.T w'.

    At a minimum the gradient B (B.T w' - w) is zero.
    """
    b = np.kron(*(axis_matrix(method, *side) for side in zip(old, new, strict=True)))
    by, bx = (kernel_matrix(method, *side) for side in zip(old, new, strict=True))
    kernel = noise(*old)
    resized = (by @ kernel @ bx.T).ravel()
    assert np.abs(b @ (b.T @ resized - kernel.ravel())).max() <= 1e-9


@every_kernel_method
def test_enlarging_one_side_and_shrinking_the_other_stays_stable(method: str) -> None:
    """8x8 to 10x6, where one float32 inverse over both axes grows to 1e9."""
    by, bx = kernel_matrix(method, 8, 10), kernel_matrix(method, 8, 6)
    assert np.abs(by @ KERNEL[:, :, 0, 0] @ bx.T).max() <= 10 * np.abs(KERNEL).max()


@examples(15)
@given(old=st.integers(2, 16), new=st.builds(sizes, st.integers(2, 16), st.integers(2, 16)))
def test_kernels_as_timm_resamples_them(old: int, new: tuple[int, int]) -> None:
    if (new[0] > old) != (new[1] > old):
        return  # timm's single inverse is unstable there
    kernel = noise(2, 3, old, old).astype(np.float32)
    wanted = resample_patch_embed(torch.from_numpy(kernel), list(new)).numpy()
    by, bx = (kernel_matrix("bicubic-antialias", old, side) for side in new)
    found = np.einsum("yh,xw,dchw->dcyx", by, bx, kernel.astype(np.float64))
    assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"resize 'nearest' is not known.*bilinear-align-corners, .*relpos-bilinear"):
        axis_matrix("nearest", 4, 6)
