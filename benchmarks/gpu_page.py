"""The page about measurements on an accelerator, docs/gpu.md, from lines of results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

Row = dict[str, Any]

HEAD = """# On a GPU

<!-- Written by `python benchmarks/gpu.py`: change that, for changes made here are lost. -->

`make gpu` measures all of this in four minutes on a machine with an accelerator, and writes this page; elsewhere it is
a trial of less than a minute, which goes the same way with small networks. What is expected of a GPU, and why, stands
in [Speed and memory](speed.md#on-a-gpu-shown-and-expected)."""

NONE_YET = """**No accelerator has run it yet.** What follows is the trial on a CPU, to show that the script works and
what it tells. Its times are CPU time and none is one of a GPU; its differences are between the CPU and itself."""

NUMBERS = """### The same numbers

Exponents, singular values and gain in float64, on the device and on the CPU, from the same weights and inputs: the
largest difference, in nats. It is to be at most 1e-9. Exponents that rounding may have moved are left out."""

COUNTS = """### Operators, launches, waits

For each step of a measurement, states and growth included, from the difference of 64 and 128 steps: what is done once
drops out. *Pushed*: operators in one step of the time loop, reorthonormalisation included. *Waits in the loop*: what
that loop reads from the device, by its operators and, on a GPU, by its driver; there must be none. Counts have no
error."""

TESTS = """### Tests"""

SIZES = """### Time and memory

One measurement of all sequences, 64 steps, as it is by default, beside one training step of the same network on the
same sequences in float32 (forward, backward, Adam). A time is a median; ± is half the range of the calls, and a call
that was made once has none. Memory is the most that was allocated beside what was there; *bound* is the formula of
[Speed and memory](speed.md#memory)."""


def page(rows: Sequence[Row]) -> str:
    """The whole of it; of accelerators where there are any, else of trials."""
    whole = [row for row in rows if not row["trial"]]
    sections = [HEAD, *([] if whole else [NONE_YET])]
    for device in dict.fromkeys(row["device"] for row in whole or rows):
        sections += _device([row for row in whole or rows if row["device"] == device])
    return "\n\n".join(sections) + "\n"


def _device(rows: Sequence[Row]) -> Iterator[str]:
    first = rows[0]
    with_cuda = f", CUDA {first['cuda']}" if first["cuda"] else ""
    yield f"## {first['device']}\n\nMeasured {first['at'][:10]} with torch {first['torch']}{with_cuda}."
    for part, text, table in PARTS:
        if of_part := [row for row in rows if row["part"] == part]:
            yield f"{text}\n\n{table(of_part)}"


def _numbers(rows: Sequence[Row]) -> str:
    lines = [(row["of"], f"{row['apart']:.1e}", "yes" if row["same"] else "**no**") for row in rows]
    return _table(("of", "apart, nats", "at most 1e-9"), lines)


def _counts(rows: Sequence[Row]) -> str:
    head = ("cell", "H", "B", "k", "operators", "launches", "waits", "pushed", "waits in the loop")
    return _table(
        head,
        [
            (
                *_network(row),
                *(_number(row[key], ".1f" if key != "waits" else ".2f") for key in ("operators", "launches", "waits")),
                f"{row['pushed']:.1f}",
                row["in_loop"] if not row["in_loop"] else f"**{row['in_loop']}**",
            )
            for row in rows
        ],
    )


def _tests(rows: Sequence[Row]) -> str:
    (row,) = rows
    told = f"{row['passed']} passed, {row['failed']} failed" + ("" if row["all"] else ", then the time was up")
    return "\n".join([f"{told}.", *(f"\n- {name}" for name in row["names"])])


def _sizes(rows: Sequence[Row]) -> str:
    head = ("cell", "H", "B", "k", "type", "measurement, ms", "training step, ms", "ratio", "peak, MB", "bound, MB")
    lines = []
    for row in rows:
        if "left_out" in row:
            lines.append((*_network(row), "", row["left_out"], "", "", "", ""))
            continue
        measured, step = row["measurement"], row["step"]
        peak = None if row["peak"] is None else row["peak"] / 1e6
        lines.append(
            (
                *_network(row),
                row["dtype"],
                _time(measured),
                _time(step),
                f"{measured['s'] / step['s']:.0f}",
                _number(peak, ",.0f"),
                f"{row['bound'] / 1e6:,.0f}",
            )
        )
    return _table(head, lines)


def _network(row: Row) -> tuple[str, int, int, str]:
    return row["cell"], row["hidden"], row["batch"], str(row["k"] or "all")


def _time(taken: dict[str, float]) -> str:
    value, spread = 1e3 * taken["s"], 1e3 * taken["spread"]
    return f"{value:,.1f} ± {spread:,.1f}" if taken["times"] > 1 else f"{value:,.1f} (once)"


def _number(value: float | None, form: str) -> str:
    return "not seen" if value is None else f"{value:{form}}"


def _table(head: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)


PARTS: tuple[tuple[str, str, Callable[[Sequence[Row]], str]], ...] = (
    ("numbers", NUMBERS, _numbers),
    ("counts", COUNTS, _counts),
    ("tests", TESTS, _tests),
    ("sizes", SIZES, _sizes),
)
