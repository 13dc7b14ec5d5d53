"""A run on one page: what was measured and what it means, as one HTML file that needs nothing beside it."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_lyapunov.names import ON_REQUEST
from lightning_lyapunov.page import LONGEST, ROWS, UNKNOWN, Page, Picture, Table, address, number, percentage, thinned
from lightning_lyapunov.reading.conditions import has_settled, is_chaotic, is_dead, largest
from lightning_lyapunov.reading.history import History, Measurement
from lightning_lyapunov.reading.rules import findings
from lightning_lyapunov.reading.verdict import verdict
from lightning_lyapunov.reading.words import factor, horizon, plus_minus, steps_of

if TYPE_CHECKING:
    from lightning_lyapunov.figures import LatentMap

__all__ = ["LONGEST", "ROWS", "write_report"]

FIGURES = {
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
        "The largest exponent of each layer: the one furthest above zero explodes, the one furthest below forgets. "
        "Each is per step of its own layer; where one takes several steps of the others, they are not alike.",
    ),
}
"""Title and caption of each figure."""


def write_report(
    history: History,
    path: str | os.PathLike[str],
    *,
    settings: Mapping[str, object] | None = None,
    title: str = "Lyapunov spectra of a training run",
    latent_map: LatentMap | None = None,
) -> Path:
    """Write one self-contained HTML page: findings in words, figures, measurements, settings, a glossary.

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
    page = Page(
        title=title,
        measurements=len(history),
        verdict=verdict(history),
        findings=findings(history),
        summary=_summary(history),
        extent=_extent(history[-1]),
        pictures=_pictures(history, latent_map),
        tables=[_measurements(history)],
        settings=settings or {},
        runs_before=history.runs_before,
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
        "epoch": str(m.epoch),
        **({"driven by": f"{m.source} data" if m.source else UNKNOWN} if with_source else {}),
        "λ max ± error": _largest(m),
        "settled": UNKNOWN if m.settled is None else "yes" if has_settled(m) else "no",
        "gradient": _factor(m.gain),
        "at most": UNKNOWN if m.growth is None or not len(m.growth) else _factor(float(m.growth[0])),
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


def _summary(history: History) -> list[tuple[str, str, str]]:
    """Name, value and unit of what the last measurement comes to; only what is known."""
    last = history[-1]
    row = _row(last)
    exponent, _, error = row["λ max ± error"].partition(" ± ")
    of = f", in layer {last.growth_of}" if last.growth_of else ""
    interval = row["predicted skill"].partition(" ")[2].strip("()")
    length = "" if last.length is None else f"; the longest sequence has {last.length}"
    dimension = "" if last.dimension is None else f", of {last.dimension}"
    facts = [
        (
            "Largest exponent",
            exponent,
            f"± {error} " * bool(error)
            + "nats per step"
            + " of its layer" * bool(last.layers)
            + ", not settled" * (row["settled"] == "no"),
        ),
        ("A gradient in a typical sequence", row["gradient"], f"at most {row['at most']}, over {steps_of(last)}{of}"),
        ("Gradient horizon", row["horizon"], f"steps{length}"),
        ("Directions that remember", row["near zero"], "of the state, |λ| below 0.05"),
        ("Kaplan–Yorke dimension", row["Kaplan–Yorke"], f"dimensions{dimension}"),
        (
            "Predicted final skill",
            row["predicted skill"].partition(" ")[0],
            f"80 % interval {interval}" if interval else "0 chance, 1 best",
        ),
        ("Skill so far", row["reached"], "0 chance, 1 best"),
        ("Closed loop", _closed_loop(last), "nats per step, the model fed with its own forecasts"),
        ("Distance from the reference", number(last.metrics.get("distance"), ".3f"), "of e^λ, root mean square"),
    ]
    return [fact for fact in facts if fact[1] != UNKNOWN]


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


def _factor(nats: float) -> str:
    """What a gradient is multiplied by."""
    return UNKNOWN if math.isnan(nats) else f"× {factor(nats).removesuffix('-fold')}"


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
