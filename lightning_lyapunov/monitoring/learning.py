"""How fast the measured layers learn, read off the optimisers that train them.

**The rate** is the base rate: the one number that describes a run from its first update to its last, as networks of the
bank are described by the constant that their warm-up leads to. It is the largest of

- what the group of the optimiser had whenever it was looked at: when training began, and at each measurement;
- ``initial_lr``, which every scheduler of torch's but ``ReduceLROnPlateau`` writes into the group: the rate that its
  factors multiply, so what a warm-up leads to and what decays from it;
- ``max_lr``, which ``OneCycleLR`` and ``CyclicLR`` write there.

So a warm-up's first step does not count, nor what a schedule, a plateau or a loop of one's own has made of the rate by
now. A rate that is set by hand and has only ever risen is known as far as it has come.

It is that of the groups which hold parameters of the measured layers that are trained. Where groups differ it is their
geometric mean, weighted by the numbers of these parameters; groups at rate 0 train nothing and do not count. It is not
known where the number is no size of a step: of kinds of optimiser that are not listed here, of those listed whose rate
multiplies something else (Prodigy, D-Adaptation, Adafactor, Adadelta, Muon), and of an adaptive one at 1 or above,
where the number is a factor for a schedule, as Noam's.

**Adaptive** are kinds that divide by a running size of the gradient, so that its scale does not matter. Kinds are known
by name, their own or that of a class they derive from, since not all are torch's; variants that are fused, paged,
schedule-free or of few bits are of the kind they vary.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

PLAIN = frozenset({"SGD", "ASGD"})
"""Kinds whose steps grow with the gradient."""
ADAPTIVE = frozenset({"Adam", "AdamW", "NAdam", "RAdam", "Adamax", "SparseAdam", "RMSprop", "Adagrad"})
"""Kinds that divide by its running size, and whose rate is about the size of a step."""
OF_ANOTHER_RATE = frozenset({"Adafactor", "Adadelta", "Muon", "Prodigy", "DAdaptAdam", "DAdaptAdaGrad"})
"""Kinds that do not depend on its scale either, and whose rate multiplies something else than a step."""
_VARIANT = re.compile(r"^(_|Fused|Paged|DeepSpeedCPU)+|(ScheduleFree\w*|8bit|4bit|32bit|Fp8)$")
_WRAPPED = ("optimizer", "_optimizer")
"""Where Fabric, Accelerate and Lightning keep the optimiser that they wrap."""
_BASE = (*_WRAPPED, "optim", "base_optimizer")
"""Also where one keeps another that makes its steps, with groups of its own (ZeroRedundancyOptimizer, SAM)."""


class Learning:
    """The rates that the optimisers of a run were seen with, and what they come to.

    Args:
        optimizers: Those of the run.
    """

    def __init__(self, optimizers: Iterable[Any] = ()) -> None:
        self._largest: dict[tuple[int, int], float] = {}
        self.look(optimizers)

    def look(self, optimizers: Iterable[Any]) -> None:
        """Remember the rates as they are now, where they are larger than any so far."""
        for place, group in _groups(optimizers):
            self._largest[place] = max(_number(group.get("lr")), self._largest.get(place, 0.0))

    def forget(self) -> None:
        """Let go of the rates seen so far, which were not of this training."""
        self._largest.clear()

    def of(self, optimizers: Sequence[Any], layers: Iterable[nn.Module]) -> tuple[float | None, bool | None]:
        """The base rate at which layers are trained, and whether by an adaptive optimiser; None where not known.

        Args:
            optimizers: Those of the run, the same ones in the same order each time.
            layers: Those that are measured.
        """
        self.look(optimizers)
        own, kinds = trained(layers), [kind_of(optimizer) for optimizer in optimizers]
        rates: list[tuple[float | None, int]] = []
        adaptive = set()
        for place, group in _groups(optimizers):
            count = sum(parameter.numel() for parameter in group["params"] if parameter in own)
            if count:
                kind, rate = kinds[place[0]], self._base_rate(place, group)
                adaptive.add(is_adaptive(kind))
                rates += [(_as_step(rate, kind), count)] if rate else []
        return _mean(rates), adaptive.pop() if len(adaptive) == 1 else None

    def _base_rate(self, place: tuple[int, int], group: dict[str, Any]) -> float:
        told = (_number(group.get(name)) for name in ("initial_lr", "max_lr"))
        return max(self._largest.get(place, 0.0), *told)


def trained(layers: Iterable[nn.Module]) -> set[Tensor]:
    """The parameters of layers that are trained; where they are parametrised, the original ones."""
    return {parameter for layer in layers for parameter in layer.parameters() if parameter.requires_grad}


def trains(optimizer: Any, parameters: set[Tensor]) -> bool:
    """Whether an optimiser holds any of these."""
    return any(parameter in parameters for _, group in _groups([optimizer]) for parameter in group["params"])


def kind_of(optimizer: Any) -> str:
    """The kind of an optimiser, one of those listed above; empty if it is none of them."""
    while (inner := _inner(optimizer, _BASE)) is not None:
        optimizer = inner
    names = (_VARIANT.sub("", kind.__name__) for kind in type(optimizer).__mro__)
    return next((name for name in names if name in PLAIN | ADAPTIVE | OF_ANOTHER_RATE), "")


def is_adaptive(kind: str) -> bool | None:
    """Whether a kind of optimiser divides by a running size of the gradient; None if it is not known."""
    return None if not kind else kind not in PLAIN


def _as_step(rate: float, kind: str) -> float | None:
    """A rate if it is the size of a step."""
    is_step = kind in PLAIN or (kind in ADAPTIVE and rate < 1)
    return rate if is_step and math.isfinite(rate) else None


def _mean(rates: Sequence[tuple[float | None, int]]) -> float | None:
    """The geometric mean of rates, weighted by numbers of parameters; None if one is not known or there are none."""
    known = [(math.log(rate), count) for rate, count in rates if rate is not None]
    if not known or len(known) < len(rates):
        return None
    return math.exp(sum(log * count for log, count in known) / sum(count for _, count in known))


def _groups(optimizers: Iterable[Any]) -> Iterator[tuple[tuple[int, int], dict[str, Any]]]:
    """The groups of parameters, each with the places of its optimiser and of itself."""
    for i, optimizer in enumerate(optimizers):
        while (inner := _inner(optimizer, _WRAPPED)) is not None:
            optimizer = inner
        for j, group in enumerate(getattr(optimizer, "param_groups", ())):
            yield (i, j), group


def _inner(optimizer: Any, names: Sequence[str]) -> Optimizer | None:
    """The optimiser that one wraps, if it does."""
    held = (getattr(optimizer, name, None) for name in names)
    return next((one for one in held if isinstance(one, Optimizer) and one is not optimizer), None)


def _number(rate: Any) -> float:
    """A rate as a number, on whatever device it is; 0 where there is none."""
    try:
        number = float(rate.detach()) if isinstance(rate, Tensor) else float(rate)
    except (TypeError, ValueError):
        return 0.0
    return number if number > 0 else 0.0
