"""Which figures share a chart in a dashboard, and on which page: by what is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from lightning_lyapunov import names_depth
from lightning_lyapunov.names import OF_A_LAYER, QUANTITIES, Quantity

Charts: TypeAlias = Mapping[str, Mapping[str, Sequence[str]]]
"""By page and title, the names of the figures of each chart; of an :class:`Interval` there is a band."""
ChartsOf: TypeAlias = Callable[[str, Sequence[str]], Charts]
"""What makes them: a function of the prefix of the keys, and of the names of what is logged."""


class Interval(tuple[str, ...]):
    """Names of a figure and of the ends of its interval, which are drawn together or not at all."""


def titled(quantities: Mapping[str, Quantity], names: Sequence[str], *about: str) -> str:
    """The titles of those figures that are logged, of all where none is, with their unit.

    Args:
        quantities: By name.
        names: Of what is logged.
        *about: Names of figures of one unit.
    """
    told = [name for name in about if name in names] or list(about)
    unit = quantities[told[0]].unit
    return ", ".join(quantities[name].title for name in told) + (f" ({unit})" if unit else "")


def charts_of_spectra(prefix: str, names: Sequence[str]) -> Charts:
    """Of recurrent layers."""

    def told(*about: str) -> str:
        return titled(QUANTITIES, names, *about)

    title = "Lyapunov" if prefix == "lyapunov" else f"Lyapunov: {prefix}"
    ends = [word for word, name in _ENDS.items() if f"aelle/{name}" in names]
    health = "trusted_fraction", "settled_fraction", "overhead"
    return {
        title: {
            f"{told('max')}: above 0 chaos, where settled": ("max", OF_A_LAYER),
            f"{told('gradient_gain')} over a sequence, and at most": ("gradient_gain", "gradient_growth"),
            told("near_zero_fraction", "unstable_fraction"): ("near_zero_fraction", "unstable_fraction"),
            f"{told('gradient_horizon')}: a gradient changes e-fold": ("gradient_horizon",),
            told("kaplan_yorke_dimension"): ("kaplan_yorke_dimension",),
            told(*health): health,
        },
        f"{title}: prediction": {
            "final skill and its 80 % interval": Interval(
                ("aelle/performance", "aelle/performance_low", "aelle/performance_high")
            ),
            "final skill" + " with and without the spectrum" * ("aelle/baseline" in names): (
                *("aelle/performance", "aelle/baseline"),
            ),
            ", ".join(ends): [f"aelle/{name}" for name in _ENDS.values()],
            "familiarity: below 0.3 the others are a guess": ("aelle/familiarity",),
        },
    }


def charts_of_depth(prefix: str, names: Sequence[str]) -> Charts:
    """Of a chain of blocks."""

    def told(*about: str) -> str:
        return titled(names_depth.QUANTITIES, names, *about)

    title = "Across depth" if prefix == "depth" else f"Across depth: {prefix}"
    return {
        title: {
            f"{told('total')}: above 10 or below −5 few networks learn": ("total",),
            told("gain", "typical"): ("gain", "typical"),
            told("block_gain_max", "block_gain_min"): ("block_gain_max", "block_gain_min"),
            f"{told(names_depth.OF_A_BLOCK)}, by itself": (names_depth.OF_A_BLOCK,),
            told("anisotropy", "state_growth"): ("anisotropy", "state_growth"),
            told("trusted_fraction", "overhead"): ("trusted_fraction", "overhead"),
        }
    }


_ENDS = {"fails": "failure_probability", "takes off": "takeoff_probability", "ends stable": "ends_stable_probability"}
"""How a run may end, in words, and the probability of it."""
