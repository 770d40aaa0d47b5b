"""Write the catalogue of all models, a page for the browser, from the manifest.

python tools/catalogue.py FOLDER

The page is in tools/catalogue_page; beside it comes models.js, the manifest as data. It works from a file, too: nothing
is fetched.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from vit_hub.model.config import ViTConfig
from vit_hub.model.flops import forward_flops, tokens_of
from vit_hub.registry import Entry, Metric, get_entry, list_models
from vit_hub.version import __version__
from vit_hub.weights_manifest import titles

PAGE = Path(__file__).parent / "catalogue_page"
# Of a config, what is shown even where it has the usual value; of the rest, what has not.
ESSENTIAL = ("embed_dim", "depth", "num_heads", "mlp_dim", "act", "norm_eps", "pos_embed", "pool", "resize")
# What has a row of its own on a model's page.
ELSEWHERE = ("image_size", "patch_size", "num_classes")
# In a source, what says nothing.
EMPTY = (None, "", False, {}, "same")


def _config(config: ViTConfig) -> dict[str, Any]:
    usual = ViTConfig().to_dict()
    return {
        name: value
        for name, value in config.to_dict().items()
        if name not in ELSEWHERE and (name in ESSENTIAL or value != usual[name])
    }


def _metric(metric: Metric) -> dict[str, Any]:
    # "imagenet-1k top-1 (timm eval)": only results of one kind can be compared, whoever measured them.
    kind, _, who = metric.name.partition(" (")
    return {**vars(metric), "kind": kind, "who": who.rstrip(")")}


def _data_set(text: str) -> str:
    """The data set that a description of pre-training data begins with, for choosing among them."""
    return re.split(r"[,;(]", text)[0].strip()


def model(entry: Entry) -> dict[str, Any]:
    """Everything that the page shows of a model, as plain data."""
    config = entry.config
    return {
        "id": entry.id,
        "aliases": entry.aliases,
        "family": entry.family,
        "params": entry.params,
        "flops": forward_flops(config),
        "tokens": tokens_of(config),
        "image": config.image_size,
        "patch": config.patch_size,
        "classes": config.num_classes,
        "labels": entry.labels,
        "pretrain": _data_set(entry.data["pretrain"]),
        "data": entry.data,
        "license": entry.license,
        "restricted": entry.restricted,
        "gated": all(source.gated for source in entry.sources),
        "formats": list(dict.fromkeys(source.format for source in entry.sources)),
        "metrics": [_metric(metric) for metric in entry.metrics],
        "config": _config(config),
        "preprocess": entry.preprocess,
        "sources": [{key: value for key, value in vars(s).items() if value not in EMPTY} for s in entry.sources],
        "evidence": entry.evidence,
        "notes": entry.notes,
    }


def files() -> dict[str, str]:
    """Name -> text of every file of the catalogue."""
    models = [model(get_entry(model_id)) for model_id in list_models()]
    data = json.dumps({"version": __version__, "families": titles(), "models": models}, separators=(",", ":"))
    page = {path.name: path.read_text(encoding="utf-8") for path in sorted(PAGE.iterdir())}
    return {**page, "models.js": f"const CATALOGUE = {data};\n"}


def write(folder: Path) -> None:
    """Write the catalogue into a folder; index.html is its page."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files().items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
