"""Ranges: distances and words worked by hand, and what the general scorer says within and beyond its own."""

import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scored import EVERYTHING, everything, flat, mixed
from torch import Tensor, nn

import lightning_lyapunov.aelle as aelle
from lightning_lyapunov import AeLLEScorer, lyapunov_spectrum
from lightning_lyapunov.aelle.features import ARCHITECTURES, CONTEXT, LEVELS, SCALE, Context, Rows
from lightning_lyapunov.aelle.knowledge import limited
from lightning_lyapunov.aelle.ranges import ROUNDING, SKILLS, Ranges
from lightning_lyapunov.aelle.scorer import Predictions

WEIGHTS = Path(aelle.__file__).parent / "weights" / "general.safetensors"
LINE = torch.linspace(-0.1, -1.9, 32)
NAN = math.nan
COLUMN = {name: LEVELS + 1 + i for i, name in enumerate(CONTEXT)}


@pytest.fixture(scope="module")
def general() -> AeLLEScorer:
    return AeLLEScorer.from_pretrained()


# ------------------------------------------------------------------ by hand

LEAST: dict[str, Any] = {
    "hidden_size": 16, "updates": 0, "learning_rate": 3e-4, "gradient_norm": 0.1, "state_mean": 0.2,
    "state_spread": 0.1, "steps": 12,
}  # fmt: skip
MOST: dict[str, Any] = {
    "hidden_size": 128, "updates": 800, "learning_rate": 3e-2, "gradient_norm": 20.0, "state_mean": 0.8,
    "state_spread": 0.8, "steps": 64,
}  # fmt: skip
SEEN = Ranges.fit(Rows.joined([flat(architecture="gru", adaptive=True, **LEAST), flat(architecture="rnn", **MOST)]))


def row(top: float = 0.0, **told: Any) -> Rows:
    """A spectrum of zeros but for its largest exponent, of a network that is ordinary but for what is told."""
    rows = everything(**told)
    rows.spectrum[0, 0] = math.copysign(math.log1p(abs(top) / SCALE), top)
    return rows


@pytest.mark.parametrize(
    ("beyond", "doublings"),
    [
        (row(), 0.0),
        (row(**MOST, skill=1.0), 0.0),
        (row(**LEAST, skill=0.0), 0.0),
        (flat(), 0.0),
        (row(hidden_size=256), 1.0),
        (row(hidden_size=4), 2.0),
        (row(updates=1610), 1.0),  # (1 + 1610 / 10) / (1 + 800 / 10) = 2
        (row(updates=10**6), math.log2((1 + 1e5) / 81)),
        (row(hidden_size=512, updates=1610), 3.0),
        (row(learning_rate=0.24), 3.0),
        (row(learning_rate=1.5e-4), 1.0),
        (row(gradient_norm=40.0), 1.0),
        (row(state_mean=0.1, state_spread=0.05), 2.0),
        (row(steps=256), 2.0),
        (row(steps=6), 1.0),
        (row(skill=SKILLS[1] + 0.2), 2.0),
        (row(skill=SKILLS[0] - 0.1), 1.0),
        (row(top=SCALE), 1.0),  # ln(1 + λ / s) = ln 2
        (row(top=-3 * SCALE), 2.0),
        (row(architecture="lstm", adaptive=False), 0.0),  # kinds are no numbers
    ],
)
def test_distances_worked_by_hand(beyond: Rows, doublings: float) -> None:
    assert float(SEEN.share(beyond)) == pytest.approx(2**-doublings, rel=1e-3)


def test_of_a_spectrum_the_farthest_number_counts() -> None:
    rows = flat()
    rows.spectrum[0, :5] = math.log(2)
    rows.spectrum[0, 40] = -2 * math.log(2)
    assert float(SEEN.share(rows)) == pytest.approx(1 / 4, rel=1e-3)


def test_values_beyond_are_taken_for_the_last_seen() -> None:
    far = {"hidden_size": 4, "updates": 10**6, "learning_rate": 9.0, "gradient_norm": 1e-3, "steps": 10**4}
    last = {name: (LEAST if name in ("hidden_size", "gradient_norm") else MOST)[name] for name in far}
    found, expected = SEEN.clamped(row(top=-7.0, skill=55.0, **far)), row(skill=1.0, **last)
    torch.testing.assert_close(found.context, expected.context, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.spectrum, expected.spectrum, rtol=0, atol=1e-4)
    unknown = Rows.unknown(1)
    assert SEEN.clamped(unknown).context.isnan().all() and SEEN.clamped(unknown).spectrum.isnan().all()
    assert float(SEEN.share(unknown)) == 1


def test_a_skill_between_zero_and_one_is_what_is_read_whatever_was_seen() -> None:
    for told, read in ((-0.4, 0.0), (0.0, 0.0), (0.7, 0.7), (1.2, 1.0)):
        assert float(SEEN.clamped(row(skill=told)).context[0, CONTEXT.index("skill")]) == pytest.approx(read)
        assert float(SEEN.share(row(skill=told))) == 1


def test_without_values_there_is_no_end_and_no_kind_has_one() -> None:
    for name in (*ARCHITECTURES, "adaptive"):
        assert float(SEEN.low[COLUMN[name]]) == -math.inf and float(SEEN.high[COLUMN[name]]) == math.inf
    never = Ranges.fit(flat(2))
    assert float(never.share(row(updates=10**9, hidden_size=10**6, learning_rate=1e5))) == 1


def test_what_other_processors_round_otherwise_is_not_beyond() -> None:
    rows = flat()
    rows.spectrum[:] = ROUNDING / 2
    assert float(SEEN.share(rows)) == 1
    assert torch.equal(SEEN.clamped(rows).spectrum, rows.spectrum)


def test_of_two_whatever_one_has_seen() -> None:
    other = flat(hidden_size=512, updates=5)
    other.spectrum[:] = 1
    both = SEEN.joined(Ranges.fit(other))
    assert float(both.low[0]) == 0.0 and float(both.high[0]) == 1.0
    assert float(both.share(row(hidden_size=512, updates=800))) == 1 and float(both.share(row(hidden_size=1024))) < 1


# ------------------------------------------------------------------ in words


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({}, {}),
        ({"hidden_size": 1024}, {"hidden size: 1,024 (known: 16 to 128)": 1 / 8}),
        ({"hidden_size": 8}, {"hidden size: 8 (known: 16 to 128)": 1 / 2}),
        ({"updates": 1610}, {"updates: 1,610 (known: 0 to 800)": 1 / 2}),
        ({"learning_rate": 0.12}, {"learning rate: 0.12 (known: 0.0003 to 0.03)": 1 / 4}),
        ({"gradient_norm": 80.0}, {"gradient norm: 80 (known: 0.1 to 20)": 1 / 4}),
        ({"gradient_norm": 0.0}, {"gradient norm: 0 (known: 0.1 to 20)": 1e-6 / 0.1}),
        ({"state_mean": 1.6}, {"mean state: 1.6 (known: 0.2 to 0.8)": 1 / 2}),
        ({"state_spread": 0.05}, {"spread of the state: 0.05 (known: 0.1 to 0.8)": 1 / 2}),
        ({"steps": 256}, {"sequence length: 256 (known: 12 to 64)": 1 / 4}),
        ({"skill": 1.6}, {"performance: 90 (known: 10 to 60)": 1 / 4}),
        (
            {"hidden_size": 512, "steps": 6},
            {"hidden size: 512 (known: 16 to 128)": 1 / 4, "sequence length: 6 (known: 12 to 64)": 1 / 2},
        ),
    ],
)
def test_what_lies_beyond_in_words(told: dict[str, Any], words: dict[str, float]) -> None:
    """Each with what is left for it; the performance in the unit that it was told in, here from 10 to 60."""
    context = Context(**EVERYTHING | told)
    performance = 10 + 50 * context.skill if context.skill is not None else None
    found = SEEN.in_words(row(**told), context, performance, SCALE, (10.0, 60.0))
    assert found == pytest.approx(words, rel=1e-2)


@pytest.mark.parametrize(
    ("level", "value", "words"),
    [
        (0, 0.15, "largest exponent: 0.15 (known: 0 to 0)"),
        (LEVELS, -0.15, "mean exponent: -0.15 (known: 0 to 0)"),
        (32, -0.15, "exponent 51% down the spectrum: -0.15 (known: 0 to 0)"),
    ],
)
def test_an_exponent_beyond_in_words(level: int, value: float, words: str) -> None:
    """In its own unit: a threefold scale is two doublings."""
    rows = everything()
    rows.spectrum[0, level] = math.copysign(math.log1p(abs(value) / SCALE), value)
    found = SEEN.in_words(rows, Context(**EVERYTHING), 0.3, SCALE, (0.0, 1.0))
    assert found == pytest.approx({words: 1 / 4}, rel=1e-3)


# ------------------------------------------------------------------ the general scorer


def with_ranges(scorer: AeLLEScorer, ranges: Ranges) -> AeLLEScorer:
    """The same scorer, having seen something else."""
    parts = scorer.intervals, scorer.familiarity, scorer.worth, scorer.average
    return AeLLEScorer(replace(scorer.heads, ranges=ranges), *parts, scorer.card)


def last(scorer: AeLLEScorer, entry: str, largest: bool = True) -> float:
    """The largest or the smallest number of the context that a scorer saw."""
    return float((scorer.heads.ranges.high if largest else scorer.heads.ranges.low)[COLUMN[entry]])


def test_within_what_was_seen_ranges_change_nothing(general: AeLLEScorer) -> None:
    """Bit for bit, of whole spectra and of parts, with the skill so far and without."""
    unlimited, seen = with_ranges(general, Ranges.unknown()), general.heads.ranges.clamped(mixed(60))
    part = Rows(seen.spectrum.clone(), seen.context)
    part.spectrum[:, 7:] = NAN
    for known in (seen, part, limited(seen, rung=2, skill=False)):
        assert (general.heads.ranges.share(known) == 1).all()
        ours, theirs = general.predict(known), unlimited.predict(known)
        for field in fields(Predictions):
            assert torch.equal(getattr(ours, field.name), getattr(theirs, field.name)), field.name


def spectrum_of(kind: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return lyapunov_spectrum(kind(4, 64), torch.randn(64, 8, 4))


def test_a_long_run_is_not_predicted_to_fail_for_its_length(general: AeLLEScorer) -> None:
    """What is said of the last number of updates seen is said of all that follow, with less and less confidence."""
    end = round(10 * math.expm1(last(general, "log_updates")))
    spectrum, told = spectrum_of(nn.RNN), {"architecture": "rnn", "hidden_size": 64}
    at_end = before = general.score(spectrum, **told, updates=end)
    assert at_end.familiarity == 1 and at_end.unfamiliar == ()
    for updates in (end + 1, 2 * end, 5 * end, 10**5, 10**6):
        said = general.score(spectrum, **told, updates=updates)
        assert said.performance == pytest.approx(at_end.performance, abs=1e-4)
        assert said.failure_probability <= at_end.failure_probability + 1e-4
        assert said.low <= before.low and said.high >= before.high and said.familiarity < before.familiarity
        before = said
    assert before.familiarity < 0.01 and before.high - before.low > 0.9
    assert before.unfamiliar == (f"updates: 1,000,000 (known: 0 to {end:,})",)


def test_a_network_that_has_learnt_its_task_is_not_given_up(general: AeLLEScorer) -> None:
    """However long it trained. No rule acts on a familiarity below 0.3."""
    told: dict[str, Any] = {"architecture": "lstm", "hidden_size": 64, "performance": 0.99}
    said = general.score(spectrum_of(nn.LSTM), **told, updates=10**6)
    assert said.performance > 0.85 and said.failure_probability < 0.1 and said.familiarity < 0.3


@pytest.mark.parametrize("named", ["learning_rate", "gradient_norm", "steps", "hidden_size"])
def test_what_is_beyond_is_said_of_the_last_seen_and_named(general: AeLLEScorer, named: str) -> None:
    """Four doublings beyond: a sixteenth of the familiarity."""
    entry = {
        "learning_rate": "log_rate",
        "gradient_norm": "log_gradient",
        "steps": "log_steps",
        "hidden_size": "log_size",
    }
    unit = {"learning_rate": 3e-3, "gradient_norm": 1.0, "steps": 32, "hidden_size": 32}[named]
    end = unit * math.exp(last(general, entry[named]))
    kind: Any = int if named in ("steps", "hidden_size") else float
    told: dict[str, Any] = {"architecture": "gru", "hidden_size": 32, "updates": 40, "learning_rate": 3e-3}
    seen = general.score(LINE, **told | {named: kind(round(end)) if kind is int else end})
    said = general.score(LINE, **told | {named: kind(16 * round(end)) if kind is int else 16 * end})
    assert seen.familiarity == 1 and said.familiarity == pytest.approx(1 / 16, rel=1e-2)
    assert said.performance == pytest.approx(seen.performance, abs=1e-3)
    (words,) = said.unfamiliar
    assert words.startswith({"steps": "sequence length: "}.get(named, named.replace("_", " ") + ": "))


def test_the_strangest_is_named_first(general: AeLLEScorer) -> None:
    said = general.score(LINE, architecture="mamba", hidden_size=32 * 1024, performance=0.5)
    assert [words.partition(":")[0] for words in said.unfamiliar] == ["hidden size", "architecture"]
    assert said.unfamiliar[1] == "architecture: mamba (known: rnn, rnn_relu, gru, lstm)"
    assert general.score(LINE, architecture="LSTM", hidden_size=32, performance=0.5).unfamiliar == ()


@pytest.mark.parametrize(
    ("exponents", "words"),
    [(torch.cat([torch.tensor([90.0]), LINE[1:]]), "largest exponent: 90 (known: "), (9 * LINE.abs(), "exponent")],
)
def test_an_exponent_beyond_is_named(general: AeLLEScorer, exponents: Tensor, words: str) -> None:
    said = general.score(exponents)
    assert any(words in part for part in said.unfamiliar) and said.familiarity < 0.5


# ------------------------------------------------------------------ one's own, and files


def test_an_own_scorer_knows_what_it_was_fitted_on() -> None:
    """A sweep of 4,096 units after 20,000 updates is ordinary to it."""
    generator = torch.Generator().manual_seed(0)
    spectra = [LINE - 0.5 * torch.rand(1, generator=generator) for _ in range(10)]
    scorer = AeLLEScorer.fit(spectra, torch.rand(10, generator=generator), hidden_size=4096, updates=20_000)
    said = scorer.score(spectra[0], hidden_size=4096, updates=20_000)
    assert said.familiarity == 1 and said.unfamiliar == ()
    assert scorer.score(spectra[0], hidden_size=4096, updates=40_010).familiarity == pytest.approx(0.5, rel=1e-3)


def test_ranges_travel_with_a_file(general: AeLLEScorer, tmp_path: Path) -> None:
    general.save(tmp_path / "same.safetensors")
    assert (tmp_path / "same.safetensors").read_bytes() == WEIGHTS.read_bytes()
    written = SEEN.tensors("here")
    assert {name: tuple(value.shape) for name, value in written.items()} == Ranges.shapes("here")
    again = Ranges.of("here", written)
    assert torch.equal(again.low, SEEN.low) and torch.equal(again.high, SEEN.high)
