"""Spectra of made-up cases, against a dense oracle and against each other.

The oracle knows nothing of the engine: torch's own layers, sequence by sequence and step by step in float64, their
Jacobians by autograd, Householder after every step. Only the frames it starts from are the engine's, a convention.
Where several columns of a frame are compared, it is column by column, before they are sorted.

Each property holds for some hundred cases in ``make test`` and for twenty times as many in ``make slow``; what
Hypothesis makes up is the same every time. A case that once failed is kept as an example.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from systems import tally_of
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from lightning_lyapunov import LyapunovSpectrum, lyapunov_spectrum
from lightning_lyapunov.engine.frames import Frames, random_frames
from lightning_lyapunov.engine.measure import SystemTally, spare
from lightning_lyapunov.engine.precision import TOLERANCE, unit_roundoff
from lightning_lyapunov.engine.spectrum import largest_first
from lightning_lyapunov.engine.tally import Tally

LAYERS: dict[str, tuple[Callable[..., nn.RNNBase], dict[str, Any]]] = {
    "tanh": (nn.RNN, {}),
    "relu": (nn.RNN, {"nonlinearity": "relu"}),
    "gru": (nn.GRU, {}),
    "lstm": (nn.LSTM, {}),
}
CELLS: dict[str, tuple[Callable[..., nn.RNNCellBase], dict[str, Any]]] = {
    "tanh cell": (nn.RNNCell, {}),
    "relu cell": (nn.RNNCell, {"nonlinearity": "relu"}),
    "gru cell": (nn.GRUCell, {}),
    "lstm cell": (nn.LSTMCell, {}),
}


class Own(nn.Module):
    """A cell of one's own with one part of state: a leaky one around a matrix."""

    def __init__(self, inputs: int, hidden: int, *, bias: bool) -> None:
        super().__init__()
        self.inner = nn.Linear(inputs + hidden, hidden, bias=bias)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return 0.3 * h + 0.7 * torch.sin(self.inner(torch.cat([x, h], -1)))


class OwnPair(Own):
    """The same with two, the second of which is slow and feeds the first."""

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, slow = state
        return torch.tanh(self.inner(torch.cat([x, h], -1)) + slow.flip(-1)), 0.9 * slow + 0.2 * h * slow.cos()


OWN: dict[str, type[Own]] = {"own": Own, "own pair": OwnPair}
KINDS = [*LAYERS, *CELLS, *OWN]


@dataclass(frozen=True)
class Case:
    """What is measured, and how."""

    kind: str = "tanh"
    hidden: int = 1
    inputs: int = 1
    steps: int = 1
    batch: int = 1
    layers: int = 1
    both_ways: bool = False
    projection: int = 0
    bias: bool = True
    batch_first: bool = False
    lengths: tuple[int, ...] | None = None
    driven: bool = True
    with_state: bool = False
    gain: float = 1.0
    loudness: float = 1.0
    seed: int = 0
    k: int | None = None
    transient: int = 0
    growth: int | None = 0
    cut: int | None = None
    interval: int | None = None
    dtype: torch.dtype | None = None
    chosen: tuple[int, ...] | None = None
    """Which of the ``batch`` sequences are measured, in which order; all if None."""

    @property
    def is_pair(self) -> bool:
        return self.kind.startswith("lstm") or self.kind == "own pair"

    @property
    def sizes(self) -> list[int]:
        """Of the parts of a layer's state."""
        return [self.projection or self.hidden, self.hidden][: 1 + self.is_pair]

    @property
    def maps(self) -> int:
        """Layers and directions."""
        return self.layers * (1 + self.both_ways)

    @property
    def rows(self) -> list[int]:
        """Sequences that are measured."""
        return list(range(self.batch)) if self.chosen is None else list(self.chosen)

    def system(self) -> nn.Module:
        """In float64, with normal weights whose recurrent part has about the spectral radius ``gain``."""
        with torch.random.fork_rng(devices=[]):
            if self.kind in LAYERS:
                family, own = LAYERS[self.kind]
                projected = {"proj_size": self.projection} if self.projection else {}
                module: nn.Module = family(
                    self.inputs, self.hidden, self.layers, bias=self.bias, batch_first=self.batch_first,
                    bidirectional=self.both_ways, **own, **projected,
                )  # fmt: skip
            elif self.kind in CELLS:
                cell, own = CELLS[self.kind]
                module = cell(self.inputs, self.hidden, bias=self.bias, **own)
            else:
                module = OWN[self.kind](self.inputs, self.hidden, bias=self.bias)
        for i, weight in enumerate(module.double().parameters()):
            scale = self.gain / math.sqrt(self.hidden) if weight.dim() == 2 else 0.5
            weight.data = scale * normal(*weight.shape, seed=1000 * self.seed + i)
        return module

    def sequences(self) -> Tensor:
        """``(T, B, I)``."""
        loudness = self.loudness if self.driven else 0.0
        return loudness * normal(self.steps, self.batch, self.inputs, seed=1000 * self.seed + 500)[:, self.rows]

    def initial(self) -> list[Tensor]:
        """The parts of the state, each ``(layers x directions, B, size)``."""
        scale = 0.5 if self.with_state else 0.0
        seed = 1000 * self.seed + 600
        parts = [normal(self.maps, self.batch, size, seed=seed + i) for i, size in enumerate(self.sizes)]
        return [scale * part[:, self.rows] for part in parts]

    def arguments(self) -> tuple[Tensor | PackedSequence | None, Any]:
        """Inputs and state as the system takes them."""
        parts = self.initial() if self.kind in LAYERS else [part[0] for part in self.initial()]
        state = None if not self.with_state and self.kind not in OWN else tuple(parts) if self.is_pair else parts[0]
        values = self.sequences()
        if not self.driven:
            return None, state
        if self.lengths is not None:
            lengths = torch.tensor(self.lengths)[self.rows]
            return pack_padded_sequence(values, lengths, enforce_sorted=False), state
        return values.transpose(0, 1) if self.batch_first else values, state

    def measure(self, system: nn.Module | None = None, **other: Any) -> LyapunovSpectrum:
        inputs, options = self._options()
        return lyapunov_spectrum(self.system() if system is None else system, inputs, **{**options, **other})

    def tally(self, system: nn.Module | None = None, **other: Any) -> SystemTally:
        """The same up to its raw sums, in which columns of the frame are not sorted."""
        inputs, options = self._options()
        return tally_of(self.system() if system is None else system, inputs, **{**options, **other})

    def _options(self) -> tuple[Tensor | PackedSequence | None, dict[str, Any]]:
        inputs, state = self.arguments()
        return inputs, {
            "k": self.k, "transient": self.transient, "interval": self.interval, "dtype": self.dtype,
            "growth": self.growth, "steps": self.cut if self.driven else self.steps, "state": state,
        }  # fmt: skip

    @property
    def ends(self) -> list[int]:
        """Steps of each sequence, as far as it is run."""
        lengths = self.lengths or [self.steps] * self.batch
        return [min(lengths[row], self.cut or self.steps) for row in self.rows]


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@st.composite
def cases(draw: st.DrawFn, kinds: list[str] = KINDS) -> Case:
    def size(least: int, most: int) -> int:
        return draw(st.integers(least, most))

    kind, hidden, steps, batch = draw(st.sampled_from(kinds)), size(1, 12), size(1, 20), size(1, 4)
    is_layer = kind in LAYERS
    driven = kind in OWN or draw(st.sampled_from([True, True, True, False]))
    is_packed = is_layer and driven and draw(st.booleans())
    lengths = (steps, *(size(1, steps) for _ in range(batch - 1))) if is_packed else None
    case = Case(
        kind=kind,
        hidden=hidden,
        inputs=size(1, 5),
        steps=steps,
        batch=batch,
        layers=size(1, 2) if is_layer else 1,
        both_ways=is_layer and draw(st.booleans()),
        projection=size(0, hidden - 1) if kind == "lstm" else 0,
        bias=draw(st.booleans()),
        batch_first=is_layer and not is_packed and draw(st.booleans()),
        lengths=None if lengths is None else tuple(draw(st.permutations(lengths))),
        driven=driven,
        # Without inputs, the number of sequences is known from the state alone.
        with_state=not driven or draw(st.booleans()),
        gain=draw(st.sampled_from([1.0, 0.3, 1.5, 3.0])),
        loudness=draw(st.sampled_from([1.0, 0.0, 4.0])),
        seed=size(0, 99),
        interval=draw(st.sampled_from([None, None, 1, 1, 2, 3, 8])),
        dtype=draw(st.sampled_from([None, torch.float64, torch.float32])),
    )
    dimension = case.maps * sum(case.sizes)
    cut = size(1, steps) if driven and draw(st.booleans()) else None
    return replace(
        case,
        k=draw(st.none() | st.integers(1, dimension)),
        cut=cut,
        transient=size(0, (cut or steps) - 1),
    )


@dataclass
class Columns:
    """What was measured of a layer, by column of the frame."""

    exponents: Tensor
    """(K,)"""
    per_sequence: Tensor
    """``(B, K)``"""
    trusted: Tensor
    """(K,) bool"""

    @staticmethod
    def of(tally: Tally) -> Columns:
        steps = tally.steps.sum(0).double()
        sums = tally.log.sum(0)
        mean = mean_of_living(sums[steps > 0], steps[steps > 0])
        order = largest_first(mean)[1]
        trusted = tally.spectrum(len(mean)).trusted[order.argsort()]
        return Columns(mean, sums / steps.unsqueeze(1), trusted)


def mean_of_living(sums: Tensor, steps: Tensor) -> Tensor:
    """Rates (K,) of ``sums`` ``(B, K)`` in ``steps`` (B,): over the living, where most live; else -inf."""
    rates = []
    for column in sums.unbind(1):
        living = ~column.isneginf()
        living = living if 2 * int((~living).sum()) < len(column) else torch.ones_like(living)
        rates.append(column[living].sum() / steps[living].sum())
    return torch.stack(rates)


def layers(tally: SystemTally) -> list[Columns]:
    return [Columns.of(part) for part in tally.parts.values()]


CASES = pytest.mark.parametrize("times", [1, pytest.param(20, marks=pytest.mark.slow)], ids=["some", "many"])


def holds(property_: Callable[[Any], None], examples: int) -> None:
    """Try a property, made by ``given``, on so many cases, the same every time."""
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much]
    settings(
        max_examples=examples, derandomize=True, database=None, deadline=None, suppress_health_check=checks,
        print_blob=False,
    )(property_)()  # fmt: skip


# ------------------------------------------------------------------ the dense oracle


def maps(case: Case, system: nn.Module) -> Iterator[tuple[str, Callable[[Tensor, Tensor], Tensor]]]:
    """Torch's own step ``(x (N, I), state (N, D)) -> (N, D)`` of each layer and direction."""
    if not isinstance(system, nn.RNNBase):

        def call(x: Tensor, s: Tensor) -> Tensor:
            parts = s.split(case.sizes, -1)
            result = system(x, parts if case.is_pair else parts[0])
            return torch.cat(result, -1) if case.is_pair else result

        yield "", call
        return
    for layer in range(case.layers):
        for suffix in ["", "_reverse"][: 1 + case.both_ways]:
            weights = {name: w for name, w in system.named_parameters() if name.endswith(f"_l{layer}{suffix}")}
            family, own = LAYERS[case.kind]
            projected = {"proj_size": case.projection} if case.projection else {}
            width = weights[f"weight_ih_l{layer}{suffix}"].shape[1]
            one = family(width, case.hidden, bias=case.bias, **own, **projected).double()
            for name, weight in weights.items():
                getattr(one, name.replace(f"_l{layer}{suffix}", "_l0")).data = weight.data

            def step(x: Tensor, s: Tensor, one: nn.RNNBase = one) -> Tensor:
                parts = [part[None].contiguous() for part in s.split(case.sizes, -1)]
                result = one(x[None], tuple(parts) if case.is_pair else parts[0])[1]
                return torch.cat(result, -1)[0] if case.is_pair else result[0]

            yield suffix, step


def jacobians(step: Callable[[Tensor, Tensor], Tensor], inputs: Tensor, states: Tensor) -> Tensor:
    """``(T, D, D)`` by autograd; rows do not act on each other, so that one pass tells a row of all of them."""
    s = states.detach().requires_grad_()
    image = step(inputs, s)
    rows = [torch.autograd.grad(image[:, d].sum(), s, retain_graph=True)[0] for d in range(image.shape[1])]
    return torch.stack(rows, 1)


@dataclass
class Found:
    """Of one layer and direction, by column of the frame."""

    exponents: Tensor
    """(K,)"""
    per_sequence: Tensor
    """``(B, K)``"""
    lag: Tensor
    """(K,) the most, in nats, that a column fell behind what a Jacobian made of the frame: what was left of it."""
    chaos: float
    """By which factor a difference in the state grows, if it does, from the first step on."""
    blur: Tensor
    """(K,) the most that it fell behind the weights, whose rounding is what autograd makes of a saturated unit."""
    products: list[Tensor]
    """Of each sequence, the product of all its Jacobians ``(D, D)``."""


def oracle(case: Case, system: nn.Module, columns: list[int]) -> Iterator[Found]:
    """Each layer and direction of a system, followed along the inputs of a case with so many columns of each."""
    sequences = [values[:end] for values, end in zip(case.sequences().unbind(1), case.ends, strict=True)]
    above: list[list[Tensor]] = [[] for _ in sequences]
    initial = torch.cat(case.initial(), -1)
    largest = max(1.0, *(float(weight.detach().abs().max()) for weight in system.parameters()))
    for row, (suffix, step) in enumerate(maps(case, system)):
        size, k = initial.shape[-1], columns[row]
        products = []
        grown, lag, blur = (torch.zeros(n, k, dtype=torch.float64) for n in (len(sequences), len(sequences), 1))
        apart = torch.zeros(len(sequences), k, dtype=torch.float64)
        for b, values in enumerate(sequences):
            driving = values.flip(0) if suffix else values
            states = [initial[row, b : b + 1]]
            for x in driving:
                states.append(step(x[None], states[-1]).detach())
            out = torch.cat(states[1:])[:, : case.sizes[0]]
            above[b].append(out.flip(0) if suffix else out)
            frame, product = random_frames([b], size, k, torch.device("cpu"))[0], torch.eye(size).double()
            for t, jacobian in enumerate(jacobians(step, driving, torch.cat(states[:-1]))):
                pushed, product = jacobian @ frame, jacobian @ product
                frame, r = torch.linalg.qr(pushed)
                log = r.diagonal().abs().log()
                longest = float(pushed.norm(dim=0).max())
                lag[b] = torch.maximum(lag[b], math.log(longest or 1.0) - log)
                blur = torch.maximum(blur, math.log(max(longest, largest)) - log)
                grown[b] += log if t >= case.transient else 0.0
                apart[b] += log
            products.append(product)
        if row % (1 + case.both_ways) == case.both_ways:
            sequences, above = [torch.cat(out, -1) for out in above], [[] for _ in sequences]
        steps = torch.tensor([max(0, end - case.transient) for end in case.ends]).double()
        chaos = float(apart.clamp(min=0.0).sum(1).amax().exp())
        measured = steps > 0
        rates = mean_of_living(grown[measured], steps[measured]), grown / steps.unsqueeze(1)
        dead = grown.isneginf().all(1)
        lag = lag[~dead] if 2 * int(dead.sum()) < len(dead) else lag
        yield Found(*rates, lag.amax(0), chaos, blur.amax(0), products)


EXACT = torch.finfo(torch.float64).eps
LOST = math.log(1 / EXACT) - 5
"""Nats that a column may lag, if the oracle is to tell what it is from rounding."""


@given(cases())
@example(Case("relu", hidden=7, steps=2, driven=False, with_state=True, bias=False, transient=1))  # dies before it
@example(
    Case(
        "lstm", hidden=11, inputs=4, steps=7, batch=3, projection=1, bias=False, lengths=(1, 1, 7),
        gain=3.0, loudness=4.0, seed=20, transient=1, dtype=torch.float32,
    )
)  # fmt: skip
@example(
    Case(
        "lstm", hidden=5, inputs=3, steps=10, batch=3, both_ways=True, lengths=(10, 1, 1),
        gain=3.0, loudness=4.0, interval=2,
    )
)  # fmt: skip
def equals_the_dense_oracle(case: Case) -> None:
    system = case.system()
    spectrum, tally = case.measure(system), case.tally(system)
    expected = oracle(case, system, [part.log.shape[-1] for part in tally.parts.values()])
    for part, of_layer, found in zip(tally.parts.values(), layers(tally), expected, strict=True):
        exponents, per_sequence, trusted = of_layer.exponents, of_layer.per_sequence, of_layer.trusted
        error = (exponents - found.exponents).abs()
        if "relu" in case.kind:  # whose zeros are what they seem
            assert (found.lag[trusted] < LOST).all(), "trusted, though nothing was left of it"
        blur = found.blur.cummax(0).values
        known = blur < LOST - 10
        # Not judged: what rounding states does in chaos or to saturated units, where float32 is the user's wish;
        # what is lost within an interval of the user's, between two Jacobians of which one undoes the other.
        rounding = 300 * unit_roundoff(torch.float32) if case.dtype == torch.float32 else 0.0
        by_states = rounding * blur.exp() * found.chaos
        tolerance = TOLERANCE * (1 if case.interval in (None, 1) else 3)
        assert (error < tolerance + by_states)[trusted & known].all(), (error, trusted)
        if part.dtype == torch.float64 and case.interval == 1:
            assert trusted[known].all()
            limit = 1e-12 + 3000 * EXACT * blur.exp()
            assert (error[known] < limit[known]).all(), (error, limit)
            has_steps = torch.tensor(case.ends) > case.transient
            off = (per_sequence - found.per_sequence).abs()[has_steps]
            assert (off[:, known] < len(off) * max(case.ends) * limit[known]).all()
            assert per_sequence[~has_steps].isnan().all()
    assert spectrum.dimension == case.maps * sum(case.sizes)
    assert len(spectrum.exponents) == (case.k or spectrum.dimension)
    assert (spectrum.sequences, spectrum.steps) == (len(case.rows), max(case.ends) - case.transient)
    told = spectrum.exponents[~spectrum.exponents.isnan()]
    assert torch.equal(told, told.sort(descending=True).values) and spectrum.exponents[len(told) :].isnan().all()
    assert spectrum.exponents[spectrum.trusted].isfinite().all()


@CASES
def test_exponents_are_those_of_a_dense_oracle(times: int) -> None:
    """Oracle: autograd of torch's own layers in float64, Householder at each step."""
    holds(equals_the_dense_oracle, 300 * times)


# ------------------------------------------------------------------ what must not matter


def agree(one: Tensor, other: Tensor, trusted: Tensor, tolerance: float = 2 * TOLERANCE) -> None:
    """Exponents ``(..., K)``, where both are trusted (K,), each of them to the tolerance promised."""
    torch.testing.assert_close(one[..., trusted], other[..., trusted], rtol=0.0, atol=tolerance, equal_nan=True)


@given(cases(), st.data())
def is_that_of_each_sequence(case: Case, data: st.DataObject) -> None:
    """Others in the batch do not matter, with places kept, so the mean is one over sequences."""
    first = data.draw(st.integers(0, case.batch - 1), "first")
    last = data.draw(st.integers(first, case.batch - 1), "last")
    few = replace(case, chosen=tuple(range(first, last + 1)))
    assume(max(few.ends) > case.transient and max(few.ends) == max(case.ends))
    whole, part = case.tally(), few.tally(place=first)
    spectra = part.spectra(case.k).values()
    for a, b, spectrum in zip(layers(whole), layers(part), spectra, strict=True):
        assert spectrum.sequences == last - first + 1
        steps = max(case.ends)  # a mean is promised, of which a sequence may be the smallest part
        alone, among = b.per_sequence, a.per_sequence[first : last + 1]
        agree(among, alone, a.trusted & b.trusted, 2 * TOLERANCE * steps)
        weights = torch.tensor([max(0, end - case.transient) for end in few.ends]).double()
        has_steps = weights > 0
        sums = spectrum.per_sequence[has_steps] * weights[has_steps].unsqueeze(1)
        mean = mean_of_living(sums, weights[has_steps])
        trusted = spectrum.trusted
        torch.testing.assert_close(mean[trusted], spectrum.exponents[trusted], rtol=0.0, atol=1e-9)


@given(cases(), st.data())
def begins_the_whole(case: Case, data: st.DataObject) -> None:
    """The leading k columns of a frame know nothing of those after them."""
    case = replace(case, k=None)
    k = data.draw(st.integers(1, case.maps * sum(case.sizes)), "k")
    growth = data.draw(st.sampled_from([0, None]), "growth")
    whole, part = case.tally(), replace(case, k=k, growth=growth).tally()
    for a, b in zip(layers(whole), layers(part), strict=True):
        kept = len(b.exponents)
        assert kept >= min(k + spare(max(case.ends)), len(a.exponents))
        agree(a.exponents[:kept], b.exponents, a.trusted[:kept] & b.trusted)


@given(cases())
def sums_to_the_volume(case: Case) -> None:
    spectrum = replace(case, k=None).measure()
    assert spectrum.complete
    assume(bool(spectrum.trusted.all()))
    if any(part.per_sequence.isneginf().any() for part in spectrum.layers.values()):
        assert math.isnan(spectrum.sum_rule_error)  # the volume of a sequence that died is nothing
        return
    assert abs(spectrum.sum_rule_error) < TOLERANCE * spectrum.dimension


class Turned(nn.Module):
    """A cell seen in another basis of its state, part by part."""

    def __init__(self, cell: nn.Module, basis: list[Tensor]) -> None:
        super().__init__()
        self.cell = cell
        self.bases = nn.ParameterList(basis)

    def forward(self, x: Tensor, state: Any) -> Any:
        if isinstance(state, Tensor):
            return self.cell(x, state @ self.bases[0]) @ self.bases[0].mT
        new = self.cell(x, tuple(part @ basis for part, basis in zip(state, self.bases, strict=True)))
        return tuple(part @ basis.mT for part, basis in zip(new, self.bases, strict=True))


def permuted(module: nn.Module, order: Tensor) -> nn.Module:
    """A layer or cell of torch's with its hidden units in another order."""
    for name, weight in module.named_parameters():
        gates = weight.data.unflatten(0, (-1, len(order)))[:, order].flatten(0, 1)
        weight.data = gates[:, order] if "hh" in name and weight.dim() == 2 else gates
    return module


@given(cases())
def is_that_of_the_map_in_any_basis(case: Case) -> None:
    """Hidden units in another order; of a cell of one's own, any orthogonal basis. The frame is turned with them."""
    case = replace(case, layers=1, both_ways=False, projection=0, with_state=True, batch_first=False)
    size = case.hidden
    case = replace(case, k=min(case.k or len(case.sizes) * size, len(case.sizes) * size))
    if case.kind in OWN:
        bases = [torch.linalg.qr(normal(size, size, seed=case.seed + i)).Q for i in range(len(case.sizes))]
        turned: nn.Module = Turned(case.system(), bases)
    else:
        order = torch.randperm(size, generator=torch.Generator().manual_seed(case.seed))
        bases = [torch.eye(size, dtype=torch.float64)[order]] * len(case.sizes)
        turned = permuted(case.system(), order)
    inputs, state = case.arguments()
    parts = state if isinstance(state, tuple) else (state,)
    moved = tuple(part @ basis.mT for part, basis in zip(parts, bases, strict=True))
    pushed = min(case.k + spare(max(case.ends)), len(parts) * size)
    frame = random_frames(range(case.batch), len(parts) * size, pushed, torch.device("cpu"))

    def measured(system: nn.Module, parts: tuple[Tensor, ...], frame: Tensor) -> LyapunovSpectrum:
        start = parts if case.is_pair else parts[0]
        frames = Frames()
        frames.begin(inputs, start)
        frames.keep("l0" if case.kind in LAYERS else "cell", frame)
        return case.measure(system, state=start, frames=frames)

    plain = measured(case.system(), parts, frame)
    other = measured(turned, moved, torch.block_diag(*bases) @ frame)
    agree(plain.exponents, other.exponents, plain.trusted & other.trusted)


@given(cases(), st.sampled_from([0, 1, 4, None]))
def grows_as_the_dense_product(case: Case, growth: int | None) -> None:
    """Singular values and gain of each layer's product, from the first step to the last, of every sequence."""
    case = replace(case, growth=growth, dtype=None if case.dtype == torch.float32 else case.dtype)
    system = case.system()
    assume((growth or 0) <= case.maps * sum(case.sizes))
    tally = case.tally(system)
    expected = oracle(case, system, [sum(case.sizes)] * case.maps)
    for part, found in zip(tally.parts.values(), expected, strict=True):
        if growth == 0:
            assert part.growth is None
            continue
        assert part.growth is not None and part.growth.lengths.tolist() == case.ends
        told = part.growth.per_sequence
        assert told.shape == (len(case.rows), min(growth or 8, case.k or 99, part.dimension) if growth is None
                              else min(growth, part.dimension))  # fmt: skip
        for row, product in enumerate(found.products):
            singular = torch.linalg.svdvals(product)
            known = singular[: told.shape[1]] > 1e-9 * float(singular[0])
            if not known.any():
                continue
            exact = told.shape[1] + 12 >= part.dimension  # the whole space is carried
            blur = 3000 * EXACT * float(found.blur[: int(known.sum())].amax().exp())
            off = (told[row] - singular[: told.shape[1]].log())[known].abs()
            limit = TOLERANCE * case.steps if case.dtype is None else 1e-5
            assert float(off.max()) < (limit if exact else 0.3) + blur, off
            seen = product[: case.sizes[0]]
            gain = 0.5 * math.log(float(seen.square().sum()) / case.sizes[0]) if seen.any() else -math.inf
            assert abs(float(part.growth.gain_per_sequence[row]) - gain) < (limit if exact else 0.1) + blur


PROPERTIES = [
    is_that_of_each_sequence,
    begins_the_whole,
    sums_to_the_volume,
    is_that_of_the_map_in_any_basis,
    grows_as_the_dense_product,
]


@CASES
@pytest.mark.parametrize("property_", PROPERTIES, ids=lambda p: p.__name__)
def test_a_spectrum(property_: Callable[[], None], times: int) -> None:
    holds(property_, 75 * times)
