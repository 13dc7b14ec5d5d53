"""The name of every figure that is logged, with its unit, what it means and what to do about it.

The one table of them: README, documentation, docstrings, loggers, stopper, command line and report read it, or are
tested against it. A measurement holds its figures by these names; a prefix is put before them where they are logged.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Quantity:
    """A figure that is logged."""

    name: str
    unit: str
    """Empty where it is a number without one."""
    title: str
    """What it is, in a few words."""
    meaning: str
    """What it is, in a sentence."""
    advice: str
    """What to do about it."""
    summary: Literal["last", "min", "max"] = "last"
    """What of a run sums it up, where a tracker asks: of what must not happen even once, the worst. Only for what is
    known of every measurement may that be another than the last: in Weights & Biases one NaN makes NaN of a minimum."""


_TABLE = (
    Quantity(
        "max",
        "nats/step",
        "largest exponent",
        "largest exponent λ₁, a rate in the long run where it has settled: above 0 the network is chaotic",
        "well above 0: lower the gain of the recurrent weights or the learning rate. Far below 0: use gates, "
        "orthogonal initialisation or a larger forget bias",
    ),
    Quantity(
        "max_error",
        "nats/step",
        "error of the largest exponent",
        "half-width of the 95 % bar of λ₁, the ± of every sentence and picture",
        "too wide to decide: longer sequences (`num_steps`), or more of them (`num_sequences`)",
    ),
    Quantity(
        "max_stderr",
        "nats/step",
        "standard error of the largest exponent",
        "standard error of λ₁, from the spread between sequences alone",
        "falls with the number of sequences; read `max_error` instead to judge λ₁",
    ),
    Quantity(
        "settled_fraction",
        "share",
        "settled",
        "exponents that may be read as rates in the long run",
        "0: the sequences are too short to tell, so read growth and gain; longer ones (`num_steps`) settle",
    ),
    Quantity(
        "gradient_gain",
        "nats",
        "gain of a gradient",
        "what a gradient grows by from the last step of a sequence to the first, in a typical one: e to this power is "
        "the factor",
        "above 2, less its error: gradients grow; above 7: they explode. Lower the recurrent gain, or clip them. Below "
        "−10: they vanish",
    ),
    Quantity(
        "gradient_growth",
        "nats",
        "largest growth of a gradient",
        "the most that a gradient can grow over a sequence, ln σ₁ of the product of its Jacobians",
        "far above `gradient_gain`: few directions carry the gradient",
    ),
    Quantity(
        "gradient_horizon",
        "steps",
        "gradient horizon",
        "steps in which a gradient changes e-fold, at its pace over a sequence; at least so many where the error of "
        "the gain is larger than the gain",
        "compare with the time lags of the task; truncate backpropagation a few horizons long",
    ),
    Quantity(
        "stability_margin",
        "nats/step",
        "stability margin",
        "−λ₁ less its error: above 0 the network is stable, if λ₁ has settled",
        "below 0 while λ₁ − error is below 0 too: undecided, measure longer sequences or more of them",
    ),
    Quantity(
        "near_zero_fraction",
        "share",
        "directions that remember",
        "directions with |λ| < 0.05, which keep what they saw",
        "0 on a task that needs memory: initialise closer to criticality",
    ),
    Quantity(
        "unstable_fraction",
        "share",
        "directions that grow",
        "directions with λ > 0",
        "grows while the loss does not fall: the learning rate is too high",
    ),
    Quantity(
        "kaplan_yorke_dimension",
        "",
        "Kaplan–Yorke dimension",
        "dimension of the attractor; 0 where all exponents are negative, whatever the network computes",
        "compare chaotic networks, or reservoirs left to themselves; it does not say how many units a task needs",
    ),
    Quantity(
        "kolmogorov_sinai_entropy",
        "nats/step",
        "Kolmogorov–Sinai entropy",
        "sum of the positive exponents",
        "above 0, that much about the initial state is amplified each step",
    ),
    Quantity(
        "mean",
        "nats/step",
        "mean exponent",
        "mean exponent, the rate of volume over the dimension",
        "for comparing networks; very negative with saturated units",
    ),
    Quantity(
        "trusted_fraction",
        "share",
        "trusted",
        "exponents that rounding cannot have moved",
        'below 1: `dtype="float64"`, `interval=1`, or fewer exponents by `k`',
        summary="min",
    ),
    Quantity(
        "floored",
        "count",
        "dead directions",
        "exponents below −100, which are logged as −100, dead directions (−∞) among them",
        "above 0: dead or saturated units",
        summary="max",
    ),
    Quantity(
        "closed_loop_max",
        "nats/step",
        "largest exponent in closed loop",
        "with `closed_loop`, the largest exponent of the model fed with its own forecasts",
        "compare with that of the data: far from it the model has not learnt the dynamics, however good its next "
        "forecast. For runs: among the checkpoints of one it picks none better than the last",
    ),
    Quantity(
        "closed_loop_error",
        "nats/step",
        "error of the largest exponent in closed loop",
        "half-width of the 95 % bar of `closed_loop_max`",
        "too wide to compare: a `closed_loop` that begins at more rows",
    ),
    Quantity(
        "distance",
        "",
        "distance from the reference",
        "with `reference`, how far the spectrum is from that of the reference after as many updates: root mean square "
        "difference of e^λ, in order",
        "how far pruning, or another change, moved the dynamics. "
        "It does not choose among sparse runs: take their early loss",
    ),
    Quantity(
        "verdict",
        "0 to 2",
        "verdict",
        "0 healthy, 1 watch, 2 act: of the bank's networks that were told the same, 80 %, or 95 %, did not learn",
        "2: do what the finding says; 1: look at it again; 0: train on",
    ),
    Quantity(
        "seconds",
        "s",
        "seconds",
        "what the measurement took",
        "too much: fewer exponents, sequences or steps",
        summary="max",
    ),
    Quantity(
        "overhead",
        "share",
        "share of the training time",
        "what recording, measuring, logging and pictures took, of the training time so far",
        "bounded by `max_overhead`",
    ),
    Quantity(
        "<layer>/max",
        "nats/step",
        "largest exponent of a layer",
        "with several layers, the largest exponent of each",
        "tells in which layer gradients grow",
    ),
    Quantity(
        "aelle/performance",
        "skill",
        "predicted final skill",
        "predicted skill at the end of training, from 0 (chance) to 1 (the best networks of a task)",
        "prefer another run only where the intervals lie apart",
    ),
    Quantity(
        "aelle/performance_low",
        "skill",
        "lower end of its 80 % interval",
        "lower end of its 80 % interval",
        "a wide interval says: train on and see",
    ),
    Quantity(
        "aelle/performance_high",
        "skill",
        "upper end of its 80 % interval",
        "upper end of its 80 % interval",
        "a wide interval says: train on and see",
    ),
    Quantity(
        "aelle/baseline",
        "skill",
        "predicted without the spectrum",
        "the same prediction without the spectrum, which it must beat",
        "close to `performance`: the spectrum has nothing to add here",
    ),
    Quantity(
        "aelle/failure_probability",
        "probability",
        "probability of failure",
        "that the network never learns its task: final skill below 0.1",
        "high before training: another initialisation costs nothing",
    ),
    Quantity(
        "aelle/takeoff_probability",
        "probability",
        "probability of taking off",
        "that its final skill is above 0.3; of a network at chance, that it will still take off",
        "high: be patient",
    ),
    Quantity(
        "aelle/ends_stable_probability",
        "probability",
        "probability of ending stable",
        "that the trained network is not chaotic",
        "low: clip gradients, lower the gain",
    ),
    Quantity(
        "aelle/familiarity",
        "0 to 1",
        "familiarity",
        "how like the networks that the scorer was fitted on this one is",
        "below 0.3: do not rely on the others",
    ),
)

QUANTITIES = {quantity.name: quantity for quantity in _TABLE}
"""All of them, by name; that of a layer under ``<layer>/max``."""
ON_REQUEST = ("closed_loop_max", "closed_loop_error", "distance")
"""Names of what is measured only where an argument asks for it; loggers then get it by default."""
MEASURED = tuple(name for name in QUANTITIES if "/" not in name and name not in ON_REQUEST)
"""Names of what is logged of every measurement."""
SCORED = tuple(name for name in QUANTITIES if name.startswith("aelle/"))
"""Names of what is logged of every score."""


LOGGED = (
    *("verdict", "max", "max_error", "gradient_growth", "gradient_gain", "near_zero_fraction"),
    *("aelle/performance", "aelle/failure_probability", "aelle/familiarity", "overhead"),
)
"""Names of what loggers get unless they are to get more, beside what was asked for by an argument of its own."""
OF_A_LAYER = "<layer>/max"
"""The name that those of all layers stand under."""
RENAMED = {"aelle/stability": "aelle/ends_stable_probability"}
"""Names that some figures had before, by which they can still be asked for, and those that they have now."""
Metrics = Literal["default", "all"] | Sequence[str]
"""What loggers get: what is logged by default, everything, or what is named."""


@dataclass(frozen=True)
class Table:
    """The figures of one kind of measurement."""

    quantities: Mapping[str, Quantity]
    """All of them, by name."""
    logged: tuple[str, ...]
    """Names of what loggers get by default."""
    of_a_part: str
    """The name that the figures of all parts stand under, as ``<layer>/max`` for that of each layer."""

    def row_of(self, name: str) -> str:
        """The name that a figure stands under.

        Example:
            >>> SPECTRA.row_of("rnn.l0/max"), SPECTRA.row_of("max"), SPECTRA.row_of("val/loss")
            ('<layer>/max', 'max', 'val/loss')
        """
        end = self.of_a_part.rpartition("/")[2]
        is_of_a_part = name not in self.quantities and name.endswith(f"/{end}") and not name.startswith("aelle/")
        return self.of_a_part if is_of_a_part else name

    def __contains__(self, name: str) -> bool:
        return self.row_of(name) in self.quantities


SPECTRA = Table(QUANTITIES, (*LOGGED, *ON_REQUEST), OF_A_LAYER)
"""What is logged of recurrent layers: all of this module."""


def key_of(name: str, prefix: str = "lyapunov") -> str:
    """The key that a figure is logged under.

    Args:
        name: As in :data:`QUANTITIES`.
        prefix: That of the callback. Under the default one scores keep a prefix of their own.

    Example:
        >>> key_of("max"), key_of("aelle/baseline"), key_of("aelle/baseline", "encoder")
        ('lyapunov/max', 'aelle/baseline', 'encoder/aelle/baseline')
    """
    return name if name.startswith("aelle/") and prefix == "lyapunov" else f"{prefix}/{name}"


def name_of(key: str, prefix: str = "lyapunov") -> str | None:
    """The name of the figure that is logged under a key, the inverse of :func:`key_of`; None where there is none.

    Example:
        >>> name_of("lyapunov/max"), name_of("encoder/rnn.l0/max", "encoder"), name_of("val/loss")
        ('max', 'rnn.l0/max', None)
    """
    names = (key, key.removeprefix(f"{prefix}/"))
    return next((name for name in names if key_of(name, prefix) == key), None)


# ------------------------------------------------------------------ what is logged


def selection(metrics: Metrics, prefix: str = "lyapunov", table: Table = SPECTRA) -> tuple[str, ...]:
    """The names of what the loggers get.

    Args:
        metrics: "default", "all", or names or keys, as "max", "lyapunov/max" or "rnn.l0/max"; "<layer>/max" for those
            of all layers. Names that figures had before stand for what they are called now.
        prefix: That of the keys.
        table: Of what is measured.

    Raises:
        ValueError: For a name that there is not.

    Example:
        >>> selection(["lyapunov/max", "aelle/stability"])
        ('max', 'aelle/ends_stable_probability')
    """
    if metrics == "default":
        return table.logged
    if metrics == "all":
        return tuple(table.quantities)
    if isinstance(metrics, str) or not all(isinstance(name, str) for name in metrics):
        raise ValueError(f"metrics must be 'default', 'all' or a list of names; got {metrics!r}.")
    names = [current_name(name_of(name, prefix) or name) for name in metrics]
    for given, name in zip(metrics, names, strict=True):
        if name not in table:
            close = difflib.get_close_matches(name, table.quantities, cutoff=0.5) or list(table.quantities)
            raise ValueError(f"metrics must be 'default', 'all' or names such as {', '.join(close)}; got {given!r}.")
    return tuple(dict.fromkeys(names))


def selected(figures: Mapping[str, float], names: Sequence[str], table: Table = SPECTRA) -> dict[str, float]:
    """Those of the figures that are named, in the order of the names.

    Args:
        figures: By name.
        names: What :func:`selection` made of the user's.
        table: Of what is measured.

    Example:
        >>> selected({"mean": 1.0, "l1/max": 2.0, "max": 3.0, "l0/max": 4.0}, ("max", "<layer>/max"))
        {'max': 3.0, 'l1/max': 2.0, 'l0/max': 4.0}
    """
    places = {name: place for place, name in enumerate(names)}
    chosen = {name: places.get(name, places.get(table.row_of(name), -1)) for name in figures}
    return {name: figures[name] for name in sorted(chosen, key=chosen.__getitem__) if chosen[name] >= 0}


# ------------------------------------------------------------------ names of before


def current_name(name: str) -> str:
    """The name that a figure has now.

    Example:
        >>> current_name("aelle/stability"), current_name("max")
        ('aelle/ends_stable_probability', 'max')
    """
    return RENAMED.get(name, name)


def current_key(key: str, prefix: str = "lyapunov") -> str:
    """The key that a figure is logged under now.

    Example:
        >>> current_key("encoder/aelle/stability", "encoder"), current_key("val/loss")
        ('encoder/aelle/ends_stable_probability', 'val/loss')
    """
    name = name_of(key, prefix)
    return key if name is None or name not in RENAMED else key_of(RENAMED[name], prefix)


def with_old_keys(values: Mapping[str, float], prefix: str = "lyapunov") -> dict[str, float]:
    """Values by key, those that were renamed also under the keys of before, for whoever still asks for these.

    Example:
        >>> with_old_keys({"aelle/ends_stable_probability": 0.5, "lyapunov/max": 1.0})
        {'aelle/ends_stable_probability': 0.5, 'lyapunov/max': 1.0, 'aelle/stability': 0.5}
    """
    old = {key_of(before, prefix): values.get(key_of(now, prefix)) for before, now in RENAMED.items()}
    return {**values, **{key: value for key, value in old.items() if value is not None}}


def renaming(key: str, prefix: str = "lyapunov") -> str | None:
    """What is said where a key of before is asked for; None of any other.

    Example:
        >>> renaming("aelle/stability")
        "'aelle/stability' is now called 'aelle/ends_stable_probability'; the old name still works, for now."
    """
    now = current_key(key, prefix)
    return None if now == key else f"{key!r} is now called {now!r}; the old name still works, for now."
