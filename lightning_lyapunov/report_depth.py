"""A run across depth on one page: what each block does to a gradient and what that means, as one HTML file."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning_lyapunov.names_depth import QUANTITIES
from lightning_lyapunov.page import (
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
from lightning_lyapunov.reading.depth_conditions import TRAINED, idle, odd, severed, unchanging
from lightning_lyapunov.reading.depth_history import DepthMeasurement
from lightning_lyapunov.reading.depth_rules import findings, verdict
from lightning_lyapunov.reading.depth_words import exponential, share
from lightning_lyapunov.reading.history import History
from lightning_lyapunov.reading.rules import Finding
from lightning_lyapunov.reading.verdict import Verdict
from lightning_lyapunov.reading.words import epochs

__all__ = ["write_depth_report"]

FIGURES = {
    "depth": (
        "The chain and its blocks over training",
        "Above, what a gradient is multiplied by on its way from output to input, in nats: at most, with its error as "
        "a band, and in a typical direction; in the shaded parts few networks of a benchmark learnt. Below, a row for "
        "each block, red where a gradient grows in it, blue where it fades; hatched where the block changes nothing of "
        "what passes, black where nothing passes.",
    ),
    "blocks": (
        "Block by block now",
        "On top what a gradient is multiplied by from output to input, with its error; in the shaded parts few "
        "networks of a benchmark learnt. Below, at the left, the gain of each block with its error: right of zero a "
        "gradient grows in it, left of zero it fades. At the right, how much of what passes it each block changes: a "
        "block with a skip may do little to the size of a gradient and still do its work; one that changes nothing is "
        "dead.",
    ),
}
"""Title and caption of each figure."""
GRADIENT = ("unknown", "no_gradient", "vanishes", "doubtful", "undecided", "explodes", "passes")
BLOCKS = ("no_gradient", "dead_branch", "all_unchanged", "idle_late", "odd_block")
"""States of the findings that concern what happens to a gradient, and single blocks."""
DOCS = (
    ("how to read this page", "docs/report.md"),
    ("what blocks do to a gradient", "docs/depth.md"),
    ("what that is worth", "docs/depth-benchmark.md"),
)


def write_depth_report(
    history: History[DepthMeasurement],
    path: str | os.PathLike[str],
    *,
    settings: Mapping[str, object] | None = None,
    title: str = "Gradients across the depth of a network",
) -> Path:
    """Write one self-contained HTML page: the verdict, the picture, findings, blocks, measurements, a glossary.

    The page needs no network and no scripts, reads well in light and dark, on a phone and on paper, and stays below
    2 MB. It is written whole or not at all. Without matplotlib it is written without pictures, and says so.

    Args:
        history: What was measured: :attr:`DepthSpectrumCallback.history`. Of several fits the page is about the last
            one; those of :attr:`~lightning_lyapunov.reading.History.earlier` can have pages of their own.
        path: The file; its directory is made if need be.
        settings: What the run was made with, by name; nested mappings are flattened, long values cut.
        title: Heading of the page.

    Returns:
        The path of the page.

    Raises:
        ValueError: If nothing was measured.
    """
    measurements = list(history)
    if not measurements:
        raise ValueError("history must hold at least one measurement; got none.")
    pictures = _pictures(measurements)
    lead, *others = pictures or [None]
    found, said = findings(measurements), verdict(measurements)
    page = Page(
        title=title,
        counted=f"{len(measurements)} measurement{'s' * (len(measurements) != 1)}",
        verdict=said,
        findings=found,
        cards=_cards(measurements[-1], found, said),
        summary=_summary(measurements[-1]),
        extent="",
        pictures=None if pictures is None else [picture for picture in others if picture],
        tables=[_blocks(measurements[-1]), _measurements(history)],
        settings=settings or {},
        docs=DOCS,
        missed=missed(history),
        runs_before=history.runs_before,
        lead=lead,
    )
    return page.write("report_depth.html", Path(path), quantities=list(QUANTITIES.values()))


# ------------------------------------------------------------------ numbers


def _cards(last: DepthMeasurement, found: Sequence[Finding], said: Verdict | None) -> list[Card]:
    """The few numbers that matter, those that are known, in the colours of what was found of them."""
    (value, error), (usual, its_error) = last.total, last.gain
    steps = (10, 20, 50, 100, 500)
    remarks = [remark for remark in _remarks(last) if remark]
    words = ", ".join(f"{remarks.count(remark)} × {remark}" for remark in dict.fromkeys(remarks))
    cards = [
        Card(
            "A gradient at most",
            times(value),
            f"{_power(value, error)}, from output to input",
            Bar.around_zero(value, error, steps, " nats"),
            word_of(GRADIENT, found, said),
        ),
        Card(
            "In a typical direction",
            times(usual),
            f"{_power(usual, its_error)}{_per_unit(last)}",
            Bar.around_zero(usual, its_error, steps, " nats"),
        ),
        Card(
            "Blocks that stand out",
            f"{len(remarks)} of {last.depth}",
            words or "none is dead, idle or unlike its neighbours",
            None,
            word_of(BLOCKS, found, said),
        ),
    ]
    return [card for card in cards if card.value != UNKNOWN]


def _summary(last: DepthMeasurement) -> list[tuple[str, str, str]]:
    """Name, value and unit of what else the last measurement comes to; only what is known."""
    facts = [
        ("Blocks", str(last.depth), f"widths {_widths(last.dimensions)}"),
        ("Largest gain of a block", *_extreme(last, largest=True)),
        ("Smallest gain of a block", *_extreme(last, largest=False)),
        ("Anisotropy", number(last.metrics.get("anisotropy"), ".2f"), "nats: 0 if all directions are alike"),
    ]
    return [fact for fact in facts if fact[1] != UNKNOWN]


def _extreme(last: DepthMeasurement, *, largest: bool) -> tuple[str, str]:
    """The largest or the smallest gain of a block, and which block it is."""
    gains = [(gain, i) for i, gain in enumerate(last.block_gain.tolist()) if not math.isnan(gain)]
    if not gains:
        return UNKNOWN, ""
    gain, block = max(gains) if largest else min(gains)
    return number(gain, "+.2f"), f"nats, in {last.names[block]}"


def _blocks(last: DepthMeasurement) -> Table:
    """A row for each block of the newest measurement."""
    per_unit = _per_unit(last)
    return Table(
        "blocks",
        "Blocks",
        f"At update {last.step:,}, from the first that the input meets. The gain of each by itself in nats{per_unit}; "
        "the share of what passes it that it changes, where it keeps the width; and what it adds to the largest growth "
        "of the whole chain, in nats. Bold is what the findings speak of; – is not known.",
        ["block", "name", "class", "width", "gain ± error", "changes", "adds to the whole", "remark"],
        [_block_row(last, block, remark) for block, remark in enumerate(_remarks(last))],
    )


def _remarks(last: DepthMeasurement) -> list[str]:
    """A word on each block that stands out, of those of which the findings speak."""
    told = {block: "stands out" for block, _ in odd(last)}
    told |= dict.fromkeys(unchanging(last), "dead branch")
    told |= dict.fromkeys(idle(last) if last.step >= TRAINED else [], "idle")
    told |= dict.fromkeys(severed(last), "lets nothing pass")
    return [told.get(block, "") for block in range(last.depth)]


def _block_row(last: DepthMeasurement, block: int, remark: str) -> tuple[str, list[str]]:
    before, after = last.dimensions[block : block + 2]
    gain, error = float(last.block_gain[block]), float(last.block_gain_error[block])
    change = float(last.block_change[block])
    cells = [
        str(block + 1),
        last.names[block],
        last.kinds[block] if last.kinds else UNKNOWN,
        str(after) if before == after else f"{before} → {after}",
        number(gain, "+.3f") + (f" ± {error:.3f}" if math.isfinite(gain) and math.isfinite(error) else ""),
        UNKNOWN if math.isnan(change) else share(change),
        _part(last, block),
        remark,
    ]
    return "told" * bool(remark), cells


def _part(last: DepthMeasurement, block: int) -> str:
    """What a block adds to the largest growth, and where that is more than a nat its share of it."""
    added, (value, _) = float(last.contributions[block]), last.total
    told = number(added, "+.2f")
    if not math.isfinite(added) or not math.isfinite(value) or abs(value) < 1:
        return told
    return f"{told} ({percentage(added / value)})".replace("-", "−")


def _measurements(history: History[DepthMeasurement]) -> Table:
    """A row for each measurement, or for some of many."""
    measurements = list(history)
    chosen = [measurements[i] for i in thinned(len(measurements))]
    with_source = len({m.source for m in measurements}) > 1
    some = f"{len(chosen)} of {len(measurements)} measurements, evenly chosen. "
    rows = [_row(m, with_source) for m in chosen]
    return Table(
        "measurements",
        "Measurements",
        f"{some * (len(chosen) < len(measurements))}What a gradient is multiplied by from output to input, at most and "
        "in a typical direction, beside the logarithm of either in nats; – is not known.",
        list(rows[-1]),
        [("", list(row.values())) for row in rows],
        Download.of_csv(
            f"{history.prefix}.csv", f"All {len(history)} measurements with all their figures (CSV)", history.to_csv()
        ),
    )


def _row(m: DepthMeasurement, with_source: bool) -> dict[str, str]:
    """One measurement, by the headings of the table."""
    (value, error), (usual, its_error) = m.total, m.gain
    return {
        "update": f"{m.step:,}",
        "epoch": str(epochs(m)),
        **({"reached by": f"{m.source} data" if m.source else UNKNOWN} if with_source else {}),
        "at most": times(value),
        "ln σ₁ ± error": _with_error(value, error),
        "typical": times(usual),
        "gain ± error": _with_error(usual, its_error),
        "largest block gain": number(m.metrics.get("block_gain_max"), "+.2f"),
        "smallest": number(m.metrics.get("block_gain_min"), "+.2f"),
        "dead branches": str(len(unchanging(m))),
        "trusted": percentage(m.metrics.get("trusted_fraction", math.nan)),
        "samples": UNKNOWN if m.samples is None else str(m.samples),
        "seconds": number(m.metrics.get("seconds"), ".2f"),
    }


def _with_error(value: float, error: float) -> str:
    return number(value, "+.2f") + (f" ± {error:.2f}" if math.isfinite(value) and math.isfinite(error) else "")


def _power(nats: float, error: float) -> str:
    return exponential(nats, error).replace("-", "−") if math.isfinite(nats) else "nothing passes"


def _per_unit(last: DepthMeasurement) -> str:
    return ", per unit" * (len(set(last.dimensions)) > 1)


def _widths(dimensions: Sequence[int]) -> str:
    """Widths of the states, those that repeat once."""
    kept = [str(width) for i, width in enumerate(dimensions) if i == 0 or width != dimensions[i - 1]]
    return " → ".join(kept if len(kept) < 6 else [*kept[:2], "…", *kept[-2:]])


# ------------------------------------------------------------------ pictures


def _pictures(measurements: Sequence[DepthMeasurement]) -> list[Picture | None] | None:
    """The figures there is data for, the leading one first; None without matplotlib."""
    try:
        from lightning_lyapunov.figures.depth import figures_of_depth
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        return None
    figures = figures_of_depth(measurements)
    pictures: list[Picture | None] = []
    for name, figure in figures.items():
        title, caption = FIGURES["blocks" if len(figures) == 1 else name]
        pictures.append(Picture(title, caption, f"{title}. {_told(name, measurements)}", address(figure)))
    return pictures


def _told(name: str, measurements: Sequence[DepthMeasurement]) -> str:
    """What a figure shows, for those who cannot see it."""
    first, last = measurements[0], measurements[-1]
    if name == "depth" and len(measurements) > 1:
        start, end = (f"{_with_error(*m.total)} nats at update {m.step}" for m in (first, last))
        return (
            f"Largest growth of a gradient: {start}, {end}, in {len(measurements)} measurements of {last.depth} blocks."
        )
    most, least = (_extreme(last, largest=largest) for largest in (True, False))
    return f"Gains of {last.depth} blocks at update {last.step}, from {' '.join(least)} to {' '.join(most)}."
