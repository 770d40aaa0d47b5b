"""The manifest's configs: they build, have the parameters they promise, and are timm's own where timm has the model."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from urllib.parse import unquote

import pytest
import timm
import torch

from vit_hub.converters.casting import from_tensor
from vit_hub.converters.containers import RawCheckpoint
from vit_hub.converters.passport import Passport
from vit_hub.converters.read import Checkpoint, read_raw
from vit_hub.converters.tensors import zeros
from vit_hub.converters.write import prospects
from vit_hub.interop import timm_facts, timm_format
from vit_hub.model.config import ViTConfig
from vit_hub.model.shapes import tensor_shapes
from vit_hub.model.vit import VisionTransformer
from vit_hub.registry import Entry, WeightSource, get_entry, list_models, preferring

ENTRIES = [get_entry(model_id) for model_id in list_models()]
FAMILIES = sorted({entry.family for entry in ENTRIES})


def of_family(family: str) -> list[Entry]:
    return [entry for entry in ENTRIES if entry.family == family]


def source_config(entry: Entry, source: WeightSource) -> ViTConfig:
    return entry.config.replace(**source.config)


def architecture(source: WeightSource) -> str | None:
    """timm's name of the architecture of one of its repositories."""
    name = (source.repo or "").partition("/")[2].partition(".")[0]
    return name if source.format == "timm" and timm.is_model(name) else None


FROM_TIMM = [
    (entry, source, name) for entry in ENTRIES for source in entry.sources if (name := architecture(source)) is not None
]


@functools.cache
def timm_config(name: str) -> ViTConfig:
    """Describe timm's own model of this name, with two classes."""
    with torch.device("meta"):
        module = timm.create_model(name, num_classes=2)
    tensors = {key: from_tensor(value) for key, value in module.state_dict().items()}
    source = RawCheckpoint(Path(name), "safetensors", tensors, {}, {}, ())
    return read_raw(source, format=timm_format(module), overrides=timm_facts(module)).config


@pytest.mark.parametrize("family", FAMILIES)
def test_models_build_with_the_parameters_they_promise(family: str) -> None:
    built: dict[tuple[tuple[str, tuple[int, ...]], ...], int] = {}
    for entry in of_family(family):
        for source in entry.sources:
            config = source_config(entry, source)
            tensors = tuple(tensor_shapes(config).items())
            if tensors not in built:
                with torch.device("meta"):
                    built[tensors] = sum(parameter.numel() for parameter in VisionTransformer(config).parameters())
            assert built[tensors] == (source.params or entry.params), (entry.id, source.repo or source.url)


@pytest.mark.parametrize("name", sorted({name for _, _, name in FROM_TIMM}))
def test_configs_are_those_of_timms_own_models(name: str) -> None:
    """Reading timm's state dict accounts for every tensor, so equal canonical tensors mean equal ones of timm's."""
    ours = timm_config(name)
    for entry, source, found in FROM_TIMM:
        if found == name:
            config = source_config(entry, source)
            expected = ours.replace(num_classes=config.num_classes)
            assert tensor_shapes(config) == tensor_shapes(expected), entry.id
            if source is entry.sources[0]:
                assert config == expected, entry.id


def test_timms_repositories_are_of_models_that_timm_knows() -> None:
    unknown = {
        source.repo
        for entry in ENTRIES
        for source in entry.sources
        if source.format == "timm" and str(source.repo).startswith("timm/") and architecture(source) is None
    }
    assert unknown == set()


def as_checkpoint(config: ViTConfig) -> Checkpoint:
    """Return a model of zeros as an opened checkpoint."""
    path = Path("model")
    tensors = {name: zeros("F32", shape) for name, shape in tensor_shapes(config).items()}
    source = RawCheckpoint(path, "safetensors", tensors, {}, {}, ())
    return Checkpoint(
        path=path,
        format="canonical",
        config=config,
        tensors=tensors,
        passport=Passport(format="canonical"),
        source=source,
        origin={name: (name,) for name in tensors},
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_models_can_be_files_of_the_formats_they_come_in(family: str) -> None:
    """Checked on two blocks.

    Exempt are files that are written only from files of the same kind: open_clip's of timm's towers, and encoders of
    models for other tasks; and the layer before the head of timm's first files, which it has no more.
    """
    checked = set()
    for entry in of_family(family):
        for source in entry.sources:
            config = preferring(entry, source).config
            small = config.replace(**source.config, depth=2, kv_heads=config.kv_heads[:2])
            exempt = source.format == "open_clip" or entry.family in ("dense-tasks", "image-text")
            if not exempt and (source.format, small) not in checked:
                checked.add((source.format, small))
                problems, _ = prospects(as_checkpoint(small), source.format)
                assert set(problems) <= {"representation_dim"}, (entry.id, source.repo or source.url)


def test_sources_say_what_differs_and_only_that() -> None:
    for entry in ENTRIES:
        assert not entry.sources[0].config, entry.id
        for source in entry.sources:
            config = source_config(entry, source)
            for field in source.config:
                assert getattr(config, field) != getattr(entry.config, field), (entry.id, field)
            assert source.params != entry.params, entry.id


def test_hashes_agree_with_the_digits_that_publishers_put_into_file_names() -> None:
    checked = 0
    for entry in ENTRIES:
        for source in entry.sources:
            if source.url is None:
                continue
            known = source.sha256 or source.sha256_prefix
            named = re.search(r"-([0-9a-f]{8})\.pth$", source.url)
            if named:
                assert known is not None, source.url
                assert known.startswith(named[1]), source.url
            elif source.sha256_prefix:
                pytest.fail(f"{source.url}: nothing in its name documents the prefix")
            in_path = re.search(r"/([0-9a-f]{64})/", source.url)
            if in_path:
                assert source.sha256 == in_path[1]
            checked += bool(named or in_path)
    assert checked > 30


def test_each_pin_says_who_documents_it() -> None:
    for entry in ENTRIES:
        for source in entry.sources:
            pinned = [name for name in ("sha256", "size", "revision") if getattr(source, name)]
            if source.kind != "bundled":
                for name in pinned:
                    assert name in source.evidence, (entry.id, source.repo or source.url)
                assert bool(source.evidence) == bool(pinned)
    for entry in ENTRIES:
        assert all(metric.evidence for metric in entry.metrics)


def test_each_entry_says_who_documents_it() -> None:
    assert [entry.id for entry in ENTRIES if not entry.evidence] == []


def test_addresses_are_written_as_the_servers_want_them() -> None:
    for entry in ENTRIES:
        for source in entry.sources:
            if source.url and source.kind == "https":
                assert "+" not in source.url
                assert unquote(source.url).isascii()


def test_what_is_not_free_to_use_is_marked() -> None:
    closed = re.compile(
        "-nc-|non-?commercial|research-only|dinov3|apple-|gemma|nvidia|sapiens2|gigapath|msrla|health-ai"
    )
    for entry in ENTRIES:
        assert entry.restricted == (closed.search(entry.license) is not None), (entry.id, entry.license)
