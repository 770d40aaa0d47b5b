from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from click.testing import Result

from vit_hub import ViTConfig
from vit_hub.cli.description import value_text
from vit_hub.cli.settings import _kind, _parse
from vit_hub.model.config import Rope

Run = Callable[..., Result]


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("image_size=224", (224, 224)),
        ("image_size=224x160", (224, 160)),
        ("patch_size=16,8", (16, 8)),
        ("num_heads=3", 3),
        (" num_heads = 3 ", 3),
        ("norm_eps=1e-12", 1e-12),
        ("act=gelu_tanh", "gelu_tanh"),
        ("class_token=no", False),
        ("class_token=True", True),
        ("qkv_bias=false", False),
        ("qkv_bias=qv", "qv"),
        ("stem_stages=3x4x9", (3, 4, 9)),
        ("stem_stages=none", ()),
        ("stem_convs=64x3x2,128x3x1", ((64, 3, 2), (128, 3, 1))),
        ('rope={"theta": 100.0}', {"theta": 100.0}),
        ("rope=none", None),
        ("qk_norm_eps=1e-5", 1e-5),
        ("qk_norm_eps=none", None),
        ("kv_heads=2x1", (2, 1)),
    ],
)
def test_values_get_the_type_of_the_field(setting: str, expected: object) -> None:
    name, value = _parse(setting)
    assert name == setting.split("=")[0].strip()
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(ViTConfig)])
def test_every_field_can_be_set_to_what_is_printed(name: str) -> None:
    value = getattr(ViTConfig(), name)
    assert _parse(f"{name}={value_text(value)}") == (name, value)


@pytest.mark.parametrize(
    ("annotation", "text", "expected"),
    [
        (str, "gelu", "gelu"),
        (Literal["gelu", "gelu_tanh"], "gelu_tanh", "gelu_tanh"),
        (bool | str, "off", False),
        (bool | str, "qv", "qv"),
        (bool | Literal["qv", "masked"], "true", True),
        (bool | Literal["qv", "masked"], "qv", "qv"),
        (Literal[True, False, "qv"], "false", False),
        (tuple[int, int], "3", (3, 3)),
        (tuple[int, ...], "3", (3,)),
        (Rope | None, "none", None),
        (Rope, '{"theta": 5}', {"theta": 5}),
    ],
)
def test_the_type_of_a_field_decides_how_it_is_parsed(annotation: Any, text: str, expected: object) -> None:
    assert _kind(annotation).parse(text) == expected


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("heads=3", "the config has no field 'heads', did you mean kv_heads or num_heads? Fields: image_size, "),
        ("num_heads", "'num_heads' has no '='; write num_heads=12."),
        ("num_heads=many", "num_heads takes a whole number, as in num_heads=12, not 'many'."),
        ("num_heads=", "num_heads takes a whole number"),
        ("image_size=1x2x3", "image_size takes HEIGHTxWIDTH or one number for both"),
        ("class_token=maybe", "class_token takes true or false"),
        ("norm_eps=small", "norm_eps takes a number"),
        ("stem_stages=3x", "stem_stages takes none or whole numbers joined by x, as in stem_stages=3x4x9, not '3x'."),
        ("stem_convs=64x3", "stem_convs takes none or CHANNELSxKERNELxSTRIDE"),
        ("rope=100", "rope takes none or a JSON object"),
        ("", "the config has no field ''"),
    ],
)
def test_wrong_settings_are_wrong_usage(run: Run, setting: str, expected: str) -> None:
    result = run("inspect", "a.npz", "--set", setting)
    assert result.exit_code == 2
    assert expected in result.stderr.splitlines()[0]


def test_set_twice(run: Run) -> None:
    result = run("inspect", "a.npz", "--set", "num_heads=3", "--set", "num_heads=4")
    assert result.exit_code == 2
    assert "num_heads is set twice, to 3 and 4." in result.stderr


def test_settings_reach_the_library(answer: Callable[..., Any], run: Run, models: Path) -> None:
    file = models / "classifier.safetensors"
    assert answer("inspect", file, "--set", "num_heads=4", "--set", "act=relu")["config"]["num_heads"] == 4
    result = run("inspect", file, "--set", "num_heads=3")
    assert result.exit_code == 1
    assert "num_heads" in result.stderr
