"""The package's modules and what they import, read from the source without importing anything.

tests/test_architecture.py checks the order of the rooms by it, and architecture_picture.py draws them; typecheck.py and
site_pages.py lay out the package by it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Folder -> import name, as in pyproject.toml.
FOLDERS = {"vit_hub": "vit_hub", "converters": "vit_hub.converters", "weights_manifest": "vit_hub.weights_manifest"}


def package_files() -> Iterator[tuple[Path, Path]]:
    """(file in the repository, its place in the installed package) for everything in the three folders."""
    for folder, name in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path, Path(name.replace(".", "/")) / path.relative_to(ROOT / folder)


def lay_out(folder: Path) -> None:
    """Make a package of links in a folder, laid out as the installed one: for tools that do not read package-dir."""
    package = folder / "vit_hub"
    package.mkdir()
    for path in (*(ROOT / "vit_hub").iterdir(), *(ROOT / name for name in FOLDERS if name != "vit_hub")):
        (package / path.name).symlink_to(path)


def module_name(place: Path) -> str:
    return ".".join(place.with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(place): path for path, place in package_files() if path.suffix == ".py"}


def is_inside(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def imported_names(module: str, node: ast.AST) -> list[str]:
    """Absolute names that one statement imports; `from a import b` is `a.b` where that is a module of the package."""
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
    """Everything imported along with the module: nothing inside functions or under TYPE_CHECKING."""
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


IMPORTS = {module: {name for name in all_imports(module) if name in MODULES} - {module} for module in MODULES}
