"""The table of ``vit-hub bench``: complete, honest about what could not run, and with the same numbers from all."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from golden_cases import CASES
from small_models import random_model

import vit_hub
from vit_hub.benching import AGAINST, OURS, PEERS, machine, peak_flops, time_forward
from vit_hub.cli import main
from vit_hub.errors import ConfigError
from vit_hub.interop import timm_model

SMALL: dict[str, Any] = {
    "image_size": 16,
    "patch_size": 8,
    "embed_dim": 16,
    "depth": 2,
    "num_heads": 2,
    "mlp_dim": 32,
    "num_classes": 5,
}


def model(**changes: Any) -> vit_hub.VisionTransformer:
    return random_model(vit_hub.ViTConfig(**SMALL | changes))


def test_everybody_computes_the_same_at_every_batch_size() -> None:
    steps: list[int] = []
    table = time_forward(model(), batch_sizes=(1, 3), rounds=2, progress=steps.append)
    assert [(line.task, line.batch_size, line.implementation) for line in table] == [
        (task, size, name) for task in ("output", "features") for size in (1, 3) for name in (OURS, *PEERS)
    ]
    assert steps == [1] * 4
    ours = {(line.task, line.batch_size): line for line in table if line.implementation == OURS}
    for line in table:
        own = ours[line.task, line.batch_size].seconds
        assert line.problem == ""
        assert line.difference is not None
        assert line.difference <= 1e-5
        assert line.seconds is not None
        assert own is not None
        assert line.speedup == pytest.approx(line.seconds / own)
        assert line.images_per_second == pytest.approx(line.batch_size / line.seconds)
        assert line.of_peak is None
        if sys.platform == "linux":
            assert line.peak_memory is not None


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({"qk_norm": True}, {"transformers"}),
        ({"pos_embed": "sincos2d", "pos_embed_prefix": False, "stem": "conv", "stem_convs": ((4, 3, 2),)}, set(PEERS)),
    ],
)
def test_a_peer_without_the_architecture_gets_a_line_that_says_so(changes: dict[str, Any], missing: set[str]) -> None:
    table = time_forward(model(**changes), batch_sizes=(2,), rounds=1)
    problems = {line.implementation: line.problem for line in table if line.seconds is None}
    assert set(problems) == missing
    assert all("cannot express" in problem for problem in problems.values())


def test_a_peer_whose_class_wants_more_than_images_gets_a_line_that_says_so() -> None:
    case = next(case for case in CASES if case.name == "hf_siglip2_vision_square")
    siglip2 = vit_hub.load(case.checkpoint)
    table = time_forward(siglip2, tasks=["output"], batch_sizes=(2,), rounds=1)
    assert [line.implementation for line in table if line.seconds is None] == ["transformers"]
    assert "TypeError" in next(line.problem for line in table if line.implementation == "transformers")
    assert next(line for line in table if line.implementation == "timm").seconds is not None


def test_a_peer_that_is_not_installed_gets_a_line_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "timm"] or ["timm"]:
        monkeypatch.setitem(sys.modules, name, None)
    table = time_forward(model(), against=["timm"], tasks=["output"], batch_sizes=(1,), rounds=1)
    assert [line.implementation for line in table] == [OURS, "timm"]
    assert "timm" in table[1].problem


@pytest.mark.parametrize(
    "arguments", [{"against": ["keras"]}, {"tasks": ["logits"]}, {"rounds": 0}, {"batch_sizes": (0,)}]
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"keras|logits|at least 1"):
        time_forward(model(), **arguments)


def test_compiled_models_give_the_same() -> None:
    table = time_forward(model(), against=["timm"], tasks=["output"], batch_sizes=(2,), rounds=1, compile="default")
    assert all(line.difference is not None and line.difference <= 1e-5 for line in table)


def test_runtimes_compute_the_same_in_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIT_HUB_CACHE", str(tmp_path))
    table = time_forward(model(), against=AGAINST, batch_sizes=(2,), rounds=1, peak=1e9)
    assert [line.implementation for line in table] == [OURS, *AGAINST] * 2
    for line in table:
        assert line.problem == ""
        assert line.difference is not None
        assert line.difference <= 1e-5
        assert line.of_peak is not None
        assert line.of_peak > 0


def test_a_runtime_without_the_dtype_gets_a_line_that_says_so() -> None:
    half = model().to(torch.bfloat16)
    table = time_forward(half, against=["onnxruntime"], tasks=["output"], batch_sizes=(1,), rounds=1)
    assert "bfloat16" in table[1].problem
    assert table[1].seconds is None


def test_the_bound_of_the_device_is_measured_in_the_dtype() -> None:
    assert peak_flops("cpu", torch.float32, side=64) > 0
    assert peak_flops("cpu", torch.bfloat16, side=64) > 0


def test_timms_module_is_timms_own() -> None:
    ours = model(num_registers=2)
    peer = timm_model(ours)
    assert type(peer).__module__.startswith("timm.")
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(peer(images), ours(images))


def test_the_machine_is_described() -> None:
    about = machine()
    assert about["torch"] == torch.__version__.split("+")[0] or about["torch"] == torch.__version__
    assert about["vit-hub"] == vit_hub.__version__
    assert about["processor"]
    assert about["gpu"] is None


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, ["bench", "vit-nano-digits", "--batch-size", "2", "--rounds", "1", *arguments])
    return result.exit_code, result.stdout, result.stderr


def test_the_command_prints_a_table() -> None:
    code, out, _ = run()
    assert code == 0
    assert out.splitlines()[0].split()[:4] == ["task", "batch", "implementation", "time"]
    assert {line.split()[2] for line in out.splitlines()[1:]} == {OURS, *PEERS}


def test_the_command_prints_json() -> None:
    code, out, _ = run("--json", "--against", "timm", "--dtype", "bfloat16")
    assert code == 0
    found = json.loads(out)
    assert (found["model"], found["dtype"], found["image_size"]) == ("vit-nano-digits", "bfloat16", [32, 32])
    assert [line["implementation"] for line in found["timings"]] == [OURS, "timm"] * 2


def test_the_command_sweeps_batches_with_a_number_of_threads() -> None:
    before = torch.get_num_threads()
    try:
        code, out, _ = run("--json", "--against", "onnxruntime", "--batch-size", "1,3", "--threads", "1")
    finally:
        torch.set_num_threads(before)
    assert code == 0
    found = json.loads(out)
    assert found["machine"]["threads"] == 1
    assert found["peak_flops"] > 0
    assert {line["batch_size"] for line in found["timings"]} == {2, 1, 3}
    assert all(line["of_peak"] > 0 for line in found["timings"])


@pytest.mark.parametrize("runtime", ["onnxruntime", "auto"])
def test_the_commands_own_rows_run_in_any_runtime(runtime: str) -> None:
    code, out, _ = run("--json", "--against", "none", "--runtime", runtime)
    assert code == 0
    found = json.loads(out)
    assert found["runtime"] == runtime
    names = {line["runtime"] for line in found["timings"]}
    assert names == {"onnxruntime"} if runtime == "onnxruntime" else names <= {"torch", "onnxruntime", "openvino"}


def test_the_command_times_exported_files(tmp_path: Path) -> None:
    file = vit_hub.export("vit-nano-digits", tmp_path / "digits.onnx").path
    result = CliRunner().invoke(main, ["bench", str(file), "--json", "--batch-size", "1,2", "--rounds", "1"])
    assert result.exit_code == 0, result.output
    lines = json.loads(result.stdout)["timings"]
    assert [(line["batch_size"], line["runtime"]) for line in lines] == [(1, "onnxruntime"), (2, "onnxruntime")]
    result = CliRunner().invoke(main, ["bench", str(file), "--runtime", "openvino"])
    assert result.exit_code == 1
    assert "its own runtime" in result.stderr


def test_the_command_takes_another_size_and_nobody_else() -> None:
    code, out, _ = run("--image-size", "48", "--against", "none", "--json")
    assert code == 0
    assert json.loads(out)["image_size"] == [48, 48]
    assert len(json.loads(out)["timings"]) == 2


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--against", "keras"], 2, "keras"),
        (["--batch-size", "0"], 2, "batch-size"),
        (["--device", "toaster"], 1, "toaster"),
        (["--image-size", "33"], 1, "33"),
        (["--compile", "fast"], 2, "fast"),
    ],
)
def test_wrong_usage_is_one_line(arguments: list[str], status: int, words: str) -> None:
    code, out, err = run(*arguments)
    assert code == status
    assert out == ""
    assert words in err
    assert "Traceback" not in err
