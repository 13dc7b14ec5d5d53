"""Writes the two tables of keys, of measurements and of scores, in README and docs/keys.md: `make format` calls it."""

import re
from pathlib import Path

from lightning_lyapunov.names import QUANTITIES, Quantity

PAGES = (Path(__file__).parents[1] / "README.md", Path(__file__).with_name("keys.md"))
HEAD = "| key | meaning | what to do |\n|---|---|---|\n"


def row(quantity: Quantity) -> str:
    """The row of one key."""
    unit = f" ({quantity.unit})" if quantity.unit else ""
    meaning = quantity.meaning.replace("|", r"\|")
    return f"| `{quantity.name.removeprefix('aelle/')}` | {meaning}{unit} | {quantity.advice} |\n"


def renewed(text: str) -> str:
    """The text of a page with the tables as they should be."""
    scores = [quantity for name, quantity in QUANTITIES.items() if name.startswith("aelle/")]
    others = [quantity for name, quantity in QUANTITIES.items() if not name.startswith("aelle/")]
    tables = iter([others, scores])
    return re.sub(re.escape(HEAD) + r"(?:\|.*\n)*", lambda _: HEAD + "".join(map(row, next(tables))), text)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(renewed(page.read_text(encoding="utf-8")), encoding="utf-8")
