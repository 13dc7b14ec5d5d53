"""One HTML page that needs nothing beside it: what the reports on time and on depth share."""

from __future__ import annotations

import base64
import math
import platform
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import torch
from markupsafe import Markup, escape

import lightning_lyapunov
from lightning_lyapunov.files import write_whole
from lightning_lyapunov.reading.history import History
from lightning_lyapunov.reading.rules import Finding
from lightning_lyapunov.reading.verdict import SIGNS, Verdict, Word
from lightning_lyapunov.reading.words import factor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROWS = 60
"""Measurements in a table at most, evenly chosen; the first and the last are always among them."""
LONGEST = 300
"""Characters of one setting that are shown."""
DPI = 200
"""Of pictures written as PNG: sharp on a phone and on paper."""
LARGE = 50_000
"""Bytes of a picture as SVG up to which it is not looked whether it would be smaller as PNG."""
UNKNOWN = "–"

LEVELS = {"good": ("✓", "Good"), "note": ("ℹ", "Note"), "warning": ("⚠", "Watch"), "act": ("✖", "Act")}
"""How the level of a finding is shown: never by its colour alone."""
WORD_OF: dict[str, Word] = {"act": "act", "warning": "watch", "good": "healthy"}
"""The word of the verdict that is of the level of a finding; of a note there is none."""


@dataclass(frozen=True)
class Picture:
    """A figure as the page shows it."""

    title: str
    caption: str
    alt: str
    address: str
    """A ``data:`` address: the picture itself."""


@dataclass(frozen=True)
class Bar:
    """A value with its error on an axis of its own, places in percent of its width."""

    ends: tuple[str, str]
    """What is written at either end of the axis."""
    low: float
    high: float
    at: float
    zero: float | None
    """Where zero lies; None at an end, or off the axis."""

    @classmethod
    def around_zero(cls, value: float, error: float, steps: Sequence[float], unit: str = "") -> Bar | None:
        """On an axis as far either way as the first of these steps that holds it; None of what cannot be drawn."""
        if not math.isfinite(value) or not math.isfinite(error):
            return None
        most = abs(value) + error
        end = next((step for step in steps if step >= most), most)
        ends = f"−{end:.3g}{unit}", f"+{end:.3g}{unit}"
        return cls._on(value, value - error, value + error, -end, end, ends, is_signed=True)

    @classmethod
    def of_share(cls, value: float, low: float, high: float) -> Bar | None:
        """On an axis from 0 to 1."""
        if not all(map(math.isfinite, (value, low, high))):
            return None
        return cls._on(value, low, high, 0.0, 1.0, ("0", "1"), is_signed=False)

    @classmethod
    def _on(
        cls, value: float, low: float, high: float, start: float, end: float, ends: tuple[str, str], *, is_signed: bool
    ) -> Bar:
        def place(x: float) -> float:
            return round(100 * (min(max(x, start), end) - start) / (end - start), 1)

        return cls(ends, place(low), place(high), place(value), place(0.0) if is_signed else None)


@dataclass(frozen=True)
class Card:
    """One of the few numbers that matter, with its error, in the colour of what was found of it."""

    name: str
    value: str
    note: str
    """Its error, its unit, and what it is of."""
    bar: Bar | None = None
    word: Word | None = None
    """The word that colours it, of the verdict's; None where nothing was found that concerns it."""

    @property
    def sign(self) -> str:
        """Shown beside the colour."""
        return SIGNS[self.word] if self.word else ""


@dataclass(frozen=True)
class Download:
    """A file that the page carries."""

    name: str
    label: str
    address: str
    """A ``data:`` address: the file itself."""

    @classmethod
    def of_csv(cls, name: str, label: str, text: str) -> Download:
        """Comma-separated values."""
        return cls(name, label, f"data:text/csv;charset=utf-8;base64,{base64.b64encode(text.encode()).decode()}")


@dataclass(frozen=True)
class Table:
    """A table as the page shows it."""

    name: str
    """Of its place on the page."""
    title: str
    note: str
    headings: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str]]]
    """Class of each row, or none, and its cells; those that hold HTML as ``Markup``."""
    download: Download | None = None
    """All of it as a file."""


@dataclass(frozen=True)
class Page:
    """What stands on a page, from its top to its end."""

    title: str
    counted: str
    """How many measurements it is of, or runs."""
    verdict: Verdict | None
    """The headline; None of several runs, which have one each."""
    findings: Sequence[Finding]
    cards: Sequence[Card]
    """The few numbers that matter, of the last measurement."""
    summary: Sequence[tuple[str, str, str]]
    """Name, value and unit of what else it comes to."""
    extent: str
    """Of how much it is, in a sentence; may be empty."""
    pictures: Sequence[Picture] | None
    """None where they cannot be drawn."""
    tables: Sequence[Table]
    settings: Mapping[str, object]
    """What the run was made with, by name; nested mappings are flattened, long values cut."""
    docs: Sequence[tuple[str, str]]
    """Pages of the documentation that tell more: what of, and the file."""
    missed: str = ""
    """Since when nothing was measured and why, in a sentence; empty where the last measurement is of the end."""
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
        environment.filters["code"] = with_code
        page = environment.get_template(template).render(
            page=self,
            written=datetime.now().astimezone(),
            findings=[(finding, *LEVELS[finding.level]) for finding in self.findings],
            settings=[(name, shortened(value)) for name, value in flat(self.settings)],
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


def times(nats: float) -> str:
    """What something is multiplied by as it grows by so many nats; a dash where it is not known.

    Example:
        >>> times(-1.0), times(-270.0)
        ('× 1/2.7', '× 5.5·10⁻¹¹⁸')
    """
    if math.isnan(nats):
        return UNKNOWN
    amount, power, tens = factor(nats).removesuffix("-fold").partition("^")
    return f"× {amount}{tens.translate(_RAISED) if power else ''}"


_RAISED = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


# ------------------------------------------------------------------ what was found


def word_of(states: Collection[str], found: Sequence[Finding], said: Verdict | None) -> Word | None:
    """The word that colours a number, by the gravest finding that concerns it; None where there is none.

    Args:
        states: Those of the findings that concern it.
        found: All findings.
        said: The verdict: what it rests on is as grave as it says; in a healthy run all else is healthy.
    """
    concerning = [finding for finding in found if finding.state in states]
    if said is not None and said.word == "healthy" and not any(finding.is_concern for finding in concerning):
        return "healthy"
    if said is not None and said.word != "healthy" and said.about in states:
        return said.word
    levels = {finding.level for finding in concerning}
    return next((word for level, word in WORD_OF.items() if level in levels), None)


def missed(history: History[Any]) -> str:
    """Since when nothing was measured, and why, in a sentence; empty where nothing was missed."""
    if history.missed is None:
        return ""
    updates, why = history.missed
    return f"Not measured since update {history[-1].step:,} of {updates:,}: {why.removesuffix('.')}."


def with_code(text: str) -> Markup:
    """A sentence in HTML, with what stands between backticks as code.

    Example:
        >>> with_code("a < b: `condition(rnn)`")
        Markup('a &lt; b: <code>condition(rnn)</code>')
    """
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))


# ------------------------------------------------------------------ pictures


def address(figure: Figure) -> str:
    """A figure as SVG, or as PNG where that is smaller, in a ``data:`` address."""
    figure.savefig(buffer := BytesIO(), format="svg", metadata={"Date": None})
    written = {"svg+xml": buffer.getvalue()}
    if len(written["svg+xml"]) > LARGE:
        figure.savefig(buffer := BytesIO(), format="png", dpi=DPI)
        written["png"] = buffer.getvalue()
    kind = min(written, key=lambda kind: len(written[kind]))
    return f"data:image/{kind};base64,{base64.b64encode(written[kind]).decode()}"


# ------------------------------------------------------------------ circumstances


def flat(settings: Mapping[str, object], before: str = "") -> Iterator[tuple[str, object]]:
    """Names and values, those of nested mappings with the names before them: ``model.hidden``."""
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def shortened(value: object) -> str:
    """A setting as it is shown."""
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
