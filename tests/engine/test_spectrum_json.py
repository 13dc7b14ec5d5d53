"""Round trips through JSON to the last bit, files of older versions as they were, and what is refused by name."""

import json
import math
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
import torch
from made import growth, numbers, spectrum
from torch import Tensor, nn

from lightning_lyapunov import DepthSpectrum, LyapunovSpectrum, depth_spectrum, lyapunov_spectrum

# As the command line of the first versions wrote it, of two layers of a GRU: kept as it was, but for its features.
OLD = """{"format": "lightning_lyapunov.spectrum/1", "unit": "nats/step", "architecture": "gru", "hidden_size": 3,
"updates": 40, "exponents": [-0.7007136554237551, "-inf"], "stderr": [0.01517194670316696, null],
"error": [0.1956384838624935, null], "trusted": [true, false], "settled": [true, false], "dimension": 6, "steps": 12,
"sequences": 2, "transient": 12, "interval": 2.0, "dtype": "float32", "driven": true,
"volume_rate": -6.620830646519856, "complete": false, "log_singular_values": [-15.760195883089565],
"log_singular_values_error": [0.32743270916611344], "gain": -16.354787929128157, "gain_error": 0.4581782259774002,
"growth_steps": 24.0, "state_mean": 0.33042042934444504, "state_spread": 0.3635438220702362, "features": {},
"layers": {"l0": {"exponents": [-0.7007136554237551], "stderr": [0.015], "error": [0.19], "settled": [true],
"dimension": 3, "gain": -17.5}}}"""


def assert_same(one: Any, other: Any, at: str = "") -> None:
    """Of the same type, shape and value, field by field; NaN is NaN, and −0 is not 0."""
    assert type(one) is type(other) or isinstance(one, dict), at
    if isinstance(one, Tensor):
        assert one.shape == other.shape and one.dtype == other.dtype, at
        assert [math.copysign(1, x) if x == 0 else str(x) for x in one.double().flatten().tolist()] == [
            math.copysign(1, x) if x == 0 else str(x) for x in other.double().flatten().tolist()
        ], at
    elif is_dataclass(one):
        for field in fields(one):
            assert_same(getattr(one, field.name), getattr(other, field.name), f"{at}.{field.name}")
    elif isinstance(one, dict):
        assert list(one) == list(other), at
        for name in one:
            assert_same(one[name], other[name], f"{at}[{name}]")
    else:
        assert one == other or (one != one and other != other), at


def standard(text: str) -> dict[str, Any]:
    """JSON as the standard has it."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return dict(json.loads(text, parse_constant=refuse))


@pytest.fixture(scope="module")
def measured() -> LyapunovSpectrum:
    """Of two layers: with growth, layers, states visited, and of each layer its exponents along the sequences."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return lyapunov_spectrum(nn.LSTM(2, 3, num_layers=2), torch.randn(24, 3, 2), k=5)


def test_a_measured_spectrum_comes_back_to_the_last_bit(measured: LyapunovSpectrum) -> None:
    text = measured.to_json()
    assert "\n" not in text
    assert_same(LyapunovSpectrum.from_json(text), measured)
    assert_same(LyapunovSpectrum.from_json(text.encode()), measured)
    told = standard(text)
    assert told["gain"] == measured.gain and told["state_mean"] == measured.state_mean
    assert told["layers"]["l0"]["gain"] == measured.parts["l0"].gain


def test_a_single_layer_and_its_local_exponents_come_back() -> None:
    found = lyapunov_spectrum(nn.GRU(2, 3), torch.linspace(-1, 1, 96).reshape(24, 2, 2))
    assert found.local is not None
    assert_same(LyapunovSpectrum.from_json(found.to_json()), found)


def test_infinities_unknowns_and_stacks_come_back() -> None:
    strange = spectrum(
        0.1, -0.0, -math.inf, math.nan,
        error=numbers(math.inf, 0.1, math.nan, 1e-300), growth=growth([1.5, -math.inf], steps=[7, 9]),
        stacks={"encoder": growth([0.25])}, volume_rate=-math.inf, driven=False, interval=2,
    )  # fmt: skip
    strange = replace(strange, interval=2.0, parts={"<a>": spectrum(0.1), "b": spectrum(-1.0)})
    assert_same(LyapunovSpectrum.from_json(strange.to_json()), strange)
    told = standard(strange.to_json())
    assert told["exponents"] == [0.1, 0.0, "-inf", None] and told["volume_rate"] == "-inf"


def test_a_file_of_an_older_version() -> None:
    old = LyapunovSpectrum.from_json(OLD)
    assert old.exponents.tolist() == [-0.7007136554237551, -math.inf] and old.settled.tolist() == [True, False]
    assert old.per_sequence.shape == (2, 2) and old.per_sequence.isnan().all()
    assert (old.growth, old.local, old.visited, old.parts) == (None, None, None, {})
    assert (old.dimension, old.steps, old.dtype, old.volume_rate) == (6, 12, torch.float32, -6.620830646519856)


def test_a_file_of_the_first_version_knows_neither_errors_nor_what_has_settled() -> None:
    content = {name: value for name, value in json.loads(OLD).items() if name not in ("error", "settled", "format")}
    old = LyapunovSpectrum.from_json(json.dumps(content))
    assert old.error[0] == 2 * old.stderr[0] and old.error[1].isnan() and not old.settled.any()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"format": "lightning_lyapunov.spectrum/2"}, "got 'lightning_lyapunov.spectrum/2'; a newer version"),
        ({"format": "lightning_lyapunov.depth/1"}, "DepthSpectrum.from_json reads it"),
        ({"format": 3}, "got 3"),
        ({"exponents": None}, "must be"),
        ({"exponents": [0.1]}, "of one length"),
        ({"exponents": [[[[[0.1]]]]]}, "axes"),
        ({"stderr": ["much", "more"]}, "could not convert"),
        ({"dimension": "6"}, "dimension must be of type int; got '6'"),
        ({"dimension": 1}, "at most dimension"),
        ({"dtype": "float16"}, "float16"),
        ({"sequences": 0}, "sequences 1 or more"),
        ({"per_sequence": [[0.1, 0.2]]}, "per_sequence must be of 2 × 2"),
        ({"per_sequence": [[0.1, 0.2], [0.1]]}, "must be what"),
        ({"per_sequence": [[0.1, 0.2]] * 2, "layers": {"l0": {"per_sequence": []}}}, "is missing"),
        ({"growth": {"gain_per_sequence": [1.0]}}, "per_sequence is missing"),
    ],
)
def test_what_is_no_spectrum_is_refused_by_name(change: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=r"^text must be what LyapunovSpectrum\.to_json wrote: .*\.$") as refused:
        LyapunovSpectrum.from_json(json.dumps(json.loads(OLD) | change))
    assert told in str(refused.value)


@pytest.mark.parametrize("text", ["", "{", "[0.1]", "3", "[" * 100_000, "{}"])
def test_what_is_no_json_of_ours_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="to_json wrote"):
        LyapunovSpectrum.from_json(text)
    with pytest.raises(ValueError, match="to_json wrote"):
        DepthSpectrum.from_json(text)


def test_exponents_as_an_array_are_a_copy_in_double_precision(measured: LyapunovSpectrum) -> None:
    array = measured.numpy()
    assert (str(array.dtype), array.tolist()) == ("float64", measured.exponents.tolist())
    array[:] = 0
    assert measured.exponents.abs().min() > 0
    assert str(replace(measured, exponents=measured.exponents.float()).numpy().dtype) == "float64"


# ---------------------------------------------------------------- across depth


@pytest.fixture(scope="module")
def deep() -> DepthSpectrum:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        blocks = [nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(3)]
        nn.init.zeros_(blocks[1][0].weight)  # nothing passes: growth of −∞
        return depth_spectrum(nn.Sequential(*blocks), torch.randn(3, 4), k=2)


def test_a_spectrum_across_depth_comes_back_to_the_last_bit(deep: DepthSpectrum) -> None:
    wide = DepthSpectrum(**{f.name: v.double() if isinstance(v := getattr(deep, f.name), Tensor) else v
                            for f in fields(deep)})  # fmt: skip
    assert_same(DepthSpectrum.from_json(wide.to_json()), wide)
    assert standard(deep.to_json())["log_singular_values"] == ["-inf", "-inf"]
    assert deep.numpy().tolist() == [-math.inf, -math.inf]


def test_means_alone_are_not_enough_across_depth(deep: DepthSpectrum) -> None:
    content = {name: value for name, value in deep.to_dict().items() if not name.endswith("per_sample")}
    content.pop("per_sample", None)
    with pytest.raises(ValueError, match=r"means alone, as an older version wrote them; measure again\.$"):
        DepthSpectrum.from_json(json.dumps(content))
    with pytest.raises(ValueError, match=r"LyapunovSpectrum\.from_json reads it\.$"):
        DepthSpectrum.from_json(OLD)


# ---------------------------------------------------------------- one line each


def test_results_are_shown_on_one_line_without_tensors(measured: LyapunovSpectrum, deep: DepthSpectrum) -> None:
    part = measured.parts["l0"]
    for shown in (measured, deep, measured.growth, part.local, measured.visited):
        text = repr(shown)
        assert "tensor" not in text and "\n" not in text and len(text) < 200
    assert f"{measured.gain:+.3f}" in repr(measured.growth)
