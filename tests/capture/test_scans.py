"""Scans. Oracle: each recurrence written out step by step, its Jacobians by autograd in float64, a QR at each step.

The weights of what is written out here are named as the library's, so that where a library is installed its own module
is loaded with them and must return the same outputs.
"""

import math
import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, pad, sigmoid, silu, softplus

from lightning_lyapunov import LyapunovSpectrum, lyapunov_spectrum
from lightning_lyapunov.capture.adapters.scans import SCANS, MinimalScan, Scan

INPUTS, ROWS, STEPS, TRANSIENT = 6, 3, 12, 3


class Plain(nn.Module):
    """A recurrence written out: ``step(past, state) -> state`` and ``output(past, state)``, inputs ``(B, t, I)``."""

    shape: tuple[int, ...]

    def forward(self, x: Tensor) -> Tensor:
        state, outputs = x.new_zeros(len(x), *self.shape), []
        for t in range(x.shape[1]):
            state = self.step(x[:, : t + 1], state)
            outputs.append(self.output(x[:, : t + 1], state))
        return torch.stack(outputs, 1)

    def step(self, past: Tensor, state: Tensor) -> Tensor:
        raise NotImplementedError

    def output(self, past: Tensor, state: Tensor) -> Tensor:
        return state


class MinGRU(Plain):
    shape = (7,)

    def __init__(self) -> None:
        super().__init__()
        self.to_hidden_and_gate = nn.Linear(INPUTS, 14, bias=False)
        self.to_out = nn.Linear(7, INPUTS, bias=False)

    def step(self, past: Tensor, state: Tensor) -> Tensor:
        hidden, gate = self.to_hidden_and_gate(past[:, -1]).chunk(2, -1)
        z = sigmoid(gate)
        return (1 - z) * state + z * torch.where(hidden >= 0, hidden + 0.5, sigmoid(hidden))

    def output(self, past: Tensor, state: Tensor) -> Tensor:
        return self.to_out(state)


class MinLSTM(MinGRU):
    def __init__(self) -> None:
        super().__init__()
        del self.to_hidden_and_gate
        self.to_hidden_and_f_i_gate = nn.Linear(INPUTS, 21, bias=False)

    def step(self, past: Tensor, state: Tensor) -> Tensor:
        hidden, f, i = self.to_hidden_and_f_i_gate(past[:, -1]).chunk(3, -1)
        f, i = sigmoid(f), sigmoid(i)
        return f / (f + i) * state + i / (f + i) * torch.where(hidden >= 0, hidden + 0.5, sigmoid(hidden))


def convolved(convolution: nn.Conv1d, past: Tensor) -> Tensor:
    """The last step ``(B, C)`` of a causal convolution of ``(B, t, C)`` with one filter for each channel."""
    width = convolution.kernel_size[0]
    window = pad(past, (0, 0, width - 1, 0))[:, -width:]  # (B, width, C)
    return (window * convolution.weight[:, 0].T).sum(1) + convolution.bias


class Mamba(Plain):
    def __init__(self) -> None:
        super().__init__()
        inner, entries, rank = 2 * INPUTS, 4, 2
        self.shape = (inner, entries)
        self.in_proj = nn.Linear(INPUTS, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, 4, groups=inner, padding=3)
        self.x_proj = nn.Linear(inner, rank + 2 * entries, bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.A_log = nn.Parameter(torch.arange(1.0, entries + 1).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, INPUTS, bias=False)

    def parts(self, past: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        x, z = self.in_proj(past).chunk(2, -1)
        u = silu(convolved(self.conv1d, x))
        rank, entries = self.dt_proj.in_features, self.shape[1]
        low, b, c = self.x_proj(u).split([rank, entries, entries], -1)
        return u, softplus(self.dt_proj(low)), b, c, z[:, -1]

    def step(self, past: Tensor, state: Tensor) -> Tensor:
        u, delta, b, _, _ = self.parts(past)
        kept = torch.exp(delta.unsqueeze(-1) * -torch.exp(self.A_log))
        return kept * state + (delta * u).unsqueeze(-1) * b.unsqueeze(1)

    def output(self, past: Tensor, state: Tensor) -> Tensor:
        u, _, _, c, z = self.parts(past)
        return self.out_proj(((state * c.unsqueeze(1)).sum(-1) + self.D * u) * silu(z))


class Mamba2(Plain):
    shape = (3, 4, 5)
    """Heads, their dimension, entries of the state."""

    def __init__(self) -> None:
        super().__init__()
        heads, self.head_dim, self.ssm_state_size = self.shape
        self.headdim, self.d_state = self.head_dim, self.ssm_state_size
        self.time_step_limit = self.dt_limit = (0.0, math.inf)
        inner = heads * self.head_dim
        self.in_proj = nn.Linear(INPUTS, 2 * inner + 2 * self.d_state + heads, bias=False)
        self.conv1d = nn.Conv1d(inner + 10, inner + 10, 4, groups=inner + 10, padding=3)
        self.dt_bias = nn.Parameter(torch.ones(heads))
        self.A_log = nn.Parameter(torch.arange(1.0, heads + 1).log())
        self.norm = nn.Module()
        self.norm.weight = nn.Parameter(torch.ones(inner))
        self.D = nn.Parameter(torch.ones(heads))
        self.out_proj = nn.Linear(inner, INPUTS, bias=False)

    def parts(self, past: Tensor) -> tuple[Tensor, ...]:
        heads, size, entries = self.shape
        z, inner, dt = self.in_proj(past).split([heads * size, heads * size + 2 * entries, heads], -1)
        u, b, c = silu(convolved(self.conv1d, inner)).split([heads * size, entries, entries], -1)
        return u.unflatten(-1, (heads, size)), softplus(dt[:, -1] + self.dt_bias), b, c, z[:, -1]

    def step(self, past: Tensor, state: Tensor) -> Tensor:
        u, delta, b, _, _ = self.parts(past)
        kept = torch.exp(-delta * self.A_log.exp())
        return kept[..., None, None] * state + (delta.unsqueeze(-1) * u).unsqueeze(-1) * b[:, None, None]

    def output(self, past: Tensor, state: Tensor) -> Tensor:
        u, _, _, c, z = self.parts(past)
        y = ((state * c[:, None, None]).sum(-1) + self.D.unsqueeze(-1) * u).flatten(1) * silu(z)
        return self.out_proj(y * (y.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * self.norm.weight)


class GatedLinearAttention(Plain):
    shape = (2, 3, 4)
    """Heads, length of the keys, of the values."""

    def __init__(self, clamp_min: float | None = None) -> None:
        super().__init__()
        heads, keys, self.head_v_dim = self.shape
        self.num_kv_groups, self.gate_logit_normalizer, self.clamp_min = 1, 16, clamp_min
        self.k_proj = nn.Linear(INPUTS, heads * keys, bias=False)
        self.v_proj = nn.Linear(INPUTS, heads * self.head_v_dim, bias=False)
        self.gk_proj = nn.Sequential(nn.Linear(INPUTS, 2, bias=False), nn.Linear(2, heads * keys))

    def step(self, past: Tensor, state: Tensor) -> Tensor:
        x, (heads, keys, values) = past[:, -1], self.shape
        alpha = sigmoid(self.gk_proj(x)) ** (1 / self.gate_logit_normalizer)
        if self.clamp_min is not None:
            alpha = alpha.clamp(min=math.exp(self.clamp_min))
        k, v = self.k_proj(x).view(-1, heads, keys, 1), self.v_proj(x).view(-1, heads, 1, values)
        return alpha.view(-1, heads, keys, 1) * state + k * v


class LargeMLSTM(Plain):
    """Memory and normaliser as they are, no stabiliser: fits into float64 where the sequence is short."""

    shape = (2, 3, 5)
    """Heads, length of the keys, that of the values and one for the normaliser."""

    def __init__(self) -> None:
        super().__init__()
        heads, keys, values = self.shape
        self.qk_dim, self.v_dim = heads * keys, heads * (values - 1)
        self.config = SimpleNamespace(num_heads=heads, gate_soft_cap=15.0)
        self.k, self.v = nn.Linear(INPUTS, self.qk_dim, bias=False), nn.Linear(INPUTS, self.v_dim, bias=False)
        self.igate_preact, self.fgate_preact = nn.Linear(INPUTS, heads), nn.Linear(INPUTS, heads)

    def step(self, past: Tensor, state: Tensor) -> Tensor:
        x, (heads, keys, values) = past[:, -1], self.shape
        i, f = (15 * torch.tanh(gate(x) / 15) for gate in (self.igate_preact, self.fgate_preact))
        v = pad(self.v(x).view(-1, heads, 1, values - 1), (0, 1), value=1.0)
        added = i.exp()[..., None, None] * self.k(x).view(-1, heads, keys, 1) * v
        return sigmoid(f)[..., None, None] * state + added


class S4D(Plain):
    """A diagonal state-space layer with complex entries, held as pairs of real numbers."""

    shape = (INPUTS, 3, 2)

    def __init__(self) -> None:
        super().__init__()
        self.log_dt = nn.Parameter(torch.rand(INPUTS) - 1)
        self.log_A_real = nn.Parameter(0.3 * torch.randn(INPUTS, 3))
        self.A_imag = nn.Parameter(math.pi * torch.arange(3.0).repeat(INPUTS, 1))

    def step(self, past: Tensor, state: Tensor) -> Tensor:
        a = torch.exp(torch.complex(-self.log_A_real.exp(), self.A_imag) * self.log_dt.exp().unsqueeze(-1))
        return torch.view_as_real(a * torch.view_as_complex(state) + past[:, -1].unsqueeze(-1))


def s4d_gates(module: Any, x: Tensor) -> Tensor:
    return -(module.log_A_real.exp() * module.log_dt.exp().unsqueeze(-1)).flatten()


KINDS: dict[str, tuple[Callable[[], Plain], Scan]] = {
    "minGRU": (MinGRU, SCANS["minGRU_pytorch.minGRU.minGRU"]),
    "minLSTM": (MinLSTM, SCANS["minGRU_pytorch.minLSTM.minLSTM"]),
    "Mamba": (Mamba, SCANS["mamba_ssm.modules.mamba_simple.Mamba"]),
    "Mamba-2": (Mamba2, SCANS["mamba_ssm.modules.mamba2.Mamba2"]),
    "Mamba-2 of transformers": (Mamba2, SCANS["transformers.models.mamba2.modeling_mamba2.Mamba2Mixer"]),
    "GLA": (GatedLinearAttention, SCANS["fla.layers.gla.GatedLinearAttention"]),
    "GLA, clamped": (lambda: GatedLinearAttention(-0.03), SCANS["fla.layers.gla.GatedLinearAttention"]),
    "mLSTM": (LargeMLSTM, SCANS["xlstm.xlstm_large.model.mLSTMLayer"]),
    "S4D": (S4D, Scan(s4d_gates, multiplicity=2, context=0)),
}  # type: ignore[dict-item]


def seeded(build: Callable[[], nn.Module]) -> Any:
    """A module in eval mode with weights large enough that gates differ."""
    torch.manual_seed(0)
    module = build()
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if name.endswith("weight") and weight.dim() == 2:
                weight.mul_(2)
    return module.eval()


def inputs(steps: int = STEPS) -> Tensor:
    return torch.randn(ROWS, steps, INPUTS, generator=torch.Generator().manual_seed(1))


def brute_force(plain: Plain, x: Tensor) -> Tensor:
    """Exponents (D,) along ``(B, T, I)``, largest first: a QR at each step, from the unit matrix."""
    size = math.prod(plain.shape)
    sums = torch.zeros(size, dtype=torch.float64)
    for row in x.split(1):
        state, frame = row.new_zeros(1, *plain.shape), torch.eye(size, dtype=torch.float64)
        for t in range(row.shape[1]):

            def step(flat: Tensor, past: Tensor = row[:, : t + 1]) -> Tensor:
                return plain.step(past, flat.view(1, *plain.shape)).flatten()

            frame, triangle = torch.linalg.qr(torch.autograd.functional.jacobian(step, state.flatten()) @ frame)
            state = plain.step(row[:, : t + 1], state).detach()
            if t >= TRANSIENT:
                sums += triangle.diagonal().abs().log()
    return (sums / (len(x) * (x.shape[1] - TRANSIENT))).sort(descending=True).values


@pytest.mark.parametrize("kind", KINDS)
def test_exponents_are_those_of_the_recurrence_written_out(kind: str) -> None:
    build, scan = KINDS[kind]
    plain, x = seeded(build), inputs()
    weights = {name: weight.clone() for name, weight in plain.state_dict().items()}
    spectrum = lyapunov_spectrum(scan.system(plain), x.transpose(0, 1), transient=TRANSIENT)
    assert all(torch.equal(weights[name], weight) for name, weight in plain.state_dict().items())  # as it was, float32
    expected = brute_force(plain.double(), x.double())
    assert spectrum.dimension == len(expected) == math.prod(plain.shape)
    assert torch.allclose(spectrum.exponents, expected, rtol=0, atol=1e-10)
    if kind != "S4D":  # whose gates hear no input
        assert spectrum.stderr.min() > 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_gates_look_no_further_back_than_they_say(kind: str) -> None:
    build, scan = KINDS[kind]
    plain, x = seeded(build), inputs().transpose(0, 1)
    system = scan.system(plain)
    assert system.context is not None
    rates = system.rates(x).expand(len(x), ROWS, -1)
    before = 7 - system.context
    assert torch.allclose(system.rates(x[before:8])[-1], rates[7], rtol=0, atol=1e-12)
    changed = x.clone()
    changed[before], changed[8:] = 9.0, 0.0
    if kind != "S4D":
        assert not torch.allclose(system.rates(changed)[7], rates[7])


# ------------------------------------------------------------------ the libraries' own modules


def mambapy_block() -> Any:
    mamba = pytest.importorskip("mambapy.mamba")
    return mamba.MambaBlock(mamba.MambaConfig(d_model=INPUTS, n_layers=1, d_state=4, dt_rank=2))


def mamba_mixer() -> Any:
    mamba = pytest.importorskip("transformers.models.mamba.modeling_mamba")
    config = pytest.importorskip("transformers").MambaConfig(
        hidden_size=INPUTS, state_size=4, expand=2, time_step_rank=2, use_conv_bias=True, num_hidden_layers=1
    )
    return mamba.MambaMixer(config, 0)


def mamba2_mixer() -> Any:
    mamba = pytest.importorskip("transformers.models.mamba2.modeling_mamba2")
    config = pytest.importorskip("transformers").Mamba2Config(
        **{"hidden_size": INPUTS, "state_size": 5, "expand": 2, "num_heads": 3, "head_dim": 4, "n_groups": 1},
        **{"use_conv_bias": True, "num_hidden_layers": 1, "layer_norm_epsilon": 1e-5, "chunk_size": 4},
    )
    return mamba.Mamba2Mixer(config, 0)


LIBRARIES: dict[str, tuple[Callable[[], Any], Callable[[], Plain]]] = {
    "minGRU_pytorch.minGRU.minGRU": (
        lambda: pytest.importorskip("minGRU_pytorch.minGRU").minGRU(INPUTS, expansion_factor=7 / 6),
        MinGRU,
    ),
    "minGRU_pytorch.minLSTM.minLSTM": (
        lambda: pytest.importorskip("minGRU_pytorch.minLSTM").minLSTM(INPUTS, expansion_factor=7 / 6),
        MinLSTM,
    ),
    "mambapy.mamba.MambaBlock": (mambapy_block, Mamba),
    "transformers.models.mamba.modeling_mamba.MambaMixer": (mamba_mixer, Mamba),
    "transformers.models.mamba2.modeling_mamba2.Mamba2Mixer": (mamba2_mixer, Mamba2),
}


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_librarys_module_is_what_is_written_out(name: str) -> None:
    """The same outputs with the same weights, so the same exponents."""
    library, plain = (seeded(build) for build in LIBRARIES[name])
    assert f"{type(library).__module__}.{type(library).__qualname__}" == name
    plain.load_state_dict(library.state_dict())
    x = inputs()
    with torch.no_grad():
        assert torch.allclose(library(x), plain(x), rtol=1e-4, atol=1e-5)
    call = SCANS[name].read(library, (x,), {}, library(x))
    spectrum = measured(SCANS[name], library, call.inputs)
    assert torch.allclose(spectrum.exponents, brute_force(plain.double(), x.double()), rtol=0, atol=1e-10)


def measured(scan: Any, module: nn.Module, x: Tensor) -> LyapunovSpectrum:
    return lyapunov_spectrum(scan.system(module), x, transient=TRANSIENT)


def test_the_mlstm_layer_of_xlstm() -> None:
    """Jacobians of the memory and normaliser themselves, by the library's own stabilised steps."""
    mlstm = pytest.importorskip("xlstm.blocks.mlstm.layer")
    config = mlstm.mLSTMLayerConfig(embedding_dim=8, num_heads=2, context_length=STEPS, round_proj_up_to_multiple_of=8)
    layer = seeded(lambda: mlstm.mLSTMLayer(config))
    with torch.no_grad():  # zero when it is made
        layer.mlstm_cell.fgate.weight.normal_()
    x = torch.randn(ROWS, STEPS, 8)
    scan = SCANS[f"{type(layer).__module__}.{type(layer).__qualname__}"]
    spectrum = measured(scan, layer, scan.read(layer, (x,), {}, layer(x)).inputs)

    layer.double()
    sums: Any = 0
    for row in x.double().split(1):
        _, states = layer.step(row[:, :1])
        for t in range(1, STEPS):
            now, (c, n, m) = row[:, t : t + 1], (part.detach() for part in states["mlstm_state"])
            before = tuple(part.detach() for part in states["conv_state"])

            def advance(memory: Tensor, normaliser: Tensor, given: Any = (now, m, before)) -> tuple[Tensor, Tensor]:
                now, m, before = given
                scaled = memory * (-m).exp(), normaliser * (-m).exp(), m
                _, after = layer.step(now, scaled, tuple(part.clone() for part in before))
                c, n, m = after["mlstm_state"]
                return c * m.exp(), n * m.exp()

            jacobian = torch.autograd.functional.jacobian(advance, (c * m.exp(), n * m.exp()))
            blocks = [jacobian[i][i].reshape(part.numel(), -1) for i, part in enumerate((c, n))]
            if t >= TRANSIENT:
                sums = sums + torch.cat([block.diagonal().log() for block in blocks])
            assert all(torch.allclose(block, block.diagonal().diag()) for block in blocks)
            assert not jacobian[0][1].any() and not jacobian[1][0].any()
            _, states = layer.step(now, (c, n, m), before)
    expected = (sums / (ROWS * (STEPS - TRANSIENT))).sort(descending=True).values
    assert spectrum.dimension == len(expected) == 2 * (8 * 8 + 8)
    assert torch.allclose(spectrum.exponents, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("weights", ["single", "fused"])
def test_the_mlstm_layer_of_xlstm_large(weights: str) -> None:
    large = pytest.importorskip("xlstm.xlstm_large.model")
    backend = large.mLSTMBackendConfig(
        **{"chunkwise_kernel": "chunkwise--native_autograd", "sequence_kernel": "native_sequence__native"},
        **{"step_kernel": "native", "return_last_states": True, "mode": "inference"},
    )
    config = large.mLSTMLayerConfig(
        **{"embedding_dim": 8, "num_heads": 2, "mlstm_backend": backend, "weight_mode": weights, "qk_dim_factor": 0.5}
    )
    layer = seeded(lambda: large.mLSTMLayer(config))
    x = torch.randn(ROWS, STEPS, 8)
    scan = SCANS[f"{type(layer).__module__}.{type(layer).__qualname__}"]
    spectrum = measured(scan, layer, x.transpose(0, 1))
    assert spectrum.dimension == 2 * (2 * 4 + 2)
    head = layer.double().state_dict()
    gate = "fgate_preact" if weights == "single" else "ifgate_preact"
    raw = x.double() @ head[f"{gate}.weight"].T[:, -2:] + head[f"{gate}.bias"][-2:]
    expected = logsigmoid(15 * torch.tanh(raw / 15))[:, TRANSIENT:].mean((0, 1)).sort(descending=True).values
    assert torch.allclose(spectrum.exponents, expected.repeat_interleave(10), rtol=0, atol=1e-10)


# ------------------------------------------------------------------ as an adapter


def test_reads_calls_of_any_layout() -> None:
    x, module = torch.randn(5, 9, 3), nn.Identity()
    for time, inputs in ((1, x.transpose(0, 1)), (0, x), (-1, x.movedim(0, -1))):
        call = Scan(s4d_gates, time=time).read(module, (), {"hidden_states": inputs}, None)
        assert torch.equal(call.inputs, x) and call.lengths.tolist() == [5] * 9 and call.before is None
        assert call.inputs.data_ptr() == x.data_ptr()
    with pytest.raises(ValueError, match=r"Identity must be given its inputs first, .* got NoneType"):
        Scan(s4d_gates).read(module, (), {}, None)
    with pytest.raises(ValueError, match=r"axes of rows and of time \(axis 1\); got a tensor of shape \(4,\)"):
        Scan(s4d_gates).read(module, (torch.zeros(4),), {}, None)


def test_a_minimal_scan_goes_on_from_the_state_it_returned() -> None:
    scan, module, x = SCANS["minGRU_pytorch.minGRU.minGRU"], nn.Identity(), inputs()
    assert isinstance(scan, MinimalScan)
    last = torch.rand(ROWS, 1, 7)
    first = scan.read(module, (x,), {"return_next_prev_hidden": True}, (x, last))
    assert first.before is None and torch.equal(first.after[0], last[:, 0])
    for args, kwargs in (((x, last), {}), ((x,), {"prev_hidden": last})):
        second = scan.read(module, args, kwargs, x)
        assert second.before is not None and torch.equal(second.before[0], last[:, 0])
        assert second.after[0].isnan().all()  # out of sight: nothing goes on from it


def test_gates_that_look_back_are_not_read_off_single_steps() -> None:
    scan, module = SCANS["mamba_ssm.modules.mamba_simple.Mamba"], seeded(Mamba)
    with pytest.raises(ValueError, match="Mamba was called with 3 steps, and its gates look 3 steps back"):
        scan.read(module, (inputs(3),), {}, None)
    assert scan.read(module, (inputs(4),), {}, None).lengths.tolist() == [4] * ROWS


def test_a_scan_has_no_step() -> None:
    with pytest.raises(ValueError, match=r"Identity is a scan, measured by its gates: pass Scan.system\(module\)"):
        Scan(s4d_gates).step(nn.Identity(), torch.zeros(1, 3), torch.zeros(1, 3))


def test_known_scans_pickle() -> None:
    assert pickle.loads(pickle.dumps(SCANS)).keys() == SCANS.keys()


def test_weights_are_those_of_the_moment() -> None:
    plain, x = seeded(MinGRU), inputs().transpose(0, 1)
    scan = SCANS["minGRU_pytorch.minGRU.minGRU"]
    assert isinstance(scan, Scan)
    system = scan.system(plain)
    before = lyapunov_spectrum(system, x)
    with torch.no_grad():
        plain.to_hidden_and_gate.weight.zero_()
    after = lyapunov_spectrum(system, x)
    assert not torch.allclose(before.exponents, after.exponents)
    assert after.exponents.tolist() == pytest.approx([math.log(0.5)] * 7, abs=1e-12)
