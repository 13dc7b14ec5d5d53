"""The table of all variants, and which families are set aside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

from lightning_lyapunov.bank.tasks import dynamics, logic, memory, shapes, state, text
from lightning_lyapunov.bank.tasks.task import Batch, Task

SET_ASIDE = ("associate", "ring")
"""Families that nothing is fitted on: no choice but that of their own difficulty rests on them."""


def _variants() -> Iterator[Task]:
    """All tasks, family by family.

    Difficulties are such that a gated network of 32 units is well above chance after a thousand updates, and that it
    and plain ones of recurrent gain 0.3 to 2.5 end far from each other.
    """
    options: dict[str, Any]
    series: dynamics.Series
    for symbols, length, delay in ((8, 5, 6), (6, 3, 12), (6, 3, 20), (4, 2, 40)):
        sizes, options = (symbols + 1, symbols, 2 * length + delay), {"symbols": symbols, "length": length}
        yield _task(f"recall-{delay}", "classes", sizes, 1 / symbols, memory.recall, delay=delay, **options)
    for delays in ((2, 4, 8, 12, 16), (8, 12, 16, 20, 24), (20, 26, 32)):
        steps = 48 if max(delays) > 24 else 40
        yield _task(
            f"capacity-{max(delays)}", "values", (1, len(delays), steps), 0, memory.capacity, steps=steps, delays=delays
        )
    for steps in (20, 40, 60):
        yield _task(f"adding-{steps}", "values", (2, 1, steps), 0, memory.adding, steps=steps)
    for delay, distraction in ((8, 1.0), (20, 0.0)):
        options = {"delay": delay, "distraction": distraction, "noise": 0.1}
        yield _task(f"compare-{delay}", "values", (2, 1, 4 + delay), 0, memory.compare, **options)
    for delay in (6, 14):
        sizes, options = (7, 1, 6 + delay), {"symbols": 6, "items": 2, "probes": 4, "noise": 0.2}
        yield _task(f"match-{delay}", "bits", sizes, 0.5, memory.match, delay=delay, **options)

    for lags in ((2, 4, 7, 11), (4, 8, 12, 16), (14, 18)):
        steps = 40 if max(lags) > 16 else 32
        yield _task(f"xor-{max(lags)}", "bits", (1, len(lags), steps), 0.5, logic.xor, steps=steps, lags=lags)
    for widths in ((3, 5, 8), (3, 6, 12), (7, 9)):
        yield _task(f"parity-{max(widths)}", "bits", (1, len(widths), 24), 0.5, logic.parity, steps=24, widths=widths)
    for bits, rate in ((2, 0.15), (3, 0.1)):
        options = {"steps": 32, "bits": bits, "rate": rate, "noise": 0.25}
        yield _task(f"flipflop-{bits}", "bits", (bits, bits, 32), 0.5, state.flipflop, **options)
    options = {"steps": 60, "bits": 2, "rate": 0.03, "noise": 0.5, "gap": 24}
    yield _task("flipflop-gap", "bits", (2, 2, 60), 0.5, state.flipflop, **options)
    for steps, cue, noise in ((20, 20, 1.0), (32, 2, 1.0), (60, 1, 2.0)):
        yield _task(f"context-{steps}", "values", (4, 1, steps), 0, state.context, steps=steps, cue=cue, noise=noise)
    for types, depth, steps in ((4, 6, 32), (2, 12, 48)):
        sizes, options = (2 * types, types, steps), {"steps": steps, "types": types, "depth": depth}
        yield _task(f"dyck-{types}x{depth}", "classes", sizes, 1 / types, logic.dyck, **options)
    yield _task("dyck-gap", "classes", (8, 4, 60), 1 / 4, logic.dyck, steps=60, types=4, depth=8, gap=20)

    for order in (5, 10):
        yield _task(f"narma-{order}", "values", (1, 1, 32), 0, dynamics.narma, order=order, steps=32)
    for name, series, steps, horizon, noise in (
        ("mackey-17", partial(dynamics.mackey_glass, 17), 32, 12, 0.2),
        ("mackey-30", partial(dynamics.mackey_glass, 30), 32, 12, 0.1),
        ("lorenz-3", dynamics.lorenz, 32, 3, 0.2),
        ("lorenz-6", dynamics.lorenz, 32, 6, 0.1),
        ("maps-henon", dynamics.henon, 20, 2, 0.05),
        ("maps-logistic", dynamics.coupled_logistic, 20, 2, 0.02),
        ("maps-ikeda", dynamics.ikeda, 24, 1, 0.02),
        ("recordings-laser-4", dynamics.laser, 32, 4, 0.0),
        ("recordings-laser-10", dynamics.laser, 32, 10, 0.0),
    ):
        options = {"series": series, "steps": steps, "horizon": horizon, "noise": noise}
        yield _task(name, "values", (1, 1, steps), 0, dynamics.forecast, **options)

    chances: dict[text.Source, float] = {"prose": 0.17, "code": 0.14}  # the share of the space, the commonest character
    for source, chance in chances.items():
        width = len(text.ALPHABETS[source])
        yield _task(f"chars-{source}", "classes", (width, width, 32), chance, text.chars, source=source, steps=32)
    for classes, steps, noise in ((5, 24, 0.4), (10, 40, 0.1)):
        sizes, options = (1, classes, steps), {"steps": steps, "classes": classes, "noise": noise}
        yield _task(f"templates-{classes}", "classes", sizes, 1 / classes, shapes.templates, **options)
    options = {"steps": 24, "classes": 5, "noise": 0.2, "wait": 36}
    yield _task("templates-wait", "classes", (1, 5, 60), 1 / 5, shapes.templates, **options)
    for pixels, noise in ((1, 0.1), (4, 0.6)):
        yield _task(
            f"digits-{pixels}", "classes", (pixels, 10, 64 // pixels), 0.1, shapes.digits, pixels=pixels, noise=noise
        )
    yield _task("digits-wait", "classes", (4, 10, 56), 0.1, shapes.digits, pixels=4, noise=0.3, wait=40)

    for steps, marks in ((40, 3), (60, 4)):
        yield _task(
            f"order-{marks}", "classes", (6, 2**marks, steps), 2**-marks, memory.order, steps=steps, marks=marks
        )
    for pairs, delay in ((3, 24), (4, 16)):
        options = {"pairs": pairs, "keys": 6, "values": 4, "delay": delay}
        yield _task(f"associate-{pairs}", "classes", (10, 4, 2 * pairs + delay), 1 / 4, memory.associate, **options)
    for longest, delay in ((16, 4), (24, 24)):
        options = {"longest": longest, "delay": delay, "noise": 0.1}
        yield _task(f"timing-{longest}", "values", (2, 1, longest + delay + 2), 0, memory.timing, **options)
    for steps in (24, 40):
        yield _task(f"winner-{steps}", "values", (2, 1, steps), 0, memory.winner, steps=steps)
    for modulus, steps in ((5, 24), (7, 32)):
        options = {"steps": steps, "modulus": modulus, "after": steps // 3}
        yield _task(f"modular-{modulus}", "classes", (2, modulus, steps), 1 / modulus, logic.modular, **options)
    for steps, speed in ((24, 0.5), (16, 0.7)):
        yield _task(f"ring-{steps}", "values", (3, 2, steps), 0, state.ring, steps=steps, speed=speed, noise=0.1)
    for name, steps, periods in (("sine-slow", 40, (10.0, 30.0)), ("sine-fast", 40, (4.0, 10.0))):
        yield _task(name, "values", (1, 1, steps), 0, state.sine, steps=steps, periods=periods, shown=4)


def _task(
    name: str,
    kind: Literal["classes", "bits", "values"],
    sizes: tuple[int, int, int],
    chance: float,
    sampler: Callable[..., Batch],
    **options: Any,
) -> Task:
    """One row: input and output size and steps follow from the options, and stand beside them."""
    input_size, output_size, steps = sizes
    return Task(name, name.split("-")[0], input_size, output_size, steps, kind, chance, partial(sampler, **options))


TASKS: dict[str, Task] = {task.name: task for task in _variants()}
"""Every variant by its name."""
