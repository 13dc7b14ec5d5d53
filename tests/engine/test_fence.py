"""Who may import whom: rooms know those below them, the engine nobody. Read from the source, whatever runs."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "lightning_lyapunov"
ENGINE = PACKAGE / "engine"

ROOMS = (
    *("names", "names_depth", "files", "engine", "capture", "reading", "conditioning", "aelle", "figures"),
    *("page", "report", "report_depth", "report_runs", "monitoring", "training"),
    *("bank", "demo", "cli", "__main__"),
)
"""From the bottom up: each may import those before it."""
KNOWN = {
    "names": set(),
    "names_depth": {"names"},
    "files": set(),
    "engine": set(),
    "capture": {"engine"},
    "reading": {"engine", "names", "names_depth"},
    "conditioning": {"engine", "reading"},
    "aelle": {"engine", "files"},
}  # fmt: skip
"""All that the lower rooms know."""
ABOVE_THE_BANK = {"demo", "cli", "__main__"}


def modules(folder: Path = PACKAGE) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def exists(name: str) -> bool:
    path = PACKAGE.parent.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").exists()


SHOWS_ITSELF = {"plot", "_repr_html_"}
"""Methods in which a result asks for what draws it, which stands above it: as long as nobody looks nobody is asked."""


def imports(module: Path) -> Iterator[str]:
    """Full names of the modules that one imports, anywhere in it but where a result shows itself."""
    tree = ast.parse(module.read_text("utf-8"))
    shows = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name in SHOWS_ITSELF]
    apart = {inner for method in shows for inner in ast.walk(method)}
    for node in ast.walk(tree):
        if node in apart:
            continue
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if exists(name) else str(node.module)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def ours(module: Path) -> set[str]:
    return {name for name in imports(module) if name.partition(".")[0] == PACKAGE.name}


def room_of(module: Path) -> str:
    parts = module.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else module.stem


def rooms_known(module: Path) -> set[str]:
    """Other rooms; the package itself is one where more than its version is asked for."""
    return {name.split(".")[1] for name in ours(module) if "." in name} - {room_of(module)}


def test_every_module_has_a_room() -> None:
    assert {room_of(module) for module in modules()} - {"__init__"} == set(ROOMS)


@pytest.mark.parametrize("room", [room for room in ROOMS])
def test_imports_point_down(room: str) -> None:
    below = set(ROOMS[: ROOMS.index(room)])
    for module in modules():
        if room_of(module) == room:
            assert rooms_known(module) <= KNOWN.get(room, below), module


def test_nothing_that_runs_in_a_training_imports_the_bank() -> None:
    knowing = {
        (module.relative_to(PACKAGE).as_posix(), "bank") for module in modules() if "bank" in rooms_known(module)
    }
    assert {pair for pair in knowing if room_of(PACKAGE / pair[0]) not in ABOVE_THE_BANK} == set()
    assert ("demo.py", "bank") in knowing


def test_the_engine_needs_torch_alone() -> None:
    allowed = {"torch", "lightning_lyapunov"}
    for module in modules(ENGINE):
        tops = {name.partition(".")[0] for name in imports(module)} - allowed
        for top in tops:
            assert top in STANDARD, f"{module.name} imports {top}"
        assert all(name.startswith("lightning_lyapunov.engine") for name in ours(module)), module.name


STANDARD = {"__future__", "abc", "collections", "contextlib", "copy", "dataclasses", "functools", "itertools", "json",
            "math", "typing", "warnings"}  # fmt: skip


def graph(*, by_room: bool = False) -> dict[str, set[str]]:
    """What each module of the engine imports of it; with the maps as one if asked for."""
    edges: dict[str, set[str]] = {}
    for module in modules(ENGINE):
        own = ".".join(module.relative_to(ENGINE).with_suffix("").parts)
        known = {name.removeprefix("lightning_lyapunov.engine.") for name in ours(module)}
        if by_room:
            own, known = own.partition(".")[0], {name.partition(".")[0] for name in known}
        edges.setdefault(own, set()).update(known - {own})
    return edges


@pytest.mark.parametrize("by_room", [False, True])
def test_the_engine_has_no_circle(by_room: bool) -> None:
    order = list(TopologicalSorter(graph(by_room=by_room)).static_order())
    assert len(order) == len(set(order)) > 15


FOUNDATIONS = {"chain", "statistics", "orthonormal", "precision", "maps", "visited", "spectrum_json"}
MIDDLE = {"sequences", "frames", "tangent", "spectrum", "isolation", "trajectory"}


def test_the_engine_stands_on_foundations_that_know_nothing_above() -> None:
    edges = graph(by_room=True)
    for name in FOUNDATIONS:
        assert edges[name] <= FOUNDATIONS, name
    for name in MIDDLE:
        assert edges[name] <= FOUNDATIONS | MIDDLE, name
    assert edges["chain"] == edges["statistics"] == edges["isolation"] == set()
    top = {name for name in edges if not any(name in known for known in edges.values())} - {"__init__"}
    assert top == {"measure", "depth", "differentiable", "gradient"}  # what a user calls, and their plain twin


@pytest.mark.parametrize("module", modules(ENGINE), ids=lambda path: path.relative_to(ENGINE).as_posix())
def test_files_and_lists_of_arguments_are_short(module: Path) -> None:
    """400 lines; 8 arguments, but of the public function."""
    source = module.read_text("utf-8")
    assert len(source.splitlines()) <= 400
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.name != "lyapunov_spectrum":
            given = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            assert len([name for name in given if name not in ("self", "cls")]) <= 8, node.name
