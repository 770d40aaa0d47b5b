"""Folders and files that belong together: replaced as a whole, whatever happens meanwhile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch.distributed.checkpoint import save as save_dcp
from transformers import ViTConfig, ViTForImageClassification

PROGRAM = Path(__file__).parents[1] / "support" / "killing.py"
KILLS = int(os.environ.get("VIT_HUB_TEST_KILLS", "6"))
needs_kills = pytest.mark.skipif(sys.platform == "win32", reason="Windows knows neither fork nor SIGKILL")
OTHERS = {"README.md": "mine", ".git/HEAD": "ref", ".git/objects/ab/cd": "object", "notes/empty.txt": ""}


def hf_model(seed: int) -> ViTForImageClassification:
    torch.manual_seed(seed)
    config = ViTConfig(
        hidden_size=96, num_hidden_layers=3, num_attention_heads=3, intermediate_size=384, image_size=64, num_labels=5,
        layer_norm_eps=1e-6,
    )  # fmt: skip
    return ViTForImageClassification(config).eval()


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Different models: in shards of transformers, of torch.distributed, in one file, and with a decoder."""
    folder = tmp_path_factory.mktemp("sources")
    hf_model(0).save_pretrained(folder / "sharded", max_shard_size="400KB")
    assert (folder / "sharded" / "model.safetensors.index.json").is_file()
    save_dcp(hf_model(1).state_dict(), checkpoint_id=folder / "dcp", no_dist=True)
    hf_model(2).save_pretrained(folder / "hf")
    with_rest = {**hf_model(3).state_dict(), "decoder.weight": torch.randn(300, 300)}
    save_file({name: tensor.contiguous() for name, tensor in with_rest.items()}, folder / "rest.safetensors")
    for number, size in enumerate((1 << 20, 1 << 22)):
        (folder / f"{number}.xml").write_text(f"<?xml version='1.0'?><net>{number}</net>")
        (folder / f"{number}.bin").write_bytes(os.urandom(size))
    return folder


BARE = {"num_heads": 3, "norm_eps": 1e-6}
# destination -> what is written there, one over the other.
CASES: dict[str, list[dict[str, Any]]] = {
    "hf": [{"source": "sharded", "to": "hf"}, {"source": "hf", "to": "hf", "dtype": "float16"}],
    "dcp": [{"source": "dcp", "to": "timm", "overrides": BARE}, {"source": "sharded", "to": "hf"}],
    "canonical": [{"source": "hf"}, {"source": "sharded", "to": "hf"}],
    "rest": [
        {"source": "rest.safetensors", "to": "hf", "overrides": BARE, "keep_rest": True},
        {"source": "hf", "to": "timm"},
    ],
    "inside": [{"source": "dcp", "to": "timm", "overrides": BARE}, {"source": "sharded", "to": "hf"}],
    "file.safetensors": [
        {"source": "rest.safetensors", "overrides": BARE, "keep_rest": True},
        {"source": "hf", "dtype": "float16"},
    ],
    "program.xml": [{"files": ["0.xml", "0.bin"]}, {"files": ["1.xml", "1.bin"]}],
}


@pytest.fixture(scope="session")
def observed(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, int]]:
    """Remains of the kills of every case, from one process that imports everything once."""
    folder = tmp_path_factory.mktemp("replaced")
    cases = [
        {
            "destination": str(folder / name.partition(".")[0] / name),
            "jobs": [{key: placed(sources, key, value) for key, value in job.items()} for job in jobs],
            "others": OTHERS,
            "inside": name == "inside",
        }
        for name, jobs in CASES.items()
    ]
    (folder / "cases.json").write_text(json.dumps(cases))
    done = subprocess.run(
        [sys.executable, str(PROGRAM), "replace", str(folder / "cases.json")],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "VIT_HUB_TEST_KILLS": str(KILLS)},
    )
    return dict(zip(CASES, json.loads(done.stdout), strict=True))


def placed(sources: Path, key: str, value: Any) -> Any:
    if key == "files":
        return [str(sources / name) for name in value]
    return str(sources / value) if key == "source" else value


@needs_kills
@pytest.mark.timeout(300 + 10 * KILLS)
@pytest.mark.parametrize("name", CASES)
def test_killed_at_random_moments(name: str, observed: dict[str, dict[str, int]]) -> None:
    seen = observed[name]
    print(seen)  # which pytest -rP shows
    assert (seen["killed"], seen["wrong"], seen["left"]) == (KILLS, 0, 0)
    assert seen["most_hidden"] <= 1
    if sys.platform == "linux" and "." not in name and name != "inside":
        assert seen["mended"] == 0  # there is no moment in between
