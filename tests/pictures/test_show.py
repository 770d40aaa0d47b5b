"""Pictures of models of every kind, from any source, and the files they are written to."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import warnings
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kinds import KINDS as MODELS
from PIL import Image
from small_models import configs, examples, randomise

import vit_hub
from vit_hub import ConfigError, VisionTransformer, ViTConfig, VitHubError
from vit_hub.converters.passport import Passport
from vit_hub.pictures import KINDS, show
from vit_hub.pictures.drawing import Picture
from vit_hub.pictures.facts import facts_of
from vit_hub.pictures.subject import Subject, View
from vit_hub.preprocessing.spec import Preprocessing

DIGITS = Path(vit_hub.__file__).parent / "data" / "digits"
NAME = "vit-nano-digits"
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
# What is left out of a model of each kind, with a word of the reason.
LEFT_OUT = {
    "plain": {"rope": "no rotary", "relative": "no relative"},
    "map": {"rope": "", "relative": ""},
    "average": {"rope": "", "relative": ""},
    "hybrid": {"filters": "resnet stem", "rope": "", "relative": ""},
    "rope": {"positions": "rotary", "resize": "no table", "relative": ""},
    "relative": {"positions": "relative", "resize": "no table", "rope": ""},
    "sincos": {"resize": "computed for each size", "rope": "", "relative": ""},
    "video": {"heads": None, "positions": "rotary", "resize": "", "relative": ""},
}


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "no preprocessing is recorded")
        yield


@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_model_has_pictures(name: str) -> None:
    model = VisionTransformer(MODELS[name]).eval()
    randomise(model)
    found = show(model, PIXELS)
    assert {picture.kind for picture in found.pictures} | set(found.left_out) == set(KINDS)
    assert len(found.pictures) >= 5
    for picture in found.pictures:
        assert "nan" not in picture.title
        assert not picture.title[0].islower()
        assert picture.caption.endswith(".")
    for kind, word in LEFT_OUT.get(name, {}).items():
        if word is None:
            assert kind not in found.left_out
        else:
            assert word in found.left_out[kind]


@examples(25)
@given(configs(in_chans=st.sampled_from((1, 3))))
def test_every_config_has_pictures_or_reasons(config: ViTConfig) -> None:
    found = show(VisionTransformer(config), PIXELS)
    assert {picture.kind for picture in found.pictures} | set(found.left_out) == set(KINDS)
    assert not [picture.title for picture in found.pictures if "nan" in picture.title]


def test_without_images_the_weights_are_shown() -> None:
    found = show(NAME)
    assert [picture.kind for picture in found.pictures] == ["filters", "positions", "resize"]
    assert found.left_out["rollout"] == "no image is given"
    assert dict(found.facts)["licence"] == "apache-2.0"
    # Nothing is asked for that only images need: neither preprocessing nor a warning that it is a guess.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = show(VisionTransformer(MODELS["plain"].replace(in_chans=4)))
    assert "4 channels" in found.left_out["filters"]
    with pytest.raises(ConfigError, match="1 or 3 channels"):
        show(VisionTransformer(MODELS["plain"].replace(in_chans=4)), PIXELS)


def test_pictures_are_wide_enough_and_titled() -> None:
    (picture,) = show(NAME, what="positions").pictures
    assert re.fullmatch(r"Learned positions of patches near .*: cosine similarity is 0\.47 .*", picture.title)
    figure = picture.figure()
    assert " ".join(figure.get_suptitle().split()) == picture.title
    assert picture.figure(titled=False).get_suptitle() == ""
    opened = Image.open(io.BytesIO(picture.png()))
    assert (opened.format, opened.width, opened.mode) == ("PNG", 1200, "RGB")
    sizes = [text.get_fontsize() for text in figure.findobj(lambda each: hasattr(each, "get_fontsize"))]
    assert min(sizes) >= 8


def test_images_come_from_files_folders_and_memory(tmp_path: Path) -> None:
    image = Image.open(DIGITS / "7.png")
    for source in (DIGITS / "7.png", image, [image], np.asarray(image), str(DIGITS / "7*.png")):
        (picture,) = show(NAME, source, what=["top"]).pictures
        assert picture.title == "Most probable: 7 (91%)"
    with pytest.warns(UserWarning, match="first 6 images"):
        (picture,) = show(NAME, DIGITS, what=["top"]).pictures
    assert picture.title.count("%") == 6
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(VitHubError, match=r"broken\.png: cannot"):
        show(NAME, [DIGITS / "7.png", tmp_path / "broken.png"], what="top")


def test_pixels_are_those_that_the_model_sees() -> None:
    spec = Preprocessing(
        image_size=(20, 20), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), interpolation="bicubic", crop_pct=2 / 3
    )
    view = View.of("noise", spec(PIXELS)[0], spec)
    np.testing.assert_array_equal(view.pixels, PIXELS[10:30, 5:25])


def test_formats_of_the_same_weights_have_the_same_representations(tmp_path: Path) -> None:
    vit_hub.convert(NAME, tmp_path / "digits.safetensors", to="canonical")
    image = DIGITS / "7.png"
    (same,) = show(NAME, image, what="cka", against=tmp_path / "digits.safetensors").pictures
    assert same.title.endswith("CKA is 1.0000 at every depth")
    model = VisionTransformer(ViTConfig(image_size=48, patch_size=8, in_chans=1, embed_dim=24, depth=2, num_heads=2))
    with pytest.warns(UserWarning, match="crop images differently"):
        (other,) = show(NAME, image, what="cka", against=model).pictures
    assert "of the two models" in other.title


def test_images_may_keep_their_aspect_ratio() -> None:
    model = VisionTransformer(MODELS["rope"]).eval()
    found = show(model, PIXELS, max_patches=12, what=["rollout", "pca", "cka"])
    assert len(found.pictures) == 3


def test_unknown_kinds_and_those_that_do_not_apply_are_refused() -> None:
    with pytest.raises(ConfigError, match="no picture 'rolout'") as caught:
        show(NAME, what="rolout")
    assert "rollout" in caught.value.hint
    with pytest.raises(ConfigError, match="rope: the model has no rotary positions; relative: "):
        show(NAME, what=["relative", "rope"])
    found = show(NAME, what=["rope", "filters"])
    assert list(found.left_out) == ["rope"]


def test_a_head_that_was_never_trained_has_no_classes() -> None:
    model = VisionTransformer(MODELS["plain"])
    torch.nn.init.zeros_(model.head.weight)  # type: ignore[arg-type]
    assert "never trained" in show(model, PIXELS).left_out["top"]


def test_files_are_written_where_they_are_asked_for(tmp_path: Path) -> None:
    found = show(NAME, DIGITS / "7.png", what=["top", "filters"])
    files = found.write(tmp_path / "new" / "folder")
    assert files == {kind: tmp_path / "new" / "folder" / f"{kind}.png" for kind in ("top", "filters")}
    together = found.write(tmp_path / "both.png")["top"]
    heights = [Image.open(file).height for file in files.values()]
    assert Image.open(together).size[0] == 1200
    assert Image.open(together).height > sum(heights)
    for out in (tmp_path / "new" / "folder", tmp_path / "both.png"):
        with pytest.raises(ConfigError, match="is there already"):
            found.write(out)
        found.write(out, overwrite=True)
    with pytest.raises(ConfigError, match=r"not written as \.jpg"):
        found.write(tmp_path / "a.jpg")
    # Another file in the folder is no obstacle, and stays.
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    found.write(tmp_path / "mine")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"
    assert not list(tmp_path.rglob("*.tmp"))


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_one_file_that_names_no_other(tmp_path: Path) -> None:
    found = show(NAME, DIGITS / "7.png")
    path = found.write(tmp_path / "page.html")["top"]
    text = path.read_text(encoding="utf-8")
    page = _Page(text)
    tags = [tag for tag, _ in page.tags]
    assert tags.count("img") == len(found.pictures) == 10
    assert not {"script", "iframe", "object", "embed", "audio", "video", "form"} & set(tags)
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "data", "action", "style", "onload"):
            value = attributes.get(name)
            if value is not None:
                assert value.startswith("data:") or (tag == "a" and value.startswith(("#", "https://arxiv.org/")))
    assert "url(" not in text
    assert "@import" not in text
    for picture in found.pictures:
        assert picture.title in page.text
    assert "the model has no rotary positions" in page.text
    assert "80,410" in page.text
    targets = {attributes.get("id") for _, attributes in page.tags}
    assert all(a["href"][1:] in targets for tag, a in page.tags if tag == "a" and a["href"].startswith("#"))  # type: ignore[index, union-attr]


def test_names_from_files_are_text_and_nothing_else(tmp_path: Path) -> None:
    evil = '</style><script>alert(1)</script><img src="http://example.invalid/x.png" onerror=alert(1)>'
    labels = [evil, r"$\frac{1}{", "猫\n\x1b[31m", "{title}", "a" * 500]
    torch.manual_seed(0)
    model = VisionTransformer(MODELS["plain"]).eval()
    model.passport = Passport(format="timm", labels=labels, license=evil, weights_id=evil)
    found = show(model, PIXELS, what=["top", "rope"])
    (top,) = found.pictures
    assert "\n" not in top.title
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        found.write(tmp_path / "page.html")
        found.write(tmp_path / "page.png")
    page = _Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "script" not in [tag for tag, _ in page.tags]
    assert len([tag for tag, _ in page.tags if tag == "img"]) == len(found.pictures)
    assert evil in page.text


def test_facts_say_what_a_model_is() -> None:
    model = vit_hub.load(NAME)
    facts = dict(facts_of(Subject(NAME, model), vit_hub.preprocess(model)))
    assert facts["image"] == "32x32 pixels, 1 channel"
    assert facts["encoder"] == "4 blocks, width 48, 3 heads, MLP 96"
    assert facts["classes"] == "10: 0, 1, 2, 3, 4, ..."
    assert all(facts.values())


def test_matplotlib_is_imported_when_it_is_used_and_its_absence_is_told() -> None:
    program = (
        "import sys, vit_hub\n"
        "vit_hub.pictures.cka\n"
        "assert 'matplotlib' not in sys.modules\n"
        "sys.modules['matplotlib'] = None\n"
        "try:\n    vit_hub.pictures.show('vit-nano-digits')\n"
        "except vit_hub.ConfigError as error:\n    print(error.hint)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "pip install 'vit-hub[plots]'"


def test_drawing_changes_nothing_for_others() -> None:
    import matplotlib

    def figures() -> list[int]:
        pyplot = sys.modules.get("matplotlib.pyplot")
        return pyplot.get_fignums() if pyplot is not None else []

    before, opened = dict(matplotlib.rcParams), figures()
    (picture,) = show(NAME, what="filters").pictures
    assert isinstance(picture, Picture)
    assert picture._repr_png_()[:4] == b"\x89PNG"
    assert dict(matplotlib.rcParams) == before
    assert figures() == opened
