"""Text from files and servers that would do something to a terminal."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result
from safetensors.numpy import load_file, save_file

import vit_hub
from vit_hub.shown import visible

Run = Callable[..., Result]
EVIL = "\x1b]0;PWNED\x07\x1b]52;c;ZXZpbA==\x07\x1b[2J\x1b[31m\r\x9b31m\u202e\u2066\nvit-hub: error: forged"
NAME = "vit-nano-digits"
IMAGE = Path(vit_hub.__file__).parent / "data/digits/7.png"


def test_visible_leaves_plain_text_alone() -> None:
    for text in ("plain", "tab\tbed", "Größe 12", "नमस्ते", "\u200c\u200d👩‍🚀", "caf\udce9"):
        assert visible(text) == text
    assert visible("a\x1b[31mb\x9b\u202ec\nd") == "a\\x1b[31mb\\x9b\\u202ec\\nd"


def timm_tensors(folder: Path) -> dict[str, np.ndarray]:
    vit_hub.convert(NAME, folder / "timm", to="timm")
    return load_file(next((folder / "timm").glob("*.safetensors")))


def unknown_tensor(folder: Path) -> list[object]:
    save_file({**timm_tensors(folder), "blocks.0." + EVIL: np.zeros(2, np.float32)}, folder / "a.safetensors")
    return ["inspect", folder / "a.safetensors"]


def dropped_tensor(folder: Path) -> list[object]:
    weights = {name: torch.from_numpy(values) for name, values in timm_tensors(folder).items()}
    torch.save({"model": weights, "optimizer": {"state": {EVIL: torch.zeros(2)}}}, folder / "a.pth")
    return ["inspect", folder / "a.pth", "--set", "num_heads=3"]


def label(folder: Path) -> list[object]:
    return ["predict", config_with(folder, id2label={str(i): f"{i}{EVIL}" for i in range(10)}), IMAGE]


def lone_label(folder: Path) -> list[object]:
    return ["predict", "-q", config_with(folder, id2label={str(i): f"{i}{EVIL}" for i in range(10)}), IMAGE]


def config_value(folder: Path) -> list[object]:
    return ["inspect", config_with(folder, hidden_act="gelu" + EVIL)]


def traceback(folder: Path) -> list[object]:
    return ["inspect", "--debug", config_with(folder, hidden_act="gelu" + EVIL)]


def config_with(folder: Path, **fields: object) -> Path:
    path = vit_hub.convert(NAME, folder / "hf", to="hf").path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    return path.parent


def file_name(folder: Path) -> list[object]:
    path = folder / ("a" + EVIL.replace("/", "") + ".safetensors")
    vit_hub.convert(NAME, path)
    return ["inspect", path]


def passport(folder: Path) -> list[object]:
    path = folder / "a.safetensors"
    vit_hub.convert(NAME, path)
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    about = json.loads(header["__metadata__"]["vit_hub.passport"])
    about |= {"license": EVIL, "labels": EVIL, "source": [{"file": EVIL, "size": 1, "sha256": EVIL}]}
    header["__metadata__"]["vit_hub.passport"] = json.dumps(about)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])
    return ["inspect", path]


def pickled_global(folder: Path) -> list[object]:
    program = b"\x80\x02cos\nsystem\x1b]0;PWNED\x07\n."
    with zipfile.ZipFile(folder / "a.pth", "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/version", b"3")
    with pytest.raises(Exception, match="PWNED"):
        pickle.loads(program)
    return ["inspect", folder / "a.pth"]


def argument(folder: Path) -> list[object]:
    return ["info", "no-" + EVIL]


CASES = (
    unknown_tensor,
    dropped_tensor,
    label,
    lone_label,
    config_value,
    traceback,
    file_name,
    passport,
    pickled_global,
    argument,
)


SEQUENCES = ("\x1b]", "\x1b[2J", "\x1b[31m\\", "\x07", "\x9b", "\u202e", "\u2066", "\nvit-hub: error: forged")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_nothing_hostile_is_written(case: Callable[[Path], list[object]], tmp_path: Path, run: Run) -> None:
    check(run(*case(tmp_path)).output)


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="the system has no such terminals")
def test_nothing_reaches_a_terminal(tmp_path: Path) -> None:
    check(on_terminal([sys.executable, "-m", "vit_hub", *map(str, label(tmp_path))]).decode())


def check(output: str) -> None:
    assert "PWNED" in output
    assert [sequence for sequence in SEQUENCES if sequence in output] == [], output


def on_terminal(command: list[str]) -> bytes:
    """Return what a command writes to a terminal."""
    ours, theirs = os.openpty()
    running = subprocess.Popen(command, stdout=theirs, stderr=theirs)
    os.close(theirs)
    output = b""
    while True:
        try:
            piece = os.read(ours, 1 << 16)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        output += piece
    running.wait()
    os.close(ours)
    return output
