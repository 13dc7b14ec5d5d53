"""The page of warnings against the warnings in the source: each names a section, each section is of some."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "warnings.md").read_text(encoding="utf-8")
ANCHORS = [title.lower().replace(" ", "-") for title in re.findall(r"^## (.+)$", PAGE, re.MULTILINE)]
IN_A_TEXT = re.compile(r"docs/warnings\.md#([\w-]+)")


@cache
def calls_and_texts() -> list[tuple[str, ast.Call | ast.Constant]]:
    """In all modules, with the name of the file."""
    paths = sorted((ROOT / "lightning_lyapunov").rglob("*.py"))
    nodes = [(path.name, node) for path in paths for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    return [(name, node) for name, node in nodes if isinstance(node, ast.Call | ast.Constant)]


def sections_in(node: ast.AST) -> Iterator[ast.expr]:
    """What a call names as the section of its warning, by ``warn=`` or as the second argument of ``linked``."""
    if isinstance(node, ast.Call):
        yield from (keyword.value for keyword in node.keywords if keyword.arg == "warn")
        if isinstance(node.func, ast.Name) and node.func.id == "linked":
            yield from node.args[1:]


def named() -> set[str]:
    """The sections that are named; one that is no literal is there as its source."""
    found: list[str] = []
    for _, node in calls_and_texts():
        for value in sections_in(node):
            either = [value.body, value.orelse] if isinstance(value, ast.IfExp) else [value]
            found += [str(one.value) if isinstance(one, ast.Constant) else ast.unparse(one) for one in either]
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found += IN_A_TEXT.findall(node.value)
    found.remove("warn")  # where Notices hands on what it was told
    return {*found} - {""}  # what is information in some case


def test_each_warning_names_a_section_and_each_section_is_of_a_warning() -> None:
    assert named() == {*ANCHORS}
    assert len(ANCHORS) == len(set(ANCHORS)) > 12


def test_no_warning_goes_past_the_page() -> None:
    """Neither ``warn`` and ``caution`` nor Python's own are called with a text that has no section."""
    bare = []
    for name, node in calls_and_texts():
        if not isinstance(node, ast.Call) or ast.unparse(node.func) not in ("warn", "caution", "warnings.warn"):
            continue
        said = ast.unparse(node.args[0])
        if not (said.startswith("linked(") or IN_A_TEXT.search(said)):
            bare.append(name)
    assert bare == ["notices.py"]  # which says what it is given


def test_the_table_has_a_row_for_each_section_in_their_order() -> None:
    assert re.findall(r"^\| \[[\w ]+\]\(#([\w-]+)\)", PAGE, re.MULTILINE) == ANCHORS
