"""The plan counted, and builds that are interrupted, continued and watched."""

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_lyapunov.bank import __main__, build, population, records
from lightning_lyapunov.bank.cells import CELLS, UNKNOWN_CELLS
from lightning_lyapunov.bank.population import Population
from lightning_lyapunov.bank.records import Bank
from lightning_lyapunov.bank.tasks import TASKS

TINY = [Population("adding-20", cell, 4, (0, 1)) for cell in ("gru", "lstm", "rnn")]


class Trained:
    """Stands for training: keeps the names of what was trained, and can be interrupted."""

    def __init__(self, interrupted_at: int | None = None) -> None:
        self.names: list[str] = []
        self.interrupted_at = interrupted_at

    def __call__(self, which: Population) -> dict[str, Any]:
        if len(self.names) == self.interrupted_at:
            raise KeyboardInterrupt
        self.names.append(which.name)
        return {"final": torch.zeros(len(which.draws)), "networks": []}


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real populations that are trained for two updates."""
    for module in (population, records):
        monkeypatch.setattr(module, "CHECKPOINTS", (0, 2))
        monkeypatch.setattr(module, "SECOND_PROBE", (2,))
    monkeypatch.setattr(population, "FINAL", (2,))


def test_plan_is_as_large_and_as_varied_as_promised() -> None:
    plan = build.plan()
    networks = Counter[str]()
    for which in plan:
        networks[which.cell] += len(which.draws)
    assert networks.total() >= 3000
    assert set(networks) == set(CELLS)
    assert sum(networks[cell] for cell in UNKNOWN_CELLS) >= 200
    assert {which.task for which in plan} == set(TASKS)
    assert len(TASKS) >= 30
    assert len({TASKS[which.task].family for which in plan}) >= 14
    assert {which.hidden_size for which in plan} == {16, 32, 64, 128}
    assert len({which.name for which in plan}) == len(plan)
    assert build.plan() == plan


def test_every_draw_of_a_twin_is_trained_from_three_seeds() -> None:
    seeds: dict[tuple[str, str, int, int], list[int]] = {}
    for which in build.plan():
        for number in which.draws:
            seeds.setdefault((which.task, which.cell, which.hidden_size, number), []).append(which.seed)
    assert {tuple(sorted(several)) for several in seeds.values()} == {(0,), (0, 1, 2)}
    twins = [key for key, several in seeds.items() if len(several) == 3]
    assert len(twins) >= 100
    assert {cell for _, cell, _, _ in twins} == set(CELLS) - set(UNKNOWN_CELLS)


def test_any_beginning_of_the_plan_is_a_sample() -> None:
    plan = build.plan()
    beginning = plan[:100]
    families = {TASKS[which.task].family for which in beginning}
    assert len(families) >= 16
    assert {which.cell for which in beginning} == set(CELLS)
    assert {which.hidden_size for which in beginning} == {16, 32, 64, 128}
    costs = [sum(build._cost(which) for which in some) / len(some) for some in (beginning, plan)]
    assert costs[0] == pytest.approx(costs[1], rel=0.3)


def test_smoke_plan_is_thirty_tiny_networks() -> None:
    plan = build.smoke_plan()
    assert sum(len(which.draws) for which in plan) == 30
    assert not {which.name for which in plan} & {which.name for which in build.plan()}


def test_an_interrupted_build_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted, resumed, idle = Trained(interrupted_at=2), Trained(), Trained()
    monkeypatch.setattr(build, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build.build(TINY, tmp_path, 1)
    assert interrupted.names == [which.name for which in TINY[:2]]
    for trained in (resumed, idle):
        monkeypatch.setattr(build, "run", trained)
        build.build(TINY, tmp_path, 1)
    assert resumed.names == [TINY[2].name]
    assert idle.names == []


def test_half_a_record_is_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process dies while it writes: between the bytes and the name."""

    def dies(path: Path, target: Path) -> None:
        raise KeyboardInterrupt

    trained = Trained()
    monkeypatch.setattr(build, "run", trained)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", dies)
        build.build(TINY[:1], tmp_path, 1)
    assert list(tmp_path.iterdir()) == []
    build.build(TINY[:1], tmp_path, 1)
    assert trained.names == [TINY[0].name] * 2
    assert (tmp_path / f"{TINY[0].name}.safetensors").exists()


def test_a_log_gets_a_line_for_each_population(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The share is that of the cost, of all populations: gru : lstm : rnn is about 3 : 4 : 1."""
    monkeypatch.setattr(build, "run", Trained())
    build.build(TINY[:1], tmp_path, 1)
    capsys.readouterr()
    build.build(TINY, tmp_path, 1)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "88%, 4 of 6 networks, 00:0" in lines[0]
    assert lines[0].endswith("left adding-20_lstm_4_0")
    assert "100%, 6 of 6 networks, 00:0" in lines[1]
    assert lines[1].endswith("00:00 left adding-20_rnn_4_0")
    assert not any("\r" in line for line in lines)


def test_a_terminal_gets_one_bar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build, "run", Trained())
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    build.build(TINY, tmp_path, 1)
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert "0%, 0 of 6 networks" in printed
    assert "100%, 6 of 6 networks" in printed


def test_command_builds_a_bank_and_continues_one(
    short: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(__main__, "smoke_plan", lambda: TINY)
    monkeypatch.setattr(sys, "argv", ["bank", str(tmp_path / "trial"), "--smoke", "--jobs", "1"])
    __main__.main()
    assert capsys.readouterr().out == f"6 networks, 1 tasks of 1 families: {tmp_path}/trial.safetensors\n"
    bank = Bank.load(tmp_path / "trial.safetensors")
    assert bank.column("cell") == ["gru", "gru", "lstm", "lstm", "rnn", "rnn"]
    assert [tuple(spectrum.shape) for spectrum in bank.spectra] == [(2, 4)] * 2 + [(2, 8)] * 2 + [(2, 4)] * 2
    assert {tuple(error.shape) for error in bank.stderr} == {(2, 3)}
    assert bank.final.isfinite().all()

    (tmp_path / "trial" / "adding-20_lstm_4_0.safetensors").unlink()
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--compact", str(tmp_path / "other.safetensors")])
    __main__.main()
    again = Bank.load(tmp_path / "other.safetensors")  # by content: safetensors writes its metadata in any order
    assert again.networks == bank.networks
    for key in ("spectra", "stderr", "second", "metrics", "final"):
        torch.testing.assert_close(getattr(again, key), getattr(bank, key), rtol=0, atol=0, equal_nan=True)
