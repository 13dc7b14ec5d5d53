"""The script for a day with an accelerator, in its short form on a CPU; its page, on made-up results."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from lightning_lyapunov import lyapunov_spectrum

HERE = Path(__file__).parents[1] / "benchmarks"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    names = ("gpu", "gpu_page", "memory")
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    sys.path.insert(0, str(HERE))
    try:
        yield importlib.import_module("gpu")
    finally:
        sys.path.remove(str(HERE))
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(before)


@pytest.fixture
def plan(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(script, "STEPS", 16)
    return script.Plan((8, 9), (2,), (8,), dict.fromkeys(script.PARTS, 1e9), 60, 1e9, 0.0, ())


def test_the_trial_keeps_each_line_and_its_page_shows_all(
    script: ModuleType, plan: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines of the same device are replaced, those of others stay."""
    monkeypatch.setattr(script, "SMALL", plan)
    path = tmp_path / "gpu.jsonl"
    line = {"part": "numbers", "trial": True, "torch": "2", "cuda": None, "at": "2026-01-01 00:00", "of": "a GRU"}
    former = [line | {"device": name, "apart": 1e-6, "same": False} for name in ("another", script.name_of(CPU))]
    path.write_text("".join(json.dumps(row) + "\n" for row in former), encoding="utf-8")
    assert script.run(plan, CPU, ["numbers", "counts", "sizes"], path)
    rows = script.kept(path)
    assert [sum(row["part"] == part for row in rows) for part in script.PARTS] == [1 + 8, 6, 0, 12]
    counted = [row for row in rows if row["part"] == "counts"]
    assert all(row["in_loop"] == 0 and 0 < row["pushed"] < row["operators"] for row in counted)
    assert all(row["measurement"]["s"] > 0 and row["step"]["s"] > 0 for row in rows if row["part"] == "sizes")
    written = script.page(rows)
    assert "No accelerator has run it yet" in written and "| a GRU | 1.0e-06 | **no** |" in written
    assert written.count("| LSTM | 8 | 2 | all |") == 2
    of_a_gpu = script.page([*rows, rows[-1] | {"device": "NVIDIA Z1", "trial": False, "peak": 2_000_000}])
    assert "No accelerator" not in of_a_gpu and "## NVIDIA Z1" in of_a_gpu and "## another" not in of_a_gpu
    assert "| 2 |" in of_a_gpu


def test_waiting_in_the_loop_is_seen_and_fails(
    script: ModuleType, plan: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    carry = script.exponents.carry

    def reading(steps: Any, running: list[int], frame: torch.Tensor, *args: Any, **options: Any) -> Any:
        assert float(frame.sum()) == float(frame.sum())
        return carry(steps, running, frame, *args, **options)

    monkeypatch.setattr(script.exponents, "carry", reading)
    monkeypatch.setattr(script, "CELLS", {"RNN": nn.RNN})
    assert not script.run(plan, CPU, ["counts"], tmp_path / "gpu.jsonl")
    assert all(row["in_loop"] > 0 for row in script.kept(tmp_path / "gpu.jsonl"))


def test_what_would_take_too_long_is_left_out(script: ModuleType, plan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a second at 8 units; the work of a whole spectrum grows with their cube, so that 9 would take 1.4."""
    monkeypatch.setattr(script, "CELLS", {"RNN": nn.RNN})
    monkeypatch.setattr(script, "sized", lambda *_: {"measurement": {"s": 1.0}})
    object.__setattr__(plan, "longest", 1.4)
    told = [row.get("left_out") for row in script.sizes(plan, CPU)]
    assert told == [None, None, None, "expected to take 1 s"]


def test_an_error_is_told_but_that_of_memory_is_a_line(
    script: ModuleType, plan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(message: str) -> Any:
        def sized(*_: Any) -> Any:
            raise RuntimeError(message)

        return sized

    monkeypatch.setattr(script, "sized", failing("CUDA out of memory. Tried to allocate 9 GiB"))
    assert {row["left_out"] for row in script.sizes(plan, CPU)} == {"out of memory"}
    monkeypatch.setattr(script, "sized", failing("something else"))
    with pytest.raises(RuntimeError, match="something else"):
        list(script.sizes(plan, CPU))


SAID = """
tests/engine/test_a.py::test_one[cuda] PASSED                  [ 33%]
tests/engine/test_a.py::test_two[cuda-True] FAILED             [ 66%]
tests/engine/test_a.py::test_two[cuda-False] PASSED            [100%]
FAILED tests/engine/test_a.py::test_two[cuda-True] - assert 0
"""


@pytest.mark.parametrize("in_time", [True, False])
def test_outcomes_of_tests_are_counted_also_of_those_cut_off(
    script: ModuleType, plan: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, in_time: bool
) -> None:
    def run(command: list[str], *, stdout: Any, timeout: float, **_: Any) -> None:
        assert command[-1] == "cpu" and "no:cacheprovider" in command
        stdout.write(SAID)
        if not in_time:
            raise script.subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(script.subprocess, "run", run)
    monkeypatch.setattr(script, "TRIAL", tmp_path / "gpu.jsonl")
    (row,) = script.tests(plan, CPU)
    assert (row["passed"], row["failed"], row["all"]) == (2, 1, in_time)
    assert row["names"] == ["tests/engine/test_a.py::test_two[cuda-True]"]


def test_the_cell_of_ones_own_is_one_that_is_measured(script: ModuleType) -> None:
    """Its Jacobian is half of a unit matrix and half of a scaled rotation, so that no exponent is above ln 1.25."""
    state = torch.zeros(2, 6).double()
    found = lyapunov_spectrum(script.leaky, torch.zeros(32, 2, 1).double(), state=state)
    assert found.exponents[0] <= torch.tensor(1.25).log() + 1e-6
