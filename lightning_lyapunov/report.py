"""A run on one page: what was measured and what it means, as one HTML file that needs nothing beside it."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_lyapunov.names import ON_REQUEST
from lightning_lyapunov.page import (
    LONGEST,
    ROWS,
    UNKNOWN,
    Bar,
    Card,
    Download,
    Page,
    Picture,
    Table,
    address,
    missed,
    number,
    percentage,
    thinned,
    times,
    word_of,
)
from lightning_lyapunov.reading.along import where_lost
from lightning_lyapunov.reading.conditions import has_settled, is_chaotic, is_dead, largest
from lightning_lyapunov.reading.features import NEAR_ZERO
from lightning_lyapunov.reading.history import History, Measurement
from lightning_lyapunov.reading.rules import Finding, findings
from lightning_lyapunov.reading.verdict import Verdict, verdict
from lightning_lyapunov.reading.words import epochs, horizon, plus_minus, steps_of

if TYPE_CHECKING:
    from lightning_lyapunov.figures import LatentMap

__all__ = ["LONGEST", "ROWS", "write_report"]

FIGURES = {
    "overview": (
        "The run in one picture",
        "The verdict with its reason and what to do; below, as far as each is known, what a gradient is multiplied by "
        "over a sequence in the course of training, with its error, the final skill as predicted beside what was "
        "reached, and growth along the sequence now.",
    ),
    "along": (
        "Where along a sequence memory is lost",
        "How a push to the state before the first step grows or shrinks from there on: above by step, mean over "
        "sequences and one standard deviation between them, below what is left of it. Grey is where half of the change "
        "falls, if that is in a quarter of the steps or less.",
    ),
    "spectrum": (
        "The spectrum",
        "All exponents measured, largest first, with their error bars. Above zero perturbations of the state grow; "
        "near zero they last; far below they are forgotten within a step or two.",
    ),
    "training": (
        "The spectrum during training",
        "Above, the largest exponent with its error as a band, hollow where it has not settled, and a square off the "
        "line where other data drove the network, which is not to be compared. Below, each column is one measurement, "
        "its largest exponent on top: red grows, blue fades.",
    ),
    "prediction": (
        "How well the network is predicted to end",
        "The scorer's prediction with its 80 % interval, the prediction without the spectrum, which it must beat, and "
        "what was reached so far.",
    ),
    "latent": (
        "Where the run lies among known networks",
        "The codes of the bank's networks, coloured by how well they ended, and this run's way through them.",
    ),
    "layers": (
        "Layer by layer",
        "The largest exponent of each layer: the one furthest above zero makes gradients grow, the one furthest below "
        "forgets. Each is per step of its own layer; where one takes several steps of the others, they are not alike.",
    ),
}
"""Title and caption of each figure."""
PREDICTED = ("performance", "performance_low", "performance_high")
LEAD = "overview"
"""The figure that stands beside the verdict."""
CONCERN = {
    "exponent": ("saturated", "collapsed", "exploding", "may explode", "chaotic", "stable"),
    "gradient": (
        *("saturated", "collapsed", "exploding", "may explode", "chaotic", "growing", "mild growth", "forgetting"),
        *("remembering", "stable", "fading", "undecided", "layer_explodes"),
    ),
    "memory": ("saturated", "collapsed", "forgetting", "remembering", "layer_died"),
    "skill": ("predicted_to_fail",),
}
"""States of the findings that concern the number of a card."""
DOCS = (
    ("how to read this page", "docs/report.md"),
    ("what a spectrum tells", "docs/reading-a-spectrum.md"),
    ("how often what is said was right", "docs/rates.md"),
    ("what helps", "docs/acting.md"),
)


def write_report(
    history: History,
    path: str | os.PathLike[str],
    *,
    settings: Mapping[str, object] | None = None,
    title: str = "Lyapunov spectra of a training run",
    latent_map: LatentMap | None = None,
) -> Path:
    """Write one self-contained HTML page: the verdict, what to do, figures, measurements, settings, a glossary.

    The page needs no network and no scripts, reads well in light and dark, on a phone and on paper, and stays below
    2 MB. It is written whole or not at all. Without matplotlib it is written without figures, and says so.

    Args:
        history: What was measured: :attr:`LyapunovSpectrumCallback.history`. Of several fits the page is about the
            last one; those of :attr:`~lightning_lyapunov.reading.History.earlier` can have pages of their own.
        path: The file; its directory is made if need be.
        settings: What the run was made with, by name; nested mappings are flattened, long values cut.
        title: Heading of the page.
        latent_map: That of the scorer that scored the run, :meth:`LatentMap.of_bank`; no such figure if None.

    Returns:
        The path of the page.

    Raises:
        ValueError: If nothing was measured.
    """
    if not len(history):
        raise ValueError("history must hold at least one measurement; got none.")
    found, said, pictures = findings(history), verdict(history), _pictures(history, latent_map)
    lead = next((picture for picture in pictures or () if picture.title == FIGURES[LEAD][0]), None)
    page = Page(
        title=title,
        counted=f"{len(history)} measurement{'s' * (len(history) != 1)}",
        verdict=said,
        findings=found,
        cards=_cards(history[-1], found, said),
        summary=_summary(history[-1]),
        extent=_extent(history[-1]),
        pictures=None if pictures is None else [picture for picture in pictures if picture is not lead],
        tables=[_measurements(history)],
        settings=settings or {},
        docs=DOCS,
        missed=missed(history),
        runs_before=history.runs_before,
        lead=lead,
    )
    return page.write("report.html", Path(path))


# ------------------------------------------------------------------ numbers


def _measurements(history: History) -> Table:
    """A row for each measurement, or for some of many."""
    chosen = [history[i] for i in thinned(len(history))]
    with_source = len({m.source for m in history}) > 1
    asked = {name for name in ON_REQUEST if any(name in m.metrics for m in history)}
    less = f"{len(chosen)} of {len(history)} measurements, evenly chosen. " if len(chosen) < len(history) else ""
    return Table(
        "measurements",
        "Measurements",
        f"{less}Exponents in nats per step, bold where the network is chaotic; what a gradient is multiplied by over a "
        "sequence, in a typical one and at most; the horizon in steps; – is not known.",
        list(_row(history[-1], with_source, asked)),
        [("chaotic" if is_chaotic(m) else "", list(_row(m, with_source, asked).values())) for m in chosen],
        Download.of_csv(
            f"{history.prefix}.csv", f"All {len(history)} measurements with all their figures (CSV)", history.to_csv()
        ),
    )


def _row(m: Measurement, with_source: bool = False, asked: Collection[str] = ()) -> dict[str, str]:
    """One measurement, by the headings of the table.

    Args:
        m: The measurement.
        with_source: Whether to tell what drove it, where that is not always the same.
        asked: Figures that are there only where somebody asked for them, by name.
    """

    def get(name: str) -> float:
        return m.metrics.get(name, math.nan)

    low, high = get("aelle/performance_low"), get("aelle/performance_high")
    interval = "" if math.isnan(low) else f" ({low:.2f} to {high:.2f})"
    return {
        "update": f"{m.step:,}",
        "epoch": str(epochs(m)),
        **({"driven by": f"{m.source} data" if m.source else UNKNOWN} if with_source else {}),
        "λ max ± error": _largest(m),
        "settled": UNKNOWN if m.settled is None else "yes" if has_settled(m) else "no",
        "gradient": times(m.gain),
        "at most": UNKNOWN if m.growth is None or not len(m.growth) else times(float(m.growth[0])),
        "near zero": percentage(get("near_zero_fraction")),
        "unstable": percentage(get("unstable_fraction")),
        "Kaplan–Yorke": number(get("kaplan_yorke_dimension"), ".1f"),
        "horizon": horizon(m, "").strip() or UNKNOWN,
        "predicted skill": number(get("aelle/performance"), ".2f") + interval,
        "reached": number(m.reached, ".2f"),
        "trusted": percentage(get("trusted_fraction")),
        **({"closed loop": _closed_loop(m)} if "closed_loop_max" in asked else {}),
        **({"distance": number(get("distance"), ".3f")} if "distance" in asked else {}),
        "seconds": number(get("seconds"), ".2f"),
    }


def _cards(last: Measurement, found: Sequence[Finding], said: Verdict | None) -> list[Card]:
    """The few numbers that matter, those that are known, in the colours of what was found of them."""
    cards = [_exponent(last), _gradient(last), _memory(last), _skill(last)]
    return [
        replace(card, word=word_of(CONCERN[concern], found, said))
        for concern, card in zip(CONCERN, cards, strict=True)
        if card.value != UNKNOWN
    ]


def _exponent(m: Measurement) -> Card:
    value, _, error = _largest(m).partition(" ± ")
    note = f"± {error} " if error else "no error is known; "
    note += "nats per step" + " of its layer" * bool(m.layers) + ", not settled" * (m.settled is not None)
    if has_settled(m):
        note = note.removesuffix(", not settled")
    return Card("Largest exponent", value, note, Bar.around_zero(*largest(m), steps=(0.5, 1, 2, 5, 10, 50)))


def _gradient(m: Measurement) -> Card:
    value, error = m.gain, m.gain_error
    of = f", in layer {m.growth_of}" if m.growth_of else ""
    most = "" if m.growth is None or not len(m.growth) else f"at most {times(float(m.growth[0]))}, "
    known = math.isfinite(value) and math.isfinite(error)
    ends = f"between {times(value - error)} and {times(value + error)}; " if known else "no error is known; "
    bar = Bar.around_zero(value, error, steps=(10, 20, 50, 100, 500), unit=" nats")
    return Card("A gradient in a typical sequence", times(value), f"{ends}{most}over {steps_of(m)}{of}", bar)


def _memory(m: Measurement) -> Card:
    """The share of directions near zero; its error is what the errors of the exponents make of it."""
    share = m.metrics.get("near_zero_fraction", math.nan)
    low, high = _near_zero(m)
    told = f"{100 * low:.0f} to {100 * high:.0f} % within the errors; " if low <= share <= high else ""
    note = f"{told}of the state, |λ| below {NEAR_ZERO:g}"
    return Card("Directions that remember", percentage(share), note, Bar.of_share(share, low, high))


def _near_zero(m: Measurement) -> tuple[float, float]:
    """Shares of the directions that are near zero for certain, and that may be; NaN where exponents are missing."""
    if m.error is None or m.dimension is None or not len(m.exponents):
        return math.nan, math.nan
    values, errors = m.exponents.abs(), m.error
    lowest = float(m.exponents[-1] + errors[-1])
    if errors.isnan().any() or (len(values) < m.dimension and not lowest < -NEAR_ZERO):
        return math.nan, math.nan
    counts = (values + errors < NEAR_ZERO).sum(), (values - errors < NEAR_ZERO).sum()
    return int(counts[0]) / m.dimension, int(counts[1]) / m.dimension


def _skill(m: Measurement) -> Card:
    value, low, high = (m.metrics.get(f"aelle/{name}", math.nan) for name in PREDICTED)
    reached = "" if m.reached is None else f"; reached so far {number(m.reached, '.2f')}"
    note = "no interval is known" if math.isnan(low) else f"80 % interval {low:.2f} to {high:.2f}"
    bar = Bar.of_share(value, low, high) if 0 <= low <= high <= 1 else None
    return Card("Predicted final skill", number(value, ".2f"), f"{note}{reached}; 0 chance, 1 best", bar)


def _summary(last: Measurement) -> list[tuple[str, str, str]]:
    """Name, value and unit of what else the last measurement comes to; only what is known."""
    row = _row(last)
    length = "" if last.length is None else f"; the longest sequence has {last.length}"
    dimension = "" if last.dimension is None else f", of {last.dimension}"
    facts = [
        ("Gradient horizon", row["horizon"], f"steps{_horizons(last)}{length}"),
        ("Kaplan–Yorke dimension", row["Kaplan–Yorke"], f"dimensions{dimension}; its error is not known"),
        ("Skill so far", row["reached"], "0 chance, 1 best; as it was logged"),
        ("Closed loop", _closed_loop(last), "nats per step, the model fed with its own forecasts"),
        (
            "Distance from the reference",
            number(last.metrics.get("distance"), ".3f"),
            "of e^λ, root mean square; its error is not known",
        ),
    ]
    return [fact for fact in facts if fact[1] != UNKNOWN]


def _horizons(m: Measurement) -> str:
    """The horizons that the error of the gain leaves."""
    least, most = abs(m.gain) - m.gain_error, abs(m.gain) + m.gain_error
    if not (math.isfinite(least) and math.isfinite(m.growth_steps) and least > 0):
        return ""
    return f", {m.growth_steps / most:,.1f} to {m.growth_steps / least:,.1f} within the error of the gain"


def _extent(m: Measurement) -> str:
    """Of how many sequences and steps a measurement is, what drove it, and how much less that is than was seen."""
    told = []
    if m.sequences is not None and m.steps is not None:
        several = "s" * (m.sequences != 1)
        told.append(f"It is of {m.sequences} sequence{several} of {'up to ' * (m.sequences > 1)}{m.steps} steps")
    if m.source:
        told.append(f"{'driven' if told else 'It was driven'} by {m.source} data")
    less = f" Measured were {m.fewer}." if m.fewer else ""
    return (f"{', '.join(told)}." if told else "") + less


def _largest(m: Measurement) -> str:
    """The largest exponent and its error; one of −∞ has none."""
    value, error = largest(m)
    if value == -math.inf:
        return "dead (−∞)" if is_dead(m) else "−∞"
    return number(value, "+.3f") + ("" if math.isnan(error) or math.isnan(value) else f" ± {error:.3f}")


def _closed_loop(m: Measurement) -> str:
    """The largest exponent of the closed loop and its error."""
    value, error = (m.metrics.get(name, math.nan) for name in ("closed_loop_max", "closed_loop_error"))
    return UNKNOWN if math.isnan(value) else plus_minus(value, error).replace("-", "−")


# ------------------------------------------------------------------ pictures


def _pictures(history: History, latent_map: LatentMap | None) -> list[Picture] | None:
    """The figures there is data for; None without matplotlib."""
    try:
        from lightning_lyapunov.figures import figures_of
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        return None
    pictures = []
    for name, figure in figures_of(history, latent_map).items():
        title, caption = FIGURES.get(name, (name, ""))
        pictures.append(Picture(title, caption, f"{title}. {_told(name, history)}".strip(), address(figure)))
    return pictures


def _told(name: str, history: History) -> str:
    """What a figure shows, for those who cannot see it."""
    first, last = history[0], history[-1]
    if name == "overview":
        return f"Verdict {verdict(history)} Largest exponent {_largest(last)} nats per step at update {last.step}."
    if name == "along":
        return where_lost(last)
    if name == "spectrum":
        count, lowest = len(last.exponents), number(float(last.exponents[-1]), "+.2f")
        return f"{count} exponents at update {last.step}, from {_largest(last)} down to {lowest}."
    if name == "training":
        start, end = (f"{_largest(m)} at update {m.step}" for m in (first, last))
        if first.source != last.source:
            start += f" (driven by {first.source or 'other'} data)"
        return f"Largest exponent: {start}, {end}, in {len(history)} measurements."
    if name == "prediction":
        start, end = (_row(m)["predicted skill"] for m in (first, last))
        return f"Predicted final skill: {start} at update {first.step}, {end} at update {last.step}."
    if name == "layers":
        return ", ".join(f"{layer} {number(top, '+.3f')}" for layer, (top, *_) in last.layers.items()) + " at the end."
    return ""
