"""One step and its derivative against torch's own modules."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from systems import (
    CELLS,
    FAMILIES,
    Embedded,
    Opaque,
    OpaqueTanh,
    TwoParts,
    Wrapped,
    flat,
    jacobian,
    jacobian_by_autograd,
    network,
    noise,
)
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from lightning_lyapunov import lyapunov_spectrum
from lightning_lyapunov.engine.maps.cell import CellMap
from lightning_lyapunov.engine.maps.elman import ElmanMap
from lightning_lyapunov.engine.maps.families import module_map
from lightning_lyapunov.engine.maps.gru import GRUMap
from lightning_lyapunov.engine.maps.lstm import LSTMMap
from lightning_lyapunov.engine.system import trajectories
from lightning_lyapunov.engine.trajectory import Trajectory

INPUT, HIDDEN, STEPS, BATCH = 3, 5, 7, 3
EXACT = {"rtol": 0.0, "atol": 1e-12}


def sized(kind: str, **options: Any) -> Any:
    return network(kind, INPUT, HIDDEN, gain=1.5, **options)


def initial_state(module: Any, batch: int) -> Any:
    rows = module.num_layers * (1 + module.bidirectional)
    h = noise(rows, batch, module.proj_size or module.hidden_size, seed=11)
    return (h, noise(rows, batch, module.hidden_size, seed=12)) if isinstance(module, nn.LSTM) else h


def flat_rows(state: Any) -> Tensor:
    """A module's state as ``(layers x directions, B, D)``."""
    return torch.cat(list(state) if isinstance(state, tuple) else [state], -1)


def unflat_rows(module: Any, rows: Tensor) -> Any:
    if not isinstance(module, nn.LSTM):
        return rows.contiguous()
    width = module.proj_size or module.hidden_size
    return rows[..., :width].contiguous(), rows[..., width:].contiguous()


def assert_conforms(module: Any, inputs: Tensor | PackedSequence, state: Any = None) -> None:
    """Our trajectory against torch's own module: outputs, final states, and the derivative of every step.

    The derivative of a layer is the diagonal block of the Jacobian of the whole module over a single step.
    """
    paths = list(trajectories(module, inputs, state, None, torch.float64).values())
    outputs, final = module(inputs, state)

    if isinstance(inputs, PackedSequence):
        values, lengths = pad_packed_sequence(inputs)
        outputs = pad_packed_sequence(outputs)[0]
    else:
        batched = [t if t.dim() == 3 else t.unsqueeze(0 if module.batch_first else 1) for t in (inputs, outputs)]
        values, outputs = (t.movedim(0, 1) if module.batch_first else t for t in batched)
        lengths = torch.full((values.shape[1],), len(values))
    rows = flat_rows(final)
    rows = rows if rows.dim() == 3 else rows.unsqueeze(1)

    directions = 1 + module.bidirectional
    width = paths[0].recurrence.output_size
    for b in range(values.shape[1]):
        length = int(lengths[b])
        states = [in_users_rows(path)[: length + 1, b] for path in paths]
        # The reverse direction meets the inputs from the last to the first: its step at time t is its (L - 1 - t)-th.
        before = [s[:-1] if d % directions == 0 else s[:-1].flip(0) for d, s in enumerate(states)]
        after = [s[1:] if d % directions == 0 else s[1:].flip(0) for d, s in enumerate(states)]

        torch.testing.assert_close(torch.stack([s[-1] for s in states]), rows[:, b], **EXACT)
        top = torch.cat([a[:, :width] for a in after[-directions:]], -1)
        torch.testing.assert_close(top, outputs[:length, b], **EXACT)

        for t in (0, length - 1):
            x = values[t, b].reshape(1, 1, -1)

            def step(s: Tensor, x: Tensor = x) -> Tensor:
                return flat_rows(module(x, unflat_rows(module, s))[1])

            start = torch.stack([state[t] for state in before]).unsqueeze(1)
            torch.testing.assert_close(step(start)[:, 0], torch.stack([state[t] for state in after]), **EXACT)
            whole = torch.autograd.functional.jacobian(step, start)
            for layer, path in enumerate(paths):
                own_time = t if layer % directions == 0 else length - 1 - t
                row = b if path.order is None else int(path.order.argsort()[b])
                ours = jacobian(path.recurrence, path.states[own_time, row : row + 1], path.drive[own_time, row][None])
                torch.testing.assert_close(ours[0], whole[layer, 0, :, layer, 0], **EXACT)


def in_users_rows(path: Trajectory) -> Tensor:
    return path.states if path.order is None else path.states[:, path.order.argsort()]


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no bias": {"bias": False},
    "two layers": {"num_layers": 2},
    "three layers": {"num_layers": 3, "bias": False},
    "bidirectional": {"bidirectional": True},
    "two bidirectional layers": {"num_layers": 2, "bidirectional": True},
    "batch first": {"batch_first": True, "num_layers": 2, "bidirectional": True},
    "dropout": {"num_layers": 2, "dropout": 0.5},
}
PROJECTED: dict[str, dict[str, Any]] = {
    "projection": {"proj_size": 2},
    "projection, stacked both ways": {"proj_size": 2, "num_layers": 3, "bidirectional": True, "bias": False},
    "projection, batch first": {"proj_size": 4, "num_layers": 2, "batch_first": True},
}
CASES = [
    *[pytest.param(kind, options, id=f"{kind}, {name}") for kind in FAMILIES for name, options in OPTIONS.items()],
    *[pytest.param("lstm", options, id=f"lstm, {name}") for name, options in PROJECTED.items()],
]


@pytest.mark.parametrize("form", ["batched", "unbatched", "packed", "packed and sorted"])
@pytest.mark.parametrize(("kind", "options"), CASES)
def test_step_and_derivative_equal_torchs_own(kind: str, options: dict[str, Any], form: str) -> None:
    module = sized(kind, **options).eval()
    first = module.batch_first
    if form == "unbatched":
        state = initial_state(module, 1)
        state = tuple(part[:, 0] for part in state) if isinstance(state, tuple) else state[:, 0]
        return assert_conforms(module, noise(STEPS, INPUT), state)
    inputs: Any = noise(BATCH, STEPS, INPUT) if first else noise(STEPS, BATCH, INPUT)
    if form == "packed":
        inputs = pack_padded_sequence(inputs, torch.tensor([4, STEPS, 1]), batch_first=first, enforce_sorted=False)
    elif form == "packed and sorted":
        inputs = pack_padded_sequence(inputs, torch.tensor([STEPS, 4, 4]), batch_first=first)
    assert_conforms(module, inputs)
    assert_conforms(module, inputs, initial_state(module, BATCH))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", CELLS)
def test_cell_and_derivative_equal_torchs_own(kind: str, bias: bool, device: torch.device) -> None:
    cell = sized(kind, bias=bias).to(device)
    lstm = isinstance(cell, nn.LSTMCell)
    inputs, h = noise(STEPS, BATCH, INPUT).to(device), noise(BATCH, HIDDEN, seed=1).to(device)
    state: Any = (h, noise(BATCH, HIDDEN, seed=2).to(device)) if lstm else h
    (path,) = trajectories(cell, inputs, state, None, None).values()
    for t in range(STEPS):

        def step(s: Tensor, t: int = t) -> Tensor:
            return flat(cell(inputs[t], tuple(s.chunk(2, -1)) if lstm else s))

        start = path.states[t]
        torch.testing.assert_close(path.states[t + 1], step(start).detach(), **EXACT)
        ours = jacobian(path.recurrence, start, path.drive[t])
        torch.testing.assert_close(ours, jacobian_by_autograd(step, start), **EXACT)


PARAMETRISED = ["weight_norm", "orthogonal", "spectral_norm"]


@pytest.mark.parametrize("parametrise", PARAMETRISED)
@pytest.mark.parametrize("kind", ["tanh", "gru", "lstm"])
def test_parametrised_weights_are_those_torch_computes_with(kind: str, parametrise: str) -> None:
    module = sized(kind)
    getattr(parametrizations, parametrise)(module, "weight_hh_l0")
    assert_conforms(module.eval(), noise(STEPS, BATCH, INPUT))


HOOKED: dict[str, Callable[[nn.Module, str], Any]] = {
    "weight_norm": nn.utils.weight_norm,
    "spectral_norm": nn.utils.spectral_norm,
    "pruned": lambda module, name: prune.random_unstructured(module, name, 0.5),
    "pruned twice": lambda module, name: [prune.random_unstructured(module, name, 0.3) for _ in range(2)],
    "pruned bias": lambda module, name: prune.random_unstructured(module, "bias_hh_l0", 0.5),
}


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm`:FutureWarning")
@pytest.mark.parametrize("hook", [*HOOKED, *PARAMETRISED])
@pytest.mark.parametrize("kind", ["tanh", "lstm"])
def test_weights_are_those_of_the_next_forward_pass_after_an_update(kind: str, hook: str) -> None:
    """The older hooks compute the weight before each forward pass: between an update and the next one it is stale."""
    module = sized(kind)
    if hook in HOOKED:
        HOOKED[hook](module, "weight_hh_l0")
    else:
        getattr(parametrizations, hook)(module, "weight_hh_l0")
    inputs = noise(STEPS, BATCH, INPUT)
    module(inputs)[0].sum().backward()
    torch.optim.SGD(module.parameters(), lr=0.1).step()
    module.eval()
    (ours,) = trajectories(module, inputs, None, None, None).values()  # before any other forward pass
    torch.testing.assert_close(ours.states[-1], flat_rows(module(inputs)[1])[0].detach(), **EXACT)
    assert_conforms(module, inputs)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm`:FutureWarning")
@pytest.mark.parametrize("hook", ["weight_norm", "spectral_norm", "pruned"])
def test_hooked_weights_inside_a_custom_cell(hook: str) -> None:
    cell = sized("gru cell")
    HOOKED[hook](cell, "weight_hh")
    cell(noise(BATCH, INPUT), noise(BATCH, HIDDEN)).sum().backward()
    torch.optim.SGD(cell.parameters(), lr=0.1).step()
    inputs, state = noise(STEPS, BATCH, INPUT), noise(BATCH, HIDDEN)
    options: dict[str, Any] = {"state": state, "interval": 1, "dtype": torch.float64}
    known = lyapunov_spectrum(cell, inputs, **options).per_sequence
    torch.testing.assert_close(
        lyapunov_spectrum(Wrapped(cell), inputs, **options).per_sequence, known, rtol=0, atol=1e-10
    )


@pytest.mark.parametrize("kind", ["tanh", "gru", "lstm"])
def test_spectral_norm_is_measured_without_its_power_iteration(kind: str) -> None:
    module = parametrizations.spectral_norm(sized(kind), "weight_hh_l0").train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    inputs = noise(STEPS, BATCH, INPUT)
    measured = lyapunov_spectrum(module, inputs)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert torch.equal(lyapunov_spectrum(module.eval(), inputs).exponents, measured.exponents)


def test_dropout_between_layers_is_off_in_train_mode_too() -> None:
    module, inputs = sized("lstm", num_layers=3, dropout=0.5), noise(STEPS, BATCH, INPUT)
    measured = lyapunov_spectrum(module.train(), inputs)
    without = sized("lstm", num_layers=3)
    without.load_state_dict(module.state_dict())
    assert torch.equal(measured.per_sequence, lyapunov_spectrum(without, inputs).per_sequence)


@pytest.mark.parametrize("kind", [*FAMILIES, *CELLS])
def test_saturated_units_keep_their_slope(kind: str) -> None:
    """1 - tanh²(a) is 0 in floating point from a = 19 on; the slope there is 1 / cosh²(a), about 4 e^(-2a)."""
    recurrence = module_map(sized(kind), torch.float64, "" if kind in CELLS else "_l0")
    drive = torch.full((1, 1, recurrence.gates * HIDDEN), 25.0, dtype=torch.float64)  # type: ignore[attr-defined]
    factors = recurrence.linearise(torch.zeros(1, 1, recurrence.state_size, dtype=torch.float64), drive)
    assert all((factor[factor != 0].abs() > 0).all() for factor in factors)
    if kind == "tanh":
        bias = recurrence.bias_hh  # type: ignore[attr-defined]
        expected = 1 / torch.cosh(25.0 + bias) ** 2
        torch.testing.assert_close(factors[0][0, 0], expected, rtol=1e-12, atol=0.0)


# ------------------------------------------------------------------ the volume


VOLUMES: dict[str, Callable[[], Any]] = {
    "tanh": lambda: sized("tanh"),
    "gru": lambda: sized("gru"),
    "lstm": lambda: sized("lstm"),
    "lstm projected": lambda: sized("lstm", proj_size=3),
}


@pytest.mark.parametrize("name", VOLUMES)
def test_log_volume_equals_log_determinant_of_torchs_jacobian(name: str) -> None:
    module = VOLUMES[name]()
    (path,) = trajectories(module, noise(STEPS, BATCH, INPUT), None, None, None).values()
    recurrence = path.recurrence
    factors = recurrence.linearise(path.states[:-1], path.drive)
    closed = recurrence.log_volume(factors, 1)
    dense = recurrence.dense(factors).log_volume()
    assert (closed is None) == (name == "gru")
    for t in range(STEPS):
        for b in range(BATCH):

            def step(s: Tensor, t: int = t, b: int = b) -> Tensor:
                return flat_rows(module(noise(STEPS, BATCH, INPUT)[t, b].reshape(1, 1, -1), unflat_rows(module, s))[1])

            start = path.states[t, b].reshape(1, 1, -1)
            theirs = torch.autograd.functional.jacobian(step, start)[0, 0, :, 0, 0].slogdet().logabsdet
            for ours in (dense, dense if closed is None else closed):
                torch.testing.assert_close(ours[t, b], theirs, rtol=0.0, atol=1e-11)


# ------------------------------------------------------------------ any other cell


CUSTOM: dict[str, Callable[[], tuple[Any, Tensor, Any]]] = {
    "wrapped gru": lambda: (Wrapped(nn.GRUCell(INPUT, HIDDEN)), noise(BATCH, INPUT), noise(BATCH, HIDDEN)),
    "tuple state": lambda: (
        Wrapped(nn.LSTMCell(INPUT, HIDDEN)),
        noise(BATCH, INPUT),
        (noise(BATCH, HIDDEN), noise(BATCH, HIDDEN)),
    ),
    "axes": lambda: (TwoParts(4), noise(BATCH, 4), (noise(BATCH, 4), noise(BATCH, 2, 3))),
    "integers": lambda: (Embedded(INPUT, HIDDEN), torch.tensor([1, 9, 1]), noise(BATCH, HIDDEN)),
    "reverse mode": lambda: (Opaque(INPUT, HIDDEN), noise(BATCH, INPUT), noise(BATCH, HIDDEN)),
}


@pytest.mark.parametrize("name", CUSTOM)
def test_derivative_of_any_cell_equals_autograd(name: str, device: torch.device) -> None:
    cell, x, state = CUSTOM[name]()
    cell, x = cell.double().to(device), x.to(device)
    state = tuple(part.to(device) for part in state) if isinstance(state, tuple) else state.to(device)
    ours = CellMap(cell, state, driven=True, dtype=torch.float64)
    start = ours.flatten(state)
    torch.testing.assert_close(ours.step(start, x), flat(cell(x, state)).detach(), **EXACT)

    def step(s: Tensor) -> Tensor:
        return flat(cell(x, ours.unflatten(s)))

    torch.testing.assert_close(jacobian(ours, start, x), jacobian_by_autograd(step, start), **EXACT)
    if device.type == "cpu":
        assert ours._forward_mode is (name != "reverse mode")


@pytest.mark.parametrize("kind", CELLS)
def test_closed_form_equals_automatic_differentiation(kind: str) -> None:
    cell = sized(kind)
    inputs = noise(20, BATCH, INPUT)
    lstm = isinstance(cell, nn.LSTMCell)
    state: Any = (noise(BATCH, HIDDEN), noise(BATCH, HIDDEN)) if lstm else noise(BATCH, HIDDEN)
    k = 2 if "relu" in kind else None  # behind a dead direction the rest of a finite-time ordering is not unique
    known = lyapunov_spectrum(cell, inputs, state=state, interval=1, k=k, dtype=torch.float64)
    as_module = lyapunov_spectrum(Wrapped(cell), inputs, state=state, interval=1, k=k, dtype=torch.float64)
    as_callable = lyapunov_spectrum(lambda x, s: cell(x, s), inputs, state=state, interval=1, k=k)
    torch.testing.assert_close(as_module.per_sequence, known.per_sequence, rtol=0.0, atol=1e-10)
    torch.testing.assert_close(as_callable.per_sequence, known.per_sequence, rtol=0.0, atol=1e-10)


def test_a_cell_may_write_to_the_state_it_is_given() -> None:
    linear, state = nn.Linear(HIDDEN, HIDDEN).double(), noise(BATCH, HIDDEN)
    given = state.clone()

    def pure(x: Any, h: Tensor) -> Tensor:
        return torch.tanh(2 * linear(h))

    written = lyapunov_spectrum(lambda x, h: h.copy_(pure(x, h)), None, state=given, steps=STEPS)
    assert torch.equal(given, state)
    assert torch.equal(written.per_sequence, lyapunov_spectrum(pure, None, state=state, steps=STEPS).per_sequence)


def test_a_noisy_cell_has_one_jacobian_per_step() -> None:
    """Each step scales the plane by a random number, the same for every direction: all of them grow alike."""

    def noisy(_: Any, h: Tensor) -> Tensor:
        return torch.randn((), dtype=h.dtype) * h

    rates = lyapunov_spectrum(noisy, None, state=noise(BATCH, HIDDEN), steps=STEPS, interval=1).per_sequence
    torch.testing.assert_close(rates, rates[:1, :1].expand_as(rates), **EXACT)


def test_flatten_inverts_unflatten() -> None:
    state = (noise(BATCH, 4), noise(BATCH, 2, 3), noise(BATCH))
    ours = CellMap(lambda x, s: s, state, driven=False, dtype=torch.float64)
    assert ours.state_size == 4 + 6 + 1
    assert all(torch.equal(a, b) for a, b in zip(state, ours.unflatten(ours.flatten(state)), strict=True))


def test_a_cell_that_detaches_its_state_is_dead_in_both_modes() -> None:
    class Detached(nn.Module):
        def forward(self, x: Tensor, state: Tensor) -> Tensor:
            return torch.tanh(state.detach() + x)

    class OpaqueDetached(nn.Module):
        def forward(self, x: Tensor, state: Tensor) -> Tensor:
            return OpaqueTanh.apply(state.detach() + x)

    for cell in (Detached(), OpaqueDetached()):
        spectrum = lyapunov_spectrum(cell, noise(4, 2, 3), state=noise(2, 3))
        assert spectrum.exponents.tolist() == [-torch.inf] * 3


# ------------------------------------------------------------------ floating types


@pytest.mark.parametrize("kind", [*FAMILIES, *CELLS])
def test_casting_a_map_casts_its_arithmetic(kind: str) -> None:
    wide = module_map(sized(kind), torch.float64, "" if kind in CELLS else "_l0")
    narrow = wide.to(torch.float32)
    assert wide.dtype == torch.float64 and narrow.dtype == torch.float32
    state, x = noise(BATCH, wide.state_size), noise(BATCH, INPUT)
    near = {"rtol": 0.0, "atol": 1e-5}
    image = narrow.run(x.float()[None], narrow.drive(x.float()[None]), state.float())[1]
    assert image.dtype == torch.float32
    torch.testing.assert_close(image.double(), wide.run(x[None], wide.drive(x[None]), state)[1], **near)
    ours = jacobian(narrow, state.float(), narrow.drive(x.float()))
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), jacobian(wide, state, wide.drive(x)), **near)


def test_casting_a_custom_module_leaves_indices_and_itself_alone() -> None:
    cell = Embedded(INPUT, HIDDEN)
    ours = CellMap(cell, noise(BATCH, HIDDEN), driven=True, dtype=torch.float64)
    assert ours.step(noise(BATCH, HIDDEN), torch.tensor([0, 1, 2])).dtype == torch.float64
    assert ours.to(torch.float32).step(noise(BATCH, HIDDEN).float(), torch.tensor([0, 1, 2])).dtype == torch.float32
    assert all(weight.dtype == torch.float32 for weight in cell.parameters())


def test_families_map_to_their_formulas() -> None:
    wanted = {"tanh": ElmanMap, "relu": ElmanMap, "gru": GRUMap, "lstm": LSTMMap}
    for kind, expected in wanted.items():
        assert type(module_map(sized(kind), torch.float64, "_l0")) is expected
        assert type(module_map(sized(f"{kind} cell"), torch.float64)) is expected


def test_a_map_without_recurrent_weights_is_refused() -> None:
    with pytest.raises(ValueError, match="RNN has no recurrent weights weight_hh_l7"):
        module_map(sized("tanh"), torch.float64, "_l7")


def test_a_cell_that_returns_no_state_is_refused() -> None:
    with pytest.raises(ValueError, match=r"system must return the next state as it takes it.*NoneType"):
        lyapunov_spectrum(lambda x, s: None, None, state=noise(2, 3), steps=4)
