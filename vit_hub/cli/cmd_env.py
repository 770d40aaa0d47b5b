"""``vit-hub env``: what a bug report needs to say about this machine. No secrets, and no connection."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

import vit_hub
from vit_hub.cli.options import Verb
from vit_hub.cli.output import Output, amount
from vit_hub.errors import VitHubError, first_line
from vit_hub.version import installed_version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# Variables that change what is fetched, from where and to where; values are shown without credentials.
_VARIABLES = (
    *("VIT_HUB_CACHE", "VIT_HUB_MIRROR", "VIT_HUB_OFFLINE", "VIT_HUB_REQUIRE_HASHES", "VIT_HUB_TRUST"),
    *("HF_ENDPOINT", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"),
    *("VIT_HUB_TIMEOUT", "HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"),
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR"),
)
_PEERS = ("timm", "open-clip-torch", "torchvision", "peft", "accelerate")
_EXTRA = re.compile(r"extra == ['\"]([^'\"]+)")
_NAME = re.compile(r"[A-Za-z0-9._-]+")
_TESTS = "test"


@click.command("env", cls=Verb, short_help="Show versions, devices and settings, for bug reports.")
def command(output: Output) -> None:
    """Show versions, extras, devices, cache, endpoints and login of this machine, for bug reports.

    No connection is opened. Tokens and passwords are not shown: only whether there is a login. With --quiet, print only
    the versions of vit-hub, Python and torch.
    """
    requirements = _requirements()
    data = {
        "vit_hub": vit_hub.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {name: installed_version(name) for name in (*requirements.pop("", ()), *_PEERS)},
        "extras": {extra: {name: installed_version(name) for name in names} for extra, names in requirements.items()},
        "devices": list(_devices()),
        "cache": _cache(),
        "endpoint": _shown(os.environ.get("HF_ENDPOINT") or "https://huggingface.co"),
        "login": _login(),
        "variables": {name: _shown(value) for name, value in _set_variables()},
    }
    if output.json:
        output.document(data)
    elif output.quiet:
        output.lines([f"vit-hub {data['vit_hub']}, python {data['python']}, torch {installed_version('torch')}"])
    else:
        output.lines(_lines(output, data))


def _lines(output: Output, data: dict[str, Any]) -> list[str]:
    cache = data["cache"]
    rows = [
        ("vit-hub", data["vit_hub"]),
        ("python", data["python"]),
        ("system", data["system"]),
        *((name, version or "not installed") for name, version in data["packages"].items()),
        *((f"[{extra}]", _extra(packages)) for extra, packages in data["extras"].items()),
        *(("device", device) for device in data["devices"]),
        ("cache", cache["problem"] or f"{cache['folder']}, {amount(cache['free'], 'B')} free"),
        ("endpoint", data["endpoint"]),
        ("login", data["login"]),
        *data["variables"].items(),
    ]
    return output.fields(rows, indent="")


def _extra(packages: dict[str, str | None]) -> str:
    missing = [name for name, version in packages.items() if version is None]
    return f"not installed: {', '.join(missing)}" if missing else ", ".join(f"{k} {v}" for k, v in packages.items())


def _requirements() -> dict[str, list[str]]:
    """Return the packages that this one requires, by extra; those that it always needs are under an empty name."""
    try:
        lines = importlib.metadata.requires("vit-hub") or []
    except importlib.metadata.PackageNotFoundError:  # a clone, which is not installed
        text = (Path(vit_hub.__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
        project = tomllib.loads(text)["project"]
        extras = project["optional-dependencies"].items()
        lines = [*project["dependencies"], *(f"{line}; extra == '{name}'" for name, all in extras for line in all)]
    found: dict[str, list[str]] = {"": []}
    for line in lines:
        extra, name = _EXTRA.search(line), _NAME.match(line)
        if name and not (extra and extra[1] == _TESTS) and "python_version" not in line:
            found.setdefault(extra[1] if extra else "", []).append(name[0])
    return found


def _devices() -> Iterator[str]:
    try:
        import torch

        yield f"cpu, {os.cpu_count()} cores, {torch.get_num_threads()} threads of torch"
        for index in range(torch.cuda.device_count()):
            found = torch.cuda.get_device_properties(index)
            yield f"cuda:{index}, {found.name}, {amount(found.total_memory, 'B')}"
        if torch.backends.mps.is_available():
            yield "mps"
    except Exception as error:  # a broken driver is what the report is about
        yield f"cannot be asked: {type(error).__name__}: {first_line(error)}"


def _cache() -> dict[str, Any]:
    import shutil

    from vit_hub.hub.cache.paths import cache_dir

    try:
        folder = cache_dir()
    except VitHubError as error:
        return {"folder": None, "free": None, "problem": str(error)}
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return {"folder": folder, "free": shutil.disk_usage(there).free, "problem": None}


def _login() -> str:
    """Describe whether Hugging Face's client has a token, which is not shown."""
    from huggingface_hub import get_token

    if not get_token():
        return "none"
    return "a token in HF_TOKEN" if os.environ.get("HF_TOKEN") else "a stored token"


def _set_variables() -> Iterator[tuple[str, str]]:
    for name in _VARIABLES:
        for variable in dict.fromkeys((name, name.lower() if name.endswith("_PROXY") else name)):
            if os.environ.get(variable):
                yield variable, os.environ[variable]


def _shown(value: str) -> str:
    from vit_hub.hub.names.credentials import hide_credentials

    return hide_credentials(value)
