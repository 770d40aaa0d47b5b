"""The JavaScript of the documents, run by Node where onnxruntime-web is installed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import vit_hub

DOCUMENT = Path(__file__).resolve().parents[2] / "docs/export.md"
MODULES = os.environ.get("VIT_HUB_NODE_MODULES", "")

pytestmark = pytest.mark.skipif(
    not (shutil.which("node") and Path(MODULES, "onnxruntime-web").is_dir()),
    reason="needs node and `npm install onnxruntime-web`, whose node_modules VIT_HUB_NODE_MODULES names",
)


def test_an_exported_model_computes_the_same(tmp_path: Path) -> None:
    (script,) = re.findall(r"```js\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    vit_hub.export("vit-nano-digits", tmp_path / "digits.onnx", with_preprocess=True)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 1), np.uint8)
    (tmp_path / "pixels.json").write_text(json.dumps(pixels.flatten().tolist()))
    (tmp_path / "run.mjs").write_text(script)
    (tmp_path / "node_modules").symlink_to(Path(MODULES).resolve())
    done = subprocess.run(["node", "run.mjs"], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    import onnxruntime

    session = onnxruntime.InferenceSession(tmp_path / "digits.onnx", providers=["CPUExecutionProvider"])
    expected = session.run(None, {"images": pixels})[0][0]
    np.testing.assert_allclose(json.loads(done.stdout), expected, rtol=0, atol=1e-5)
