"""Features of spectra worked out by hand."""

import math
from typing import Any

import pytest
import torch
from made import growth, numbers, spectrum
from systems import LORENZ

from lightning_lyapunov import lyapunov_spectrum
from lightning_lyapunov.engine.diagonal import DiagonalSystem
from lightning_lyapunov.engine.spectrum import LyapunovSpectrum
from lightning_lyapunov.names import MEASURED
from lightning_lyapunov.reading.features import (
    kaplan_yorke_dimension,
    known_growth,
    kolmogorov_sinai_entropy,
    spectrum_features,
)

INF, NAN = math.inf, math.nan


def same(value: float, expected: float) -> bool:
    return math.isnan(value) if math.isnan(expected) else value == pytest.approx(expected, rel=1e-12)


KAPLAN_YORKE = {
    "all negative": ([-0.1, -0.5, -2.0], 0.0),
    "all positive": ([0.5, 0.2, 0.1], 3.0),
    "a sum that never crosses zero": ([1.0, 0.5, -1.4], 3.0),
    "a sum that ends at zero": ([1.0, 0.0, -1.0], 3.0),
    "a conservative flow in four dimensions": ([0.5, 0.0, 0.0, -0.5], 4.0),
    "a fixed point's zero": ([0.0, -1.0], 1.0),
    "published, Lorenz": (list(LORENZ), 2 + 0.9056 / 14.572),
    "published, Hénon": ([0.4194, -1.6234], 1 + 0.4194 / 1.6234),
    "mixed": ([0.3, 0.2, -0.1, -0.2, -0.4, -1.0], 4.5),
    "any order": ([-1.0, 0.2, -0.4, 0.3, -0.2, -0.1], 4.5),
    "crossing at a dead direction": ([0.3, -0.1, -INF, -INF], 2.0),
    "dead altogether": ([-INF, -INF], 0.0),
    "one dimension, stable": ([-1.0], 0.0),
    "one dimension, expanding": ([1.0], 1.0),
    "unknown ones": ([0.3, NAN, -1.0], NAN),
    "unknown altogether": ([NAN, NAN], NAN),
}


@pytest.mark.parametrize("name", KAPLAN_YORKE)
def test_kaplan_yorke_dimension_worked_by_hand(name: str) -> None:
    values, expected = KAPLAN_YORKE[name]
    assert same(kaplan_yorke_dimension(numbers(*values)), expected)
    assert same(kaplan_yorke_dimension(numbers(*values) / math.log(2)), expected)  # the unit does not matter
    assert same(kaplan_yorke_dimension(spectrum(*sorted(values, reverse=True))), expected)


def test_lorenz_attractor_has_its_published_dimension() -> None:
    assert round(kaplan_yorke_dimension(numbers(*LORENZ)), 3) == 2.062


ENTROPY = {
    "all negative": ([-0.1, -0.5], 0.0),
    "all positive": ([0.5, 0.25], 0.75),
    "mixed": ([0.3, 0.2, 0.0, -0.1, -3.0], 0.5),
    "any order": ([-0.1, 0.2, -3.0, 0.3], 0.5),
    "published, Lorenz": (list(LORENZ), 0.9056),
    "dead directions": ([0.3, -INF], 0.3),
    "dead altogether": ([-INF, -INF], 0.0),
    "unknown ones": ([0.3, NAN], NAN),
}


@pytest.mark.parametrize("name", ENTROPY)
def test_entropy_worked_by_hand(name: str) -> None:
    values, expected = ENTROPY[name]
    assert same(kolmogorov_sinai_entropy(numbers(*values)), expected)
    assert same(kolmogorov_sinai_entropy(spectrum(*sorted(values, reverse=True))), expected)


PARTIAL = {
    # leading exponents of six: Kaplan-Yorke dimension, entropy
    "the sum still positive": ([0.5, 0.2, -0.3], NAN, 0.7),
    "the sum at zero": ([0.5, 0.0, -0.5], NAN, 0.5),
    "the sum negative": ([0.5, -0.2, -0.6], 2.5, 0.5),
    "all positive": ([0.5, 0.2], NAN, NAN),
    "ending at zero": ([0.5, 0.0], NAN, 0.5),
    "all negative": ([-0.5, -0.6], 0.0, 0.0),
    "dead at the end": ([0.5, -INF], 1.0, 0.5),
}


@pytest.mark.parametrize("name", PARTIAL)
def test_a_partial_spectrum_says_what_it_can(name: str) -> None:
    values, dimension, entropy = PARTIAL[name]
    for exponents, options in ((numbers(*values), {"complete": False}), (spectrum(*values, dimension=6), {})):
        assert same(kaplan_yorke_dimension(exponents, **options), dimension)
        assert same(kolmogorov_sinai_entropy(exponents, **options), entropy)


@pytest.mark.parametrize("feature", [kaplan_yorke_dimension, kolmogorov_sinai_entropy])
@pytest.mark.parametrize("shape", [(0,), (2, 3), ()])
def test_exponents_of_another_shape_are_refused(feature: Any, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"exponents must have shape \(K,\) with K >= 1; got \(.*\)\.") as error:
        feature(torch.zeros(shape))
    assert str(shape) in str(error.value)


# ------------------------------------------------------------------ all of them


def assert_features(given: LyapunovSpectrum, **expected: float) -> None:
    features = spectrum_features(given)
    expected = {"gradient_gain": NAN, "gradient_growth": NAN, "gradient_horizon": NAN, **expected}
    assert set(features) == set(expected)
    for name, value in expected.items():
        assert isinstance(features[name], float), name
        assert same(features[name], value), f"{name}: {features[name]}, not {value}"


def test_features_of_a_whole_spectrum() -> None:
    assert_features(
        spectrum(0.2, 0.04, 0.0, -0.04, -0.05, -1.0, error=numbers(0.06, 1, 1, 1, 1, 1)),
        max=0.2,
        max_error=0.06,
        max_stderr=0.01,
        settled_fraction=1.0,
        mean=-0.85 / 6,
        near_zero_fraction=3 / 6,
        unstable_fraction=2 / 6,
        kaplan_yorke_dimension=5.15,
        kolmogorov_sinai_entropy=0.24,
        stability_margin=-0.26,
        trusted_fraction=1.0,
    )


def test_features_of_a_partial_spectrum_count_shares_of_the_whole_state() -> None:
    assert_features(
        spectrum(
            -0.02,
            -0.5,
            dimension=8,
            volume_rate=-12.0,
            trusted=torch.tensor([True, False]),
            settled=torch.tensor([False, True]),
        ),
        max=-0.02,
        max_error=0.03,
        max_stderr=0.01,
        settled_fraction=0.5,
        mean=-1.5,  # the volume knows the directions that were not followed
        near_zero_fraction=1 / 8,
        unstable_fraction=0.0,
        kaplan_yorke_dimension=0.0,
        kolmogorov_sinai_entropy=0.0,
        stability_margin=-0.01,
        trusted_fraction=0.5,
    )


def test_features_that_a_partial_spectrum_cannot_tell_are_unknown() -> None:
    assert_features(
        spectrum(0.5, 0.25, dimension=8, volume_rate=NAN),
        max=0.5,
        max_error=0.03,
        max_stderr=0.01,
        settled_fraction=1.0,
        mean=NAN,
        near_zero_fraction=NAN,
        unstable_fraction=NAN,
        kaplan_yorke_dimension=NAN,
        kolmogorov_sinai_entropy=NAN,
        stability_margin=-0.53,
        trusted_fraction=1.0,
    )


def test_each_share_is_known_once_the_rest_lies_below_what_it_counts() -> None:
    for last, near_zero, unstable in ((0.01, NAN, NAN), (0.0, NAN, 0.25), (-0.04, NAN, 0.25), (-0.05, 0.0, 0.25)):
        features = spectrum_features(spectrum(0.3, last, dimension=4))
        assert same(features["near_zero_fraction"], near_zero)
        assert same(features["unstable_fraction"], unstable)


def test_features_with_dead_directions() -> None:
    assert_features(
        spectrum(-0.04, -0.5, -INF, -INF, stderr=numbers(0.01, 0.01, NAN, NAN)),
        max=-0.04,
        max_error=0.03,
        max_stderr=0.01,
        settled_fraction=0.5,
        mean=-INF,
        near_zero_fraction=1 / 4,
        unstable_fraction=0.0,
        kaplan_yorke_dimension=0.0,
        kolmogorov_sinai_entropy=0.0,
        stability_margin=0.01,
        trusted_fraction=0.5,
    )


def test_features_of_a_dead_network() -> None:
    assert_features(
        spectrum(-INF, -INF, stderr=numbers(NAN, NAN), error=numbers(NAN, NAN)),
        max=-INF,
        max_error=NAN,
        max_stderr=NAN,
        settled_fraction=0.0,
        mean=-INF,
        near_zero_fraction=0.0,
        unstable_fraction=0.0,
        kaplan_yorke_dimension=0.0,
        kolmogorov_sinai_entropy=0.0,
        stability_margin=NAN,
        trusted_fraction=0.0,
    )


def test_the_leading_exponent_is_known_though_trailing_ones_were_lost() -> None:
    assert_features(
        spectrum(0.1, -0.5, NAN, NAN, stderr=numbers(0.02, 0.1, NAN, NAN), volume_rate=-8.0),
        max=0.1,
        max_error=0.03,
        max_stderr=0.02,
        settled_fraction=0.5,
        mean=-2.0,  # the volume knows
        near_zero_fraction=NAN,
        unstable_fraction=NAN,
        kaplan_yorke_dimension=NAN,
        kolmogorov_sinai_entropy=NAN,
        stability_margin=-0.13,
        trusted_fraction=0.5,
    )


def test_features_of_an_unknown_spectrum_are_unknown() -> None:
    features = spectrum_features(spectrum(NAN, NAN, stderr=numbers(NAN, NAN), error=numbers(NAN, NAN)))
    assert features.pop("trusted_fraction") == features.pop("settled_fraction") == 0.0
    assert all(math.isnan(value) for value in features.values())


def test_the_largest_of_a_layer_of_one_unit_may_be_unknown() -> None:
    parts = {"known": spectrum(-0.1, -0.2), "not": spectrum(NAN, stderr=numbers(NAN))}
    assert math.isnan(spectrum_features(LyapunovSpectrum.union(parts))["max"])


def test_marginal_directions_remember() -> None:
    features = spectrum_features(spectrum(0.0, 0.0))
    assert features["unstable_fraction"] == 0.0 and features["near_zero_fraction"] == 1.0


def test_mean_is_of_the_exponents_where_all_are_known_and_not_of_the_volume() -> None:
    assert spectrum_features(spectrum(0.5, -1.5, volume_rate=-3.0))["mean"] == -0.5


def test_the_last_of_the_exponents_says_whether_shares_are_known() -> None:
    features = spectrum_features(spectrum(0.3, 0.2, -0.1, dimension=6))
    assert features["near_zero_fraction"] == 0.0 and features["unstable_fraction"] == 2 / 6


# ------------------------------------------------------------------ growth


def test_growth_and_gain_are_means_over_sequences() -> None:
    features = spectrum_features(spectrum(0.1, -1.0, growth=growth([1.0, 3.0], [4.0, 5.0])))
    assert (features["gradient_gain"], features["gradient_growth"]) == (2.0, 4.5)


@pytest.mark.parametrize(
    ("gains", "steps", "horizon"),
    [
        ([2.0, 2.0], 64, 32.0),
        ([-2.0, -2.0], 64, 32.0),
        ([2.0, 2.0], (60, 20), 20.0),  # of sequences of 40 steps on average
        ([0.5, -0.5], 64, 64 / (12.7062 * 0.5)),  # 0 ± 6.4: Student's factor for two, times 0.5
        ([2.0], 64, 32.0),  # of one sequence the error is not known
        ([0.0, 0.0], 64, INF),
        ([-INF, -INF], 64, 0.0),
        ([NAN, NAN], 64, NAN),  # whatever the exponent is
    ],
)
def test_horizon_is_the_pace_over_a_sequence_or_its_error(gains: list[float], steps: Any, horizon: float) -> None:
    features = spectrum_features(spectrum(0.1, -1.0, growth=growth(gains, steps=steps)))
    assert features["gradient_horizon"] == pytest.approx(horizon, rel=1e-5, nan_ok=True)


def test_where_layers_have_no_growth_together_the_largest_speaks_by_name() -> None:
    parts = {
        "a": spectrum(0.3, growth=growth([1.0, 1.0])),
        "b": spectrum(0.1, growth=growth([2.0, 2.0])),
        "c": spectrum(0.2),
    }
    union = LyapunovSpectrum.union(parts)
    assert known_growth(union) == ("b", parts["b"].growth)
    assert spectrum_features(union)["gradient_gain"] == 2.0
    together = LyapunovSpectrum.union(parts, growth=growth([5.0, 5.0]))
    assert known_growth(together) == ("", together.growth)
    assert known_growth(LyapunovSpectrum.union({"c": parts["c"]})) == ("", None)


def test_every_feature_is_in_the_table_of_names() -> None:
    assert set(spectrum_features(spectrum(0.1, -1.0))) <= set(MEASURED)


def test_shares_of_a_scan_are_of_all_its_gates_however_few_are_listed() -> None:
    """Oracle: the gates themselves, a fifth of which remember; alone, and beside a layer that forgets."""
    rates = torch.cat([torch.full((200,), -0.01), torch.linspace(-3, -0.1, 800)]).double()
    scan = DiagonalSystem(lambda x: rates.expand(*x.shape[:2], -1))
    alone = lyapunov_spectrum(scan, torch.zeros(40, 4, 1), k=8)
    assert not alone.complete
    assert spectrum_features(alone)["near_zero_fraction"] == pytest.approx(0.2, abs=0.01)
    leak = DiagonalSystem(lambda x: torch.full((1000,), -2.0).double().expand(*x.shape[:2], -1))
    both = LyapunovSpectrum.union({"a": alone, "b": lyapunov_spectrum(leak, torch.zeros(40, 4, 1), k=8)}, 8)
    assert spectrum_features(both)["near_zero_fraction"] == pytest.approx(0.1, abs=0.01)
