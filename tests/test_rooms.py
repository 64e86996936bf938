"""The walls of the house: no circle of imports, and models' shapes and plans that load no torch."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import ziphius

HOUSE = Path(ziphius.__file__).parent


def modules() -> dict[str, Path]:
    found = {}
    for path in HOUSE.rglob("*.py"):
        name = ".".join(("ziphius", *path.relative_to(HOUSE).with_suffix("").parts))
        found[name.removesuffix(".__init__")] = path
    return found


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """Modules of the house that loading the file loads: what stands at its top, not what a function asks for."""
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return names & known.keys()


def test_no_module_needs_itself():
    known = modules()
    graph = {name: imports(path, known) - {name} for name, path in known.items()}
    packages = {name for name, path in known.items() if path.name == "__init__.py"}
    for name, needed in graph.items():  # a package that gathers its parts is no part's business
        needed -= {package for package in packages if name.startswith(f"{package}.")}
    TopologicalSorter(graph).prepare()  # raises CycleError with the circle


@pytest.mark.parametrize("module", ["ziphius.model.families", "ziphius.model.presets", "ziphius.recipe.schema"])
def test_shapes_and_recipes_need_no_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
