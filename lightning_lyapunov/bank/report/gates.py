"""Demands on the scorer, on the first bank, with what came of them."""

from __future__ import annotations

from lightning_lyapunov.bank.evaluation import summary
from lightning_lyapunov.bank.report.page import BARS, Page
from lightning_lyapunov.bank.report.tables import FULL, NAMES, difference, gain, markdown

Demand = dict[str, float]
LEAST: dict[tuple[int, bool, int], Demand] = {
    (0, False, 0): {"rho": 0.42, "fail": 0.85, "fail in cell": 0.77, "take-off": 0.81},
    (0, False, 1): {
        "rho": 0.57, "rho in cell": 0.37, "fail": 0.87, "fail in cell": 0.76, "take-off": 0.84,
        "take-off in cell": 0.76,
    },
    (0, False, 3): {
        "rho": 0.67, "rho in cell": 0.56, "fail": 0.87, "fail in cell": 0.75, "take-off": 0.85,
        "take-off in cell": 0.79,
    },
    (40, True, 1): {
        "rho": 0.70, "rho in cell": 0.57, "fail": 0.89, "fail in cell": 0.78, "take-off": 0.80,
        "take-off in cell": 0.72,
    },
    (40, True, 3): {
        "rho": 0.73, "rho in cell": 0.63, "fail": 0.89, "fail in cell": 0.78, "take-off": 0.82,
        "take-off in cell": 0.76,
    },
    (40, True, 5): {
        "rho": 0.74, "rho in cell": 0.64, "fail": 0.89, "fail in cell": 0.79, "take-off": 0.83,
        "take-off in cell": 0.77,
    },
}  # fmt: skip
"""Least scores by updates, whether the skill so far is known, and the rung of the rest; initialisations in use."""
BRIER = 1.06
"""Squared errors at most, as a multiple of the ridge's."""


def gates(page: Page) -> list[str]:
    """Tables of demands, each with what was reached; missed ones are in bold."""
    rows = []
    for (updates, skill, rung), demands in LEAST.items():
        scored = page.by_family.scorer("all", skill, rung, updates, page.useful)
        cells = []
        for score, least in demands.items():
            value = round(summary(scored, score)[0], 2)
            text = f"{score} {value:.2f} (≥ {least:.2f})"
            cells.append(text if value >= least else f"**{text}**")
        rows.append([f"{updates}, {NAMES[rung]}{', skill' if skill else ''}", ", ".join(cells)])
    lines = [*markdown(["updates, known beside the spectrum", "reached (demanded)"], rows), ""]
    missed = []
    for updates in page.moments:
        here = page.by_family.at(updates)
        for skill in (False, True):
            for rung, name in enumerate(NAMES):
                title = f"{updates} updates, {name}{', skill' if skill else ''}"
                one = page.by_family.scorer("all", skill, rung, updates, page.useful)
                other = page.by_family.ridge("all", skill, rung, updates, page.useful)
                for score in ("rho", "fail", "take-off"):
                    mean, error, _ = difference(one, other, score)
                    if mean < -error:
                        missed.append(f"{title}: {score} {mean:+.3f} ± {error:.3f} of the ridge's")
                said = page.by_family.said["all", skill, rung]
                for head, what in enumerate(("skill", "failure", "take-off")):
                    ratio = page.by_family.brier(said.heads, head, here) / page.by_family.brier(said.ridge, head, here)
                    if ratio > BRIER:
                        missed.append(f"{title}: squared error of {what} {ratio:.2f} of the ridge's")
    lines += ["Below the ridge with heads of its own by more than the paired standard error, or squared errors above "
              f"{BRIER} of its: {'none.' if not missed else ''}", "", *(f"- {one}" for one in missed), ""]  # fmt: skip
    pairs = []
    for updates in (0, 10, 40, 80):
        one = page.by_family.scorer("all", True, FULL, updates, page.useful)
        others = {name: page.bars[name, updates] for name in list(BARS)[:2]}
        others["the same learner"] = page.by_family.scorer("none", True, 3, updates, page.useful)
        for name, other in others.items():
            cells = [gain(*difference(one, other, score)[:2]) for score in ("fail in cell", "take-off in cell")]
            pairs.append([f"{updates}, {name}", *cells])
    lines += ["Told everything, over skill, cell, size and rate:", ""]
    return lines + markdown(["updates, over", "fail in cell", "take-off in cell"], pairs)
