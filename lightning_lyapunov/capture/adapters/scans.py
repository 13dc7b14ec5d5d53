r"""Layers that are scans: their state is multiplied by gates that the inputs alone decide, and added to.

.. math:: h_{t+1} = a(x_t) \odot h_t + b(x_t)

All that their exponents need is :math:`\ln |a|`, which is written here for each kind from the paper that describes it.
Of a library's module only the names of its weights are used, and the library is never imported. What the gates do not
act on is no part of the spectrum: the shift register of a short convolution in front of the scan forgets all after its
few steps (exponents :math:`-\infty`), and the stabiliser of exponential gates is a change of units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import logsigmoid, silu, softplus

from lightning_lyapunov.capture.calls import Adapter, Call
from lightning_lyapunov.engine.diagonal import DiagonalSystem
from lightning_lyapunov.engine.maps.cell import State
from lightning_lyapunov.engine.maps.weights import Holder, cast_tensors
from lightning_lyapunov.engine.precision import widest_dtype


class Scan(Adapter):
    r"""How a module is a scan: which gates it multiplies its state by.

    Args:
        log_gates: ``(module, x) -> ln|a|``: of inputs ``(T, B, ...)``, time first whatever the module takes, the
            logarithms of the moduli of the gates ``(T, B, C)``, or what broadcasts to it. It is called with the
            module's weights and the inputs in float64.
        multiplicity: Entries of the state that each gate acts on, or a function of the module: 2 if they are complex,
            the length of the values in linear attention.
        context: Earlier steps that a gate depends on beside its own, as by a convolution, or a function of the module;
            None if on any: sequences too long to hold are then held all the same.
        time: Axis of time in what the module's forward takes first; its rows are the first of the other axes.

    Example:
        >>> class Leaky(nn.Module):
        ...     def __init__(self) -> None:
        ...         super().__init__()
        ...         self.gate = nn.Linear(3, 8)
        ...     def forward(self, x):  # (B, T, 3)
        ...         h, out = 0, []
        ...         for a in torch.sigmoid(self.gate(x)).unbind(1):
        ...             h = a * h + (1 - a)
        ...             out.append(h)
        ...         return torch.stack(out, 1)
        >>> leaky = Scan(lambda module, x: nn.functional.logsigmoid(module.gate(x)))
        >>> from lightning_lyapunov import lyapunov_spectrum
        >>> lyapunov_spectrum(leaky.system(Leaky()), torch.randn(64, 16, 3)).dimension
        8
    """

    def __init__(
        self,
        log_gates: Callable[[Any, Tensor], Tensor],
        *,
        multiplicity: int | Callable[[Any], int] = 1,
        context: int | Callable[[Any], int] | None = None,
        time: int = 1,
    ) -> None:
        self.log_gates, self.multiplicity, self.context, self.time = log_gates, multiplicity, context, time

    def read(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Call:
        """As in the base; the states are out of sight, so that no call goes on from another one.

        Raises:
            ValueError: If the inputs are not what comes first, or too short for the gates.
        """
        x = args[0] if args else next(iter(kwargs.values()), None)
        if not isinstance(x, Tensor) or x.dim() < 2:
            came = f"a tensor of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(
                f"{type(module).__name__} must be given its inputs first, a tensor with axes of rows and of time "
                f"(axis {self.time}); got {came}."
            )
        inputs, context = x.movedim(self.time, 0), _of(self.context, module) or 0
        if len(inputs) <= context:
            raise ValueError(
                f"{type(module).__name__} was called with {len(inputs)} steps, and its gates look {context} steps "
                "back: it must be called with whole sequences, not step by step with a cache."
            )
        rows = inputs.shape[1]
        unseen = torch.full((rows, 1), math.nan, device=x.device)  # no state that is given looks like this
        return Call(inputs, torch.full((rows,), len(inputs)), None, (unseen,))

    def step(self, module: nn.Module, x: Tensor, state: State) -> State:
        """There is none: gates are all that is known of a scan, and all that is needed.

        Raises:
            ValueError: Always.
        """
        raise ValueError(f"{type(module).__name__} is a scan, measured by its gates: pass Scan.system(module).")

    def log_rates(self, module: nn.Module, inputs: Tensor) -> Tensor:
        r""":math:`\ln |a|` ``(T, B, C)`` for inputs ``(T, B, ...)``, by the weights as they are now, in float64."""
        dtype = widest_dtype(inputs.device)
        holder = Holder(module)
        x = inputs.to(dtype) if inputs.is_floating_point() else inputs
        return functional_call(holder, cast_tensors(holder, dtype), (partial(self.log_gates, module, x),))

    def system(self, module: nn.Module) -> DiagonalSystem:
        """What :func:`~lightning_lyapunov.lyapunov_spectrum` measures: the module with the weights it has then.

        Its inputs are ``(T, B, ...)``, time first.
        """
        multiplicity = _of(self.multiplicity, module)
        assert multiplicity is not None
        return DiagonalSystem(partial(self.log_rates, module), multiplicity, _of(self.context, module), module)


def _of(number: int | Callable[[Any], int] | None, module: nn.Module) -> int | None:
    return number(module) if callable(number) else number


# ------------------------------------------------------------------ minimal recurrent networks


class MinimalScan(Scan):
    """A scan whose forward is ``(x, state before, whether to return the last one)``, states ``(B, 1, D)``."""

    def read(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Call:
        """As in the base, with the states where there are some."""
        given = args[1] if len(args) > 1 else kwargs.get("prev_hidden")
        before = None if given is None else (given[:, 0],)
        call = replace(super().read(module, args, kwargs, output), before=before)
        return replace(call, after=(output[1][:, 0],)) if isinstance(output, tuple) else call


def min_gru(module: Any, x: Tensor) -> Tensor:
    r""":math:`h_t = (1 - z_t) h_{t-1} + z_t \tilde h_t`, so :math:`a = 1 - \sigma(z)`.

    Source: Feng et al., "Were RNNs all we needed?", arXiv:2410.01201, §3.1.
    """
    _, gate = module.to_hidden_and_gate(x).chunk(2, -1)
    return logsigmoid(-gate)


def min_lstm(module: Any, x: Tensor) -> Tensor:
    r""":math:`a = f / (f + i)`, gates that sum to one.

    Source: Feng et al., arXiv:2410.01201, §3.2.
    """
    _, forget, let_in = module.to_hidden_and_f_i_gate(x).chunk(3, -1)
    return logsigmoid(forget) - torch.logaddexp(logsigmoid(forget), logsigmoid(let_in))


# ------------------------------------------------------------------ state-space layers


def mamba(module: Any, x: Tensor) -> Tensor:
    r""":math:`a = e^{\Delta_t A}` with :math:`A < 0` for each channel and entry, :math:`\Delta_t` for each channel.

    Source: Gu and Dao, "Mamba", arXiv:2312.00752, algorithm 2.
    """
    inner = module.in_proj(x).chunk(2, -1)[0]
    convolved = module.conv1d(inner.permute(1, 2, 0))[..., : len(x)].permute(2, 0, 1)
    ranks = module.x_proj(silu(convolved))[..., : module.dt_proj.in_features]
    normalise = getattr(module, "dt_layernorm", None)
    delta = softplus(module.dt_proj(ranks if normalise is None else normalise(ranks)))
    return -(delta.unsqueeze(-1) * module.A_log.exp()).flatten(-2)


def mamba2(module: Any, x: Tensor) -> Tensor:
    r""":math:`a = e^{\Delta_t A}`, one for each head.

    Source: Dao and Gu, "Transformers are SSMs", arXiv:2405.21060, §7.
    """
    heads = len(module.A_log)
    low, high = getattr(module, "time_step_limit", None) or module.dt_limit
    delta = softplus(module.in_proj(x)[..., -heads:] + module.dt_bias).clamp(low, high)
    return -delta * module.A_log.exp()


def _heads(module: Any) -> int:
    if hasattr(module, "head_dim"):
        return module.head_dim * module.ssm_state_size
    return module.headdim * module.d_state


def _convolution(module: Any) -> int:
    return module.conv1d.kernel_size[0] - 1


# ------------------------------------------------------------------ memories that are matrices


def mlstm(module: Any, x: Tensor) -> Tensor:
    r""":math:`C_t = f_t C_{t-1} + i_t v_t k_t^\top` and :math:`n_t = f_t n_{t-1} + i_t k_t`, one gate for each head.

    Computed as :math:`e^{-m} C` and :math:`e^{-m} n`, with m the largest exponent so far, which leaves what is read out
    as it is. The rate is that of C and n themselves.

    Source: Beck et al., "xLSTM", arXiv:2405.04517, eqs. 19-27.
    """
    inner = module.proj_up(x).chunk(2, -1)[0]
    convolved = silu(module.conv1d(inner.transpose(0, 1))).transpose(0, 1)
    gates = torch.cat([module.q_proj(convolved), module.k_proj(convolved), module.v_proj(inner)], -1)
    return logsigmoid(module.mlstm_cell.fgate(gates))


def _mlstm_size(module: Any) -> int:
    head = module.proj_down.in_features // module.config.num_heads
    return head * (head + 1)


def _mlstm_convolution(module: Any) -> int:
    return max(0, module.config.conv1d_kernel_size - 1)


def large_mlstm(module: Any, x: Tensor) -> Tensor:
    """The same with gates from the inputs directly, capped.

    Source: Beck et al., "xLSTM 7B", arXiv:2503.13427, §3.
    """
    if hasattr(module, "fgate_preact"):
        gates = module.fgate_preact(x)
    else:
        gates = module.ifgate_preact(x)[..., module.config.num_heads :]
    cap = module.config.gate_soft_cap
    return logsigmoid(gates if cap is None else cap * torch.tanh(gates / cap))


def _large_mlstm_size(module: Any) -> int:
    heads = module.config.num_heads
    return module.qk_dim // heads * (module.v_dim // heads + 1)


def gated_linear_attention(module: Any, x: Tensor) -> Tensor:
    r""":math:`S_t = \mathrm{diag}(\alpha_t) S_{t-1} + k_t v_t^\top`, with :math:`\alpha = \sigma(g)^{1/\tau}`.

    Source: Yang et al., "Gated linear attention transformers", arXiv:2312.06635, §4.
    """
    rates = logsigmoid(module.gk_proj(x)) / module.gate_logit_normalizer
    return rates if module.clamp_min is None else rates.clamp(min=module.clamp_min)


def _gla_size(module: Any) -> int:
    return module.head_v_dim * module.num_kv_groups


SCANS: dict[str, Adapter] = {
    "minGRU_pytorch.minGRU.minGRU": MinimalScan(min_gru, context=0),
    "minGRU_pytorch.minLSTM.minLSTM": MinimalScan(min_lstm, context=0),
    "mambapy.mamba.MambaBlock": Scan(mamba, context=_convolution),
    "mamba_ssm.modules.mamba_simple.Mamba": Scan(mamba, context=_convolution),
    "transformers.models.mamba.modeling_mamba.MambaMixer": Scan(mamba, context=_convolution),
    "mamba_ssm.modules.mamba2.Mamba2": Scan(mamba2, multiplicity=_heads, context=0),
    "transformers.models.mamba2.modeling_mamba2.Mamba2Mixer": Scan(mamba2, multiplicity=_heads, context=0),
    "xlstm.blocks.mlstm.layer.mLSTMLayer": Scan(mlstm, multiplicity=_mlstm_size, context=_mlstm_convolution),
    "xlstm.xlstm_large.model.mLSTMLayer": Scan(large_mlstm, multiplicity=_large_mlstm_size, context=0),
    "fla.layers.gla.GatedLinearAttention": Scan(gated_linear_attention, multiplicity=_gla_size, context=0),
}
"""Known scans, by the qualified name of the module's class."""
