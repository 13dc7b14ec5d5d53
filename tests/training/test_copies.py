"""Who else holds weights: ties, copies inside the model, and what callbacks keep.

Oracle: models and callbacks that hold just these.
"""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from lightning_lyapunov.training.copies import copies, ties


class Model(nn.Module):
    """Two layers of one shape, and a third module that holds the first one's matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.head = nn.RNN(4, 4), nn.RNN(4, 4), nn.Linear(4, 4)
        self.head.weight = self.one.weight_ih_l0


class Keeps:
    """A callback that keeps something."""

    def __init__(self, **things: Any) -> None:
        vars(self).update(things)


def weights(model: Model) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.one.parameters()]


def test_ties_are_the_names_outside_a_layer() -> None:
    model = Model()
    assert ties(model, model.one, model.one.parameters()) == ["head.weight"]
    assert ties(model, model.one, [model.one.weight_hh_l0]) == []
    assert ties(model, model.other, model.other.parameters()) == []
    model.again = model.one  # a layer under a second name is the layer
    assert ties(model, model.one, model.one.parameters()) == ["head.weight"]


def test_copies_in_the_model_hold_the_values_in_tensors_of_their_own() -> None:
    model = Model()
    before = weights(model)
    assert copies(model, [], before) == ["one.weight_ih_l0", "one.weight_hh_l0", "head.weight"]
    assert copies(model, [], before, [model.one.weight_hh_l0]) == ["one.weight_ih_l0", "head.weight"]
    assert copies(model, [], before, model.one.parameters()) == []
    with torch.no_grad():
        model.one.weight_ih_l0.mul_(2)
        model.one.weight_hh_l0.mul_(2)
    assert copies(model, [], before) == []  # a tie has moved along
    model.register_buffer("past", before[1].clone())
    model.target = copy.deepcopy(model.other)
    model.target.weight_ih_l0.data.copy_(before[0])
    assert copies(model, [], before) == ["past", "target.weight_ih_l0"]


def test_vectors_zeros_and_other_types_are_no_copies() -> None:
    model = Model()
    values = [torch.zeros(4, 4), model.other.bias_ih_l0.detach().clone(), model.other.weight_hh_l0.detach().double()]
    model.other.weight_ih_l0.data.zero_()
    assert copies(model, [], values) == []


def test_what_callbacks_keep_is_found_as_module_or_by_name() -> None:
    model, bare = Model(), nn.Module()
    before = weights(model)
    guests = [Keeps(shadow={"a": before[0].clone(), "b": 3}, more=[1]), Keeps(net=copy.deepcopy(model.one), none=None)]
    assert copies(bare, guests, before) == ["Keeps.shadow['a']", "Keeps.net.weight_ih_l0", "Keeps.net.weight_hh_l0"]


@pytest.mark.parametrize("inside", [True, False])
def test_an_average_counts_once_it_has_begun(inside: bool) -> None:
    """Torch's begins with whatever the weights are at its first update."""
    model, bare = Model(), nn.Module()
    before, average = weights(model), AveragedModel(model.one)
    guests: list[Any] = []
    if inside:
        bare.average = average
    else:
        guests.append(Keeps(average=average))
    assert copies(bare, guests, before) == []
    average.update_parameters(model.one)
    assert [name.rpartition("module.")[2] for name in copies(bare, guests, before)] == ["weight_ih_l0", "weight_hh_l0"]


@pytest.mark.parametrize(("count", "found"), [(None, 0), (0, 0), (torch.tensor(0), 0), (2, 2)])
def test_an_average_that_its_callback_counts(count: Any, found: int) -> None:
    """As Lightning's StochasticWeightAveraging does."""
    model = Model()
    guest = Keeps(average=copy.deepcopy(model.one), n_averaged=count)
    assert len(copies(nn.Module(), [guest], weights(model))) == found
