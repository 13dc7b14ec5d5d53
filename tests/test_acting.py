"""The benchmark of acting on a spectrum: a run in its short form, and verdicts on results that are made up."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).parents[1] / "benchmarks" / "acting"


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tables_of_acting", HERE / "tables.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(*arguments: str | Path, quick: bool = True) -> str:
    """What the benchmark prints."""
    command = [sys.executable, HERE, *["--quick"] * quick, *arguments]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=300 if quick else 3600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows_of(path: Path, start: str) -> list[dict[str, Any]]:
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [row for row in rows if row["start"] == start]


def test_a_run_is_kept_once_and_told(tmp_path: Path) -> None:
    """What is kept says how it was made, a second call runs nothing, and the table has the number that was kept."""
    path = tmp_path / "results.jsonl"
    said = run("--results", path, "--only", "recall", "RNN", "hold")
    (row,) = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    assert {name: row[name] for name in ("task", "net", "start", "seed")} == {
        "task": "recall", "net": "RNN", "start": "hold", "seed": 0,
    }  # fmt: skip
    assert "recurrent weights made orthogonal" in row["start_of"]["changed"]
    assert row["result"] == row["readings"][-1]
    assert f"| RNN | `condition(lag=…)` | {row['result']:.2f}".replace(" 0.", " .") in said
    kept = path.read_bytes()
    assert run("--results", path, "--only", "recall", "RNN", "hold") == said
    assert path.read_bytes() == kept


def test_the_spectrum_of_delayed_xor_is_set_where_its_lag_wants_it(tmp_path: Path) -> None:
    """On sequences that the setting did not see: flat at -2 / lag = -.1, and the first input is still felt."""
    path = tmp_path / "results.jsonl"
    run("--results", path, "--only", "xor-10", "RNN", "hold")
    (row,) = rows_of(path, "hold")
    assert row["exponents"] == pytest.approx([-0.1] * 3, abs=0.03)
    assert row["start_of"]["applied"] and row["seen"] > -4


@pytest.mark.slow
def test_delayed_xor_is_learnt_from_a_spectrum_that_was_set_alone(tmp_path: Path) -> None:
    """Eight seeds, delay 20: .99 by update 650, where torch's and orthogonal weights are at chance at 600."""
    path = tmp_path / "results.jsonl"
    for start in ("hold", "as made", "orthogonal"):
        run("--results", path, "--only", "xor-20", "RNN", start, quick=False)
        assert len(rows_of(path, start)) == 8
    for row in rows_of(path, "hold"):
        assert max(row["readings"][:13]) >= 0.99
    for row in (*rows_of(path, "as made"), *rows_of(path, "orthogonal")):
        assert 0.48 <= row["readings"][11] <= 0.52


@pytest.mark.parametrize(
    ("made", "spread", "met"),
    [
        ([0.55, 0.60, 0.57, 0.58], [0.62, 0.64, 0.56, 0.58], [True, True]),  # means of .575 and .60
        ([0.55, 0.60], [0.50, 0.60], [False, True]),
        ([0.30, 0.30, 0.30], [0.65, 0.66, 0.29], [True, False]),  # .29 is less than half of .65
        ([], [], [None]),
    ],
)
def test_the_gate_looks_at_the_mean_and_at_the_worst_run(
    tables: ModuleType, made: list[float], spread: list[float], met: list[bool | None]
) -> None:
    """Counted by hand."""
    rows = [
        {"task": "pixels", "net": "LSTM", "start": start, "seed": seed, "result": result}
        for start, results in (("as made", made), ("spread", spread))
        for seed, result in enumerate(results)
    ]
    assert [met for what, met, _ in tables.on_digits(rows) if what.startswith("Pixels, LSTM")] == met


@pytest.mark.parametrize(
    ("task", "after", "told"),
    [
        ("recall", [0.9, 1.0, 1.1], "**helps** +.500 ± .248 (3)"),
        ("forecast", [0.9, 1.0, 1.1], "**harms** +.500 ± .248 (3)"),
        ("recall", [0.4, 0.5, 0.7], "+.033 ± .379 (3)"),
        ("recall", [0.4], ""),
    ],
)
def test_help_and_harm_are_told_beyond_their_bars(tables: ModuleType, task: str, after: list[float], told: str) -> None:
    """By hand: .4, .5, .6 spread by .1, so their mean errs by .058, and 4.303 times that; -.1, 0, .2 by .153."""
    made = [{"task": task, "seed": seed, "result": result} for seed, result in enumerate([0.5, 0.5, 0.5])]
    set_to = [{"task": task, "seed": seed, "result": result} for seed, result in enumerate(after)]
    assert tables.effect(made, set_to) == told


@pytest.mark.parametrize(
    ("readings", "met"), [([0.5] * 12 + [0.991], True), ([0.5] * 13 + [0.991], False), ([0.5, 0.995], True)]
)
def test_when_a_task_was_learnt_is_read_off_its_readings(tables: ModuleType, readings: list[float], met: bool) -> None:
    """By update 650, the thirteenth reading; what was over before keeps its last."""
    row: dict[str, Any] = {"task": "xor-20", "net": "RNN", "start": "hold", "seed": 0, "readings": readings}
    (first, *_) = tables.on_xor([row])
    assert first[1] is met


def test_numbers_are_written_without_the_zero_before_the_point(tables: ModuleType) -> None:
    assert [tables.shown(value, ".2f") for value in (0.5, -0.5, 12.0, 1.0, 0.0)] == [
        ".50",
        "−.50",
        "12.00",
        "1.00",
        "0",
    ]
    assert tables.span([0.1, 0.2, 0.6], ".1f") == ".2 (.1 to .6)"
