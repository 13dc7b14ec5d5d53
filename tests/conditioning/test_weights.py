"""What a module computes with after a weight was written, whatever stores it: against torch's plain layer."""

import warnings
from collections.abc import Callable

import pytest
import torch
from kinds import changed, noise, weights_of
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from lightning_lyapunov.conditioning.weights import put_back, put_back_on_error, write_weight

NAME = "weight_hh_l0"


def older(function: Callable[..., nn.Module]) -> Callable[[nn.Module], nn.Module]:
    """A way of torch's that it has a newer one for."""

    def wrapped(layer: nn.Module) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            return function(layer, NAME)

    return wrapped


def masked(layer: nn.Module) -> nn.Module:
    prune.random_unstructured(layer, NAME, 0.5)
    return layer


WAYS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "plain": lambda layer: layer,
    "float64": lambda layer: layer.double(),
    "weight_norm": lambda layer: parametrizations.weight_norm(layer, NAME),
    "weight_norm, older": older(nn.utils.weight_norm),
    "orthogonal": lambda layer: parametrizations.orthogonal(layer, NAME),
    "orthogonal, Householder": lambda layer: parametrizations.orthogonal(
        layer, NAME, "householder", use_trivialization=False
    ),
    "orthogonal, Cayley": lambda layer: parametrizations.orthogonal(layer, NAME, "cayley"),
}


@pytest.mark.parametrize("way", WAYS)
def test_module_computes_with_what_was_written(way: str) -> None:
    """Oracle: torch's plain layer with that weight as its parameter, run along the same inputs."""
    layer, plain = nn.RNN(3, 6), nn.RNN(3, 6)
    plain.load_state_dict(layer.state_dict())
    value = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))[0]
    if "orthogonal" in way and torch.linalg.det(value) < 0:
        value[0] *= -1
    layer = WAYS[way](layer).eval()
    found = {name: parameter for name, parameter in layer.named_parameters()}
    write_weight(layer, NAME, value)
    with torch.no_grad():
        plain.weight_hh_l0.copy_(value)
        inputs = noise()
        outputs = layer(inputs.to(next(layer.parameters()).dtype))[0]
        torch.testing.assert_close(outputs.float(), plain(inputs)[0], rtol=0, atol=1e-5)
    now = dict(layer.named_parameters())
    assert all(now[name] is found[name] for name in found)  # in place: optimizers and ties still hold them
    assert {tensor.dtype for tensor in layer.state_dict().values()} == {next(iter(found.values())).dtype}


def shifted(layer: nn.Module) -> nn.Module:
    class Shift(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight + 1

    parametrize.register_parametrization(layer, NAME, Shift())
    return layer


REFUSED: dict[str, tuple[Callable[[nn.Module], nn.Module], str]] = {
    "frozen": (lambda layer: layer.requires_grad_(False), "weight_hh_l0 is frozen"),
    "half": (lambda layer: layer.half(), "float16; condition it in float32"),
    "bfloat16": (lambda layer: layer.bfloat16(), "bfloat16; condition it in float32"),
    "mask": (masked, "by a mask or a parametrization"),
    "spectral_norm": (lambda layer: parametrizations.spectral_norm(layer, NAME), "by a mask or a parametrization"),
    "spectral_norm, older": (older(nn.utils.spectral_norm), "by a mask or a parametrization"),
    "orthogonal": (WAYS["orthogonal"], "by a mask or a parametrization"),
    "without an inverse": (shifted, "parametrized by Shift, which cannot be given a value"),
    "matrix exponential": (
        lambda layer: parametrizations.orthogonal(layer, NAME, "matrix_exp", use_trivialization=False),
        "parametrized by _Orthogonal, which cannot be given a value",
    ),
}


@pytest.mark.parametrize("way", REFUSED)
def test_what_cannot_be_given_the_value_is_refused_and_comes_back(way: str) -> None:
    make, sentence = REFUSED[way]
    layer = make(nn.RNN(3, 6)).eval()
    found = weights_of(layer)
    with pytest.raises(ValueError, match=sentence), put_back_on_error(layer):
        write_weight(layer, NAME, 3 * torch.randn(6, 6, dtype=torch.float64))
    assert not changed(layer, found)


def test_weight_that_another_module_writes_is_refused() -> None:
    """As one that drops weights out does: it holds the parameter itself and sets a tensor before each call."""
    layer = nn.RNN(3, 6)
    value = layer.weight_hh_l0.detach().clone()
    del layer._parameters[NAME]
    setattr(layer, NAME, value)
    with pytest.raises(ValueError, match="weight_hh_l0 is no parameter: another module writes it"):
        write_weight(layer, NAME, torch.eye(6).double())


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_weights_and_buffers_come_back_after_anything_raised(error: type[BaseException]) -> None:
    layer = WAYS["orthogonal"](nn.RNN(3, 6)).eval()
    found = weights_of(layer)
    assert any("base" in name for name in found)  # a buffer, a part of what the weight is computed from
    with pytest.raises(error), put_back_on_error(layer):
        write_weight(layer, NAME, torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))[0])
        write_weight(layer, "bias_hh_l0", torch.ones(6))
        assert changed(layer, found)
        raise error
    assert not changed(layer, found)


def test_nothing_comes_back_where_nothing_was_raised() -> None:
    layer = nn.RNN(3, 6)
    with put_back_on_error(layer) as found:
        write_weight(layer, NAME, torch.eye(6))
    assert torch.equal(layer.weight_hh_l0, torch.eye(6))
    put_back(layer, found)
    assert not torch.equal(layer.weight_hh_l0, torch.eye(6))
