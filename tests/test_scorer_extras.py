"""What else a scorer might see. Oracles: torch's own layers, dense derivatives, records, and banks made up."""

import dataclasses
import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from test_evaluation import bank_of
from torch import Tensor, nn
from torch.autograd.functional import jacobian

from lightning_lyapunov.aelle.features import CHEAP, CONTEXT
from lightning_lyapunov.bank import population
from lightning_lyapunov.bank.draws import generator
from lightning_lyapunov.bank.evaluation import Table
from lightning_lyapunov.bank.population import Population, run
from lightning_lyapunov.bank.probes import measure, probe
from lightning_lyapunov.bank.records import Bank, write_record
from lightning_lyapunov.bank.tasks import TASKS, loss

ROOT = Path(__file__).parents[1]
KINDS = [("rnn", 1), ("rnn_relu", 1), ("gru", 1), ("lstm", 1), ("gru", 2), ("lstm", 2)]


@pytest.fixture(scope="module")
def extras() -> ModuleType:
    spec = importlib.util.spec_from_file_location("study_of_extras", ROOT / "benchmarks" / "scorer_extras.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclasses look
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Table:
    """Two populations that are measured before training alone, as they come from their records."""
    monkeypatch.setattr(population, "CHECKPOINTS", (0,))
    for which in (Population("match-6", "gru", 8, (0, 1, 2, 3, 4)), Population("ring-24", "lstm", 8, (0, 3), 1, 2)):
        write_record(run(which), tmp_path / "records" / f"{which.name}.safetensors")
    return Table.of(Bank.load(tmp_path / "records"))


# ------------------------------------------------------------------ networks made again


def test_networks_made_again_have_the_exponents_of_their_records(extras: ModuleType, recorded: Table) -> None:
    """Whatever company they are made again in."""
    some = recorded[torch.tensor([1, 2, 4, 5, 6])]
    made = extras.populations(some)
    assert {which.name: (which.draws, places) for which, places in made.items()} == {
        "match-6_gru_8_0": ((1, 2, 4), [1, 2, 4]),
        "ring-24_lstm_8x2_1": ((0, 3), [5, 6]),
    }
    for which, places in made.items():
        trainer, inputs = which.trainer(), extras.probe_batch(TASKS[which.task]).inputs
        for n, place in enumerate(places):
            spectrum = measure(trainer.cell.module(*trainer.network(n)), inputs)
            assert spectrum is not None
            torch.testing.assert_close(spectrum.exponents[:8].half(), recorded.bank.leading[place, 0].half())
        largest = float(recorded.bank.leading[places[0], 0, 0])
        extras.require_same(trainer, largest, which.name)
        with pytest.raises(ValueError, match="bank must hold networks that this version makes again"):
            extras.require_same(trainer, largest + 0.1, which.name)


def test_sequences_are_those_of_the_probe(extras: ModuleType) -> None:
    task, source = TASKS["recall-6"], generator("validation", "recall-6")
    for _ in range(2):
        task.sample(256, source, held_out=True)
    torch.testing.assert_close(extras.probe_batch(task).inputs, probe(task, source), rtol=0, atol=0)


def test_what_was_measured_is_read_again(
    extras: ModuleType, recorded: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = recorded[torch.tensor([1, 2, 4, 5, 6])]
    first = extras.measured(some, tmp_path / "kept")
    unknown = torch.zeros(7, dtype=torch.bool).index_fill(0, torch.tensor([0, 3]), True)
    assert torch.equal(first.alignment.isnan().all(1), unknown)
    monkeypatch.setattr(extras, "measure_untrained", lambda trainer: pytest.fail("measured twice"))
    again = extras.measured(some, tmp_path / "kept")
    torch.testing.assert_close(again.sensitivity, first.sensitivity, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(again.alignment, first.alignment, rtol=0, atol=0, equal_nan=True)
    monkeypatch.undo()
    alone = extras.measured(recorded[torch.tensor([0, 2])], tmp_path / "kept")  # others than those that are kept
    torch.testing.assert_close(alone.sensitivity[2], first.sensitivity[2], equal_nan=True)
    torch.testing.assert_close(alone.alignment[2], first.alignment[2])


# ------------------------------------------------------------------ what is measured of them


def flat(state: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    """A state of torch's, layers of ``(L, 1, H)``, as one vector: layer after layer, h before c."""
    parts = state if isinstance(state, tuple) else (state,)
    return torch.stack([part.squeeze(1) for part in parts], 1).flatten()


def unflat(vector: Tensor, module: nn.RNNBase) -> Tensor | tuple[Tensor, Tensor]:
    parts = vector.unflatten(0, (module.num_layers, -1, 1, module.hidden_size)).unbind(1)
    return (parts[0], parts[1]) if len(parts) == 2 else parts[0]


@pytest.mark.parametrize(("cell", "layers"), KINDS)
def test_sensitivity_is_that_of_dense_derivatives(extras: ModuleType, cell: str, layers: int) -> None:
    trainer = Population("match-6", cell, 4, (0, 1), layers=layers).trainer()
    networks, inputs = extras.Untrained(trainer), extras.probe_batch(trainer.task).inputs.double()
    found = extras.sensitivity(networks, extras.unroll(networks, inputs))
    steps, batch, _ = inputs.shape
    for n in range(2):
        module = trainer.cell.module(*trainer.network(n)).double()
        squares = torch.zeros(steps, dtype=torch.float64)
        for b in range(batch):
            dense = jacobian(lambda x, module=module: module(x)[0][-1], inputs[:, b])  # (H, T, I)
            squares += dense.square().sum((0, 2)) / batch
        expected = [float(squares[-1 - lag] / 4) for lag in extras.LAGS if lag < steps]
        beyond = len(extras.LAGS) - len(expected)
        logs = [max(0.5 * math.log(max(value, 1e-300)), extras.FORGOTTEN) for value in expected]
        torch.testing.assert_close(found[n], torch.tensor([*logs, *[math.nan] * beyond]).to(found), equal_nan=True)
        assert beyond and logs[0] > extras.FORGOTTEN


@pytest.mark.parametrize(("cell", "layers"), KINDS)
def test_alignment_is_that_of_dense_derivatives(extras: ModuleType, cell: str, layers: int) -> None:
    """Frames from one QR of the whole product; gradients by a state that is put in the place of the one visited."""
    trainer = Population("match-6", cell, 4, (0, 1), layers=layers).trainer()
    task, networks, batch = trainer.task, extras.Untrained(trainer), extras.probe_batch(trainer.task)
    inputs, targets = batch.inputs[-5:].double(), batch.targets[-5:].double()
    ours = extras.alignment(networks, extras.unroll(networks, inputs), task, targets)
    counts = [min(k, networks.size) for k in extras.LEADING]
    for n in range(2):
        module = trainer.cell.module(*trainer.network(n)).double()
        out, out_bias = (trainer.weights[key][n].detach().double() for key in ("out", "out_bias"))
        shares: list[list[float]] = []
        for b in range(inputs.shape[1]):
            states = [torch.zeros(networks.size, dtype=torch.float64)]
            product = extras.first_frame(networks.size)
            for t, x in enumerate(inputs[:, b]):

                def after(state: Tensor, x: Tensor = x, module: nn.RNNBase = module) -> Tensor:
                    return flat(module(x[None, None], unflat(state, module))[1])

                def loss_from(state: Tensor, t: int = t, b: int = b, module: nn.RNNBase = module) -> Tensor:
                    """Of the sequence, from the state after step t on; what was read before does not depend on it."""
                    top = state.unflatten(0, (layers, -1, 4))[-1, 0]
                    later = inputs[t + 1 :, b : b + 1]
                    rest = module(later, unflat(state, module))[0].squeeze(1) if len(later) else later.new_empty(0, 4)
                    read = torch.cat([top[None], rest]) @ out.T + out_bias  # noqa: B023
                    return loss(task, read[None, :, None], targets[t:, b : b + 1])[0]

                product = jacobian(after, states[-1]) @ product
                if not bool(product[:, 0].any()):
                    product = torch.linalg.qr(product).Q  # with relu all may die: then the frame begins again
                states.append(after(states[-1]).detach())
                if not bool(targets[t:, b].isfinite().any()):
                    continue
                gradient = jacobian(loss_from, states[-1])
                if not bool(gradient.any()):
                    continue  # no unit of a relu lives
                frame = torch.linalg.qr(product).Q
                inside = (frame.T @ gradient).square() / gradient.square().sum()
                shares.append([float(inside[:k].sum()) for k in counts])
        mean = torch.tensor(shares).double().mean(0)
        expected = (mean * networks.size / torch.tensor(counts)).log()
        torch.testing.assert_close(ours[n], expected, rtol=1e-4, atol=1e-6)
        assert float(ours[n, 0].abs()) > 1e-3


# ------------------------------------------------------------------ what it adds

KNOWN = [(task, cell) for task in ("recall-6", "adding-20", "compare-8") for cell in ("rnn", "gru")] * 10


def test_what_decides_helps_and_what_is_the_same_everywhere_does_not(extras: ModuleType) -> None:
    ends = torch.rand(len(KNOWN), generator=torch.Generator().manual_seed(0))
    table = Table.of(bank_of(KNOWN, ends.tolist(), measured=(0,)))
    lagged = ends.unsqueeze(1).repeat(1, len(extras.LAGS))
    untrained = extras.Measured(lagged, torch.zeros(len(KNOWN), len(extras.LEADING)))
    found = {trial: every for trial, every in extras.gains(table, untrained, moments=(0,)).items() if every}
    assert list(found) == list(extras.TRIALS)[-4:]  # the others compare with what was before
    decides, says_nothing = (found[trial] for trial in list(found)[-2:])
    assert {one.learner for one in decides} == {"ridge", "trees"}
    assert all(one.mean > 2 * one.error and one.families == 3 for one in decides if one.score == "rho")
    assert all(abs(one.mean) < 1e-6 for one in says_nothing if one.families > 1)
    told = [extras.sentence(trial, found[trial]) for trial in list(found)[-2:]]
    assert "** helps: " in told[0] and "** adds nothing beyond chance: " in told[1]
    rows = extras.table_of(found)
    assert len(rows) == 2 + 2 * 4
    mean, error = next((one.mean, one.error) for one in decides if (one.learner, one.score) == ("trees", "rho"))
    assert f"| 0 | trees | **{mean:+.3f} ± {error:.3f}** (3) |" in "\n".join(rows)


def test_what_predictors_are_told(extras: ModuleType) -> None:
    bank = bank_of(KNOWN, [0.5] * len(KNOWN), so_far=0.5, measured=(0, 1, 2, 3))
    bank.measured[3] = -math.inf
    whole = Table.of(bank)
    blank = extras.Measured(torch.zeros(len(bank), len(extras.LAGS)), torch.zeros(len(bank), len(extras.LEADING)))
    for updates, names in ((0, {"sensitivity", "alignment"}), (40, {"change", "earlier"})):
        told, now = extras.known(whole, updates, blank), whole[whole.updates == updates]
        assert names <= told.keys() and {name for pair in extras.TRIALS.values() for name in pair} >= told.keys()
        for name, one in told.items():
            assert one.skill == (updates == 40) and one.exponents == (name != "growth alone")
            assert one.of(now, is_crossed=False)[:, -1 if one.more is not None else 0].isfinite().all()
            plain, crossed = (one.of(now, is_crossed=is_crossed).shape[1] for is_crossed in (False, True))
            added = 0 if one.more is None else one.more.shape[1]
            bare = dataclasses.replace(one, more=None)
            assert plain - bare.of(now, is_crossed=False).shape[1] == added
            assert crossed - bare.of(now, is_crossed=True).shape[1] == 5 * added
    columns = [CONTEXT.index(name) for name in ("skill", *CHEAP)]
    rows = [whole.rows.context[(whole.network == 7) & (whole.updates == u)][0, columns] for u in (0, 10)]
    torch.testing.assert_close(told["earlier"].more[7], torch.cat(rows))
    change = whole.change[(whole.network == 7) & (whole.updates == 40)][0]
    torch.testing.assert_close(told["change"].more[7], change)


def test_unknown_counts_as_the_mean(extras: ModuleType) -> None:
    table = Table.of(bank_of(KNOWN[:4], [0.5] * 4, measured=(0,)))[torch.tensor([0, 2, 3])]
    values = torch.tensor([[1.0, math.nan], [math.nan, math.nan], [3.0, math.nan]])
    assert extras.by_network(table, values).tolist() == [[1.0, 0.0], [2.0, 0.0], [2.0, 0.0], [3.0, 0.0]]


@pytest.mark.parametrize(
    ("sizes", "verdict"),
    [
        ([3.0, 2.5, 0.1], "helps"),
        ([-3.0, -2.5, 0.1], "costs"),
        ([3.0, 2.5, -3.0, -2.1], "helps and costs"),
        ([3.0, -2.5, 0.1], "adds nothing beyond chance"),
        ([0.1, math.nan], "adds nothing beyond chance"),
        ([3.0, math.nan], "adds nothing beyond chance"),
    ],
)
def test_sentence_follows_from_the_numbers(extras: ModuleType, sizes: list[float], verdict: str) -> None:
    every = [extras.Gain(40, "ridge", "rho", 0.01 * size, 0.01, 9) for size in sizes]
    told = extras.sentence("growth", every)
    assert told.startswith(f"**Growth** {verdict}: rho after 40 updates by the ridge {0.01 * sizes[0]:+.3f} ± 0.010")
    known, ups, downs = (sum(are) for are in zip(*((x == x, x > 2, x < -2) for x in sizes), strict=True))
    assert told.endswith(f"of {known} differences {ups} are more than two standard errors above 0, {downs} below.")


def test_sentence_of_nothing_known(extras: ModuleType) -> None:
    unknown = [extras.Gain(0, "ridge", "rho", math.nan, math.nan, 1)]
    assert extras.sentence("growth", unknown) == "**Growth** cannot be told from so few families."


def test_networks_asked_about_are_in_use_and_for_a_quick_look_of_short_tasks(extras: ModuleType) -> None:
    tasks = ("match-6", "parity-8", "ring-24", "recall-6", "adding-20", "compare-8")
    bank = bank_of([(task, "gru") for task in tasks for _ in range(3)], [0.5] * 3 * len(tasks))
    whole, quick = extras.asked(bank, quick=False), extras.asked(bank, quick=True)
    assert set(whole.network.tolist()) == {n for n in range(len(bank)) if n % 3 != 2}  # a third has a gain of 0.1
    steps = {TASKS[task].family: TASKS[task].steps for task in tasks}
    shortest = sorted(steps, key=lambda family: steps[family])[: extras.QUICK_FAMILIES]
    assert set(quick.column("family")) == set(shortest) and set(shortest) < set(steps)
