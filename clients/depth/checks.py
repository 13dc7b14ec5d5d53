"""What is checked of every model: its chain found, the values right, and everything left as it was."""

from __future__ import annotations

import copy
import importlib
import json
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

from clients.checks import QUIET
from clients.depth.route import log_singular_values
from lightning_lyapunov import DepthSpectrum, DepthSpectrumCallback, depth_spectrum

EXACT, OTHERS = 1e-3, 1e-2
"""Nats by which the largest value may differ from the other route, and by which those behind it may."""


@dataclass(frozen=True)
class Client:
    """A model of a library."""

    make: Callable[[], nn.Module]
    """Makes it, with random weights."""
    inputs: Callable[[], dict[str, Any]]
    """What its forward takes, by name."""
    chain: Mapping[str, int]
    """Classes of the links that must be found, and how many of each."""
    ends: tuple[str, str]
    """Names of the modules before which the chain begins and after which it ends."""
    module: str | None = None
    """Where the chain is, if it is named."""
    is_conditional: bool = False
    """Whether the chain is given states of before it, which are held fixed."""
    alone: Callable[[dict[str, Any]], Sequence[dict[str, Any]]] = lambda inputs: [inputs]
    """What the other route is given: the same inputs in parts that leave out what must not matter, such as padding."""


@dataclass(frozen=True)
class Refusal:
    """A model that cannot be measured, and must be told why."""

    make: Callable[[], nn.Module]
    """Makes it, with random weights."""
    inputs: Callable[[nn.Module], dict[str, Any]]
    """What its forward takes, by name."""
    because: str
    """A part of what must be said."""


Model = Client | Refusal | Callable[[], None]
"""A model, or an example, which only has to run."""


@dataclass
class Row:
    """A row of the table; each cell is what came out, or what went wrong."""

    library: str
    model: str
    chain: str = "-"
    value: str = "-"
    off: str = "-"
    others: str = "-"
    untouched: str = "-"
    trained: str = "-"
    seconds: float = 0.0


def check(library: str, name: str, client: Model) -> Row:
    """Measure a model, and look at what came of it."""
    row, start = Row(library, name), time.perf_counter()
    torch.manual_seed(0)
    with _told(row, "chain"):
        if isinstance(client, Client):
            _measure(row, client)
        elif isinstance(client, Refusal):
            _refuse(row, client)
        else:
            client()
            row.chain = "runs"
    row.seconds = time.perf_counter() - start
    return row


def _measure(row: Row, client: Client) -> None:
    model, inputs = stirred(client.make()), client.inputs()
    plain, alone = copy.deepcopy(model).double(), client.alone(copy.deepcopy(inputs))
    passed = copy.deepcopy(inputs)
    model(**passed)  # what a forward pass leaves behind in its arguments, such as a cache, is not ours
    before, left_behind = _contents(model), _contents(passed)
    spectrum = depth_spectrum(model, inputs, module=client.module)
    row.untouched = "yes" if _same(before, _contents(model)) and _same(left_behind, _contents(inputs)) else "NO"
    row.chain = _chain(model, spectrum, client)
    row.value = f"{float(spectrum.log_singular_values[0]):+.3f}"
    with _told(row, "trained"):
        row.trained = _trained(client, spectrum)
    with _told(row, "off"):
        differences = _off(spectrum, plain, [_double(one) for one in alone], client.ends)
        row.off = _within(differences[:1], EXACT)
        row.others = _within(differences[1:], OTHERS) if len(differences) > 1 else "-"


def _refuse(row: Row, client: Refusal) -> None:
    model = stirred(client.make())
    try:
        spectrum = depth_spectrum(model, client.inputs(model))
        row.chain = f"{spectrum.names}, NOT refused"
    except ValueError as error:
        row.chain = "refused" if client.because in str(error) else f"refused, NOT as {client.because}: {error}"


def stirred(model: nn.Module) -> nn.Module:
    """A model in eval mode whose weights are as large as those that have learnt.

    Fresh ones are so small, or even zero, that many blocks pass everything on as it is, whatever they are made of.
    Batch normalisation has statistics of some data.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            size = 0.1 if parameter.dim() < 2 else 0.5 * parameter[0].numel() ** -0.5
            parameter += size * torch.randn(parameter.shape, generator=generator)
        for part in model.modules():
            if isinstance(part, _BatchNorm):
                part.running_mean.normal_(0, 0.1, generator=generator)
                part.running_var.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


# ---------------------------------------------------------------- what was found


def _chain(model: nn.Module, spectrum: DepthSpectrum, client: Client) -> str:
    kinds = Counter(type(model.get_submodule(name.partition("#")[0])).__name__ for name in spectrum.names)
    told = _listed(kinds) + (", by name" if client.module else "")
    told += ", conditional" if spectrum.conditional else ""
    wrong = kinds != Counter(client.chain) or bool(spectrum.conditional) != client.is_conditional
    return f"{told}, NOT {_listed(client.chain)}{', conditional' * client.is_conditional}" if wrong else told


def _listed(kinds: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items())


def _off(spectrum: DepthSpectrum, model: nn.Module, inputs: Sequence[dict[str, Any]], ends: tuple[str, str]) -> Tensor:
    """The largest difference of each value that is known by the other route too."""
    parts = [log_singular_values(model, lambda one=one: model(**one), *ends) for one in inputs]
    count = min(part.shape[1] for part in parts)
    expected = torch.cat([part[:, :count] for part in parts])
    measured = spectrum.per_sample[:, :count].double()
    return torch.where(measured == expected, 0, measured - expected).abs().amax(0)  # -inf may be what it is


def _within(differences: Tensor, most: float) -> str:
    told = f"{float(differences.max()):.0e}"
    return told if bool((differences < most).all()) else f"{told}, NO"


# ---------------------------------------------------------------- in training


class Training(pl.LightningModule):
    """Makes what a model returns small.

    Args:
        client: The model, and what it takes, of which random parts are drawn anew each time.
    """

    def __init__(self, client: Client) -> None:
        super().__init__()
        self.model, self._inputs = client.make(), client.inputs

    def training_step(self, _: Any, __: int) -> Tensor:
        """The mean square of the first tensor that is returned."""
        output = next(t for _, t in _tensors(self.model(**self._inputs()), "") if t.is_floating_point())
        return output.square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain descent."""
        return torch.optim.SGD(self.parameters(), 1e-2)


def _trained(client: Client, spectrum: DepthSpectrum) -> str:
    """Whether the same chain is found in training, and the weights after it are those without the callback."""
    callback = DepthSpectrumCallback(client.module and f"model.{client.module}", tolerance=1.0)
    plain, watched = _fit(client, []), _fit(client, [callback])
    if not _same(_contents(plain), _contents(watched)):
        return "DIFFERS"
    if callback.spectrum is None:
        return "NOTHING FOUND"
    names = tuple(name.removeprefix("model.") for name in callback.spectrum.names)
    return "yes" if names == spectrum.names else f"ANOTHER CHAIN: {len(names)} links"


def _fit(client: Client, callbacks: list[Any]) -> nn.Module:
    pl.seed_everything(0, verbose=False)
    training = Training(client)
    trainer = pl.Trainer(max_epochs=1, callbacks=callbacks, **QUIET)
    trainer.fit(training, DataLoader(range(3), batch_size=1))
    training.zero_grad()
    return training


# ---------------------------------------------------------------- what must not change


def _contents(thing: Any) -> list[tuple[str, Any]]:
    """Everything that a model or its arguments hold: tensors, modes, hooks, and the global random state."""
    if not isinstance(thing, nn.Module):
        return [(name, tensor.clone()) for name, tensor in _tensors(thing, "")]
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    parts = [(name, [part.training, *(len(getattr(part, k)) for k in kinds)]) for name, part in thing.named_modules()]
    tensors = [*thing.named_parameters(), *thing.named_buffers()]
    gradients = [(name, parameter.grad) for name, parameter in thing.named_parameters()]
    kept = [(name, tensor.detach().clone()) for name, tensor in tensors]
    return [*parts, *kept, *gradients, ("random state", torch.get_rng_state())]


def _tensors(thing: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """Tensors in arguments or in what was returned, also inside caches."""
    if isinstance(thing, Tensor):
        yield name, thing
    elif isinstance(thing, Mapping):
        for key, value in thing.items():
            yield from _tensors(value, f"{name}.{key}")
    elif isinstance(thing, list | tuple):
        for place, value in enumerate(thing):
            yield from _tensors(value, f"{name}.{place}")
    elif type(thing).__module__.startswith("transformers"):
        yield from _tensors(vars(thing), name)


def _same(one: list[tuple[str, Any]], other: list[tuple[str, Any]]) -> bool:
    return len(one) == len(other) and all(a[0] == b[0] and _equal(a[1], b[1]) for a, b in zip(one, other, strict=True))


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.equal(one, other)
    return type(one) is type(other) and bool(one == other)


def _double(inputs: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in inputs.items()
    }


@contextmanager
def _told(row: Row, cell: str) -> Iterator[None]:
    """Write down what goes wrong and go on."""
    try:
        yield
    except Exception as error:
        traceback.print_exc()
        first = str(error).strip().splitlines()[0] if str(error).strip() else ""
        setattr(row, cell, f"{type(error).__name__}: {first[:160]}")


def run(library: str, path: Path, done: Sequence[str] = ()) -> None:
    """Check the models of a library, and add a row to the file after each."""
    models: dict[str, Model] = importlib.import_module(f"clients.depth.{library}").MODELS
    for name, client in models.items():
        if name in done:
            continue
        print(f"\n==== {library} {name}", flush=True)
        row = check(library, name, client)
        print(row, flush=True)
        with path.open("a") as file:
            file.write(json.dumps(asdict(row)) + "\n")
