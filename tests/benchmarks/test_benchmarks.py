"""Every benchmark runs, at its tiniest, and its tables have the lines that are promised. No figure is looked at."""

from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path

import all as every_benchmark
import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
# What writes a checkpoint, and what measures accuracy, are no benchmarks.
OTHERS = {"all.py", "make_checkpoint.py", "digits_resolution.py"}


# Script -> the first cells of the lines of its tables, and text that stands elsewhere.
PROMISED: dict[str, tuple[list[str], list[str]]] = {
    "startup.py": (
        [
            "`python -c pass`",
            '`python -c "import vit_hub"`',
            "`vit-hub --help`",
            "`vit-hub list`",
            "`vit-hub info vit-b16`",
            '`python -c "import timm"`',
            '`python -c "import transformers"`',
        ],
        [],
    ),
    "load.py": (
        [
            *(f"tiny canonical {name}" for name in ("vit-hub", "vit-hub, bfloat16")),
            *(f"tiny npz {name}" for name in ("vit-hub", "timm load_pretrained", "read and transpose")),
            *(f"tiny timm {name}" for name in ("vit-hub", "timm checkpoint_path")),
            *(f"tiny hf {name}" for name in ("vit-hub", "transformers from_pretrained")),
        ],
        ["memory that is no file's"],
    ),
    "forward.py": (
        [f"tiny float32 eager {task} {batch}" for task in ("output", "features") for batch in (1, 2)],
        ["Smallest ratio for logits", "Smallest ratio for features"],
    ),
    "memory.py": (["tiny float32 2"], ["timm / vit-hub", "transformers / vit-hub"]),
    "runtimes.py": (
        [f"tiny float32 {batch}" for batch in (1, 2)],
        ["onnxruntime / vit-hub", "openvino / vit-hub", "of the peak"],
    ),
    "convert.py": (
        [
            "tiny npz -> canonical",
            "tiny canonical -> Hugging Face",
            "tiny Hugging Face -> npz",
        ],
        ["largest tensor", "peer script"],
    ),
    "resize.py": (
        [
            "bilinear-align-corners vit_jax",
            "bicubic-antialias timm",
            "bicubic transformers",
            "bicubic-offset DINOv2",
            "32 x 32",
            "48 x 48",
        ],
        ["Peak memory"],
    ),
    "embed.py": (
        [
            "vit-hub embed 8",
            "timm, its data loader 8",
            "transformers, its pipeline 8",
            "decoding alone 8",
            "forward alone 8",
            "both in turn -",
        ],
        ["of the bound", "--runtime auto: of the bound", "80 images take"],
    ),
    "download.py": (["curl", "curl + sync", "vit-hub"], []),
    "gpu.py": (["float32", "TF32", "bfloat16", "DINOv3-B 256"], ["matrices", "Loading to the GPU", "against float64"]),
}


def run(script: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(FOLDER / script), *arguments])
    runpy.run_path(str(FOLDER / script), run_name="__main__")


@pytest.mark.parametrize("script", every_benchmark.SCRIPTS)
def test_a_benchmark_prints_and_writes_its_tables(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    markdown = tmp_path / "table.md"
    run(script, [*every_benchmark.SCRIPTS[script], "--markdown", str(markdown)], monkeypatch)
    printed, written = capsys.readouterr().out, markdown.read_text(encoding="utf-8")
    assert printed.strip() in written
    assert written.startswith("# ")
    assert "Load average" in written
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in printed.splitlines() if line[:1] == "|"]
    first, elsewhere = PROMISED[script]
    for words in first:
        assert any(words in " ".join(row) for row in rows), words
    for words in elsewhere:
        assert words in printed


def test_the_gpu_table_is_honest_where_there_is_none() -> None:
    import gpu

    lines = gpu.shown(gpu.PLAN, {})
    rows = [line for line in lines if line.startswith(("| S", "| B", "| L", "| H", "| DINOv3-B"))]
    assert len(rows) == 9 * 2 * 3 + 4 * 3 + 4 * 3 + 5 * 3
    assert all("not measured: no GPU" in row for row in rows)
    measured = gpu.shown(gpu.PLAN, {("B", "TF32"): ("1e-3", "2e-3", "3e-3")})
    assert sum("1e-3" in line and "3e-3" in line for line in measured) == 1
    assert any("left out" in line for line in measured)


def test_the_gpu_script_runs_all_its_steps_while_there_is_time(monkeypatch: pytest.MonkeyPatch) -> None:
    import gpu

    tiny = gpu.TINY._replace(loads=[])
    found = gpu.measure(tiny, None, "cpu", 60.0)
    for name, image, modes in (("tiny", "224", gpu.MODES), ("DINOv3-tiny", "256", gpu.MODES[:2])):
        assert {key for key in found if key[:2] == (name, image)} == {
            (name, image, mode, peer) for mode in modes for peer in gpu.NAMES
        }
    for name in ("tiny", "DINOv3-tiny"):
        assert all(float(error) < 1e-5 for error in found[name, "float32"])
        assert all(float(error) < 0.1 for error in found[name, "bfloat16"])
    assert set(gpu.measure(gpu.TINY, None, "cpu", -1.0)) == {("rates",)}
    # What fails does not take the rest with it.
    monkeypatch.setattr(gpu, "made", lambda key, device: {}[key])
    assert set(gpu.measure(tiny, None, "cpu", 60.0)) == {("rates",)}


def test_the_gpu_script_keeps_to_its_time() -> None:
    import gpu

    rates = gpu.Bound(1.0, 1.0)
    seconds = [at_most for _, at_most, _ in gpu.steps(gpu.PLAN, None, "cpu", rates)]
    assert all(0 < each <= 150 for each in seconds)
    assert gpu.SECONDS + 30 <= 8 * 60


def scripts() -> set[str]:
    """Files of the folder that can be run."""
    found = set()
    for file in FOLDER.glob("*.py"):
        body = ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(body[-1], ast.If) and "__main__" in ast.unparse(body[-1].test):
            found.add(file.name)
    return found


def test_all_runs_every_benchmark() -> None:
    assert set(every_benchmark.SCRIPTS) == scripts() - OTHERS
    assert set(PROMISED) == set(every_benchmark.SCRIPTS)
    assert scripts() >= OTHERS


@pytest.mark.parametrize("script", every_benchmark.SCRIPTS)
def test_all_writes_beside_the_scripts_and_nothing_when_quick(script: str) -> None:
    assert every_benchmark.command(script, quick=False)[1:] == [
        str(FOLDER / script),
        "--markdown",
        f"benchmarks/{Path(script).stem}.md",
    ]
    assert every_benchmark.command(script, quick=True)[2:] == every_benchmark.SCRIPTS[script]
    assert "--markdown" not in every_benchmark.SCRIPTS[script]


def test_every_benchmark_says_how_it_is_called() -> None:
    for script in every_benchmark.SCRIPTS:
        doc = ast.get_docstring(ast.parse((FOLDER / script).read_text(encoding="utf-8")))
        assert doc is not None
        assert f"python benchmarks/{script} --markdown benchmarks/{Path(script).stem}.md" in doc
