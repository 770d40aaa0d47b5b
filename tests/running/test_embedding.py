"""Folders of embeddings: the right rows, each once, whatever happens in between."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import torch
from interrupting import COMMAND
from noise import save_noise
from servers import Reply, serving

import vit_hub
from vit_hub.errors import ConfigError, VitHubError
from vit_hub.model.config import ViTConfig
from vit_hub.running.folder import Folder, read_manifest
from vit_hub.running.models import own_gpu
from vit_hub.running.neighbours import knn
from vit_hub.running.outputs import read_rows
from vit_hub.running.sources import Sources

NAME = "vit-nano-digits"


def rows(out: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = ds.dataset(out).to_table().to_pylist()
    return found


def one_by_one(paths: list[Path], **options: Any) -> np.ndarray:
    model = vit_hub.load(NAME, **options)
    with torch.inference_mode():
        return torch.cat([model.embed(vit_hub.preprocess(model)(path)) for path in paths]).numpy()


@pytest.mark.parametrize("workers", [0, 2])
def test_rows_are_what_the_model_gives_one_by_one(workers: int, photos: Path, tmp_path: Path) -> None:
    report = vit_hub.embed(NAME, photos, tmp_path / "out", batch_size=1, shard_size=5, workers=workers)
    assert (report.images, report.rows, report.errors, report.shards, report.complete) == (13, 13, 0, 3, True)
    items = list(Sources.of(photos).items())
    found = rows(tmp_path / "out")
    assert [row["id"] for row in found] == list(range(13))
    assert [(row["path"], row["label"]) for row in found] == [(item.path, item.label) for item in items]
    assert found[0] | {"embedding": None} == {
        "id": 0, "path": "cat/01.png", "label": "cat", "width": 50, "height": 41, "embedding": None
    }  # fmt: skip
    expected = one_by_one([photos / item.path for item in items])
    assert np.array_equal(np.array([row["embedding"] for row in found], np.float32), expected)
    many = vit_hub.embed(NAME, photos, tmp_path / "many", workers=workers)
    assert many.shards == 1
    got = np.array([row["embedding"] for row in rows(tmp_path / "many")], np.float32)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


def test_the_folder_says_what_it_holds(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    vit_hub.embed(NAME, photos, out, normalize=True, store="float16", preprocessing={"mean": 0.25}, image_size=48)
    manifest = json.loads((out / "_manifest.json").read_text())
    assert manifest["weights"]["id"] == NAME
    assert manifest["weights"]["sha256"] == vit_hub.registry.get_entry(NAME).sources[0].sha256
    assert manifest["version"] == vit_hub.__version__
    assert manifest["passport"]["format"] == "vit_jax"
    assert manifest["preprocessing"]["mean"] == [0.25]
    assert manifest["preprocessing"]["image_size"] == [48, 48]
    names = ("pooling", "dtype", "stored", "normalize", "what", "shape")
    assert [manifest[name] for name in names] == ["cls", "float32", "float16", True, "embedding", [48]]
    dataset = ds.dataset(out)
    assert json.loads(dataset.schema.metadata[b"vit_hub.manifest"]) == manifest
    assert dataset.schema.field("embedding").type == pa.list_(pa.float16(), 48)
    assert dataset.schema.field("id").type == pa.int64()
    lengths = [np.linalg.norm(np.array(row["embedding"], np.float32)) for row in rows(out)]
    assert lengths == pytest.approx([1.0] * 13, abs=2e-3)
    assert not [path.name for path in out.iterdir() if path.name.endswith(".tmp")]


@pytest.mark.parametrize("to", ["parquet", "npy", "safetensors", "lance"])
@pytest.mark.parametrize("store", ["float32", "float16"])
def test_every_format_holds_the_same(to: str, store: str, photos: Path, tmp_path: Path) -> None:
    if to == "lance":
        pytest.importorskip("lance")
    (photos / "cat" / "00.jpg").write_bytes(b"broken")
    expected = vit_hub.embed(NAME, photos, tmp_path / "a", store=store, shard_size=6)
    wanted = rows(tmp_path / "a")
    report = vit_hub.embed(NAME, photos, tmp_path / "b", store=store, shard_size=6, to=to)
    assert (report.rows, report.errors) == (expected.rows, expected.errors) == (13, 1)
    parts = list(read_rows(tmp_path / "b", to, range(report.shards)))
    assert [i for part in parts for i in part.ids] == [row["id"] for row in wanted]
    assert [label for part in parts for label in part.labels] == [row["label"] for row in wanted]
    assert [path for part in parts for path in part.paths] == [row["path"] for row in wanted]
    assert [size for part in parts for size in part.sizes] == [(row["width"], row["height"]) for row in wanted]
    embeddings = np.concatenate([part.embeddings for part in parts])
    assert embeddings.dtype == store
    assert np.array_equal(embeddings, np.array([row["embedding"] for row in wanted], store))


@pytest.mark.parametrize(
    ("what", "shape"), [("logits", (10,)), ("tokens", (65, 48)), ("block:-1", (65, 48)), ("block:1", (65, 48))]
)
def test_other_outputs(what: str, shape: tuple[int, ...], photos: Path, tmp_path: Path) -> None:
    vit_hub.embed(NAME, photos / "top.jpg", tmp_path / "out", what=what)
    (row,) = rows(tmp_path / "out")
    model = vit_hub.load(NAME)
    images = vit_hub.preprocess(model)(photos / "top.jpg")
    with torch.inference_mode():
        if what == "logits":
            expected = model(images)
        elif what == "tokens":
            expected = model.forward_features(images)
        else:
            (parts,) = model.forward_intermediates(
                images, [int(what[6:])], reshape=False, return_prefix_tokens=True, norm=False
            )
            expected = torch.cat(parts[::-1], 1)
    assert np.array(row["embedding"]).shape == shape
    assert np.array_equal(np.array(row["embedding"], np.float32), expected[0].numpy())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"what": "block:9"}, "blocks 0 to 3"),
        ({"what": "attention"}, "no 'attention' to compute"),
        ({"what": "projection"}, "no projection"),
        ({"what": "logits", "normalize": True}, "normalize is for embeddings"),
        ({"to": "csv"}, "no format 'csv'"),
        ({"store": "float64"}, "store must be one of"),
        ({"shard_size": 0}, "shard_size"),
        ({"preprocessing": {"colour": 1}}, "unknown preprocessing field"),
        ({"max_patches": 0}, "max_patches must be"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_written(
    options: dict[str, Any], message: str, photos: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        vit_hub.embed(NAME, photos, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_images_that_cannot_be_read_are_listed(photos: Path, tmp_path: Path) -> None:
    (photos / "cat" / "00.jpg").write_bytes(b"broken")
    whole = (photos / "dog" / "07.png").read_bytes()
    (photos / "dog" / "07.png").write_bytes(whole[:2000])
    out = tmp_path / "out"
    report = vit_hub.embed(NAME, [photos, tmp_path / "missing.jpg"], out, shard_size=4, batch_size=3)
    assert (report.images, report.rows, report.errors, report.complete) == (15, 12, 3, True)
    listed = [json.loads(line) for line in (out / "_errors.jsonl").read_text().splitlines()]
    assert [error["path"] for error in listed] == ["cat/00.jpg", "dog/07.png", str(tmp_path / "missing.jpg")]
    assert "No such file" in listed[2]["reason"]
    assert all(" at 0x" not in error["reason"] for error in listed)
    assert sorted([row["id"] for row in rows(out)] + [error["id"] for error in listed]) == list(range(15))
    again = vit_hub.embed(NAME, [photos, tmp_path / "missing.jpg"], out, shard_size=4)
    assert (again.rows, again.errors, again.skipped) == (0, 3, 4)
    (photos / "dog" / "07.png").write_bytes(whole)
    mended = vit_hub.embed(NAME, [photos, tmp_path / "missing.jpg"], out, shard_size=4, retry_errors=True)
    assert mended.errors == 2
    assert len(rows(out)) == 13
    assert len((out / "_errors.jsonl").read_text().splitlines()) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have names of text")
def test_names_that_are_no_text(tmp_path: Path) -> None:
    folder = save_noise(tmp_path / "images" / "a.png", 0).parent
    (folder / "a.png").rename(os.fsdecode(os.fsencode(folder) + b"/\xff.png"))
    for to in ("parquet", "safetensors", "npy"):
        report = vit_hub.embed(NAME, folder, tmp_path / to, to=to)
        assert (report.rows, report.errors) == (1, 0)
        (part,) = read_rows(tmp_path / to, to, [0])
        assert part.paths == ["\\xff.png"]


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no device that never ends")
def test_a_row_that_names_a_device(tmp_path: Path) -> None:
    row = pa.array([{"bytes": None, "path": "/dev/zero"}], pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    pq.write_table(pa.table({"image": row}), tmp_path / "a.parquet")
    report = vit_hub.embed(NAME, tmp_path / "a.parquet", tmp_path / "out", workers=0)
    assert (report.rows, report.errors) == (0, 1)
    assert "no file here" in (tmp_path / "out" / "_errors.jsonl").read_text()


def test_a_program_that_has_read_embeddings_ends_well(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / os.fsdecode(b"\xff" if sys.platform == "linux" else b"out")
    vit_hub.embed(NAME, photos, out)
    program = "import sys, pathlib\nfrom vit_hub.running.neighbours import read_rows\n"
    program += "print(len(*(part.ids for part in read_rows(pathlib.Path(sys.argv[1]), 'parquet', [0]))))"
    command = [sys.executable, "-c", program, out]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(6)]
    found = [(process.communicate()[0].split(), process.returncode) for process in running]
    assert found == [([b"13"], 0)] * 6


def test_file_systems_without_locks(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object, *arguments: object, **options: object) -> None:
        raise NotImplementedError

    (photos / "cat" / "00.jpg").write_bytes(b"broken")
    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    report = vit_hub.embed(NAME, photos, tmp_path / "out", shard_size=4)
    assert (report.rows, report.errors, report.complete) == (13, 1, True)


def test_a_shard_of_errors_alone(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    report = vit_hub.embed(NAME, tmp_path / "a.jpg", tmp_path / "out")
    assert (report.rows, report.errors) == (0, 1)
    assert rows(tmp_path / "out") == []


def test_only_missing_shards_are_computed(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    vit_hub.embed(NAME, photos, out, shard_size=4)
    before = rows(out)
    stamps = {path.name: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    (out / "_shards" / "part-00001.json").unlink()
    (out / "_shards" / "part-00003.json").unlink()
    (out / "part-00003.parquet").unlink()
    report = vit_hub.embed(NAME, photos, out, shard_size=4)
    assert (report.rows, report.skipped) == (5, 2)
    assert rows(out) == before
    changed = {path.name for path in out.glob("*.parquet") if path.stat().st_mtime_ns != stamps[path.name]}
    assert changed == {"part-00001.parquet", "part-00003.parquet"}


def test_other_weights_settings_and_images_are_refused(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    vit_hub.embed(NAME, photos, out, shard_size=6)
    before = rows(out)
    model = vit_hub.load(NAME)
    with torch.no_grad():
        model.head.bias += 1
    model.save(tmp_path / "tuned.safetensors")
    for source, options, differs in (
        (NAME, {"normalize": True}, "normalize false there, true now"),
        (NAME, {"dtype": "bfloat16"}, 'dtype "float32" there, "bfloat16" now'),
        (NAME, {"image_size": 48}, "preprocessing.image_size"),
        (NAME, {"what": "logits"}, 'what "embedding" there, "logits" now'),
        (NAME, {"preprocessing": {"std": 0.1}}, "preprocessing.std"),
        (tmp_path / "tuned.safetensors", {}, "weights.sha256"),
    ):
        with pytest.raises(ConfigError, match="was begun with other weights or settings") as refused:
            vit_hub.embed(source, photos, out, **{"shard_size": 6, **options})
        assert differs in refused.value.message
    save_noise(photos / "cat" / "02a.png", 50)
    with pytest.raises(ConfigError, match="other images: those of shard 0"):
        vit_hub.embed(NAME, photos, out, shard_size=6)
    (photos / "cat" / "02a.png").unlink()
    (photos / "top.jpg").unlink()
    with pytest.raises(ConfigError, match="other images"):
        vit_hub.embed(NAME, photos, out, shard_size=6)
    assert rows(out) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(VitHubError, match=r"holds thesis\.tex"):
        vit_hub.embed(NAME, photos, tmp_path / "mine")
    with pytest.raises(VitHubError, match="cannot be written"):
        vit_hub.embed(NAME, photos, photos / "cat" / "01.png")


def test_a_copy_of_the_weights_is_the_same(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    vit_hub.embed(NAME, photos, out, shard_size=6)
    (out / "_shards" / "part-00001.json").unlink()
    assert vit_hub.embed(NAME, [photos], out, shard_size=6, batch_size=2, workers=1).rows == 6


def test_processes_share_the_work(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (photos / "cat" / "00.jpg").write_bytes(b"broken")
    (photos / "dog" / "99.jpg").write_bytes(b"broken")
    alone = vit_hub.embed(NAME, photos, tmp_path / "alone", shard_size=4)
    assert alone.shards == 4
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "3")
        report = vit_hub.embed(NAME, photos, tmp_path / "shared", shard_size=4)
        assert report.complete == (rank == 2)
    assert rows(tmp_path / "shared") == rows(tmp_path / "alone")
    for name in ("_errors.jsonl", "_SUCCESS"):
        assert (tmp_path / "shared" / name).read_text() == (tmp_path / "alone" / name).read_text()
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(ConfigError, match="do not fit together"):
        vit_hub.embed(NAME, photos, tmp_path / "shared", shard_size=4)


def test_slurm_counts_only_where_it_started_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    from vit_hub.running.embedding import share_of_run

    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_NTASKS", "4")  # so it is in a batch script, too, which runs once
    assert share_of_run() == (0, 1)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    monkeypatch.setenv("SLURM_PROCID", "3")
    assert share_of_run() == (3, 4)


def test_every_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert own_gpu("cuda") == "cuda:0"
    monkeypatch.setenv("SLURM_LOCALID", "3")
    assert (own_gpu("cuda"), own_gpu("cuda:1"), own_gpu("cpu")) == ("cuda:3", "cuda:1", "cpu")
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert own_gpu("cuda") == "cuda:2"
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)  # the others are hidden from this process
    assert own_gpu("cuda") == "cuda:0"


@pytest.mark.filterwarnings("ignore:no preprocessing is recorded")
def test_images_of_their_own_sizes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=32, patch_size=4, embed_dim=32, depth=2, num_heads=2, mlp_dim=48, pos_embed="sincos2d"
    )
    vit_hub.VisionTransformer(config).save(tmp_path / "any.safetensors")
    shapes = [(20, 60), (60, 20), (33, 47), (16, 16), (90, 30)]
    images = [save_noise(tmp_path / "images" / f"{i:02}.png", i, shapes[i % 5]) for i in range(22)]
    options: dict[str, Any] = {"max_patches": 40, "batch_size": 2}
    vit_hub.embed(tmp_path / "any.safetensors", tmp_path / "images", tmp_path / "out", **options, shard_size=6)
    vit_hub.embed(tmp_path / "any.safetensors", tmp_path / "images", tmp_path / "t", **options, what="tokens")
    model = vit_hub.load(tmp_path / "any.safetensors", dynamic=True)
    prepare = vit_hub.preprocess(model)
    found, tokens = rows(tmp_path / "out"), rows(tmp_path / "t")
    for number, image in enumerate(images):
        height, width = shapes[number % 5]
        size = vit_hub.native_size((height, width), 4, 40)
        assert (found[number]["width"], found[number]["height"]) == (width, height)
        spec = vit_hub.Preprocessing.from_dict({**prepare.to_dict(), "crop_mode": "squash", "crop_pct": 1.0})
        with torch.inference_mode():
            pixels = spec.with_image_size(size)(image)
            expected, all_tokens = model.embed(pixels)[0], model.forward_features(pixels)[0]
        np.testing.assert_allclose(found[number]["embedding"], expected.numpy(), rtol=0, atol=1e-5)
        np.testing.assert_allclose(np.array(tokens[number]["embedding"]), all_tokens.numpy(), rtol=0, atol=1e-5)
    with pytest.raises(ConfigError, match="npy cannot hold outputs whose shapes differ"):
        vit_hub.embed(tmp_path / "any.safetensors", images, tmp_path / "n", max_patches=40, what="tokens", to="npy")


def test_addresses(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("vit_hub.hub.http.retry.pause", lambda seconds: None)
    content = (photos / "top.jpg").read_bytes()
    with serving() as server:
        good = server.add("/a.jpg", Reply(status=503), Reply(content))
        gone = server.url + "/gone.jpg"
        (tmp_path / "list.txt").write_text(f"{good}\n{gone}\n")
        report = vit_hub.embed(NAME, tmp_path / "list.txt", tmp_path / "out", workers=0)
    assert (report.rows, report.errors) == (1, 1)
    (row,) = rows(tmp_path / "out")
    assert row["path"] == good
    assert np.array_equal(np.array(row["embedding"], np.float32), one_by_one([photos / "top.jpg"])[0])
    assert json.loads((tmp_path / "out" / "_errors.jsonl").read_text())["path"] == gone


def test_fast_decoding_changes_pixels_a_little_and_is_recorded(tmp_path: Path) -> None:
    from PIL import Image

    smooth = np.linspace(0, 255, 700 * 900).reshape(700, 900).astype(np.uint8)
    Image.fromarray(smooth).save(tmp_path / "large.jpg")
    (exact, fast) = (tmp_path / "exact", tmp_path / "fast")
    vit_hub.embed(NAME, tmp_path / "large.jpg", exact)
    vit_hub.embed(NAME, tmp_path / "large.jpg", fast, fast_decode=True)
    assert json.loads((fast / "_manifest.json").read_text())["fast_decode"] is True
    (one,), (other,) = rows(exact), rows(fast)
    assert (other["width"], other["height"]) == (900, 700)
    difference = np.abs(np.array(one["embedding"]) - np.array(other["embedding"])).max()
    assert 0 < difference < 0.1


def test_a_model_in_memory(photos: Path, tmp_path: Path) -> None:
    model = vit_hub.load(NAME)
    vit_hub.embed(model, photos / "top.jpg", tmp_path / "out")
    vit_hub.embed(NAME, photos / "top.jpg", tmp_path / "named")
    assert rows(tmp_path / "out") == rows(tmp_path / "named")
    with torch.no_grad():
        model.head.bias += 1
    with pytest.raises(ConfigError, match=r"weights\.sha256"):
        vit_hub.embed(model, photos / "top.jpg", tmp_path / "out")
    with pytest.raises(ConfigError, match="dtype: options of loading"):
        vit_hub.embed(model, photos / "top.jpg", tmp_path / "out", dtype="float16")


def test_models_that_do_not_pool_have_tokens(photos: Path, tmp_path: Path) -> None:
    config = ViTConfig(image_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2, pool="none")
    with pytest.warns(UserWarning, match="no preprocessing is recorded"), pytest.raises(ConfigError, match="no pooled"):
        vit_hub.embed(vit_hub.VisionTransformer(config), photos, tmp_path / "out")


def test_values_beyond_float16_are_not_stored_as_infinity(photos: Path, tmp_path: Path) -> None:
    model = vit_hub.load(NAME)
    with torch.no_grad():
        model.norm.weight *= 1e6  # type: ignore[operator]
    with pytest.raises(VitHubError, match="do not fit float16"):
        vit_hub.embed(model, photos / "top.jpg", tmp_path / "out", store="float16")


PEAK = """
import resource, sys
import torch, vit_hub
torch.set_num_threads(1)
vit_hub.embed("vit-nano-digits", sys.argv[1], sys.argv[2], shard_size=256, workers=1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="units differ elsewhere")
def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    digits = sorted((Path(vit_hub.__file__).parent / "data" / "digits").glob("*.png"))
    peaks = []
    for count in (300, 3000):
        (tmp_path / f"{count}.txt").write_text("".join(f"{digit}\n" for digit in digits) * (count // 10))
        command = [sys.executable, "-c", PEAK, str(tmp_path / f"{count}.txt"), str(tmp_path / f"out{count}")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append([int(number) for number in done.stdout.split()])
    assert len(rows(tmp_path / "out3000")) == 3000
    for few, many in zip(*peaks, strict=True):
        assert many - few < 50_000  # KiB


KILLS = int(os.environ.get("VIT_HUB_TEST_KILLS", "2"))
# Each worker has an image of every batch, and many shards are left when a signal arrives, however busy the machine is.
BY_TWOS = ("--shard-size", 2, "--batch-size", 2, "--workers", 2)
needs_signals = pytest.mark.skipif(sys.platform == "win32", reason="Windows knows neither SIGKILL nor forks")


def begun(out: Path, condition: Callable[[], bool], *arguments: object) -> subprocess.Popen[str]:
    running = subprocess.Popen(
        [*COMMAND, "embed", NAME, *map(str, arguments), "-o", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for _ in range(6000):
        if condition() or running.poll() is not None:
            return running
        time.sleep(0.01)
    raise AssertionError("it did not begin")


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 96 images that take a while."""
    folder = tmp_path_factory.mktemp("many")
    for seed in range(96):
        save_noise(folder / f"{seed:03}.png", seed, (200, 200))
    return folder


@needs_signals
@pytest.mark.timeout(300 + 20 * KILLS)
def test_killed_at_random_moments(many: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"shard_size": 8, "batch_size": 4}
    vit_hub.embed(NAME, many, tmp_path / "whole", **options)
    expected = rows(tmp_path / "whole")
    generator = random.Random(0)
    for number in range(KILLS):
        out = tmp_path / f"out{number}"
        arguments = (many, "--shard-size", 8, "--batch-size", 4, "--workers", 2)
        done = generator.randrange(1, 10)
        running = begun(out, lambda done=done, out=out: len(list(out.glob("_shards/*.json"))) >= done, *arguments)  # type: ignore[misc]
        time.sleep(generator.uniform(0, 0.02))
        running.kill()
        running.communicate()
        assert all(row in expected for row in rows(out))
        report = vit_hub.embed(NAME, many, out, **options)
        assert report.skipped > 0 or running.returncode == 0
        assert rows(out) == expected
        assert len(list(out.glob("*.parquet"))) == 12
        assert not list(out.glob(".*.tmp"))


@needs_signals
def test_interrupted_it_says_how_to_go_on(many: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    running = begun(out, lambda: len(list(out.glob("_shards/*.json"))) >= 2, many, *BY_TWOS)
    running.send_signal(signal.SIGINT)
    _, stderr = running.communicate(timeout=60)
    assert running.returncode == 130, stderr
    error, hint = stderr.strip().splitlines()
    assert (error, "same command again" in hint) == ("vit-hub: error: interrupted", True)
    assert not list(out.glob(".*.tmp"))
    assert vit_hub.embed(NAME, many, out, shard_size=2).skipped >= 2
    assert [row["id"] for row in rows(out)] == list(range(96))


@needs_signals
def test_a_killed_worker_ends_the_run_with_a_reason(many: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    running = begun(out, lambda: len(list(out.glob("_shards/*.json"))) >= 2, many, *BY_TWOS)
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children")
    if not children.exists():
        pytest.skip("the system does not list children")
    os.kill(int(children.read_text().split()[-1]), signal.SIGKILL)
    _, stderr = running.communicate(timeout=60)
    assert running.returncode == 1
    assert "a process that reads images ended" in stderr
    vit_hub.embed(NAME, many, out, shard_size=2)
    assert [row["id"] for row in rows(out)] == list(range(96))


def test_without_pyarrow_other_formats_work(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ConfigError, match=r"vit-hub\[embed\]"):
        vit_hub.embed(NAME, photos, tmp_path / "out")
    assert vit_hub.embed(NAME, photos, tmp_path / "out", to="npy").rows == 13


MANIFEST: dict[str, Any] = {
    "weights": {"sha256": "0" * 64}, "preprocessing": {}, "what": "embedding", "normalize": False, "format": "npy",
    "stored": "float32", "shape": [4], "dtype": "float32", "model": "", "options": {}, "max_patches": None,
    "fast_decode": False,
}  # fmt: skip


def test_a_folder_knows_its_shards(tmp_path: Path) -> None:
    folder = Folder.prepare(tmp_path / "out", MANIFEST)
    assert folder.record(0) is None
    folder.finish(0, "d", 2, [])
    assert (folder.numbers(), folder.record(0)) == ([0], {"digest": "d", "rows": 2, "errors": []})
    assert not folder.conclude(2, 4)
    folder.finish(1, "e", 2, [])
    assert folder.conclude(2, 4)
    assert folder.complete


@pytest.mark.parametrize(
    "change",
    [
        *({"weights": {}}, {"shape": ["a"]}, {"shape": [10**30]}, {"format": "pickle"}, {"options": []}, {"model": 5}),
        *({"options": {"overrides": 1}}, {"max_patches": -1}),
    ],
    ids=str,
)
def test_a_damaged_manifest_is_one_error(tmp_path: Path, change: dict[str, Any]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "_manifest.json").write_text(json.dumps({**MANIFEST, **change}))
    for call in (lambda: read_manifest(out), lambda: knn(out, out)):
        with pytest.raises(VitHubError, match=r"_manifest\.json: cannot be read: it\."):
            call()


@pytest.mark.parametrize("text", ["[]", "{", '{"digest": 5}', "[" * 5000, '{"digest": "d", "rows": -1, "errors": []}'])
def test_a_damaged_record_of_a_shard_names_its_file(tmp_path: Path, text: str) -> None:
    folder = Folder.prepare(tmp_path / "out", MANIFEST)
    folder.finish(0, "d", 2, [])
    (folder.path / "_shards" / "part-00000.json").write_text(text)
    (folder.path / "_shards" / "part-x.json").write_text("{}")
    assert folder.numbers() == [0]
    with pytest.raises(VitHubError, match=r"part-00000\.json: cannot be read"):
        folder.record(0)
