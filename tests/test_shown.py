"""Texts of objects: short in a console, tables in notebooks, with nothing of a file's own taken for HTML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_models import random_model

import vit_hub
from vit_hub import ViTConfig
from vit_hub.registry import get_entry

CONFIG = ViTConfig(image_size=16, patch_size=8, embed_dim=16, depth=12, num_heads=2, mlp_dim=24, act="quick_gelu")


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("objects")
    file = random_model(CONFIG).save(folder / "a.safetensors")
    ckpt = vit_hub.open_checkpoint(file)
    digits = Path(vit_hub.__file__).parent / "data" / "digits"
    labelled = folder / "images" / "7"
    labelled.mkdir(parents=True)
    (labelled / "7.png").write_bytes((digits / "7.png").read_bytes())
    return {
        "config": CONFIG,
        "checkpoint": ckpt,
        "source": ckpt.source,
        "tensor": ckpt.tensors["pos_embed"],
        "report": vit_hub.convert(file, folder / "b.safetensors"),
        "comparison": vit_hub.compare(file, folder / "b.safetensors"),
        "entry": get_entry("vit-b16"),
        "recommendation": vit_hub.recommend("features"),
        "evaluation": vit_hub.evaluate("vit-nano-digits", folder / "images"),
    }


NAMES = ["config", "checkpoint", "source", "tensor", "report", "comparison", "entry", "recommendation", "evaluation"]


@pytest.mark.parametrize("name", NAMES)
def test_a_repr_is_short_and_says_what_it_is(objects: dict[str, Any], name: str) -> None:
    text = repr(objects[name])
    assert text.startswith(type(objects[name]).__name__ + "(")
    assert len(text) < 700
    assert "<function" not in text
    assert "\n" not in text


@pytest.mark.parametrize("name", NAMES)
def test_notebooks_get_a_table(objects: dict[str, Any], name: str) -> None:
    html = objects[name]._repr_html_()
    assert html.startswith("<table>")
    assert html.count("<tr>") == html.count("</tr>") > 1


def test_a_configs_repr_gives_it_back() -> None:
    for config in (CONFIG, ViTConfig(), vit_hub.get_config("dinov2-s14-reg4.lvd142m-518")):
        assert eval(repr(config), {"ViTConfig": ViTConfig}) == config
    assert "norm_eps" not in repr(ViTConfig())


def test_a_model_is_a_table_in_notebooks() -> None:
    html = random_model(CONFIG)._repr_html_()
    assert "quick_gelu" in html
    assert "parameters" in html


def test_what_a_file_says_is_no_html(tmp_path: Path) -> None:
    folder = tmp_path / "<b onload=alert(1)>"
    file = random_model(CONFIG).save(folder / "a&b.safetensors")
    html = vit_hub.open_checkpoint(file)._repr_html_()
    assert "<b onload" not in html
    assert "&lt;b onload=alert(1)&gt;" in html
    assert "a&amp;b.safetensors" in html
