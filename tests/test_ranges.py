"""Ranges: worked by hand, on the bank's own rows, and on parts of the bank that a scorer was not fitted on."""

import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lightning_lyapunov.aelle as aelle
from lightning_lyapunov import AeLLEScorer, lyapunov_spectrum
from lightning_lyapunov.aelle.autoencoder import AeLLE
from lightning_lyapunov.aelle.features import ARCHITECTURES, CONTEXT, LEVELS, SCALE, Rows, context, quantiles, rows
from lightning_lyapunov.aelle.heads import features_for
from lightning_lyapunov.aelle.ranges import SKILLS, Ranges
from lightning_lyapunov.aelle.scorer import FORMAT, Predictions
from lightning_lyapunov.aelle.training import fit_scorer
from lightning_lyapunov.bank.population import CHECKPOINTS
from lightning_lyapunov.bank.records import SHIPPED, Bank
from lightning_lyapunov.bank.tasks import SET_ASIDE, TASKS
from lightning_lyapunov.files import reading, write_tensors

WEIGHTS = Path(aelle.__file__).parent / "weights" / "general.safetensors"
LINE = torch.linspace(-0.1, -1.9, 32)
NAN = math.nan


@pytest.fixture(scope="module")
def general() -> AeLLEScorer:
    return AeLLEScorer.from_pretrained()


def with_ranges(scorer: AeLLEScorer, ranges: Ranges) -> AeLLEScorer:
    """The same scorer, having seen something else."""
    heads = replace(scorer.heads, ranges=ranges)
    parts = scorer.gate, scorer.baseline_gate, scorer.intervals, scorer.familiarity, scorer.average
    return AeLLEScorer(heads, *parts, scorer.card)


@pytest.fixture(scope="module")
def bank() -> Bank:
    return Bank.load(SHIPPED)


@pytest.fixture(scope="module")
def some(bank: Bank) -> tuple[Rows, Tensor, Tensor]:
    """One in eight of the networks that the general scorer was fitted on, at all checkpoints; skills, task families."""
    so_far = torch.stack([bank.skill(bank.metric("metric", updates)) for updates in CHECKPOINTS], 1)
    final, families = bank.skill(bank.final), bank.column("family")
    names = sorted(set(families))
    seen, told, skill, family = [], [], [], []
    for n in range(0, len(bank.networks), 8):
        made = bank.networks[n]
        if made["cell"] not in ARCHITECTURES or families[n] in SET_ASIDE:
            continue
        for c, updates in enumerate(CHECKPOINTS):
            seen.append(quantiles(bank.spectra[n][c], made["dimension"]))
            told.append(context(made["cell"], made["hidden_size"], updates, float(so_far[n, c])))
            skill.append(float(final[n]))
            family.append(names.index(families[n]))
    return rows(seen, told), torch.tensor(skill), torch.tensor(family)


# ------------------------------------------------------------------ within the bank


def assert_equal(ours: Predictions, theirs: Predictions) -> None:
    for field in fields(Predictions):
        assert torch.equal(getattr(ours, field.name), getattr(theirs, field.name)), field.name


def test_within_the_bank_ranges_change_nothing(general: AeLLEScorer, some: tuple[Rows, Tensor, Tensor]) -> None:
    """Bit for bit, of whole spectra and of parts, with the skill so far and without."""
    unlimited, seen = with_ranges(general, Ranges.unknown()), some[0]
    part, told = seen.spectrum.clone(), seen.context.clone()
    part[:, 7:], told[:, CONTEXT.index("skill")] = NAN, NAN
    for known in (seen, Rows(part, seen.context), Rows(seen.spectrum, told)):
        assert (general.heads.ranges.share(known) == 1).all()
        assert_equal(general.predict(known), unlimited.predict(known))


def test_leading_exponents_of_the_bank_lie_within(general: AeLLEScorer, bank: Bank) -> None:
    """Whose last level is read from the last exponent measured, not from the next."""
    for n in range(0, len(bank.networks), 60):
        made = bank.networks[n]
        if made["cell"] in ARCHITECTURES and made["family"] not in SET_ASIDE:
            for k in (1, 3, made["dimension"] // 2):
                row = rows([quantiles(bank.spectra[n][0][:k], made["dimension"])], [context()])
                assert float(general.heads.ranges.share(row)) == 1


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({}, [0.754761, 0.271875, 1.0, 0.089396, 0.868304, 0.815241, 1.0, 0.681879]),
        (
            {"architecture": "lstm", "hidden_size": 64, "updates": 800, "performance": 0.99},
            [0.957818, 0.870926, 0.99506, 0.0, 0.999992, 0.934439, 1.0, 0.957818],
        ),
        (
            {"architecture": "rnn", "hidden_size": 16, "updates": 0},
            [0.642371, 0.041627, 0.967604, 0.136501, 0.784992, 0.782516, 1.0, 0.411293],
        ),
        (
            {"architecture": "gru", "hidden_size": 128, "updates": 100, "performance": 0.0},
            [0.400306, 0.148769, 0.868658, 0.085516, 0.860687, 0.832765, 1.0, 0.366251],
        ),
    ],
)
def test_scores_are_those_of_the_version_that_knew_no_ranges(
    general: AeLLEScorer, told: dict[str, Any], expected: list[float]
) -> None:
    """As it printed them."""
    said = general.score(LINE, **told)
    names = ("performance", "low", "high", "failure_probability", "takeoff_probability", "stability")
    found = [getattr(said, name) for name in (*names, "familiarity", "baseline")]
    assert found == pytest.approx(expected, abs=2e-5)
    assert said.unfamiliar == ()


def test_the_skills_of_the_bank_lie_as_far_as_is_said(bank: Bank) -> None:
    """Before they were clipped; and no tenth of the way nearer."""
    tasks = bank.column("task")
    chance, best = (torch.tensor([float(v) for v in values]) for values in
                    ([TASKS[t].chance for t in tasks], [bank.best[t] for t in tasks]))  # fmt: skip
    skills = torch.stack([(bank.metric("metric", u) - chance) / (best - chance) for u in CHECKPOINTS])
    assert SKILLS[0] < float(skills.min()) < SKILLS[0] + 0.1
    assert SKILLS[1] - 0.1 < float(skills.max()) < SKILLS[1]


# ------------------------------------------------------------------ beyond it, by hand


def row(updates: int | None = 40, size: int | None = 32, skill: float | None = None, top: float = 0.0) -> Rows:
    """A spectrum of zeros but for its largest exponent."""
    spectrum = torch.zeros(1, LEVELS + 1)
    spectrum[0, 0] = math.copysign(math.log1p(abs(top) / SCALE), top)
    return Rows(spectrum, context("gru", size, updates, skill).unsqueeze(0))


SEEN = Ranges.fit(Rows(torch.zeros(2, LEVELS + 1), torch.stack([context("gru", 16, 0), context("gru", 128, 800)])))


@pytest.mark.parametrize(
    ("beyond", "doublings"),
    [
        (row(), 0.0),
        (row(updates=800, size=128, skill=1.0), 0.0),
        (row(updates=None, size=None), 0.0),
        (row(size=256), 1.0),
        (row(size=4), 2.0),
        (row(updates=1610), 1.0),  # (1 + 1610 / 10) / (1 + 800 / 10) = 2
        (row(updates=10**6), math.log2((1 + 1e5) / 81)),
        (row(size=512, updates=1610), 3.0),
        (row(skill=SKILLS[1] + 0.2), 2.0),
        (row(skill=SKILLS[0] - 0.1), 1.0),
        (row(top=SCALE), 1.0),  # ln(1 + λ / s) = ln 2
        (row(top=-3 * SCALE), 2.0),
    ],
)
def test_distances_worked_by_hand(beyond: Rows, doublings: float) -> None:
    assert float(SEEN.share(beyond)) == pytest.approx(2**-doublings, rel=1e-3)


def test_values_beyond_are_taken_for_the_last_seen() -> None:
    far = row(updates=10**6, size=4, skill=55.0, top=-7.0)
    found, last = SEEN.clamped(far), row(updates=800, size=16, skill=1.0)
    torch.testing.assert_close(found.context, last.context, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.spectrum, last.spectrum, rtol=0, atol=1e-4)
    unknown = Rows(torch.full((1, LEVELS + 1), NAN), torch.full((1, len(CONTEXT)), NAN))
    assert SEEN.clamped(unknown).context.isnan().all() and SEEN.clamped(unknown).spectrum.isnan().all()
    assert float(SEEN.share(unknown)) == 1


def test_without_values_there_is_no_end_and_no_kind_has_one() -> None:
    assert SEEN.high[LEVELS + 1 :].tolist()[:3] == [math.inf] * 3
    never = Ranges.fit(Rows(torch.zeros(2, LEVELS + 1), torch.full((2, len(CONTEXT)), NAN)))
    assert float(never.share(row(updates=10**9, size=10**6))) == 1


def test_of_two_whatever_one_has_seen() -> None:
    other = Ranges.fit(Rows(torch.ones(1, LEVELS + 1), context("rnn", 512, 5).unsqueeze(0)))
    both = SEEN.joined(other)
    assert float(both.low[0]) == 0.0 and float(both.high[0]) == 1.0
    assert float(both.share(row(size=512, updates=800))) == 1 and float(both.share(row(size=1024))) < 1


# ------------------------------------------------------------------ beyond it, as people go


def spectrum_of(kind: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return lyapunov_spectrum(kind(4, 64), torch.randn(64, 8, 4))


def test_a_long_run_is_not_predicted_to_fail_for_its_length(general: AeLLEScorer) -> None:
    """An RNN as torch makes it was given .39 at 800 updates, and .04 with a probability of failure of .91 at 10⁶."""
    spectrum = spectrum_of(nn.RNN)
    told: dict[str, Any] = {"architecture": "rnn", "hidden_size": 64}
    end = general.score(spectrum, **told, updates=800)
    assert end.familiarity == 1 and end.unfamiliar == ()
    before = end
    for updates in (801, 1000, 2000, 5000, 10**5, 10**6):
        said = general.score(spectrum, **told, updates=updates)
        assert said.performance == pytest.approx(end.performance, abs=1e-4)
        assert said.failure_probability == pytest.approx(end.failure_probability, abs=1e-4)
        assert said.low <= before.low and said.high >= before.high and said.familiarity < before.familiarity
        before = said
    assert before.familiarity < 1e-3 and before.high - before.low > 0.95
    assert before.unfamiliar == ("updates: 1,000,000 (known: 0 to 800)",)


def test_a_network_that_has_learnt_its_task_is_not_given_up(general: AeLLEScorer) -> None:
    """Of a skill of .99, .17 was predicted after 10⁶ updates. No rule acts on a familiarity below 0.3."""
    told: dict[str, Any] = {"architecture": "lstm", "hidden_size": 64, "performance": 0.99}
    said = general.score(spectrum_of(nn.LSTM), **told, updates=10**6)
    assert said.performance > 0.9 and said.failure_probability < 0.1 and said.familiarity < 0.3


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"hidden_size": 1024}, ["hidden size: 1,024 (known: 16 to 128)"]),
        ({"performance": 55.0}, ["performance: 55 (known: 0 to 1)"]),
        ({"architecture": "mamba"}, ["architecture: mamba (known: rnn, gru, lstm)"]),
        ({"performance": 0.5, "hidden_size": 16, "updates": 0, "architecture": "LSTM"}, []),
        (
            {"updates": 2000, "hidden_size": 4096},
            ["hidden size: 4,096 (known: 16 to 128)", "updates: 2,000 (known: 0 to 800)"],
        ),
    ],
)
def test_what_is_unfamiliar_is_named_the_strangest_first(
    general: AeLLEScorer, told: dict[str, Any], words: list[str]
) -> None:
    said = general.score(LINE, **told)
    assert list(said.unfamiliar) == words
    assert (said.familiarity < 1) == bool(words)


@pytest.mark.parametrize(
    ("exponents", "words"),
    [
        (torch.cat([torch.tensor([9.0]), LINE[1:]]), "largest exponent: 9 (known: -6.46 to 0.623)"),
        (torch.full((32,), 0.3), "exponent 98% down the spectrum: 0.3 (known: -100 to -0.0225)"),
        (LINE.abs(), "mean exponent: 1 (known: "),
    ],
)
def test_an_exponent_beyond_is_named(general: AeLLEScorer, exponents: Tensor, words: str) -> None:
    said = general.score(exponents)
    assert any(words in part for part in said.unfamiliar) and said.familiarity < 0.3


# ------------------------------------------------------------------ a part of the bank


def untrained(rows: Rows, wanted: Tensor, weights: Tensor, count: int, seed: int) -> list[AeLLE]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return [AeLLE(2, 8).eval()] * count


def test_intervals_hold_beyond_the_skills_seen(
    some: tuple[Rows, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fitted where at most half of the way was made, on two thirds of the families, asked of the others' networks that
    were up to a third further: the 80 % interval of the last skill seen misses; given up by half for every doubling it
    holds.
    """
    seen, skill, family = some
    so_far = seen.context[:, CONTEXT.index("skill")]
    inside, outside = (so_far <= 0.5) & (family % 3 != 0), (so_far > 0.5) & (so_far <= 0.83) & (family % 3 == 0)
    count = int(inside.sum())
    scorer = fit_scorer(
        seen[inside], skill[inside], torch.full((count,), NAN), torch.ones(count), family[inside],
        family[inside] // 3 % 3, {}, members=1, new_models=untrained,
    )  # fmt: skip
    high = scorer.heads.ranges.high.clone()
    high[-1] = 0.5
    cut, truth = with_ranges(scorer, Ranges(scorer.heads.ranges.low, high)), skill[outside]

    def covered() -> float:
        said = cut.predict(seen[outside])
        return float(((said.low <= truth + 1e-6) & (truth <= said.high + 1e-6)).float().mean())

    assert covered() >= 0.8
    monkeypatch.setattr(Ranges, "share", lambda self, rows: torch.ones(len(rows)))
    assert covered() < 0.8


# ------------------------------------------------------------------ one's own, and files


def test_an_own_scorer_knows_what_it_was_fitted_on_and_asks_the_general_one_within_its_own_range() -> None:
    """A sweep of 4,096 units after 20,000 updates is ordinary to it; the prior is not asked about such."""
    generator = torch.Generator().manual_seed(0)
    spectra = [LINE - 0.5 * torch.rand(1, generator=generator) for _ in range(10)]
    scorer = AeLLEScorer.fit(spectra, torch.rand(10, generator=generator), hidden_size=4096, updates=20_000)
    said = scorer.score(spectra[0], hidden_size=4096, updates=20_000)
    assert said.familiarity == 1 and said.unfamiliar == ()
    assert scorer.score(spectra[0], hidden_size=4096, updates=40_010).familiarity == pytest.approx(0.5, rel=1e-3)
    prior = scorer.heads.prior
    far, last = (rows([quantiles(LINE)], [context(None, *told)]) for told in ((4096, 20_000), (128, 800)))
    said_far, said_last = (features_for("spectrum", of, prior)[:, -3:] for of in (far, last))
    torch.testing.assert_close(said_far, said_last, rtol=0, atol=1e-4)


def older(path: Path) -> Path:
    """The general scorer as versions wrote it that knew of the sizes alone."""
    with reading(WEIGHTS, FORMAT) as (tensors, metadata):
        low, high = (tensors.pop(f"heads.ranges.{end}") for end in ("low", "high"))
        size = LEVELS + 1 + CONTEXT.index("log_size")
        tensors["familiarity.sizes"] = torch.stack([low[size], high[size]])
        return write_tensors(path, tensors, metadata)


def test_a_scorer_of_an_older_version_knows_sizes_and_updates(general: AeLLEScorer, tmp_path: Path) -> None:
    """From its file and its card; of the exponents it knows no end."""
    loaded = AeLLEScorer.load(older(tmp_path / "old.safetensors"))
    ends = loaded.heads.ranges
    assert ends.low[:LEVELS].isinf().all() and ends.high[:LEVELS].isinf().all()
    beyond: list[dict[str, Any]] = [{"updates": 10**6}, {"hidden_size": 1024}, {"updates": 40, "performance": 0.3}]
    for told in beyond:
        ours, theirs = general.score(LINE, **told), loaded.score(LINE, **told)
        assert (ours.performance, ours.low, ours.high) == (theirs.performance, theirs.low, theirs.high)
        assert ours.unfamiliar == theirs.unfamiliar and ours.familiarity == theirs.familiarity
    loaded.save(tmp_path / "new.safetensors")
    again = AeLLEScorer.load(tmp_path / "new.safetensors").heads.ranges
    assert torch.equal(again.low, ends.low) and torch.equal(again.high, ends.high)


def test_ranges_travel_with_a_file(general: AeLLEScorer, tmp_path: Path) -> None:
    general.save(tmp_path / "same.safetensors")
    assert (tmp_path / "same.safetensors").read_bytes() == WEIGHTS.read_bytes()
    assert general.heads.ranges.high[LEVELS + 1 + CONTEXT.index("log_updates")] == pytest.approx(math.log1p(80))
