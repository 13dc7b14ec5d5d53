"""Which figures share a chart in a dashboard, and on which page: by what is measured.

TensorBoard hides the legend of such a chart behind "Matches" under it. So a chart has one line, or lines of which one
is always above the other, which its title says; where it cannot, it sends there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from lightning_lyapunov import names_depth
from lightning_lyapunov.names import OF_A_LAYER, QUANTITIES, Quantity

Charts: TypeAlias = Mapping[str, Mapping[str, Sequence[str]]]
"""By page and title, the names of the figures of each chart; of an :class:`Interval` there is a band."""
ChartsOf: TypeAlias = Callable[[str, Sequence[str]], Charts]
"""What makes them: a function of the prefix of the keys, and of the names of what is logged."""


VERDICT = "verdict: 0 healthy, 1 watch, 2 act"
"""Title of its chart."""


class Interval(tuple[str, ...]):
    """Names of a figure and of the ends of its interval, which are drawn together or not at all."""


def titled(quantities: Mapping[str, Quantity], names: Sequence[str], *about: str) -> str:
    """The titles of those figures that are logged, of all where none is, with their unit where they do not say it.

    Args:
        quantities: By name.
        names: Of what is logged.
        *about: Names of figures of one unit.
    """
    told = [name for name in about if name in names] or list(about)
    unit = quantities[told[0]].unit
    titles = ", ".join(quantities[name].title for name in told)
    return titles if unit in titles else f"{titles} ({unit})"


def charts_of_spectra(prefix: str, names: Sequence[str]) -> Charts:
    """Of recurrent layers."""

    def told(*about: str, together: str = "") -> str:
        return together if together and {*about} <= {*names} else titled(QUANTITIES, names, *about)

    title = "Lyapunov" if prefix == "lyapunov" else f"Lyapunov: {prefix}"
    growth = "gradient_growth", "gradient_gain"
    ends = [word for word, name in _ENDS.items() if f"aelle/{name}" in names]
    return {
        title: {
            VERDICT: ("verdict",),
            told(*growth, together="gradient over a sequence (nats): at most above, typical below"): growth,
            f"{told('max')}: above 0 chaos, where settled": ("max", OF_A_LAYER),
            **{told(name): (name,) for name in ("near_zero_fraction", "unstable_fraction")},
            f"{told('gradient_horizon')}: a gradient changes e-fold": ("gradient_horizon",),
            **{told(name): (name,) for name in ("kaplan_yorke_dimension", *_HEALTH)},
        },
        f"{title}: prediction": {
            "final skill and its 80 % interval": Interval(
                ("aelle/performance", "aelle/performance_low", "aelle/performance_high")
            ),
            "final skill" + f" with and without the spectrum {_LEGEND}" * ("aelle/baseline" in names): (
                *("aelle/performance", "aelle/baseline"),
            ),
            f"probability that it {', '.join(ends)}" + f" {_LEGEND}" * (len(ends) > 1): [
                f"aelle/{name}" for name in _ENDS.values()
            ],
            "familiarity: below 0.3 the others are a guess": ("aelle/familiarity",),
        },
    }


def charts_of_depth(prefix: str, names: Sequence[str]) -> Charts:
    """Of a chain of blocks."""

    def told(*about: str, together: str = "") -> str:
        return together if together and {*about} <= {*names} else titled(names_depth.QUANTITIES, names, *about)

    title = "Across depth" if prefix == "depth" else f"Across depth: {prefix}"
    gains, blocks = ("gain", "typical"), ("block_gain_max", "block_gain_min")
    return {
        title: {
            VERDICT: ("verdict",),
            f"{told('total')}: above 10 or below −5 few networks learn": ("total",),
            told(*gains, together="gain of a gradient (nats): root mean square above, typical below"): gains,
            told(*blocks, together="gain of a block (nats): largest above, smallest below"): blocks,
            f"{told(names_depth.OF_A_BLOCK)}, by itself {_LEGEND}": (names_depth.OF_A_BLOCK,),
            **{told(name): (name,) for name in ("anisotropy", "state_growth", "trusted_fraction", "overhead")},
        }
    }


_LEGEND = "(Matches tells which)"
"""Where TensorBoard's legend is."""
_HEALTH = "trusted_fraction", "settled_fraction", "overhead"
_ENDS = {"fails": "failure_probability", "takes off": "takeoff_probability", "ends stable": "ends_stable_probability"}
"""How a run may end, in words, and the probability of it."""
