"""What rates make of a concern: its grade, its last words, the verdict. Oracles: files of rates made up for it."""

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fits import Regressor, loader, trainer
from made import CONCERNS, course, history, layer, measured, of_an_older_version, rates_of

from lightning_lyapunov import LyapunovMonitor, LyapunovSpectrumCallback
from lightning_lyapunov.reading import Finding, History, Verdict, findings, news, rates, verdict
from lightning_lyapunov.reading.stops import shipped_rules
from lightning_lyapunov.reading.verdict import TELL, TROUBLES

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*num_workers.*", "ignore:.*log_every_n_steps.*", "ignore:.*LeafSpec.*", "ignore:.*val_dataloader.*"
)

Write = Callable[[dict[str, Any]], None]


@pytest.fixture
def write(monkeypatch: pytest.MonkeyPatch) -> Write:
    """Puts something in the place of the file of rates."""
    return lambda contents: monkeypatch.setattr(rates, "shipped", lambda: contents)


def concern(run: History) -> Finding:
    (found,) = (finding for finding in findings(run) if finding.is_concern)
    return found


CHAOTIC = history(measured(0.1, step=200))
"""After 200 updates, its skill not known."""


# ------------------------------------------------------------------ grades


@pytest.mark.parametrize(
    ("right", "level", "word"),
    [
        (100, "act", "act"),
        (95, "act", "act"),
        (94, "warning", "watch"),
        (80, "warning", "watch"),
        (79, "note", "healthy"),
    ],
)
def test_grades_follow_from_the_file(right: int, level: str, word: str, write: Write) -> None:
    write(rates_of(right))
    found, said = concern(CHAOTIC), verdict(CHAOTIC)
    assert (found.state, found.level) == ("chaotic", level)
    assert said is not None and (said.word, said.number) == (word, ["healthy", "watch", "act"].index(word))
    assert said.text.endswith(
        f", {'none' if right == 100 else f'{100 - right} %'} learnt their task within 1,000,000,000 updates."
    )


def test_every_concern_ends_with_its_rate(write: Write) -> None:
    write(rates_of(90))
    layers = {"a": layer(0.3, 18.0), "b": layer(-math.inf, -math.inf, math.nan), "c": layer(0.0, 0.5)}
    scores = {"failure_probability": 0.95, "familiarity": 0.9}
    dead = history(measured(0.3, step=0), measured(-math.inf, step=40))
    seen = {}
    for run in (
        *(history(measured(top, layers=layers, scores=scores)) for top in (0.3, 0.1, 0.08, -0.3, -1.5)),
        *(history(measured(0.1, settled=False, gain=nats)) for nats in (6.4, 6.95)),
        dead,
    ):
        seen |= {finding.state: finding for finding in findings(run) if finding.is_concern}
    assert seen.keys() == set(CONCERNS) == TROUBLES.keys()
    rate = "Of 100 networks told this before the first update, 10 % learnt their task within 1,000,000,000 updates."
    assert all(finding.text.endswith(f" {rate}") and finding.rate is not None for finding in seen.values())
    for finding in findings(history(measured(-0.05))):
        assert not finding.is_concern and finding.rate is None and "networks" not in finding.text


# ------------------------------------------------------------------ which rate


def of_groups(**told: dict[str, list[int]]) -> dict[str, Any]:
    """Rates of chaos by group and update: how many, and how many failed."""
    counts = {
        group: {updates: [n, bad, 0, 0, 0.5] for updates, (n, bad) in moments.items()}
        for group, moments in told.items()
    }
    return rates_of(moments=[0, 40, 160, 560], until=800, ends=[400, 800], longest=64, told={"chaotic": counts})


@pytest.mark.parametrize(
    ("step", "told"), [(159, 55), (160, 60), (559, 60), (560, None), (0, None), (39, None), (40, 55), (801, None)]
)
def test_the_rate_is_that_of_the_last_moment(step: int, told: int | None, write: Write) -> None:
    write(of_groups(all={"40": [55, 50], "160": [60, 50]}))
    rate = rates.rate_of("chaotic", measured(0.1, step=step))
    assert (rate.told if rate else None) == told


def test_learning_was_given_as_long_as_the_networks_that_were_told_it(write: Write) -> None:
    """Those of easy tasks ended after 400 updates."""
    write(of_groups(all={"160": [60, 57], "560": [55, 55]}))
    ends = {step: str(rates.rate_of("chaotic", measured(0.1, step=step))) for step in (160, 560)}
    assert ends[160].endswith("5 % learnt their task within 400 to 800 updates")
    assert ends[560].endswith("none learnt their task within 800 updates")


def test_nothing_is_told_beyond_the_bank(write: Write) -> None:
    """Neither after more updates, nor of longer sequences, nor of what was rare."""
    write(of_groups(all={"560": [60, 60]}))
    known = history(measured(0.1, step=800))
    assert concern(known).level == "act" and "Of 60 networks told this after 560 updates, none" in concern(known).text
    for run in (
        history(measured(0.1, step=801)),
        history(measured(0.1, step=800, length=65)),
        history(measured(0.1, step=300)),
        history(measured(-1.5, step=700)),
    ):
        found = concern(run)
        assert found.level == "note" and found.rate is None and "networks" not in found.text


def test_the_most_particular_group_speaks(write: Write) -> None:
    """Of what is known of the skill; then of the kind of cell, if there are enough; never of another state of skill."""
    file = of_groups(all={"160": [100, 50]}, gru={"160": [60, 59]})
    file["told"]["chaotic"] |= {
        "at chance": {"160": [70, 63, 0, 0, 0.5]}, "gru, at chance": {"160": [50, 50, 0, 0, 0.5]},
    }  # fmt: skip
    write(file)

    def told(**known: Any) -> str | None:
        rate = rates.rate_of("chaotic", measured(0.1, step=200, **known))
        return None if rate is None else str(rate).partition(", ")[0]

    assert told() == told(cell="lstm") == "of 100 networks told this after 160 updates"
    assert told(cell="gru") == "of 60 networks of their kind (gru) told this after 160 updates"
    assert told(skill=0.05) == "of 70 networks told this after 160 updates while at chance"
    assert (
        told(skill=0.05, cell="gru") == "of 50 networks of their kind (gru) told this after 160 updates while at chance"
    )
    assert told(skill=0.1) is None


# ------------------------------------------------------------------ the verdict


def test_before_the_first_measurement_there_is_no_verdict() -> None:
    assert verdict(History()) is None


def test_nothing_amiss_is_healthy(write: Write) -> None:
    write(rates_of(100))
    assert verdict(course(-0.05, -0.05)) == Verdict("healthy", "Nothing was found that goes with failure.", "Train on.")
    assert str(verdict(course(-0.05))) == "healthy: Nothing was found that goes with failure."


def test_a_note_is_told_though_all_is_healthy(write: Write) -> None:
    write(rates_of(60))
    said = verdict(CHAOTIC)
    assert said is not None and said.text.startswith(
        "No more than a note: the network is chaotic, and gradients grow: of"
    )


@pytest.mark.parametrize(
    ("known", "word"),
    [
        ({"step": 800}, "act"),
        ({"step": 801}, "watch"),  # it was grave when the bank could last tell
        ({"step": 801, "skill": 0.0}, "healthy"),  # and this was a note
        ({"step": 801, "skill": 0.5}, "healthy"),  # it learns
        ({"step": 800, "length": 100}, "watch"),
        ({"step": 100}, "watch"),  # too rare by then
    ],
)
def test_where_the_bank_cannot_tell_what_was_grave_is_watched(known: dict[str, Any], word: str, write: Write) -> None:
    file = of_groups(all={"560": [60, 60]})
    file["told"]["chaotic"]["at chance"] = {"560": [60, 30, 0, 0, 0.3]}
    write(file)
    said = verdict(history(measured(0.1, **known)))
    assert said is not None and said.word == word
    assert ("of 60 networks" in said.text) == (known["step"] == 800 and "length" not in known)


def test_whoever_tells_the_skill_is_told_more(write: Write) -> None:
    """That is said where it is not told, once there is one; and is true of what ships."""
    write(rates_of(90))
    for known, is_blind in (({"step": 40}, True), ({"step": 0}, False), ({"step": 40, "skill": 0.05}, False)):
        said = verdict(history(measured(0.3, **known)))
        assert said is not None and said.word == "watch" and said.advice.endswith(TELL) == is_blind


def test_no_run_that_learns_raises_an_alarm_by_the_rates_that_ship() -> None:
    for state in CONCERNS:
        for step in rates.shipped()["moments"]:
            learning = measured(0.3, step=step, skill=0.5, length=32)
            assert rates.level_of(state, learning) == "note" and not rates.may_matter(state, learning)


def test_a_layer_that_the_bank_never_saw_is_watched_and_named(write: Write) -> None:
    write(of_groups())
    said = verdict(history(measured(-0.05, layers={"a": layer(0.3, 18.0), "b": layer(0.0, 0.5)})))
    assert str(said) == "watch: Gradients explode in layer a: how often that is right is not known here."


def test_what_is_not_known_is_watched(write: Write) -> None:
    write(rates_of(100))
    unknown = measured(math.nan, gain=math.nan)
    said = verdict(history(unknown))
    assert said is not None and said.word == "watch" and "not known" in said.text and "overflow" in said.advice
    one = verdict(history(measured(0.1, math.nan, gain_error=math.nan)))
    assert one is not None and one.word == "watch" and "two sequences or more" in one.advice
    assert said.text.count(". ") == 0


def test_the_gravest_speaks_in_one_sentence(write: Write) -> None:
    file = rates_of(85)
    file["told"]["predicted_to_fail"] = {"all": {"0": [100, 99, 0, 0, 0.9]}}
    write(file)
    said = verdict(history(measured(0.1, scores={"failure_probability": 0.95, "familiarity": 0.9})))
    assert said is not None and said.word == "act"
    assert re.fullmatch(r"The scorer expects [^.]*\.", said.text)


def test_an_older_version_is_read_too(write: Write) -> None:
    write(rates_of(90))
    said = verdict(history(of_an_older_version(0.3)))
    assert said is not None and said.word == "watch"


def test_news_are_told_whatever_their_grade(write: Write) -> None:
    for right in (50, 90, 99):
        write(rates_of(right))
        (new,) = news(history(measured(0.0, step=0), measured(0.1, step=40)))
        assert new.state == "chaotic" and new.level == {50: "note", 90: "warning", 99: "act"}[right]


# ------------------------------------------------------------------ what is shipped


def test_what_is_shipped_can_be_read() -> None:
    contents = rates.shipped()
    assert contents["format"] == rates.FORMAT and contents["until"] > max(contents["moments"])
    assert set(contents["told"]) <= set(CONCERNS)
    assert {rule.condition for rule in shipped_rules()} == {"chaotic", "collapsed", "converged", "predicted_to_fail"}


def test_what_is_shipped_speaks_of_shorter_and_longer_runs_as_far_as_it_can() -> None:
    """Where the bank was not, a note stays a note, and what was more is watched; so is an explosion while learning."""

    def word(nats: float, **known: Any) -> str:
        said = verdict(history(measured(nats / 32, settled=False, gain=nats, **{"length": 32} | known)))
        assert said is not None
        return said.word

    assert word(9.0, step=40, length=100) == "watch" and word(4.0, step=40, length=100) == "healthy"
    assert word(-12.0, step=0, length=100) == "healthy" and word(-12.0, step=560, length=100) == "watch"
    assert word(9.0, step=40, skill=0.2) == "watch" and word(9.0, step=40, skill=0.5) == "healthy"
    assert word(4.0, step=40, skill=0.2) == "healthy"
    assert word(9.0, step=5, skill=0.0) == word(9.0, step=5) == "watch"  # before the first update all are at chance
    half = {"steps": 15, "fewer": "15 of 32 steps", "growth_steps": 15.0}
    assert word(4.0, step=40, **half) == word(9.0, step=40, **half) == "watch"  # the bank's sequences were whole


def test_a_run_that_learns_beside_what_the_bank_never_saw_is_said_to_learn() -> None:
    said = verdict(history(measured(0.3, gain=9.0, step=40, length=32, skill=0.5)))
    assert said is not None and str(said) == (
        "healthy: It learns, and has a skill of 0.50. Beside it, gradients explode."
    )


def test_of_runs_that_went_on_because_they_had_not_learnt_nothing_is_told_to_those_whose_skill_is_not_known() -> None:
    late = measured(-0.4, settled=False, gain=-12.0, step=1000, length=32)
    assert rates.rate_of("forgetting", late) is None and rates.may_matter("forgetting", late)
    late = measured(-0.4, settled=False, gain=-12.0, step=1000, length=32, skill=0.0)
    assert rates.rate_of("forgetting", late) is not None


@pytest.mark.parametrize(
    ("nats", "step", "word"), [(8.0, 0, "watch"), (8.0, 40, "act"), (6.0, 0, "healthy"), (6.0, 40, "healthy")]
)
def test_growth_is_grave_where_it_explodes(nats: float, step: int, word: str) -> None:
    """By the rates that ship: of 165 networks whose gradients exploded after an epoch five learnt their task."""
    for settled in (True, False):
        said = verdict(history(measured(nats / 32, gain=nats, step=step, length=32, settled=settled)))
        assert said is not None and said.word == word
        assert said.text.startswith("Gradients explode: of" if nats == 8.0 else "No more than a note: ")


# ------------------------------------------------------------------ in a fit


def test_callback_and_monitor_have_the_verdict_that_is_logged() -> None:
    """Oracle: the verdict on their history, with the skill and the kind of cell that the bank's rates are asked by."""
    callback = LyapunovSpectrumCallback(
        max_overhead=None, figures=None, performance="val_loss", performance_range=(2.0, 0.0)
    )
    model = Regressor()
    assert callback.verdict is None
    fit = trainer(callback, max_epochs=2)
    fit.fit(model, loader(), loader())
    said = verdict(callback.history)
    assert said is not None and callback.verdict == said
    assert fit.callback_metrics["lyapunov/verdict"] == said.number == callback.history[-1].metrics["verdict"]
    newest = callback.history[-1]
    assert newest.skill == newest.reached and newest.cell == "lstm" and math.isnan(callback.history[0].skill)

    layer_ = torch.nn.LSTM(3, 8)
    with LyapunovMonitor(layer_, scorer=None) as monitor:
        assert monitor.verdict is None
        with monitor.record():
            layer_(torch.randn(20, 8, 3))
        monitor.measure(0)
        assert monitor.verdict == verdict(monitor.history) and monitor.history[-1].cell == "lstm"
