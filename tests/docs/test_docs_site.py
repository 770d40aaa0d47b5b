"""The documentation site builds, fetches nothing, and its pages are true: code, notebooks, names, shapes."""

from __future__ import annotations

import json
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import code_excerpts
import pytest
import torch

import vit_hub
from vit_hub.cli import main

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
NOTEBOOKS = sorted(DOCS.glob("notebooks/*.ipynb"))


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks like a clone, without a network."""

    def refuse(*arguments: object) -> None:
        raise AssertionError(f"a connection is opened: {arguments}")

    for name in ("vit_hub", "docs"):
        (tmp_path / name).symlink_to(ROOT / name, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VIT_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return tmp_path


def blocks(document: str, language: str) -> list[str]:
    text = (DOCS / document).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_converting(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for line in "".join(blocks("converting.md", "sh")).splitlines():
        with pytest.raises(SystemExit) as stopped:
            main(shlex.split(line)[1:])
        assert stopped.value.code == 0, capsys.readouterr().err
    assert capsys.readouterr().out.count("same weights  yes") == 2
    assert (clone / "digits.npz").read_bytes() == (ROOT / "vit_hub/data/vit_nano_digits.npz").read_bytes()
    for code in blocks("converting.md", "python"):
        exec(compile(code, "converting.md", "exec"), {})
    assert capsys.readouterr().out.startswith("digits_timm {}\n")


@pytest.mark.filterwarnings("ignore:no preprocessing is recorded")
def test_quick_start(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib").use("agg")
    import photo_pictures

    config = vit_hub.ViTConfig(image_size=70, patch_size=14, embed_dim=12, depth=2, num_heads=6, mlp_dim=8)
    model = vit_hub.VisionTransformer(config).save("tiny.safetensors")
    seen = photo_pictures.run_quick_start(str(model))
    assert tuple(seen["images"].shape) == (1, 3, 448, 448)
    assert tuple(seen["colours"].shape) == (32, 32, 3)
    assert (clone / "quickstart.png").stat().st_size > 10_000


@pytest.mark.parametrize("path", code_excerpts.DOCUMENTS, ids=lambda path: path.name)
def test_excerpts_are_the_source(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert code_excerpts.updated(text) == text, "run: python tools/code_excerpts.py"
    assert text.count("<!-- code:") == len(code_excerpts.EXCERPT.findall(text))


def test_an_excerpt_that_is_gone_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"no Mlp\.forward with lines from 'no such line'"):
        code_excerpts.excerpt("vit_hub/model/layers.py", "Mlp.forward", "no such line", "return")
    with pytest.raises(ValueError, match=r"no Mlp\.backward"):
        code_excerpts.excerpt("vit_hub/model/layers.py", "Mlp.backward", None, None)


def test_shapes_of_the_paper() -> None:
    config = vit_hub.get_config("vit-b16")
    with torch.device("meta"), torch.no_grad():
        model = vit_hub.VisionTransformer(config)
        images = torch.zeros(2, 3, 224, 224)
        found = {
            "x": model.patch_embed(images),
            "tokens": model.forward_features(images),
            "y": model.embed(images),
            "logits": model(images),
            "A": model.attention_maps(images)[-1],
        }
        q, _, _ = model.blocks[0].attn.qkv_heads(found["tokens"])  # type: ignore[operator, union-attr]
    shapes = {**{name: tuple(value.shape) for name, value in found.items()}, "q": tuple(q.shape)}
    shapes |= {name: tuple(value.shape) for name, value in model.state_dict().items()}
    text = (DOCS / "paper.md").read_text(encoding="utf-8")
    for name, shape in {
        "x": "[B, 196, 768]",
        "tokens": "[B, 197, 768]",
        "y": "[B, 768]",
        "logits": "[B, 1000]",
        "A": "[B, 12, 197, 197]",
        "q": "[B, 12, 197, 64]",
        "patch_embed.proj.weight": "[768, 3, 16, 16]",
        "cls_token": "[1, 1, 768]",
        "pos_embed": "[1, 197, 768]",
        "blocks.0.attn.qkv.weight": "[2304, 768]",
        "blocks.0.attn.proj.weight": "[768, 768]",
        "blocks.0.mlp.fc1.weight": "[3072, 768]",
        "blocks.0.mlp.fc2.weight": "[768, 3072]",
    }.items():
        assert str(list(shapes[name])).replace("[2,", "[B,") == shape, name
        assert f" {shape}" in text, name


def test_the_paper_names_fields_of_the_config() -> None:
    text = (DOCS / "paper.md").read_text(encoding="utf-8")
    changes = "".join(re.findall(r"\*\*What families changed\.\*\*.*?\n\n", text, re.DOTALL))
    named = {
        name for group in re.findall(r"\((`[a-z_]+`(?:, `[a-z_]+`)*)\)", changes) for name in group[1:-1].split("`, `")
    }
    assert len(named) > 20
    assert named <= set(vars(vit_hub.ViTConfig()))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_put_out_what_they_show(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("VIT_HUB_OFFLINE", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    stored = nbformat.read(path, as_version=4)
    fresh = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(fresh, timeout=120, kernel_name="python3").execute()

    def shown(notebook: Any) -> list[str]:
        outputs = [cell.get("outputs", []) for cell in notebook.cells]
        return ["".join(item.get("text") or ", ".join(sorted(item["data"])) for item in items) for items in outputs]

    assert shown(fresh) == shown(stored)


def test_every_public_name_is_in_the_reference() -> None:
    named = re.findall(r"^::: vit_hub\.(\w+)$", (DOCS / "reference.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(named) == len(set(named))
    assert set(named) == set(vit_hub.__all__) - {"__version__"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built with warnings as errors."""
    pytest.importorskip("mkdocs", reason="pip install 'vit-hub[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_site_has_its_pages(site: Path) -> None:
    sources = {path.relative_to(DOCS).with_suffix(".html").as_posix() for path in (*DOCS.glob("*.md"), *NOTEBOOKS)}
    assert sources <= {path.relative_to(site).as_posix() for path in site.rglob("*.html")}
    index = (site / "index.html").read_text(encoding="utf-8")
    assert 'href="catalogue/index.html"' in index
    assert 'href="hub.html"' in index  # README's docs/hub.md
    models = (site / "catalogue" / "models.js").read_text(encoding="utf-8")
    assert json.loads(models.removeprefix("const CATALOGUE = ")[:-2])["models"]
    paper = (site / "paper.html").read_text(encoding="utf-8")
    assert paper.count('<math xmlns="http://www.w3.org/1998/Math/MathML" display="block">') >= 6
    assert "$$" not in paper
    reference = (site / "reference.html").read_text(encoding="utf-8")
    for name in set(vit_hub.__all__) - {"__version__"}:
        assert f'id="vit_hub.{name}"' in reference, name
    assert not re.search(r":(func|class|meth|data):", reference)


def test_the_site_fetches_nothing(site: Path) -> None:
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        loads = re.findall(r"<(?:script|img|iframe|source)\b[^>]*?\bsrc=\"?([^\"\s>]+)", text)
        loads += re.findall(r"<link\b[^>]*?\brel=\"?(?:stylesheet|preconnect|icon)\b[^>]*?\bhref=\"?([^\"\s>]+)", text)
        assert not [address for address in loads if re.match(r"(https?:)?//", address)], path


def test_pages_open_from_files_on_any_screen(site: Path, browser: Any) -> None:
    page = browser.new_page(viewport={"width": 400, "height": 800}, offline=True)
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text))
    page.on("request", lambda request: wrong.append(request.url) if request.url.startswith("http") else None)
    for name in ("index", "quickstart", "paper", "reference", "notebooks/looking"):
        page.goto((site / f"{name}.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= 400, name
        assert page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth)"), name
    page.close()
    assert wrong == []
