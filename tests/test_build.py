"""The plan counted, and builds that are interrupted, continued and watched."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_records import record

from lightning_lyapunov.bank import __main__, build, population, records
from lightning_lyapunov.bank.cells import CELLS, UNKNOWN_CELLS
from lightning_lyapunov.bank.population import Population
from lightning_lyapunov.bank.records import Bank, read_record
from lightning_lyapunov.bank.tasks import CURRENT, TASKS

TINY = [Population("adding-20", cell, 4, (0, 1)) for cell in ("gru", "lstm", "rnn")]
KILLED = [Population("adding-20", "rnn", 4, (0, 1), seed) for seed in range(6)]


class Trained:
    """Stands for training: keeps the names of what was trained, and can be interrupted."""

    def __init__(self, interrupted_at: int | None = None) -> None:
        self.names: list[str] = []
        self.interrupted_at = interrupted_at

    def __call__(self, which: Population) -> dict[str, Any]:
        if len(self.names) == self.interrupted_at:
            raise KeyboardInterrupt
        self.names.append(which.name)
        stands_for = record(which.task, which.cell, which.hidden_size, len(which.draws))
        for network, number in zip(stands_for["networks"], which.draws, strict=True):
            network |= {"hidden_size": which.hidden_size, "seed": which.seed, "number": number}
        return stands_for


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real populations that are trained for two updates."""
    shorten(monkeypatch)


def shorten(patch: pytest.MonkeyPatch) -> None:
    for module in (population, records):
        patch.setattr(module, "CHECKPOINTS", (0, 2))


def name_of(which: Population) -> str:
    return f"{which.name}.safetensors"


def test_plan_is_as_large_and_as_varied_as_promised() -> None:
    plan = build.plan()
    cells, families, deep = Counter[str](), Counter[str](), 0
    for which in plan:
        cells[which.cell] += len(which.draws)
        families[TASKS[which.task].family] += 0 if which.cell in UNKNOWN_CELLS else len(which.draws)
        deep += len(which.draws) if which.layers == 2 else 0
    assert 6000 <= cells.total() <= 8000
    assert set(cells) == set(CELLS)
    assert min(cells[cell] for cell in UNKNOWN_CELLS) >= 150
    assert cells["rnn_relu"] < min(cells[cell] for cell in build.COMMON)
    assert 0.03 < deep / cells.total() < 0.07
    assert {which.task for which in plan} == set(CURRENT)
    assert len(families) >= 28 and min(families.values()) >= 60
    assert {which.hidden_size for which in plan} == {16, 32, 64, 128}
    assert {which.cell for which in plan if which.layers == 2} <= set(CELLS) - set(UNKNOWN_CELLS)
    assert len({which.name for which in plan}) == len(plan)
    assert build.plan() == plan


def test_every_draw_of_a_twin_is_trained_from_three_seeds() -> None:
    seeds: dict[tuple[str, str, int, int, int], list[int]] = {}
    for which in build.plan():
        for number in which.draws:
            kind = (which.task, which.cell, which.hidden_size, which.layers, number)
            seeds.setdefault(kind, []).append(which.seed)
    assert {tuple(sorted(several)) for several in seeds.values()} == {(0,), (0, 1, 2)}
    twins = [key for key, several in seeds.items() if len(several) == 3]
    assert len(twins) >= 90
    assert {key[1] for key in twins} == set(build.COMMON)


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
    assert len(interrupted.names) == 2
    for trained in (resumed, idle):
        monkeypatch.setattr(build, "run", trained)
        build.build(TINY, tmp_path, 1)
    assert {*interrupted.names, *resumed.names} == {which.name for which in TINY}
    assert len(resumed.names) == 1
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


@pytest.mark.parametrize("damage", ["cut", "flipped", "foreign", "shorter", "empty"])
def test_a_damaged_record_is_named_and_made_again(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, again = Trained(), Trained()
    monkeypatch.setattr(build, "run", whole)
    build.build(TINY, tmp_path, 1)
    path = tmp_path / name_of(TINY[1])
    content = path.read_bytes()
    if damage == "foreign":
        path.write_bytes((tmp_path / name_of(TINY[0])).read_bytes())
    elif damage == "shorter":
        records.write_record(Trained()(replace(TINY[1], draws=(0,))), path)
    else:
        path.write_bytes({"cut": content[:-1], "flipped": content[:-1] + b"\1", "empty": b""}[damage])
    monkeypatch.setattr(build, "run", again)
    with pytest.warns(UserWarning, match=rf"{path.name} is .* {TINY[1].name} is trained again\.") as caught:
        build.build(TINY, tmp_path, 1)
    assert again.names == [TINY[1].name] and len(caught) == 1
    assert path.read_bytes() == content


def test_what_another_build_made_meanwhile_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other build comes and goes while the first trains its first population."""
    trained: list[str] = []

    def run(which: Population) -> dict[str, Any]:
        trained.append(which.name)
        if len(trained) == 1:
            build.build(TINY, tmp_path, 1)
        return Trained()(which)

    monkeypatch.setattr(build, "run", run)
    build.build(TINY, tmp_path, 1)
    assert Counter(trained).total() == len(TINY) + 1  # none but the one that both began


def test_each_build_has_an_order_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 20 builds of three populations; or builds that begin at once would train the same ones all along."""
    orders = set()
    for number in range(20):
        monkeypatch.setattr(build, "run", trained := Trained())
        build.build(TINY, tmp_path / str(number), 1)
        orders.add(tuple(trained.names))
    assert len(orders) > 1


def test_a_bank_is_not_made_of_fewer_records_than_were_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One is lost between training and collecting."""
    monkeypatch.setattr(build, "run", Trained())
    monkeypatch.setattr(__main__, "smoke_plan", lambda: TINY)
    monkeypatch.setattr(__main__, "build", lambda populations, *_: build.build(populations[1:], tmp_path / "bank", 1))
    with pytest.raises(ValueError, match=rf"{tmp_path / 'bank'} lacks 1, {TINY[0].name} among them"):
        __main__.build_bank(tmp_path / "bank", smoke=True)


# ------------------------------------------------------------------ killed at any moment


class Builds:
    """Real builds of :data:`KILLED`, each in a fork of a process that has imported everything."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.reads, self.writes = os.pipe()
        os.set_blocking(self.reads, False)
        patch = pytest.MonkeyPatch()
        shorten(patch)
        patch.setattr(__main__, "smoke_plan", lambda: KILLED)
        patch.setattr(build, "run", self._told)

    def _told(self, which: Population) -> dict[str, Any]:
        os.write(self.writes, f"{which.name}\n".encode())
        return population.run(which)

    def begin(self) -> int:
        """The process of one."""
        if child := os.fork():
            return child
        try:
            __main__.build_bank(self.directory, jobs=1, smoke=True)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)

    def begun(self) -> list[str]:
        """Populations whose training has begun since the last call."""
        try:
            return os.read(self.reads, 2**16).decode().split()
        except BlockingIOError:
            return []

    def records(self) -> dict[str, bytes]:
        """All of them, each whole."""
        paths = list(self.directory.glob("*.safetensors"))
        assert all(len(read_record(path)["networks"]) == 2 for path in paths)
        return {path.stem: path.read_bytes() for path in paths}

    def unfinished(self) -> list[Path]:
        return [path for path in self.directory.glob(".*") if path.is_file()]

    def clear(self) -> None:
        shutil.rmtree(self.directory)


def exit_code(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_builds(directory: Path, kills: int) -> dict[str, int]:
    """Kill builds that go on with each other's work at random moments of their lives; what was seen."""
    builds, rng = Builds(directory / "bank"), random.Random(kills)
    start = time.monotonic()
    assert exit_code(builds.begin()) == 0
    duration = time.monotonic() - start
    reference = builds.records()
    assert len(reference) == len(KILLED) and len(Bank.load(builds.directory)) == 2 * len(KILLED)
    builds.begun()
    builds.clear()
    seen = Counter[str](killed=0, finished=0, unfinished=0, lost=0, partial=0)
    before: dict[str, bytes] = {}
    while seen["killed"] < kills:
        child = builds.begin()
        time.sleep(rng.uniform(0, duration))
        os.kill(child, signal.SIGKILL)
        code, found, begun = exit_code(child), builds.records(), builds.begun()
        assert before.items() <= found.items() <= reference.items()  # what was there is there, and all is as it should
        lost = set(begun) - found.keys()
        assert lost <= set(begun[-1:]) and code in (0, -signal.SIGKILL)
        assert not set(begun) & before.keys()
        if found != reference:
            seen["partial"] += 1
            with pytest.raises(ValueError, match="lacks"):
                Bank.load(builds.directory, [which.name for which in KILLED])
        hidden = builds.unfinished()
        for path in hidden:
            os.utime(path, (0, 0))  # as if long ago
        seen["killed" if code else "finished"] += 1
        seen["unfinished"] += len(hidden)
        seen["lost"] += len(lost)
        before = found
        if found == reference:
            builds.clear()
            before = {}
    assert exit_code(builds.begin()) == 0
    assert builds.records() == reference
    assert len(builds.unfinished()) == 0
    return dict(seen)


def build_at_once(directory: Path, builders: int) -> dict[str, int]:
    """Several builds of one directory, one of them killed; how many populations were trained in all."""
    builds = Builds(directory / "bank")
    children = [builds.begin() for _ in range(builders + 1)]
    while not builds.directory.exists() or not builds.records():
        time.sleep(0.01)
    os.kill(children[0], signal.SIGKILL)
    assert [exit_code(child) for child in children] == [-signal.SIGKILL] + [0] * builders
    assert builds.records().keys() == {which.name for which in KILLED}
    assert len(Bank.load(builds.directory)) == 2 * len(KILLED)
    return {"trained": len(builds.begun())}


def in_a_process_of_its_own(call: str) -> dict[str, int]:
    """What a function of this file says, called where nothing but this file was imported before: it may fork."""
    script = (
        "import json, torch, joblib, tqdm, torch.fx.experimental.symbolic_shapes, test_build\n"
        "from lightning_lyapunov import lyapunov_spectrum\n"
        "lyapunov_spectrum(torch.nn.RNN(1, 2), torch.zeros(9, 1, 1))\n"  # what the first one imports
        f"print('\\n' + json.dumps(test_build.{call}))"
    )
    here = Path(__file__).parent
    done = subprocess.run([sys.executable, "-c", script], cwd=here, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.skipif(os.name == "nt", reason="signals and forks are those of POSIX")
@pytest.mark.parametrize("kills", [10, pytest.param(200, marks=pytest.mark.slow)])
def test_a_killed_build_loses_the_population_in_work_at_most(kills: int, tmp_path: Path) -> None:
    """Killed at any moment of training and writing, builds end with the bank of one that was not, byte for
    byte; on the way every record is whole, and no bank of fewer networks is made."""
    seen = in_a_process_of_its_own(f"kill_builds(test_build.Path({str(tmp_path)!r}), {kills})")
    print(seen)
    assert seen["killed"] == kills
    assert seen["partial"] > kills // 4


@pytest.mark.skipif(os.name == "nt", reason="signals and forks are those of POSIX")
def test_builds_at_once_share_a_directory(tmp_path: Path) -> None:
    """Three, and a fourth that is killed: all end well, and they share the work."""
    seen = in_a_process_of_its_own(f"build_at_once(test_build.Path({str(tmp_path)!r}), 3)")
    print(seen)
    assert len(KILLED) <= seen["trained"] < 3 * len(KILLED)


# ------------------------------------------------------------------ watched


def test_a_log_gets_a_line_for_each_population(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The share is that of the cost, of all populations: gru : lstm : rnn is about 3 : 4 : 1."""
    monkeypatch.setattr(build, "run", Trained())
    monkeypatch.setattr(build.random.Random, "shuffle", lambda self, populations: None)
    build.build(TINY[:1], tmp_path, 1)
    capsys.readouterr()
    build.build(TINY, tmp_path, 1)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert re.search(r"8[78]%, 4 of 6 networks, 00:0", lines[0])
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
    assert capsys.readouterr().out == f"6 networks, 1 tasks of 1 families: {tmp_path}/trial\n"
    bank = Bank.load(tmp_path / "trial")
    assert bank.column("cell") == ["gru", "gru", "lstm", "lstm", "rnn", "rnn"]
    assert bank.column("dimension") == [4, 4, 8, 8, 4, 4]
    assert bank.final.isfinite().all()

    (tmp_path / "trial" / "adding-20_lstm_4_0.safetensors").unlink()
    __main__.main()
    again = Bank.load(tmp_path / "trial")
    assert again.digest == bank.digest


# ------------------------------------------------------------------ rebuilt to the bit


def test_records_are_made_again_and_compared(
    short: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three as they were, and then one of another seed under the name of another."""
    build.build(TINY, tmp_path, 1)
    monkeypatch.setattr(__main__, "plan", lambda: TINY)
    monkeypatch.setattr(sys, "argv", ["bank", str(tmp_path), "--check", "3"])
    __main__.main()
    assert capsys.readouterr().out == f"3 populations made again, to the last bit as in {tmp_path}\n"
    other = population.run(replace(TINY[1], seed=1))
    records.write_record(other, tmp_path / name_of(TINY[1]))
    with pytest.raises(SystemExit, match=rf"not as in {tmp_path}: {TINY[1].name}"):
        __main__.main()


@pytest.mark.slow
def test_ten_populations_of_the_bank_are_made_again() -> None:
    """On the torch and the kind of processor that it was made with."""
    directory = Path(__file__).parents[1] / "bank" / "records"
    if not directory.is_dir():
        pytest.skip("the bank is not part of this copy")
    assert build.differing(build.plan(), directory, 10) == []
