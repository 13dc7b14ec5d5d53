"""The table of all variants, which of them a new bank is trained on, and which families are set aside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

from lightning_lyapunov.bank.tasks import dynamics, logic, lookup, memory, shapes, state, text
from lightning_lyapunov.bank.tasks.task import Batch, Task

SET_ASIDE = ("group", "rhythm")
"""Families that nothing is fitted on: no choice but that of their own difficulty rests on them."""

_FORMER = (
    *("recall-12", "recall-20", "adding-40", "compare-20", "xor-16", "parity-8", "flipflop-2", "context-20"),
    *("context-60", "dyck-2x12", "mackey-30", "lorenz-3", "maps-logistic", "maps-ikeda", "recordings-laser-4"),
    *("narma-5", "chars-code", "templates-5", "digits-1", "order-4", "sine-slow"),
)
"""Variants of the first bank that a new one does without: hardly a network fails them, or others ask the same."""

_LONGER = (
    *("recall-6", "capacity-24", "product-20", "product-32", "match-14", "nback-8", "nback-14", "associate-3"),
    *("associate-4", "registers-gap", "tally-wait", "xor-18", "dyck-gap", "walk-wait", "sine-fast", "sine-late"),
    *("rhythm-late", "registers-3", "maps-wait", "recordings-wait", "digits-wait"),
)
"""Variants whose networks go on to 2,000 updates.

What decides is the better third of gated networks with initialisations in use: on a scale of the metric from chance to
1, it is below 0.9 after 800 updates, and has risen by 0.05 or more over the last 240 of them.
"""


def _variants() -> Iterator[Task]:
    """All tasks, family by family; more kinds of networks are trained on the first of each than on the others.

    Difficulties are such that a gated network of 32 units is well above chance after a thousand updates, and that it
    and plain ones of recurrent gain 0.3 to 2.5 end far from each other. In most families networks fail one variant at
    least, as what was seen must last over a ``wait``, a gap or a lag.
    """
    yield from _memory()
    yield from _lookup()
    yield from _logic_and_state()
    yield from _dynamics()
    yield from _text_and_shapes()


def _memory() -> Iterator[Task]:
    options: dict[str, Any]
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
    for steps in (20, 32):
        yield _task(f"product-{steps}", "values", (2, 1, steps), 0, memory.product, steps=steps)
    options = {"delay": 8, "distraction": 0.0, "noise": 0.1, "wait": 44}
    yield _task("compare-wait", "values", (2, 1, 56), 0, memory.compare, **options)
    for delay, distraction in ((8, 1.0), (20, 0.0)):
        options = {"delay": delay, "distraction": distraction, "noise": 0.1}
        yield _task(f"compare-{delay}", "values", (2, 1, 4 + delay), 0, memory.compare, **options)
    for delay in (6, 14):
        sizes, options = (7, 1, 6 + delay), {"symbols": 6, "items": 2, "probes": 4, "noise": 0.2}
        yield _task(f"match-{delay}", "bits", sizes, 0.5, memory.match, delay=delay, **options)
    for back, symbols in ((8, 4), (14, 3)):
        sizes, options = (symbols, 1, 32), {"steps": 32, "back": back, "symbols": symbols}
        yield _task(f"nback-{back}", "bits", sizes, 0.5, memory.nback, **options)
    for marks, steps, wait in ((3, 40, 0), (4, 60, 0), (3, 24, 32)):
        name, sizes = "wait" if wait else str(marks), (6, 2**marks, steps + wait)
        yield _task(f"order-{name}", "classes", sizes, 2**-marks, memory.order, steps=steps, marks=marks, wait=wait)
    for longest, delay in ((16, 4), (24, 24)):
        options = {"longest": longest, "delay": delay, "noise": 0.1}
        yield _task(f"timing-{longest}", "values", (2, 1, longest + delay + 2), 0, memory.timing, **options)
    for steps in (24, 40):
        yield _task(f"winner-{steps}", "values", (2, 1, steps), 0, memory.winner, steps=steps)


def _lookup() -> Iterator[Task]:
    options: dict[str, Any]
    for pairs, delay in ((3, 24), (4, 16)):
        options = {"pairs": pairs, "keys": 6, "values": 4, "delay": delay}
        yield _task(f"associate-{pairs}", "classes", (10, 4, 2 * pairs + delay), 1 / 4, lookup.associate, **options)
    for length, delay in ((6, 15), (4, 34)):
        sizes, options = (4 + length, 4, length + delay + length // 2), {"symbols": 4, "length": length}
        yield _task(f"position-{length}", "classes", sizes, 1 / 4, lookup.position, delay=delay, **options)
    for name, steps, rate, gap in (("registers-3", 40, 0.5, 0), ("registers-gap", 60, 0.3, 14)):
        options = {"steps": steps, "slots": 3, "values": 4, "rate": rate, "gap": gap}
        yield _task(name, "classes", (8, 4, steps), 1 / 4, lookup.registers, **options)
    for name, steps, wait in (("tally-wait", 16, 32), ("tally-24", 24, 12)):
        options = {"steps": steps, "lines": 3, "rate": 0.3, "wait": wait}
        yield _task(name, "values", (6, 1, steps + wait + 1), 0, lookup.tally, **options)


def _logic_and_state() -> Iterator[Task]:
    options: dict[str, Any]
    for lags in ((2, 4, 7, 11), (4, 8, 12, 16), (14, 18)):
        steps = 40 if max(lags) > 16 else 32
        yield _task(f"xor-{max(lags)}", "bits", (1, len(lags), steps), 0.5, logic.xor, steps=steps, lags=lags)
    for widths in ((7, 9), (3, 5, 8), (3, 6, 12)):
        yield _task(f"parity-{max(widths)}", "bits", (1, len(widths), 24), 0.5, logic.parity, steps=24, widths=widths)
    for types, depth, steps in ((4, 6, 32), (2, 12, 48)):
        sizes, options = (2 * types, types, steps), {"steps": steps, "types": types, "depth": depth}
        yield _task(f"dyck-{types}x{depth}", "classes", sizes, 1 / types, logic.dyck, **options)
    yield _task("dyck-gap", "classes", (8, 4, 60), 1 / 4, logic.dyck, steps=60, types=4, depth=8, gap=20)
    for modulus, steps in ((5, 24), (7, 32)):
        options = {"steps": steps, "modulus": modulus, "after": steps // 3}
        yield _task(f"modular-{modulus}", "classes", (2, modulus, steps), 1 / modulus, logic.modular, **options)
    for steps in (16, 24):
        yield _task(f"group-{steps}", "classes", (3, 6, steps), 1 / 6, logic.group, steps=steps, cards=3, after=3)
    for bits, rate in ((2, 0.15), (3, 0.1)):
        options = {"steps": 32, "bits": bits, "rate": rate, "noise": 0.25}
        yield _task(f"flipflop-{bits}", "bits", (bits, bits, 32), 0.5, state.flipflop, **options)
    options = {"steps": 60, "bits": 2, "rate": 0.03, "noise": 0.5, "gap": 24}
    yield _task("flipflop-gap", "bits", (2, 2, 60), 0.5, state.flipflop, **options)
    for steps, cue, noise in ((20, 20, 1.0), (32, 2, 1.0), (60, 1, 2.0)):
        yield _task(f"context-{steps}", "values", (4, 1, steps), 0, state.context, steps=steps, cue=cue, noise=noise)
    yield _task("context-wait", "values", (4, 1, 52), 0, state.context, steps=20, cue=1, noise=1.0, wait=32)
    for steps, speed in ((24, 0.5), (16, 0.7)):
        yield _task(f"ring-{steps}", "values", (3, 2, steps), 0, state.ring, steps=steps, speed=speed, noise=0.1)
    for name, steps, side, wait in (("walk-5", 32, 5, 0), ("walk-wait", 12, 3, 40)):
        yield _task(name, "values", (6, 2, steps + wait), 0, state.walk, steps=steps, side=side, wait=wait)
    for name, steps, periods, after in (
        ("sine-slow", 40, (10.0, 30.0), 0),
        ("sine-fast", 40, (4.0, 10.0), 0),
        ("sine-late", 56, (10.0, 30.0), 40),
    ):
        options = {"steps": steps, "periods": periods, "shown": 4, "after": after}
        yield _task(name, "values", (1, 1, steps), 0, state.sine, **options)
    for name, steps, after in (("rhythm-40", 40, 0), ("rhythm-late", 46, 32)):
        options = {"steps": steps, "periods": (4, 9), "beats": 2, "after": after}
        yield _task(name, "values", (1, 2, steps), 0, state.rhythm, **options)


def _dynamics() -> Iterator[Task]:
    options: dict[str, Any]
    series: dynamics.Series
    mackey, slower = partial(dynamics.mackey_glass, 17), partial(dynamics.mackey_glass, 30)
    for name, order, steps, late in (("narma-5", 5, 32, 0), ("narma-10", 10, 32, 0), ("narma-late", 5, 40, 16)):
        yield _task(name, "values", (1, 1, steps), 0, dynamics.narma, order=order, steps=steps, late=late)
    for name, series, steps, horizon, noise, wait in (
        ("mackey-17", mackey, 32, 12, 0.2, 0),
        ("mackey-30", slower, 32, 12, 0.1, 0),
        ("mackey-wait", mackey, 16, 4, 0.1, 36),
        ("lorenz-3", dynamics.lorenz, 32, 3, 0.2, 0),
        ("lorenz-6", dynamics.lorenz, 32, 6, 0.1, 0),
        ("lorenz-wait", dynamics.lorenz, 16, 2, 0.1, 36),
        ("maps-wait", dynamics.henon, 8, 1, 0.05, 36),
        ("maps-henon", dynamics.henon, 20, 2, 0.05, 0),
        ("maps-logistic", dynamics.coupled_logistic, 20, 2, 0.02, 0),
        ("maps-ikeda", dynamics.ikeda, 24, 1, 0.02, 0),
        ("recordings-laser-4", dynamics.laser, 32, 4, 0.0, 0),
        ("recordings-laser-10", dynamics.laser, 32, 10, 0.0, 0),
        ("recordings-wait", dynamics.laser, 16, 2, 0.0, 40),
    ):
        options = {"series": series, "steps": steps, "horizon": horizon, "noise": noise, "wait": wait}
        yield _task(name, "values", (1, 1, steps + wait), 0, dynamics.forecast, **options)


def _text_and_shapes() -> Iterator[Task]:
    options: dict[str, Any]
    chances: dict[text.Source, float] = {"prose": 0.17, "code": 0.14}  # the share of the space, the commonest character
    for source, chance in chances.items():
        width = len(text.ALPHABETS[source])
        yield _task(f"chars-{source}", "classes", (width, width, 32), chance, text.chars, source=source, steps=32)
    width, options = len(text.ALPHABETS["prose"]), {"source": "prose", "steps": 12, "wait": 32}
    yield _task("chars-wait", "classes", (width, width, 44), chances["prose"], text.chars, **options)
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
    draws, updates = partial(sampler, **options), 2000 if name in _LONGER else 800
    return Task(name, name.split("-")[0], input_size, output_size, steps, kind, chance, draws, updates)


TASKS: dict[str, Task] = {task.name: task for task in _variants()}
"""Every variant by its name, those of the first bank too."""
CURRENT: dict[str, Task] = {name: task for name, task in TASKS.items() if name not in _FORMER}
"""The variants that a new bank is trained on."""
