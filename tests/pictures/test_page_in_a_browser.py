"""The page opened in a real browser: it shows its pictures and asks for nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

import vit_hub
from vit_hub.pictures import show

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SEVEN = Path(vit_hub.__file__).parent / "data" / "digits" / "7.png"

pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs chromium, which is not installed")


def opened(page: Path, width: int = 900) -> tuple[set[str], Image.Image]:
    """The hosts that a browser asks for with a page open, and a screenshot. No name leads anywhere."""
    log, shot = page.with_suffix(".json"), page.with_suffix(".png")
    options = (
        *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--user-data-dir={page.with_suffix('')}"),
        *("--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND", f"--window-size={width},1200"),
        *(f"--log-net-log={log}", f"--screenshot={shot}", "--hide-scrollbars"),
    )
    subprocess.run([str(BROWSER), *options, page.as_uri()], capture_output=True, check=True, timeout=120)
    events = json.loads(log.read_text(encoding="utf-8"))["events"]
    addresses = [event["params"].get("url", "") for event in events if isinstance(event.get("params"), dict)]
    return {host for host in (urlsplit(address).hostname for address in addresses) if host}, Image.open(shot)


def test_the_page_shows_its_pictures_and_fetches_nothing(tmp_path: Path) -> None:
    page, control = tmp_path / "page.html", tmp_path / "control.html"
    shown = show("vit-nano-digits", SEVEN, what=["top", "rollout", "filters"])
    shown.write(page)
    # A page that does fetch something: it also shows for what the browser asks on its own.
    control.write_text('<img src="http://resource.invalid/a.png">')
    hosts, shot = opened(page)
    own, _ = opened(control)
    assert "resource.invalid" in own
    assert hosts <= own - {"resource.invalid"}
    pixels = np.asarray(shot.convert("RGB")).reshape(-1, 3)
    bar = np.abs(pixels.astype(int) - (0x00, 0x72, 0xB2)).max(axis=1) < 12  # the bar of the first class
    assert bar.sum() > 2000
