"""The norm of the last gradient. Oracle: that of all gradients laid out in one vector."""

from typing import Any

import pytest
import torch
from torch import nn, optim

from lightning_lyapunov.monitoring.gradient import GradientNorm, norms_of


class Network(nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.out = nn.GRU(2, 4, dtype=dtype), nn.Linear(4, 1, dtype=dtype)
        self.idle = nn.Linear(2, 2, dtype=dtype)  # which gets no gradient
        self.out.bias.requires_grad_(False)

    def backward(self) -> None:
        weight = self.out.weight
        x = torch.ones(3, 1, 2, dtype=weight.dtype)
        self.out(self.rnn(x)[0]).square().sum().backward()

    def norm(self, *parts: nn.Module) -> Any:
        parameters = [p for part in parts or (self,) for p in part.parameters()]
        flat = torch.cat([p.grad.double().flatten() for p in parameters if p.grad is not None])
        return pytest.approx(float(flat.norm()), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_it_is_that_of_all_parameters(dtype: torch.dtype) -> None:
    model = Network(dtype)
    optimizer, norms = optim.SGD(model.parameters(), 0.1), GradientNorm()
    assert norms.of([optimizer], [model.rnn], 0) is None  # nothing was taken
    model.backward()
    expected = model.norm()
    norms.note(optimizer, 0)
    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)  # afterwards
    assert norms.of([optimizer], [model.rnn], 1) == expected
    assert norms.of([optimizer], [model.rnn], 2) is None  # of another update than the last


def test_without_gradients_there_is_none() -> None:
    model = Network()
    optimizer, norms = optim.SGD(model.parameters(), 0.1), GradientNorm()
    norms.note(optimizer, 0)
    assert norms.of([optimizer], [model.rnn], 1) is None


def test_of_several_optimisers_those_that_train_the_layer_count_together() -> None:
    """One of them has its matrices, one its vectors, a third nothing of it."""
    model = Network()
    matrices = optim.SGD([p for p in model.rnn.parameters() if p.dim() == 2], 0.1)
    vectors = optim.Adam([p for p in model.rnn.parameters() if p.dim() == 1], 0.1)
    other = optim.Adam(model.out.parameters(), 0.1)
    every, norms = [other, matrices, vectors], GradientNorm()
    model.backward()
    expected = model.norm(model.rnn)
    for step, optimizer in enumerate(every):
        norms.note(optimizer, step)
    assert norms.of(every, [model.rnn], 3) == expected
    assert norms.of(every, [model.rnn], 5) is None  # one is of an earlier round
    assert norms.of(every, [nn.GRU(2, 4)], 3) is None


def test_sparse_gradients_and_pieces_of_them_are_not_known() -> None:
    embedding = nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1, 2])).sum().backward()
    assert norms_of(optim.SGD(embedding.parameters(), 0.1)) == []

    class Piece(torch.Tensor):
        def full_tensor(self) -> None: ...

    weight = nn.Parameter(torch.ones(2))
    weight.grad = torch.ones(2).as_subclass(Piece)
    assert norms_of(optim.SGD([weight], 0.1)) == []


def test_complex_gradients_count_by_their_sizes() -> None:
    weight = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    weight.grad = torch.tensor([3j, 4.0]).conj()
    assert float(norms_of(optim.SGD([weight], 0.1))[0]) == pytest.approx(5.0)


def test_gradients_are_only_read() -> None:
    model = Network()
    optimizer = optim.SGD(model.parameters(), 0.1)
    model.backward()
    before = {name: p.grad for name, p in model.named_parameters()}
    copies = {name: grad.clone() for name, grad in before.items() if grad is not None}
    (norm,) = norms_of(optimizer)
    assert not norm.requires_grad and norm.dtype == torch.float32
    assert all(p.grad is before[name] for name, p in model.named_parameters())
    assert all(torch.equal(before[name], copy) for name, copy in copies.items())  # type: ignore[arg-type]
