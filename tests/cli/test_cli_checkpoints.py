"""``convert``, ``inspect`` and ``compare``: what happens to files."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file

from vit_hub import load, open_checkpoint
from vit_hub.converters import format_names

Run = Callable[..., Result]
Answer = Callable[..., Any]
GOLDEN = Path(__file__).parents[1] / "golden"
VIT_JAX = GOLDEN / "vitjax_token_prelinen_npz" / "checkpoint.npz"
HF = GOLDEN / "hf_vit_cls" / "hf"
TIMM = GOLDEN / "timm_vit_token" / "model.safetensors"


@pytest.fixture
def training_state(models: Path, tmp_path: Path) -> Path:
    """A file of timm's training script: the weights' average is taken, their last state is left out."""
    weights = load_file(models / "classifier.safetensors")
    file = tmp_path / "training.pth"
    torch.save({"epoch": 3, "state_dict": weights, "state_dict_ema": weights}, file)
    return file


def test_convert_says_what_it_did(run: Run, tmp_path: Path) -> None:
    result = run("convert", VIT_JAX, tmp_path / "out", "--to", "hf")
    assert result.exit_code == 0, result.output
    (warning,) = result.stderr.splitlines()
    assert warning.startswith("warning: no preprocessing is recorded for these weights")
    path, *rest = result.stdout.splitlines()
    assert path == str(tmp_path / "out")
    assert rest[0].split() == ["format", "hf,", "from", "vit_jax"]
    written = list((tmp_path / "out").iterdir())
    assert {file.name for file in written} == {"model.safetensors", "config.json", "preprocessor_config.json"}
    assert rest[1].split()[-3:] == ["in", "3", "files"]
    assert len(rest) == 2
    result = run("convert", VIT_JAX, tmp_path / "out", "--to", "hf", "--force", "-v")
    origins = "  convention of google-research/vision_transformer: act, norm_eps, resize, resize_by_count"
    assert origins in result.stdout.splitlines()


def test_convert_quiet_prints_the_path(run: Run, tmp_path: Path) -> None:
    result = run("convert", VIT_JAX, tmp_path / "out", "-q")
    assert result.output == f"{tmp_path / 'out' / 'model.safetensors'}\n"


def test_convert_as_data(answer: Answer, tmp_path: Path) -> None:
    data = answer("convert", VIT_JAX, tmp_path / "a.safetensors")
    assert data["path"] == str(tmp_path / "a.safetensors")
    assert (data["files"], data["size"]) == ([data["path"]], (tmp_path / "a.safetensors").stat().st_size)
    assert (data["format"], data["source_format"]) == ("canonical", "vit_jax")
    assert data["config"] == open_checkpoint(VIT_JAX).config.to_dict()
    assert data["inferred"]["image_size"].startswith("pos_embed has")
    assert (data["dropped"], data["warnings"]) == ({}, [])


def test_convert_there_and_back(run: Run, tmp_path: Path) -> None:
    assert run("convert", VIT_JAX, tmp_path / "c.safetensors").exit_code == 0
    assert run("convert", tmp_path / "c.safetensors", tmp_path / "back.npz", "--to", "vit_jax").exit_code == 0
    with np.load(VIT_JAX) as before, np.load(tmp_path / "back.npz") as after:
        assert set(before.files) == set(after.files)
        assert all(before[name].tobytes() == after[name].tobytes() for name in before.files)


def test_convert_needs_telling_and_is_told(run: Run, tmp_path: Path) -> None:
    result = run("convert", TIMM, tmp_path / "a.safetensors")
    assert result.exit_code == 1
    assert "--set num_heads=N" in result.stderr
    result = run("convert", TIMM, tmp_path / "a.safetensors", "--set", "num_heads=4", "-v")
    assert result.exit_code == 0
    assert "  --set: num_heads" in result.stdout.splitlines()
    assert open_checkpoint(tmp_path / "a.safetensors").config.num_heads == 4


def test_convert_refuses_and_obeys_lossy(run: Run, tmp_path: Path) -> None:
    args = ("convert", HF, tmp_path / "bare.npz", "--to", "vit_jax")
    result = run(*args)
    assert result.exit_code == 1
    assert "act" in result.stderr
    assert "--lossy" in result.stderr
    assert not (tmp_path / "bare.npz").exists()
    result = run(*args, "--lossy")
    assert result.exit_code == 0
    assert "warning: lossy: act: " in result.stderr
    assert "warning: lossy: outputs on a random image differ" in result.stderr
    assert (tmp_path / "bare.npz").exists()


def test_the_help_of_convert_names_the_formats(run: Run) -> None:
    text = " ".join(run("convert", "--help").stdout.split())
    (named,) = re.findall(r"The format to write: (.*?);", text)
    assert set(re.split(", | or ", named)) == {name for name in format_names() if "-" not in name}


def test_convert_says_where_a_folder_would_do(run: Run, tmp_path: Path) -> None:
    result = run("convert", VIT_JAX, tmp_path / "bare.safetensors", "--to", "timm")
    assert result.exit_code == 1
    assert "timm cannot express this model: act" in result.stderr
    assert "hint: a folder, with timm's config file, can: give a destination without a suffix; " in result.stderr
    assert run("convert", VIT_JAX, tmp_path / "folder", "--to", "timm").exit_code == 0


def test_convert_dtype(answer: Answer, run: Run, tmp_path: Path) -> None:
    answer("convert", VIT_JAX, tmp_path / "half.safetensors", "--dtype", "bfloat16")
    assert answer("inspect", tmp_path / "half.safetensors")["dtypes"].keys() == {"BF16"}
    assert run("convert", VIT_JAX, tmp_path / "x", "--dtype", "int8").exit_code == 2


def test_convert_groups_what_is_left_out(run: Run, answer: Answer, training_state: Path, tmp_path: Path) -> None:
    options = ("--set", "num_heads=2")
    data = answer("convert", training_state, tmp_path / "a.safetensors", *options)
    assert len(data["dropped"]) == 20
    assert all(name.startswith("state_dict/") for name in data["dropped"])
    result = run("convert", training_state, tmp_path / "b.safetensors", "--keep-rest", *options)
    (line,) = result.stdout.split("Left out\n")[1].splitlines()
    assert line.startswith("  20 tensors  student copy")
    assert line.endswith(", ...")
    assert set(load_file(tmp_path / "b.safetensors.rest.safetensors")) == set(data["dropped"])
    assert line in run("inspect", training_state, *options).stdout


def test_convert_shows_what_is_lost_or_refuses_it(run: Run, answer: Answer, models: Path, tmp_path: Path) -> None:
    source = models / "imagenet.safetensors"
    args = ("convert", source, tmp_path / "out.pth", "--to", "torchvision", "--lossy")
    result = run(*args, "--strict-metadata")
    assert result.exit_code == 1
    assert "class names: torchvision has no place for those of the 1000 classes" in result.stderr
    assert "--strict-metadata" in result.stderr
    assert not (tmp_path / "out.pth").exists()
    result = run(*args)
    assert result.exit_code == 0
    assert "warning: class names: torchvision has no place" in result.stderr
    data = answer(*args, "--force")
    assert data["metadata_lost"]
    assert set(data["metadata_lost"]) <= set(data["warnings"])


def test_convert_failures_leave_nothing(run: Run, tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("not an archive, just text")
    result = run("convert", tmp_path / "text.npz", tmp_path / "out.safetensors", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["error"]["type"] == "UnknownFormatError"
    assert [file.name for file in tmp_path.iterdir()] == ["text.npz"]
    assert run("convert", tmp_path / "none.npz", tmp_path / "x").exit_code == 1
    assert run("convert", VIT_JAX, tmp_path / "x.npz").exit_code == 1


def test_inspect_tells_everything(run: Run) -> None:
    text = run("inspect", TIMM, "--set", "num_heads=4", "--tensors", "--hash", "--values").stdout
    digest = hashlib.sha256(TIMM.read_bytes()).hexdigest()
    for expected in (
        "  format     timm",
        "  container  safetensors",
        f"  file       model.safetensors, {TIMM.stat().st_size:,} bytes",
        f"  sha256     {digest}",
        "  head       not all zeros",
        "  values     all finite",
    ):
        assert expected in text.splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.startswith("  ")}
    assert rows["num_heads"] == ["4", "--set"]
    assert rows["embed_dim"] == ["48", "tensor", "names", "and", "shapes"]
    for name, tensor in open_checkpoint(TIMM, overrides={"num_heads": 4}).tensors.items():
        assert rows[name][0] == "x".join(map(str, tensor.shape))


def test_inspect_names_the_sources_of_tensors(run: Run, answer: Answer) -> None:
    sources = {name: item["sources"] for name, item in answer("inspect", HF, "--tensors")["tensors"].items()}
    assert len(sources["blocks.0.attn.qkv.weight"]) == 3
    assert " + ".join(sources["blocks.0.attn.qkv.weight"]) in run("inspect", HF, "--tensors").stdout
    assert "tensors" not in answer("inspect", HF)


def test_inspect_as_data(answer: Answer) -> None:
    ckpt = open_checkpoint(VIT_JAX)
    data = answer("inspect", VIT_JAX, "--hash")
    assert data["format"] == "vit_jax"
    assert data["config"] == ckpt.config.to_dict()
    assert data["inferred"] == ckpt.inferred
    assert data["tensor_count"] == len(ckpt.tensors)
    assert data["tensor_bytes"] == sum(tensor.nbytes for tensor in ckpt.tensors.values())
    assert data["files"][0]["sha256"] == hashlib.sha256(VIT_JAX.read_bytes()).hexdigest()
    assert "sha256" not in answer("inspect", VIT_JAX)["files"][0]


def test_inspect_of_a_canonical_file_tells_its_origin(run: Run, tmp_path: Path) -> None:
    run("convert", VIT_JAX, tmp_path / "a.safetensors")
    text = run("inspect", tmp_path / "a.safetensors").stdout
    assert "canonical, made from vit_jax" in text
    assert hashlib.sha256(VIT_JAX.read_bytes()).hexdigest() in text
    assert run("inspect", tmp_path / "a.safetensors", "-q").output == "canonical\n"


@pytest.mark.parametrize("kind", ["untrained", "classifier", "headless", "half"])
def test_inspect_is_loud_about_a_head_of_zeros(run: Run, answer: Answer, models: Path, kind: str) -> None:
    file = models / f"{kind}.safetensors"
    result = run("inspect", file)
    assert result.exit_code == 0
    zero = kind == "untrained"
    assert ("ALL ZEROS" in result.stdout) is zero
    assert ("warning: the classification head is all zeros" in result.stderr) is zero
    assert answer("inspect", file)["head_is_zero"] is zero


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_inspect_finds_nan_and_infinity(
    run: Run, answer: Answer, models: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    file = tmp_path / "a.safetensors"
    assert run("convert", models / "broken.safetensors", file, "--dtype", str(dtype).split(".")[1]).exit_code == 0
    assert "\n  values " not in run("inspect", file).stdout
    result = run("inspect", file, "--values")
    assert "NaN OR INFINITE in 1 tensor" in result.stdout
    assert result.stderr == "warning: blocks.0.norm1.bias: 2 values of 16 NaN or infinite\n"
    assert answer("inspect", file, "--values")["not_finite"] == {"blocks.0.norm1.bias": 2}
    assert answer("inspect", models / "classifier.safetensors", "--values")["not_finite"] == {}


def test_inspect_refuses_what_is_no_checkpoint(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_text("just text, whatever it is called")
    for target in (tmp_path / "a.npz", tmp_path / "b.npz", tmp_path):
        result = run("inspect", target)
        assert result.exit_code == 1
        assert str(target) in result.stderr
        assert result.stderr.count("\n") <= 2


def test_compare_the_same_model_in_two_formats(run: Run, answer: Answer, tmp_path: Path) -> None:
    run("convert", VIT_JAX, tmp_path / "hf", "--to", "hf")
    result = run("compare", VIT_JAX, tmp_path / "hf")
    assert result.exit_code == 0
    weights, numbers, *rest = result.stdout.splitlines()
    assert weights == "same weights  yes: 44 tensors equal"
    assert numbers == "same numbers  yes: no difference"
    assert rest[0] == ""
    assert rest[1].split() == ["config", "A", "B"]
    assert "cls_token" not in result.stdout
    assert "cls_token" in run("compare", VIT_JAX, tmp_path / "hf", "--all").stdout
    data = answer("compare", VIT_JAX, tmp_path / "hf")
    assert data["same_weights"] is data["same_numbers"] is True
    assert len(data["tensors"]) == 44


def test_compare_finds_other_weights(run: Run, models: Path, tmp_path: Path) -> None:
    run("convert", models / "classifier.safetensors", tmp_path / "rounded.safetensors", "--dtype", "bfloat16")
    result = run("compare", models / "classifier.safetensors", tmp_path / "rounded.safetensors")
    assert result.exit_code == 3
    assert "same weights  no: " in result.stdout
    rows = [line.split() for line in result.stdout.split("\n\n")[-1].splitlines()[1:]]
    assert rows
    assert "head.weight" in [row[0] for row in rows]
    said = {" ".join(row[-5:]) for row in rows if "dtype" not in row}
    assert said == {"equal after rounding to bfloat16"}


def test_compare_finds_other_numbers(run: Run, answer: Answer, models: Path, tmp_path: Path) -> None:
    file = models / "classifier.safetensors"
    run("convert", file, tmp_path / "relu.safetensors", "--set", "act=relu")
    result = run("compare", file, tmp_path / "relu.safetensors")
    assert result.exit_code == 3
    assert "same weights  yes: " in result.stdout
    assert "same numbers  no: outputs on random images differ by up to " in result.stdout
    assert ["act", "gelu", "relu"] in [line.split() for line in result.stdout.splitlines()]
    as_json = run("compare", file, tmp_path / "relu.safetensors", "--json")
    assert as_json.exit_code == 3
    data = json.loads(as_json.stdout)
    assert data["config"] == {"act": ["gelu", "relu"]}
    assert data["output_difference"] > 2e-5
    quiet = run("compare", file, tmp_path / "relu.safetensors", "--quiet")
    assert (quiet.exit_code, quiet.output) == (3, "")


def test_compare_says_that_embeddings_are_compared_where_a_head_is_missing(
    run: Run, models: Path, tmp_path: Path
) -> None:
    file = models / "classifier.safetensors"
    load(file, num_classes=0).save(tmp_path / "headless.safetensors")
    result = run("compare", file, tmp_path / "headless.safetensors")
    assert result.exit_code == 3
    assert "same numbers  yes: no difference of the embeddings" in result.stdout


def test_inspect_names_the_format_that_a_file_is_not(run: Run) -> None:
    result = run("inspect", VIT_JAX, "--format", "torchvision")
    assert "not a Vision Transformer checkpoint of the format torchvision" in result.stderr
    assert "hint: without format= (--format) its content decides" in result.stderr


def test_compare_of_another_architecture(run: Run) -> None:
    result = run("compare", VIT_JAX, HF)
    assert result.exit_code == 3
    assert "of another shape" in result.stdout
    assert "same numbers  no: images or outputs have different shapes" in result.stdout


def test_compare_of_a_model_that_gives_nan_is_valid_json(run: Run, models: Path) -> None:
    result = run("compare", models / "classifier.safetensors", models / "broken.safetensors", "--json")
    assert result.exit_code == 3
    json.loads(result.stdout, parse_constant=pytest.fail)


def test_compare_in_its_own_process(process: Callable[..., subprocess.CompletedProcess[str]], models: Path) -> None:
    file = models / "classifier.safetensors"
    assert process("compare", file, file).returncode == 0
    done = process("compare", file, models / "untrained.safetensors")
    assert done.returncode == 3
    assert done.stderr == ""
