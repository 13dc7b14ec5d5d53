"""CITATION.cff: valid by the rules of its format, version 1.2.0, as far as we use it, and of this very version."""

from pathlib import Path
from typing import Any

import yaml

from lightning_lyapunov import __version__

ROOT = Path(__file__).parents[1]
KEYS = {
    "cff-version",
    "message",
    "type",
    "title",
    "abstract",
    "authors",
    "version",
    "license",
    "keywords",
    "references",
}
OF_A_REFERENCE = {"type", "title", "authors", "journal", "volume", "start", "end", "year"}
"""Those that the format has and that are used here."""


def check_authors(authors: list[dict[str, Any]]) -> None:
    assert authors
    for author in authors:  # an entity, or a person
        assert set(author) == {"name"} or set(author) == {"family-names", "given-names"}
        assert all(isinstance(part, str) and part for part in author.values())


def test_citation_is_valid_and_of_this_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["cff-version"] == "1.2.0" and cited["type"] == "software"
    assert {"message", "title", "authors"} <= set(cited) <= KEYS
    assert cited["version"] == __version__
    assert f'license = "{cited["license"]}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    check_authors(cited["authors"])
    for reference in cited["references"]:
        assert {"type", "title", "authors"} <= set(reference) <= OF_A_REFERENCE
        assert reference["type"] == "article" and isinstance(reference["year"], int)
        check_authors(reference["authors"])
