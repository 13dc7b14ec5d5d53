"""Options out of range are refused in words; the skill that a metric amounts to, worked out by hand."""

import math
from typing import Any

import pytest
import torch

from lightning_lyapunov.monitoring.options import Options


def test_the_defaults_are_in_range() -> None:
    options = Options()
    assert (options.k, options.num_sequences, options.num_steps, options.max_overhead) == (32, 16, 64, 0.03)
    assert options.prefix == "lyapunov" and options.scorer == "general"
    assert "module" in Options.names() and len(set(Options.names())) == len(Options.names())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"k": 0}, "k must be at least 1; got 0"),
        ({"num_sequences": 0}, "num_sequences must be at least 1; got 0"),
        ({"num_steps": -1}, "num_steps must be at least 1; got -1"),
        ({"interval": 0}, "interval must be at least 1; got 0"),
        ({"transient": 64}, r"transient must lie in \[0, 63\], below num_steps; got 64"),
        ({"transient": -1}, r"transient must lie in \[0, 63\].*got -1"),
        ({"max_overhead": 0}, "max_overhead must be above 0, or None; got 0"),
        ({"max_overhead": math.nan}, "max_overhead must be above 0"),
        ({"dtype": "float16"}, "dtype must be 'float32', 'float64' or None; got 'float16'"),
        ({"tolerance": -1.0}, "tolerance"),
        ({"growth": -1}, "growth"),
        ({"prefix": ""}, "prefix must be a name without slashes at its ends; got ''"),
        ({"prefix": "a/"}, "prefix must be a name without slashes"),
        ({"metrics": ["maximum"]}, "metrics must be 'default', 'all' or names such as .*got 'maximum'"),
        ({"scorer": 3}, "scorer must be 'general', a path, an AeLLEScorer or None; got an object of int"),
        ({"performance": "acc"}, r"performance needs performance_range=\(worst, best\).*got performance='acc' alone"),
        ({"performance_range": (0.0, 1.0)}, "performance_range is that of performance, which is None"),
        ({"performance": "acc", "performance_range": (1.0, 1.0)}, "two different numbers"),
        ({"performance": "acc", "performance_range": (0.0, math.inf)}, "two different numbers"),
    ],
)
def test_out_of_range_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Options(**given)


def test_a_metric_without_a_range_is_for_scorers_that_take_it_as_it_is() -> None:
    options = Options(performance="acc", scorer=None)
    assert options.skill_of(3.5) == 3.5 and options.skill_of(math.inf) is None


@pytest.mark.parametrize(
    ("limits", "metric", "skill"),
    [
        ((0.1, 1.0), 0.1, 0.0),
        ((0.1, 1.0), 0.55, 0.5),
        ((0.1, 1.0), 0.0, 0.0),  # worse than by chance
        ((2.0, 0.5), 1.25, 0.5),  # a loss
        ((2.0, 0.5), 0.1, 1.0),
        ((2.0, 0.5), math.nan, None),
        ((2.0, 0.5), -math.inf, None),
    ],
)
def test_skill_is_the_share_of_the_way_from_worst_to_best(
    limits: tuple[float, float], metric: float, skill: float | None
) -> None:
    assert Options(performance="m", performance_range=limits).skill_of(metric) == pytest.approx(skill)


def test_the_engine_is_told_in_its_own_words() -> None:
    settings = Options(k=5, transient=3, interval=2, dtype="float64", tolerance=0.1, growth=4).settings
    assert (settings.k, settings.transient, settings.interval) == (5, 3, 2)
    assert (settings.dtype, settings.tolerance, settings.growth) == (torch.float64, 0.1, 4)
    assert Options().settings.dtype is None
