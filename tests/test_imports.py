"""What may import what: utils nothing of models and stages, models nothing of the stages, and nothing in circles."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("utils", "models", "recover", "relabel", "validate")


def modules():
    """Every module outside the tests, by its dotted name."""
    paths = (path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


def imports_of(path, known):
    """The project's modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in known else node.module for name in whole]  # a module of a package, or a name in it
        else:
            continue
        found |= {name for name in names if name in known}
    return found


KNOWN = modules()
GRAPH = {name: imports_of(path, KNOWN) - {name} for name, path in KNOWN.items()}


def test_the_graph_is_read():
    assert "utils.recipes" in GRAPH["recover.recover"] and "recover.terms" in GRAPH["recover.optimise"]


def test_nothing_imports_upwards():
    upwards = [
        (name, imported)
        for name, all_imported in GRAPH.items()
        for imported in all_imported
        if (name.startswith("utils") and not imported.startswith("utils"))
        or (name.startswith("models") and not imported.startswith(("utils", "models")))
    ]  # fmt: skip
    assert not upwards


def test_there_are_no_circles():
    """A module is done when all that it imports are done; what is left over goes round."""
    left = {name: set(imported) for name, imported in GRAPH.items()}
    while done := {name for name, imported in left.items() if not imported}:
        left = {name: imported - done for name, imported in left.items() if name not in done}
    assert not left
