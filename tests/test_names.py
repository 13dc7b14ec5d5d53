"""One table of names: what is logged, read, drawn and documented is in it, and it is in what is documented."""

import re
import runpy
from pathlib import Path

import pytest

from lightning_lyapunov import LyapunovEarlyStopping
from lightning_lyapunov.cli import writing
from lightning_lyapunov.monitoring.loggers import panels, trackers
from lightning_lyapunov.names import (
    LOGGED,
    MEASURED,
    OF_A_LAYER,
    ON_REQUEST,
    QUANTITIES,
    RENAMED,
    SCORED,
    current_key,
    current_name,
    key_of,
    name_of,
    renaming,
    selected,
    selection,
    with_old_keys,
)

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_pages_have_the_tables_that_make_format_writes() -> None:
    script = runpy.run_path(str(ROOT / "docs" / "write_keys.py"))
    for page in script["PAGES"]:
        text = page.read_text(encoding="utf-8")
        assert script["renewed"](text) == text and text.count("| `max` |") == text.count("| `familiarity` |") == 1


@pytest.mark.parametrize("name", QUANTITIES)
def test_readme_says_of_each_what_it_is_and_what_to_do(name: str) -> None:
    quantity = QUANTITIES[name]
    row = next(line for line in README.splitlines() if line.startswith(f"| `{name.removeprefix('aelle/')}` |"))
    assert quantity.unit in row and quantity.advice in row and quantity.meaning.replace("|", r"\|") in row


def test_readme_has_no_other_rows() -> None:
    table = README.partition("## What the keys mean")[2].partition("\n## ")[0]
    names = re.findall(r"^\| `([^`]*)`", table, re.MULTILINE)
    assert sorted(names) == sorted(name.removeprefix("aelle/") for name in QUANTITIES)


def test_every_name_is_read_somewhere_and_none_that_is_not_in_the_table() -> None:
    assert set(writing.FEATURES) <= set(QUANTITIES)
    assert {*panels.COLUMNS} == {*MEASURED, *ON_REQUEST, *SCORED}
    charts = [chart for page in trackers._layout("encoder").values() for chart in page.values()]
    tags = {tag.strip("^$") for _, patterns in charts for tag in patterns}
    assert {name_of(tag, "encoder") for tag in tags} <= {*QUANTITIES, ".+/max"}
    for name in (*MEASURED, *ON_REQUEST, *SCORED):
        assert LyapunovEarlyStopping(monitor=key_of(name)).monitor == key_of(name)


@pytest.mark.parametrize("prefix", ["lyapunov", "encoder", "a/b", "aelle"])
def test_the_name_of_the_key_of_a_name_is_that_name(prefix: str) -> None:
    for name in (*MEASURED, *ON_REQUEST, *SCORED, "rnn.l0/max"):
        assert name_of(key_of(name, prefix), prefix) == name


@pytest.mark.parametrize("key", ["max", "val/loss", "encoder/max", "lyapunov/aelle/baseline", "lyapunovs/max"])
def test_keys_of_others_have_no_name(key: str) -> None:
    assert name_of(key) is None


def test_each_is_explained() -> None:
    for quantity in QUANTITIES.values():
        assert quantity.title and quantity.meaning and quantity.advice
        assert not quantity.meaning.endswith(".") and not quantity.advice.endswith(".")


# ---------------------------------------------------------------- what is logged


def test_ten_are_logged_by_default_and_all_or_some_if_asked_for() -> None:
    assert selection("default") == (*LOGGED, *ON_REQUEST) and len(set(LOGGED)) == 10 and set(LOGGED) <= set(QUANTITIES)
    assert selection("all") == tuple(QUANTITIES)
    assert selection(["mean", "encoder/max", "rnn.l1/max", "encoder/aelle/baseline", "mean"], "encoder") == (
        *("mean", "max", "rnn.l1/max", "aelle/baseline"),
    )
    assert selection(()) == ()


def test_figures_are_selected_in_the_order_they_were_asked_for() -> None:
    figures = {name: float(i) for i, name in enumerate([*MEASURED, *ON_REQUEST, *SCORED, "b/max", "a/max"])} | {
        "unheard": 1.0
    }
    assert list(selected(figures, LOGGED)) == list(LOGGED)
    assert set(selected(figures, selection("all"))) == set(figures) - {"unheard"}
    assert selected(figures, ("a/max", "max")) == {"a/max": figures["a/max"], "max": figures["max"]}
    assert list(selected(figures, (OF_A_LAYER, "mean"))) == ["b/max", "a/max", "mean"]
    assert selected({"max": 1.0}, ("mean", "max")) == {"max": 1.0}  # what is not known is not logged


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (["gradient_gian"], "metrics must be .* such as gradient_gain.*; got 'gradient_gian'"),
        (["aelle/perfomance"], "such as aelle/performance"),
        (["val/loss"], "got 'val/loss'"),
        ("everything", "metrics must be 'default', 'all' or a list of names; got 'everything'"),
        ([1], r"metrics must be .*; got \[1\]"),
    ],
)
def test_names_that_there_are_not_are_refused(metrics: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        selection(metrics)


# ---------------------------------------------------------------- names of before


@pytest.mark.parametrize("prefix", ["lyapunov", "encoder"])
@pytest.mark.parametrize(("before", "now"), RENAMED.items())
def test_old_names_stand_for_what_they_are_called_now(before: str, now: str, prefix: str) -> None:
    old, new = key_of(before, prefix), key_of(now, prefix)
    assert before not in QUANTITIES and now in QUANTITIES
    assert current_name(before) == current_name(now) == now
    assert current_key(old, prefix) == current_key(new, prefix) == new
    assert with_old_keys({new: 0.5, key_of("max", prefix): 1.0}, prefix) == {
        new: 0.5,
        key_of("max", prefix): 1.0,
        old: 0.5,
    }
    assert with_old_keys({key_of("max", prefix): 1.0}, prefix) == {key_of("max", prefix): 1.0}
    assert selection([before]) == selection([now]) == (now,)
    assert renaming(new, prefix) is None and f"{old!r} is now called {new!r}" in str(renaming(old, prefix))


@pytest.mark.parametrize("key", ["val/loss", "aelle/stability_of_mine", "encoder/aelle/stability"])
def test_keys_of_others_are_left_alone(key: str) -> None:
    assert current_key(key) == key and renaming(key) is None
