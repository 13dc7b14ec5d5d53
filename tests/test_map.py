"""The map of the house in docs/map.md against the imports in the source."""

import re
from pathlib import Path

import pytest

from tests.engine.test_fence import ROOMS, modules, room_of, rooms_known

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "map.md").read_text(encoding="utf-8")
ROWS = {
    room: (what, set(re.findall(r"\w+", imports)))
    for room, what, imports in re.findall(r"^\| `(\w+)` \| (.+?) \| (.*?) ?\|$", PAGE, re.MULTILINE)
}


def test_each_room_has_a_row_and_all_stand_in_order() -> None:
    assert list(ROWS) == list(reversed(ROOMS))


@pytest.mark.parametrize("room", ROWS)
def test_a_row_says_what_the_room_is_and_all_that_it_imports(room: str) -> None:
    what, imports = ROWS[room]
    known = {name for module in modules() if room_of(module) == room for name in rooms_known(module)}
    assert what and imports == known


@pytest.mark.parametrize("page", ["docs/map.md", "CONTRIBUTING.md"])
def test_files_and_commands_that_are_named_are_there(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    within = [ROOT, ROOT / "benchmarks", ROOT / "lightning_lyapunov", ROOT / "lightning_lyapunov" / "engine"]
    files = set(re.findall(r"`([\w/.]+(?:\.py|\.md|/))`", text))
    assert len(files) > 5
    assert [name for name in sorted(files) if not any((folder / name).exists() for folder in within)] == []
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"make ([a-z]+(?:-[a-z]+)*)", text)) <= targets
