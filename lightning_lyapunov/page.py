"""One HTML page that needs nothing beside it: what the reports on time and on depth share."""

from __future__ import annotations

import base64
import math
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import torch

import lightning_lyapunov
from lightning_lyapunov.files import write_whole
from lightning_lyapunov.reading.rules import Finding
from lightning_lyapunov.reading.verdict import Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROWS = 60
"""Measurements in a table at most, evenly chosen; the first and the last are always among them."""
LONGEST = 300
"""Characters of one setting that are shown."""
DPI = 144
"""Of pictures written as PNG: sharp on a phone and on paper."""
UNKNOWN = "–"

LEVELS = {"good": ("✓", "Good"), "note": ("ℹ", "Note"), "warning": ("⚠", "Warning"), "act": ("⛔", "Act")}
"""How the level of a finding is shown: never by its colour alone."""


@dataclass(frozen=True)
class Picture:
    """A figure as the page shows it."""

    title: str
    caption: str
    alt: str
    address: str
    """A ``data:`` address: the picture itself."""


@dataclass(frozen=True)
class Table:
    """A table as the page shows it."""

    name: str
    """Of its place on the page."""
    title: str
    note: str
    headings: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str]]]
    """Class of each row, or none, and its cells."""


@dataclass(frozen=True)
class Page:
    """What stands on a page, from its top to its end."""

    title: str
    measurements: int
    verdict: Verdict | None
    findings: Sequence[Finding]
    summary: Sequence[tuple[str, str, str]]
    """Name, value and unit of what the last measurement comes to."""
    extent: str
    """Of how much it is, in a sentence; may be empty."""
    pictures: Sequence[Picture] | None
    """None where they cannot be drawn."""
    tables: Sequence[Table]
    settings: Mapping[str, object]
    """What the run was made with, by name; nested mappings are flattened, long values cut."""
    runs_before: int = 0
    lead: Picture | None = None
    """The one picture that stands beside the verdict."""

    def write(self, template: str, path: Path, **more: Any) -> Path:
        """Write it whole or not at all.

        Args:
            template: Name of the template, which extends ``page.html``.
            path: The file; its directory is made if need be.
            more: What else the template asks for.

        Returns:
            The path of the page.
        """
        folder = files("lightning_lyapunov")
        environment = jinja2.Environment(
            loader=jinja2.FunctionLoader(lambda name: folder.joinpath(name).read_text("utf-8")),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        page = environment.get_template(template).render(
            page=self,
            written=datetime.now().astimezone(),
            findings=[(finding, *LEVELS[finding.level]) for finding in self.findings],
            settings=[(name, _shortened(value)) for name, value in _flat(self.settings)],
            versions=_versions(),
            **more,
        )
        return write_whole(path, page.encode())


# ------------------------------------------------------------------ numbers


def thinned(count: int) -> list[int]:
    """At most :data:`ROWS` of so many indices, evenly, the first and the last among them."""
    if count <= ROWS:
        return list(range(count))
    return [round(i * (count - 1) / (ROWS - 1)) for i in range(ROWS)]


def number(value: float | None, form: str) -> str:
    """A number with the typographer's minus; a dash where it is not known."""
    if value is None or math.isnan(value):
        return UNKNOWN
    return f"{value:{form}}".replace("-", "−").replace("inf", "∞")


def percentage(value: float) -> str:
    """A share in whole percents; a dash where it is not known."""
    return UNKNOWN if math.isnan(value) else f"{100 * value:.0f} %"


# ------------------------------------------------------------------ pictures


def address(figure: Figure) -> str:
    """A figure as SVG or as PNG, whichever is smaller, in a ``data:`` address."""
    forms: dict[str, dict[str, Any]] = {
        "svg+xml": {"format": "svg", "metadata": {"Date": None}},
        "png": {"format": "png", "dpi": DPI},
    }
    written = {}
    for kind, options in forms.items():
        figure.savefig(buffer := BytesIO(), **options)
        written[kind] = buffer.getvalue()
    kind = min(written, key=lambda kind: len(written[kind]))
    return f"data:image/{kind};base64,{base64.b64encode(written[kind]).decode()}"


# ------------------------------------------------------------------ circumstances


def _flat(settings: Mapping[str, object], before: str = "") -> Iterator[tuple[str, object]]:
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def _shortened(value: object) -> str:
    text = str(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def _versions() -> dict[str, str]:
    found = {"lightning-lyapunov": lightning_lyapunov.__version__, "Python": platform.python_version()}
    for package in ("torch", "lightning", "numpy", "matplotlib"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found | {"torch": torch.__version__}  # with the build, which its metadata need not name
