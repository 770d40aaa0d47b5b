"""The catalogue of models: what its page has, and how it behaves in a browser."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import catalogue
import pytest

import vit_hub
from vit_hub.model.flops import forward_flops
from vit_hub.registry import get_entry
from vit_hub.weights_manifest import summary

NAME = "vit-b16.augreg2-in21k-ft-in1k-224"
HOSTILE = '<img src=x onerror="document.title=1">'


def data() -> dict[str, Any]:
    text = catalogue.files()["models.js"]
    found: dict[str, Any] = json.loads(text.removeprefix("const CATALOGUE = ").removesuffix(";\n"))
    return found


def test_every_model_is_in_it_as_the_registry_has_it() -> None:
    models = {model["id"]: model for model in data()["models"]}
    assert list(models) == vit_hub.list_models()
    for name, model in models.items():
        outline = summary(name)
        assert (model["params"], tuple(model["image"])) == (outline.params, outline.image_size)
        assert (model["gated"], tuple(model["formats"])) == (outline.gated, outline.formats)
    entry = get_entry(NAME)
    assert models[NAME]["flops"] == forward_flops(entry.config)
    assert models[NAME]["sources"][0]["sha256"] == entry.sources[0].sha256
    assert models[NAME]["metrics"][0]["kind"] == "imagenet-1k top-1"


def test_it_refers_to_its_own_files_only() -> None:
    files = catalogue.files()
    referred = re.findall(r"""(?:src|href)="([^"#]+)"|url\(([^)]+)\)""", files["index.html"] + files["catalogue.css"])
    assert {one or other for one, other in referred} - {"../index.html", "data:,"} == set(files) - {"index.html"}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("catalogue")
    catalogue.write(folder)
    return (folder / "index.html").as_uri()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """The catalogue opened from a file; anything that goes wrong in it, or that it fetches, fails the test."""
    opened = browser.new_page(viewport={"width": 1200, "height": 900}, offline=True)
    opened.set_default_timeout(10_000)
    wrong: list[str] = []
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("console", lambda message: wrong.append(message.text))
    opened.on("request", lambda request: wrong.append(request.url) if request.url.startswith("http") else None)
    opened.goto(address)
    yield opened
    assert wrong == []
    opened.close()


def rows(page: Any) -> list[str]:
    """Return the ids in the table."""
    found: list[str] = page.locator("#models tbody th").all_inner_texts()
    return found


def field(page: Any, name: str) -> Any:
    return page.locator(f"#filters [name={name}]")


def column(page: Any, title: str) -> list[str]:
    found: list[str] = page.locator(f'#models td[data-label="{title}"]').all_inner_texts()
    return found


def test_words_are_found_in_any_order(page: Any) -> None:
    assert rows(page) == vit_hub.list_models()
    field(page, "words").type("base DINOv2")
    found = rows(page)
    assert "dinov2-b14.lvd142m-518" in found
    assert page.locator("#count").inner_text() == f"{len(found)} of {len(vit_hub.list_models())} models"
    field(page, "words").fill("dinov2 base")
    assert rows(page) == found
    field(page, "words").fill("no-such-model")
    assert rows(page) == []
    assert "fewer words or filters" in page.locator("#count").inner_text()
    page.get_by_role("button", name="Clear").click()
    assert len(rows(page)) == len(vit_hub.list_models())


def test_filters_hold_together(page: Any) -> None:
    field(page, "license").select_option("*open")
    field(page, "head").select_option("with")
    field(page, "maxparams").fill("30")
    field(page, "maxflops").fill("10")
    field(page, "minaccuracy").fill("80")
    entries = [get_entry(name) for name in rows(page)]
    assert entries
    for entry in entries:
        assert not entry.restricted
        assert entry.config.num_classes
        assert entry.params is not None
        assert entry.params <= 30e6
        assert forward_flops(entry.config) <= 10e9
        assert any(metric.value >= 80 for metric in entry.metrics)
    page.reload()  # the address holds the filters
    assert rows(page) == [entry.id for entry in entries]
    field(page, "family").select_option("deit3")
    assert {get_entry(name).family for name in rows(page)} == {"deit3"}
    field(page, "format").select_option("facebook")
    assert all("facebook" in text for text in column(page, "Formats"))


def test_sorting_by_the_headers_and_by_the_list(page: Any) -> None:
    field(page, "family").select_option("deit3")
    page.get_by_role("button", name="Params, M").press("Enter")
    sizes = [float(text) for text in column(page, "Params, M")]
    assert sizes == sorted(sizes)
    assert page.locator("th[data-key=params]").get_attribute("aria-sort") == "ascending"
    page.get_by_role("button", name="Params, M").press("Enter")
    assert [float(text) for text in column(page, "Params, M")] == sorted(sizes, reverse=True)
    field(page, "family").select_option("dinov2")
    field(page, "kind").select_option("imagenet-1k linear top-1")
    field(page, "sort").select_option("-accuracy")
    shown = column(page, "Accuracy, %")
    known = [float(text) for text in shown if text != "-"]
    assert known == sorted(known, reverse=True)
    assert shown == [f"{value:.1f}" for value in known] + ["-"] * (len(shown) - len(known))


def test_the_scatter_shows_what_is_chosen(page: Any) -> None:
    every = page.locator("#scatter circle").count()
    field(page, "words").fill("deit3")
    assert page.locator("#scatter circle").count() == every
    assert page.locator("#scatter circle.on").count() == len(rows(page))
    assert page.locator("#chart-title").inner_text().startswith("deit3-")
    page.get_by_role("button", name="Parameters").click()
    assert "million parameters" in page.locator("#scatter").text_content()
    page.locator("#scatter a.best").last.press("Enter")
    page.wait_for_function("document.title.startsWith('deit3-')")
    page.go_back()
    field(page, "words").fill("dinov2 lvd142m")
    assert "choose imagenet-1k k-NN top-1, or imagenet-1k linear top-1" in page.locator("#chart-title").inner_text()


def test_the_page_of_a_model(page: Any, address: str) -> None:
    field(page, "words").fill("augreg2 b16 224")
    page.get_by_role("link", name=NAME, exact=True).click()
    page.wait_for_function("!document.getElementById('model').hidden")
    text = page.locator("#model").inner_text()
    entry = get_entry(NAME)
    source = entry.sources[0]
    for wanted in (NAME, "vit-hub download vit-b16", 'vit_hub.load("vit-b16")', "vit-hub convert vit-b16", "85.108 %"):
        assert wanted in text
    for fact in (source.sha256, source.revision, source.evidence, entry.license, entry.evidence, "imagenet-21k"):
        assert str(fact) in text
    assert "crop_pct\n0.9" in text
    assert not page.locator("#list").is_visible()
    page.get_by_role("link", name="All models").click()
    assert field(page, "words").input_value() == "augreg2 b16 224"

    page.goto(f"{address}#dinov2-s14.lvd142m-518")
    page.wait_for_function("document.title.startsWith('dinov2-s14')")
    siblings = page.locator(".source h3").all_inner_texts()
    assert len(siblings) == len(get_entry("dinov2-s14.lvd142m-518").sources)
    page.goto(f"{address}#dinov2-s14")  # not an id, but words to search for
    page.wait_for_function("!document.getElementById('list').hidden")
    assert "dinov2-s14.lvd142m-518" in rows(page)


def test_every_model_has_a_page_without_gaps(page: Any) -> None:
    gaps = page.evaluate(
        """() => models.map((model) => model.id).filter((id) => {
            showModel(byId.get(id));
            const text = document.getElementById("model").textContent;
            return !text.includes(id) || /undefined|NaN|null|\\[object/.test(text);
        })"""
    )
    assert gaps == []


def test_commands_are_copied(browser: Any, address: str) -> None:
    context = browser.new_context()
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.goto(f"{address}#{NAME}")
    page.get_by_role("button", name="Copy").first.click()
    page.get_by_role("button", name="Copied").wait_for(timeout=10_000)
    assert page.evaluate("navigator.clipboard.readText()") == "vit-hub download vit-b16"
    context.close()


def test_keys_alone_lead_to_a_model(page: Any) -> None:
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # skips to the first model
    first = page.evaluate("document.activeElement.textContent")
    assert first == vit_hub.list_models()[0]
    page.keyboard.press("Enter")
    page.wait_for_function("!document.getElementById('model').hidden")
    assert page.evaluate("document.activeElement.textContent") == first
    controls = "[...document.querySelectorAll('input, select, button')]"
    assert page.evaluate(f"{controls}.every((control) => control.labels?.length || control.textContent)")


@pytest.mark.parametrize("fragment", ["", f"#{NAME}"])
def test_narrow_screens_do_not_scroll_sideways(page: Any, address: str, fragment: str) -> None:
    page.goto(address + fragment)
    page.reload()
    for width in (320, 400, 900, 1100):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_list_sorts_on_narrow_screens(page: Any) -> None:
    page.set_viewport_size({"width": 400, "height": 800})
    field(page, "sort").select_option("-params")
    assert rows(page)[0] == max(vit_hub.list_models(), key=lambda name: get_entry(name).params or 0)


def test_text_of_the_data_is_never_markup(browser: Any, tmp_path: Path) -> None:
    catalogue.write(tmp_path)
    found = data()
    model = next(item for item in found["models"] if item["id"] == NAME)
    model |= {"license": HOSTILE, "aliases": [HOSTILE], "notes": [HOSTILE], "evidence": HOSTILE, "pretrain": HOSTILE}
    model["sources"] = [{"kind": "https", "format": HOSTILE, "url": "javascript:alert(1)", "note": HOSTILE}]
    model["config"], model["preprocess"] = {HOSTILE: HOSTILE}, {HOSTILE: HOSTILE}
    (tmp_path / "models.js").write_text(f"const CATALOGUE = {json.dumps(found)};", encoding="utf-8")
    page = browser.new_page()
    for fragment in ("", f"#{NAME}"):
        page.goto((tmp_path / "index.html").as_uri() + fragment)
        page.wait_for_timeout(50)
        assert page.locator("img").count() == 0
    assert page.title().startswith(NAME)
    assert page.locator('a[href^="javascript"]').count() == 0
    assert HOSTILE in page.locator("#model").inner_text()
    page.close()
