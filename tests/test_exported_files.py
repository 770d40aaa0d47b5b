"""Files of `vit-hub export` stand in for the model that they were made from, or say why they cannot."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
import pytest
import torch
from click.testing import CliRunner
from kinds import KINDS
from PIL import Image
from small_models import random_images, random_model, relative_error

import vit_hub
from vit_hub.cli import main
from vit_hub.converters.containers.programs import program_facts
from vit_hub.exporting.files import exported_file
from vit_hub.model.outputs import output_function, output_name
from vit_hub.untrusted import HEADER_BYTES

NAME = "vit-nano-digits"
IMAGES = sorted((Path(vit_hub.__file__).parent / "data" / "digits").glob("*.png"))
Exported = Callable[..., Path]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Export the bundled model, once with the same options."""
    made: dict[str, Path] = {}

    def export(suffix: str, **options: Any) -> Path:
        key = suffix + json.dumps(options)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("exported") / f"digits{suffix}"
            vit_hub.export(NAME, made[key], **options)
        return made[key]

    return export


def run(*arguments: Any) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


def probabilities(*arguments: Any, images: Sequence[Path] = IMAGES) -> np.ndarray:
    code, out, err = run("predict", *arguments, *images, "--json", "--workers", "0", "--top", "10")
    assert code == 0, err
    found = json.loads(out)["predictions"]
    return np.array(
        [[guess["probability"] for guess in sorted(each["classes"], key=lambda c: c["index"])] for each in found]
    )


@pytest.mark.parametrize(
    ("suffix", "options"),
    [(".onnx", {}), (".pt2", {}), (".xml", {}), (".onnx", {"dynamic": True})],
)
def test_classes_are_the_models(suffix: str, options: dict[str, Any], exported: Exported) -> None:
    path = exported(suffix, **options)
    np.testing.assert_allclose(probabilities(path), probabilities(NAME), atol=1e-5)
    if options.get("dynamic"):
        sized = ("--image-size", "48")
        np.testing.assert_allclose(probabilities(path, *sized), probabilities(NAME, *sized), atol=1e-5)


def test_a_program_of_pixels_gets_them_whole(exported: Exported, tmp_path: Path) -> None:
    images = [tmp_path / path.name for path in IMAGES]
    for source, path in zip(IMAGES, images, strict=True):
        Image.open(source).convert("L").resize((32, 32)).save(path)
    found = probabilities(exported(".xml", with_preprocess=True), images=images)
    np.testing.assert_allclose(found, probabilities(NAME, images=images), atol=1e-5)


def test_openvino_runs_a_file_in_bfloat16(exported: Exported) -> None:
    found = probabilities(exported(".xml"), "--dtype", "bfloat16")
    np.testing.assert_allclose(found, probabilities(NAME), atol=5e-2)


def test_accuracy_and_embeddings_are_the_models(exported: Exported, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    for path in IMAGES:
        (folder / path.stem).mkdir(parents=True)
        (folder / path.stem / path.name).write_bytes(path.read_bytes())
    assert vit_hub.evaluate(exported(".onnx"), folder, workers=0).top1 == 1.0
    path = exported(".onnx", what="embedding")
    vit_hub.embed(path, folder, tmp_path / "out", workers=0, normalize=True)
    vit_hub.embed(NAME, folder, tmp_path / "plain", workers=0, normalize=True)
    one, other = (
        ds.dataset(tmp_path / out).to_table().sort_by("id")["embedding"].to_pylist() for out in ("out", "plain")
    )
    np.testing.assert_allclose(one, other, atol=1e-5)
    manifest = json.loads((tmp_path / "out" / "_manifest.json").read_text())
    assert (manifest["runtime"], manifest["weights"]["id"]) == ("onnxruntime", NAME)
    batch = {"path": [str(path) for path in IMAGES]}
    np.testing.assert_allclose(vit_hub.Embedder(path, normalize=True)(batch)["embedding"], other, atol=1e-5)
    code, out, _ = run("search", tmp_path / "out", IMAGES[6], "--k", "1", "--json")
    assert code == 0
    assert json.loads(out)["neighbours"][0]["label"] == "6"


@pytest.mark.parametrize("kind", ["video", "video table"])
def test_a_program_of_videos_takes_the_images_that_the_model_takes(kind: str, tmp_path: Path) -> None:
    model = random_model(KINDS[kind])
    vit_hub.export(model, tmp_path / "videos.onnx", what="tokens")
    file = exported_file(tmp_path / "videos.onnx")
    assert file is not None
    images = torch.randn(2, *model.config.input_shape(model.input_size, stills=True))
    if kind == "video":  # sees an image as fewer frames than the program has
        with pytest.raises(vit_hub.ConfigError, match="sees an image as a video of 2"):
            file.open()(images)
    else:
        with torch.inference_mode():
            assert relative_error(file.open()(images), model.forward_features(images)) <= 1e-5


@pytest.mark.parametrize("suffix", [".onnx", ".pt2", ".xml"])
def test_inspect_says_what_a_file_takes_and_gives(suffix: str, exported: Exported) -> None:
    path = exported(suffix)
    code, out, _ = run("inspect", path, "--json", "--hash")
    assert code == 0
    found = json.loads(out)
    assert (found["what"], found["dtype"], found["image_size"]) == ("logits", "float32", [32, 32])
    assert (found["dynamic"], found["with_preprocess"], found["version"]) == (False, False, vit_hub.__version__)
    assert found["labels"] == [str(digit) for digit in range(10)]
    assert found["passport"]["weights_id"] == NAME
    assert len(found["files"]) == (2 if suffix == ".xml" else 1)
    assert all(len(file["sha256"]) == 64 for file in found["files"])
    assert found["config"]["num_classes"] == 10
    code, out, _ = run("inspect", path)
    assert code == 0
    assert "float32 [batch, 1, 32, 32], preprocessed" in out


def test_compare_runs_what_has_no_weights(exported: Exported, tmp_path: Path) -> None:
    code, out, _ = run("compare", exported(".onnx"), NAME, "--json")
    found = json.loads(out)
    assert (code, found["same_weights"], found["same_numbers"]) == (0, None, True)
    assert 0 < found["output_difference"] <= 1e-5 < found["tolerance"]
    code, out, _ = run("compare", NAME, exported(".xml", with_preprocess=True))
    assert code == 0
    assert "not compared" in out
    assert "yes: outputs on random images differ by up to" in out
    code, out, _ = run("compare", exported(".onnx"), exported(".xml"), "--quiet")
    assert (code, out) == (0, "")
    # Another activation than the one that the program has is found.
    code, out, _ = run("compare", exported(".onnx"), NAME, "--set", "act=relu", "--json")
    found = json.loads(out)
    assert (code, found["same_numbers"], list(found["config"])) == (3, False, ["act"])
    assert vit_hub.compare(NAME, NAME).same_weights


@pytest.mark.parametrize(
    ("verb", "options", "words"),
    [
        ("predict", ["--runtime", "openvino"], "runs in onnxruntime, not in openvino"),
        ("predict", ["--compile"], "is compiled by onnxruntime"),
        ("predict", ["--image-size", "48"], "takes images of 32x32, not 48x48"),
        ("predict", ["--dtype", "bfloat16"], "computes in float32, not in bfloat16"),
        ("predict", ["--set", "num_heads=4"], "overrides was decided"),
        ("predict", ["--device", "cuda"], "not on cuda"),
        ("embed", ["-o", "out"], "gives logits, not embedding"),
        ("embed", ["-o", "out", "--what", "logits", "--max-patches", "9"], "max_patches was decided"),
    ],
)
def test_what_was_decided_at_the_export_is_said(
    verb: str, options: list[str], words: str, exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = run(verb, exported(".onnx"), IMAGES[0], "--workers", "0", *options)
    assert code == 1
    assert words in err
    assert "hint: " in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_weights_are_not_read_from_a_program(suffix: str, exported: Exported) -> None:
    with pytest.raises(vit_hub.CheckpointError, match=r"is a program for \w+ that vit-hub export wrote") as caught:
        vit_hub.load(exported(suffix))
    assert "checkpoint that it was exported from" in caught.value.hint


def test_an_empty_archive_is_no_program(tmp_path: Path) -> None:
    path = tmp_path / "empty.pt2"
    zipfile.ZipFile(path, "w").close()
    assert exported_file(path) is None


def test_a_damaged_file_is_an_error(exported: Exported, tmp_path: Path) -> None:
    path = tmp_path / "lonely.xml"
    path.write_bytes(exported(".xml").read_bytes())
    code, _, err = run("predict", path, IMAGES[0])
    assert code == 1
    assert "openvino cannot open it" in err
    path.write_text(path.read_text().replace("&quot;depth&quot;", "&quot;length&quot;"))
    with pytest.raises(vit_hub.CheckpointError, match="cannot be read"):
        exported_file(path)
    path.write_text(path.read_text().replace("&quot;image_size&quot;: [", "&quot;image_size&quot;: [true, "))
    with pytest.raises(vit_hub.CheckpointError, match=r"image_size\[0\]: a whole number is expected"):
        exported_file(path)


@pytest.mark.parametrize("kind", KINDS)
def test_the_name_of_an_output_is_that_output(kind: str) -> None:
    model = random_model(KINDS[kind])
    images = random_images(model.config)
    name = output_name(model)
    with torch.inference_mode():
        assert torch.equal(output_function(model, name)(images), model(images))
    assert name in ("logits", "projection", "embedding", "tokens", "output")


@pytest.mark.skipif(sys.platform == "win32", reason="signals of a process")
@pytest.mark.parametrize(
    "gone", ["del models[0]; del models[0]", "other = Thread(target=models.clear); other.start(); other.join()"]
)
def test_a_signal_is_handled_after_models_of_openvino_are_gone(gone: str, exported: Exported) -> None:
    program = "import os, signal, sys; from pathlib import Path; from threading import Thread\n"
    program += "from vit_hub.exporting.to_openvino import open_program\n"
    program += "signal.signal(signal.SIGUSR1, lambda *_: print('handled'))\n"
    program += "models = [open_program(Path(sys.argv[1]), 'float32') for _ in range(2)]\n"
    program += f"{gone}\nos.kill(os.getpid(), signal.SIGUSR1)"
    command = [sys.executable, "-W", "ignore", "-c", program, exported(".xml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="limits of a process")
def test_a_program_for_which_the_disk_has_no_room(tmp_path: Path) -> None:
    program = "import resource, signal, sys, vit_hub\n"
    program += "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    program += "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000,) * 2)\n"
    program += "try: vit_hub.export('vit-nano-digits', sys.argv[1])\nexcept vit_hub.VitHubError as error: print(error)"
    command = [sys.executable, "-W", "ignore", "-c", program, tmp_path / "m.pt2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, "File too large" in done.stdout) == (0, True), done.stderr
    assert not (tmp_path / "m.pt2").exists()


def test_a_large_description_of_a_network_takes_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "wide.xml"
    path.write_bytes(b'<?xml version="1.0"?><net>' + b"<layer/>" * 1_000_000 + b"</net>")
    tracemalloc.start()
    try:
        assert program_facts(path) is None
        assert tracemalloc.get_traced_memory()[1] < 2 * HEADER_BYTES.most
    finally:
        tracemalloc.stop()
