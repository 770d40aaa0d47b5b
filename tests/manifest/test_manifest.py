"""The manifest's data: well-formed, unambiguous, and in agreement with itself."""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import vit_hub
from vit_hub.model.shapes import num_parameters
from vit_hub.preprocessing.labels import label_names
from vit_hub.preprocessing.spec import Preprocessing
from vit_hub.registry import get_entry, list_models
from vit_hub.weights_manifest import FOLDER, model_data, outlines, summary

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILES = sorted(FOLDER.glob("*.toml"))
BUNDLED = Path(vit_hub.__file__).parent / "data"


def parse(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


MODELS = [model for path in FILES for model in parse(path)["model"]]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_file_follows_the_schema(path: Path) -> None:
    schema = json.loads((FOLDER / "schema.json").read_text(encoding="utf-8"))
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    errors = [f"{error.json_path}: {error.message}" for error in validator.iter_errors(parse(path))]
    assert errors == []


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"sha256": "32AA17"}, "does not match"),
        ({"sha256": "0" * 64}, "evidence"),
        ({"kind": "https"}, "url"),
        ({"kind": "ftp"}, "not one of"),
        ({"checksum": "0" * 64}, "checksum"),
    ],
)
def test_schema_refuses_a_bad_source(change: dict[str, Any], complaint: str) -> None:
    schema = json.loads((FOLDER / "schema.json").read_text(encoding="utf-8"))
    source = {"kind": "hf", "format": "timm", "repo": "timm/x", "file": "model.safetensors"}
    validator = jsonschema.Draft202012Validator({"$ref": "#/$defs/source", "$defs": schema["$defs"]})
    assert not list(validator.iter_errors(source))
    messages = " ".join(error.message for error in validator.iter_errors({**source, **change}))
    assert complaint in messages


def test_search_for_names_agrees_with_a_full_parse() -> None:
    def sources(model: dict[str, Any], key: str) -> tuple[str, ...]:
        return tuple(source[key] for source in model["sources"] if key in source)

    parsed = [
        (model["id"], tuple(model.get("aliases", ())), sources(model, "repo"), sources(model, "url"))
        for model in MODELS
    ]
    found = [(outline.id, outline.aliases, outline.repos, outline.urls) for outline in outlines().values()]
    assert found == parsed


def test_what_a_list_shows_agrees_with_a_full_parse() -> None:
    for model_id in list_models():
        entry, found = get_entry(model_id), summary(model_id)
        assert (found.family, found.params, found.license) == (entry.family, entry.params, entry.license)
        assert (found.image_size, found.restricted) == (entry.config.image_size, entry.restricted)
        assert found.formats == tuple(dict.fromkeys(source.format for source in entry.sources))
        assert found.gated == all(source.gated for source in entry.sources)
        named = ((*metric.name.partition(" "), metric.value) for metric in entry.metrics)
        top1 = [(data, value) for data, _, what, value in named if what.startswith("top-1")]
        assert found.top1 == (top1[0] if top1 else None)


def test_what_a_list_shows_of_an_unknown_model() -> None:
    with pytest.raises(KeyError):
        summary("vit-b16")


def test_no_name_is_given_to_two_models() -> None:
    names = Counter(name.lower() for model in MODELS for name in (model["id"], *model.get("aliases", ())))
    assert [name for name, count in names.items() if count > 1] == []


def test_no_file_is_a_source_of_two_models() -> None:
    files = Counter(
        (source["kind"], source.get("repo"), source.get("file"), source.get("url"))
        for model in MODELS
        for source in model["sources"]
    )
    assert [file for file, count in files.items() if count > 1] == []


def test_every_model_resolves_by_each_name_that_is_its_own() -> None:
    owners: dict[str, set[str]] = {}
    for model_id in list_models():
        for name in get_entry(model_id).aliases:
            owners.setdefault(name.lower(), set()).add(model_id)
    given = {alias.lower() for outline in outlines().values() for alias in outline.aliases}
    for name, ids in owners.items():
        if len(ids) == 1 or name in given:
            assert get_entry(name.upper()).id in ids


def test_parameters_are_as_many_as_stated() -> None:
    for model_id in list_models():
        entry = get_entry(model_id)
        for source in entry.sources:
            stated = source.params or entry.params
            assert num_parameters(entry.config.replace(**source.config)) == stated, (
                model_id,
                source.repo or source.url,
            )


def test_labels_and_preprocessing_fit_the_config() -> None:
    for model_id in list_models():
        entry = get_entry(model_id)
        if entry.labels is not None:
            assert len(label_names(entry.labels)) == entry.config.num_classes, model_id
        if entry.preprocess:
            preprocessing = Preprocessing.from_dict(entry.preprocess)
            assert preprocessing.image_size == entry.config.image_size, model_id
            assert len(preprocessing.mean) == entry.config.in_chans, model_id


def test_bundled_files_are_those_that_the_manifest_pins() -> None:
    for model in MODELS:
        for source in model["sources"]:
            if source["kind"] == "bundled":
                data = (BUNDLED / source["file"]).read_bytes()
                assert (len(data), hashlib.sha256(data).hexdigest()) == (source["size"], source["sha256"])


def test_conventions_are_those_of_the_first_source() -> None:
    conventions = {
        "timm": ("gelu", 1e-6, "bicubic-antialias"),
        "hf": ("gelu", 1e-12, "bicubic"),
        "vit_jax": ("gelu_tanh", 1e-6, "bilinear-align-corners"),
    }
    for model_id in list_models():
        entry = get_entry(model_id)
        if entry.family in ("vit", "augreg", "vit-sam", "vit-gsam", "hybrid"):
            config = entry.config
            assert (config.act, config.norm_eps, config.resize) == conventions[entry.sources[0].format]


def test_record_is_plain_data() -> None:
    data = model_data("vit-b16.augreg-in21k-ft-in1k-384")
    assert json.loads(json.dumps(data)) == data
    assert data["license"] == "apache-2.0"
    assert data["config"]["image_size"] == 384
    assert data["preprocess"]["crop_pct"] == 1.0
    assert "403" in data["sources"][-1]["note"]
    with pytest.raises(KeyError):
        model_data("vit-b16")
