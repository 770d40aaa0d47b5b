"""The recipes of README and docs/hub.md work as shown, without a network."""

from __future__ import annotations

import re
import shlex
import socket
from pathlib import Path

import numpy as np
import pytest
import torch

import vit_hub
from vit_hub.cli import main
from vit_hub.hub.names.locate import locate

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
HUB = (ROOT / "docs" / "hub.md").read_text(encoding="utf-8")
SHIPPED = ROOT / "vit_hub" / "data" / "vit_nano_digits.npz"


def blocks(language: str, text: str = README) -> list[str]:
    """The code blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(text: str = README) -> list[list[str]]:
    """Every command of the shell blocks, ``a && b`` counted as two."""
    lines = "".join(blocks("sh", text)).splitlines()
    return [shlex.split(part) for line in lines for part in line.split(" && ")]


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the output of a ``vit-hub`` command that must succeed."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 0, capsys.readouterr().err
    return capsys.readouterr().out


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks like a clone, with an empty cache and no network."""

    def refuse(*arguments: object) -> None:
        raise AssertionError(f"the README opens a connection: {arguments}")

    (tmp_path / "vit_hub").symlink_to(ROOT / "vit_hub", target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VIT_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return tmp_path


def arrays(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Name -> dtype, shape and bytes of every array of an npz file."""
    with np.load(path) as file:
        return {name: (array.dtype.str, array.shape, array.tobytes()) for name, array in file.items()}


def test_python_recipes(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scope: dict[str, object] = {}
    printed = []
    for code in blocks("python"):
        exec(compile(code, "README.md", "exec"), scope)
        printed.append(capsys.readouterr().out.strip())
    assert not printed.pop(0)  # the first screen loads a model
    assert printed[0] == "48 (0.5,)\n(12, 12)"
    assert [tuple(scope[name].shape) for name in ("images", "logits", "embeddings", "tokens")] == [  # type: ignore[attr-defined]
        (2, 1, 32, 32),
        (2, 10),
        (2, 48),
        (2, 65, 48),
    ]
    assert printed[1] == "['3', '7']"
    assert printed[2] == "digits_hf {} convention of google-research/vision_transformer"
    assert printed[3] == "True True"
    assert "vit-nano-digits" in printed[-1].partition(" | ")[2]
    assert arrays(clone / "digits.npz") == arrays(SHIPPED)
    assert "ViTForImageClassification" in type(scope["hugging_face"]).__name__
    assert torch.equal(vit_hub.load("mine.safetensors")(scope["images"]), scope["again"](scope["images"]))  # type: ignore[operator]


def test_what_other_libraries_make_of_the_folders(clone: Path) -> None:
    import timm
    import transformers

    for target in ("hf", "timm"):
        vit_hub.convert("vit-nano-digits", f"digits_{target}", to=target)
    model = vit_hub.load("vit-nano-digits")
    images = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted = model(images)
        hugging_face = transformers.AutoModelForImageClassification.from_pretrained("digits_hf").eval()
        assert float((hugging_face(images).logits - wanted).abs().max()) <= 2e-5
        theirs = timm.create_model("local-dir:digits_timm", pretrained=True).eval()
        assert float((theirs(images) - wanted).abs().max()) <= 2e-5
        theirs.load_state_dict(vit_hub.to_timm(model), strict=True)


def test_a_tuned_model_converts_back(clone: Path) -> None:
    model = vit_hub.load("vit-nano-digits")
    with torch.no_grad():
        model.head.bias += 1
    saved = model.save("mine.safetensors")
    vit_hub.convert(saved, "mine.npz", to=vit_hub.open_checkpoint(saved).provenance["format"])
    shipped, tuned = arrays(SHIPPED), arrays(clone / "mine.npz")
    assert [name for name in shipped if shipped[name] != tuned[name]] == ["head/bias"]


def test_commands(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran = [command[1:] for command in commands() if command[0] == "vit-hub"]
    assert [command[0] for command in ran] == ["predict", "embed", "search", "convert", "convert", "inspect", "compare"]
    printed = [run(arguments, capsys) for arguments in ran]
    assert re.search(r"png\n +\d+\.\d+%  7\n", printed[0])
    assert printed[2].splitlines()[1].split() == ["1.0000", "7.png"]
    assert "same numbers  yes" in printed[-1]
    assert arrays(clone / "digits.npz") == arrays(SHIPPED)


def test_commands_of_the_first_screen_are_ones(capsys: pytest.CaptureFixture[str]) -> None:
    ran = [shlex.split(line, comments=True)[1:] for line in "".join(blocks("bash")).splitlines()]
    assert [verb for verb, *_ in ran] == ["list", "predict", "convert", "embed"]
    for verb, model, *rest in ran:
        assert model == "dinov2" if verb == "list" else locate(model)[0] is not None
        helped = run([verb, "--help"], capsys)
        assert all(option in helped for option in rest if option.startswith("-"))
    assert f"# {len(vit_hub.list_models())} sets of weights" in README


def test_commands_of_the_hub(clone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    ran = []
    for command in commands(HUB):
        if command[0].startswith("VIT_HUB_MIRROR="):
            monkeypatch.setenv(*command.pop(0).split("=", 1))
        ran.append((command[1], run(command[1:], capsys)))
    assert [verb for verb, _ in ran] == ["lock", "download", "verify", "mirror", "download"]
    assert Path(ran[1][1].strip()).samefile(ran[4][1].strip())
    assert all(line.startswith(("status", "ok")) for line in ran[2][1].splitlines())


def test_set_up_commands_are_those_of_ci() -> None:
    set_up = [line for line in "".join(blocks("sh")).splitlines() if line.startswith("pip ")]
    assert len(set_up) == 2
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    position = ci.index(set_up[1].split(" && ")[0])
    assert ci[position : position + 2] == set_up[1].split(" && ")


def test_names_lead_to_models() -> None:
    assert f"`vit-hub list` has {len(vit_hub.list_models())} names" in README
    items = "".join(re.findall(r"^\* (?:a|timm).*\n", README, re.MULTILINE))
    names = re.findall("`(.*?)`", items)
    assert len(names) == 4
    for name in (*names, *re.findall(r"^\| (?:a name|timm's name|a Hugging|a file of).*?`(.*?)`", HUB, re.MULTILINE)):
        entry, sources = locate(name)
        assert entry is not None
        assert sources


@pytest.mark.parametrize(
    "document",
    [
        "README.md",
        "CONTRIBUTING.md",
        "docs/architecture.md",
        "docs/adding-a-format.md",
        "docs/converting.md",
        "docs/hub.md",
        "docs/paper.md",
        "docs/performance.md",
        "docs/quickstart.md",
        "docs/scale.md",
    ],
)
def test_links_lead_somewhere(document: str) -> None:
    path = ROOT / document
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
    assert links or document != "README.md"
    for link in links:
        assert link.startswith("https://") or (path.parent / link).exists(), link
