"""Order of the rooms, cost of imports, and contents of the installed package."""

from __future__ import annotations

import graphlib
import re
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from module_imports import FOLDERS, IMPORTS, MODULES, ROOT, imports_when_imported, is_inside, package_files
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import vit_hub

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HEAVY = ("torch", "torchvision", "transformers", "timm", "huggingface_hub")

# The rooms from the ground up; a room imports only rooms below it, and modules of its own.
ROOMS = (
    (
        "vit_hub.errors",
        "vit_hub.progress",
        "vit_hub.shown",
        "vit_hub.untrusted",
        "vit_hub.version",
        "vit_hub.weights_manifest",
    ),
    ("vit_hub.model",),
    ("vit_hub.preprocessing",),
    ("vit_hub.registry", "vit_hub.choosing"),
    ("vit_hub.converters.tensors",),
    ("vit_hub.converters.containers",),
    ("vit_hub.converters.casting", "vit_hub.converters.passport"),
    ("vit_hub.converters.rules",),
    ("vit_hub.converters.formats",),
    ("vit_hub.converters",),
    ("vit_hub.interop",),
    ("vit_hub.hub.names",),
    ("vit_hub.hub.cache",),
    ("vit_hub.hub.http",),
    ("vit_hub.hub",),
    ("vit_hub.loading", "vit_hub.conversion"),
    ("vit_hub.exporting",),
    ("vit_hub.running",),
    ("vit_hub.benching",),
    ("vit_hub.certifying",),
    ("vit_hub.pictures",),
    ("vit_hub",),
    ("vit_hub.cli", "vit_hub.__main__"),
)
# Imports upward, each with its reason.
EXCEPTIONS = {
    ("vit_hub.model.vit", "vit_hub.converters.save"): "model.save() works wherever the model was built",
}
# Folders with one module a verb, a format, a container or a kind of picture may hold any number of them.
MOST_MODULES = {
    "vit_hub": 13,
    "vit_hub.cli": 1000,
    "vit_hub.pictures": 1000,
    "vit_hub.converters.formats": 1000,
    "vit_hub.converters.containers": 1000,
}


PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def room(module: str) -> int:
    """The number of the room that a module is in: the one with the longest name that it is inside of."""
    found = [(len(name), number) for number, names in enumerate(ROOMS) for name in names if is_inside(module, name)]
    return max(found)[1]


@pytest.mark.parametrize("module", MODULES)
def test_rooms_import_only_what_is_below(module: str) -> None:
    wrong = {name for name in IMPORTS[module] if room(name) > room(module) and (module, name) not in EXCEPTIONS}
    assert not wrong, f"{module} must not import {sorted(wrong)}"


def test_no_imports_go_in_circles() -> None:
    graph = {module: {name for name in names if (module, name) not in EXCEPTIONS} for module, names in IMPORTS.items()}
    graphlib.TopologicalSorter(graph).prepare()


def test_every_exception_is_needed() -> None:
    assert all(name in IMPORTS[module] for module, name in EXCEPTIONS)


def test_folders_can_be_taken_in_at_a_glance() -> None:
    folders = Counter(
        module if path.name == "__init__.py" else module.rpartition(".")[0] for module, path in MODULES.items()
    )
    assert not {name for name, count in folders.items() if count > MOST_MODULES.get(name, 20)}


def test_no_module_takes_the_place_of_a_public_name() -> None:
    inside = {module.split(".")[1] for module in MODULES if "." in module}
    assert not inside & set(vit_hub.__all__)


def torch_free(module: str) -> bool:
    """Return True for modules that `vit-hub list` and `info` may need: all below the converters that do not compute."""
    computes = (
        "vit_hub.model.vit",
        "vit_hub.model.layers",
        "vit_hub.model.stems",
        "vit_hub.model.rope",
        "vit_hub.model.device",
        "vit_hub.model.outputs",
        "vit_hub.model.windows",
    )
    return room(module) <= room("vit_hub.registry") and not is_inside(module, *computes, "vit_hub.model.positions")


@pytest.mark.parametrize("module", MODULES)
def test_peers_are_imported_only_where_they_are_used(module: str) -> None:
    assert not {name for name in imports_when_imported(module) if is_inside(name, "transformers", "timm")}


def loaded_by(statement: str) -> set[str]:
    program = f"import sys\n{statement}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT.parent)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split()) & set(HEAVY)


def test_import_vit_hub_is_cheap() -> None:
    assert loaded_by("import vit_hub; dir(vit_hub)") == set()


def test_registry_command_and_converters_load_no_framework() -> None:
    converters = [name for name in MODULES if is_inside(name, "vit_hub.converters") and "build" not in name]
    modules = [*filter(torch_free, MODULES), *converters, "vit_hub.cli"]
    assert loaded_by(f"import {', '.join(modules)}") == set()


def test_every_package_is_installed() -> None:
    packages = {module for module, path in MODULES.items() if path.name == "__init__.py"}
    assert packages == set(PYPROJECT["tool"]["setuptools"]["packages"])
    assert all(module.rpartition(".")[0] in packages for module in MODULES if module != "vit_hub")


def test_wheel_holds_one_package_with_all_its_data(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"vit_hub"}
    assert {name for name in names if ".dist-info/" not in name} == {place.as_posix() for _, place in package_files()}
    assert any(re.fullmatch(r"[^/]+\.dist-info/licenses/LICENSE", name) for name in names)


def test_constraints_pin_every_dependency() -> None:
    project = PYPROJECT["project"]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    versions = {}
    for pin in pins:
        (exact,) = pin.specifier
        assert exact.operator == "==", f"{pin} is no exact version"
        assert Version(exact.version).local is None, f"{pin} fits one build only"
        versions[canonicalize_name(pin.name)] = exact.version
    for requirement in map(Requirement, project["dependencies"] + project["optional-dependencies"]["test"]):
        if requirement.marker is None or requirement.marker.evaluate({"python_version": "3.11"}):
            assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)])
