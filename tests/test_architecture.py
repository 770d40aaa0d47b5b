"""Which module may know which, what an import may cost, and what the installed package holds."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
# Folder -> import name, as in pyproject.toml.
HOMES = {"vit_hub": "vit_hub", "converters": "vit_hub.converters", "weights_manifest": "vit_hub.weights_manifest"}
HEAVY = ("torch", "torchvision", "transformers", "timm", "huggingface_hub")
MAX_LINES = 450


def package_files() -> Iterator[tuple[Path, Path]]:
    """(file in the repository, its place in the installed package) for everything in the three folders."""
    for folder, name in HOMES.items():
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path, Path(name.replace(".", "/")) / path.relative_to(ROOT / folder)


def module_name(place: Path) -> str:
    return ".".join(place.with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(place): path for path, place in package_files() if path.suffix == ".py"}
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def is_inside(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def imported_names(module: str, node: ast.AST) -> list[str]:
    """What one statement imports, as absolute names; `from a import b` is `a.b` where that is a module of ours."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    base = node.module or ""
    if node.level:
        package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
        parents = package.split(".")[: len(package.split(".")) - node.level + 1]
        base = ".".join([*parents, *([node.module] if node.module else [])])
    full = [f"{base}.{alias.name}" for alias in node.names]
    return [name if name in MODULES else base for name in full]


def all_imports(module: str) -> set[str]:
    """Everything that the module's source imports, inside functions and for type checkers too."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    return {name for node in ast.walk(tree) for name in imported_names(module, node)}


def imports_when_imported(module: str) -> set[str]:
    """What importing the module imports: not what stands inside functions or under TYPE_CHECKING."""
    found: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(MODULES[module].read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        found.update(imported_names(module, node))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting.extend(node.orelse)
        else:
            waiting.extend(ast.iter_child_nodes(node))
    return found


def layer(module: str) -> str:
    """`data` needs nothing but itself, then come `converters`, `library` and `cli`."""
    if is_inside(module, "vit_hub.config", "vit_hub.errors", "vit_hub.layout", "vit_hub.positions"):
        return "data"
    if is_inside(module, "vit_hub.weights_manifest"):
        return "manifest"
    if is_inside(module, "vit_hub.converters"):
        return "converters"
    return "cli" if is_inside(module, "vit_hub.cli") else "library"


MAY_IMPORT = {
    "data": {"data"},
    "manifest": {"data", "manifest"},
    "converters": {"data", "converters"},
    "library": {"data", "manifest", "converters", "library"},
    "cli": {"data", "manifest", "converters", "library", "cli"},
}


@pytest.mark.parametrize("module", MODULES)
def test_dependencies_point_one_way(module: str) -> None:
    ours = {name for name in all_imports(module) if is_inside(name, "vit_hub")} - {"vit_hub"}
    wrong = {name for name in ours if layer(name) not in MAY_IMPORT[layer(module)]}
    assert not wrong, f"{module} ({layer(module)}) must not import {sorted(wrong)}"
    assert layer(module) in ("library", "cli") or "vit_hub" not in all_imports(module)


def torch_free(module: str) -> bool:
    return layer(module) in ("data", "manifest") or module == "vit_hub.registry"


@pytest.mark.parametrize("module", [module for module in MODULES if torch_free(module)])
def test_data_knows_no_framework(module: str) -> None:
    assert not {name for name in all_imports(module) if is_inside(name, *HEAVY)}


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
    modules = [name for name in MODULES if torch_free(name) or layer(name) == "converters" or name == "vit_hub.cli"]
    assert loaded_by(f"import {', '.join(modules)}") == set()


@pytest.mark.parametrize("module", MODULES)
def test_modules_stay_readable(module: str) -> None:
    lines = len(MODULES[module].read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{MODULES[module]} has {lines} lines: cut it along its seams"


def test_every_package_is_installed() -> None:
    packages = {module for module, path in MODULES.items() if path.name == "__init__.py"}
    assert packages == set(PYPROJECT["tool"]["setuptools"]["packages"])
    assert all(module.rpartition(".")[0] in packages for module in MODULES if module != "vit_hub")


def test_wheel_holds_one_package_with_all_its_data(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for folder in HOMES:
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
