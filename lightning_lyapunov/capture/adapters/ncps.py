"""Closed-form continuous-time networks and liquid time constants of ncps, as it is in version 1.0.1.

Both are layers that run a cell along a sequence, ``h' = cell(x, h, Δt)``, after an LSTM cell of the library's own where
there is a mixed memory: ``(h, c)' = lstm(x, (h, c))`` first, then ``h'`` from that ``h``.

Source: Hasani et al., Nature Machine Intelligence 4 (2022) 992–1003; Hasani et al., AAAI 2021; Lechner and Hasani,
arXiv 2006.04418 (mixed memory).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_lyapunov.capture.calls import Adapter, Call, Parts
from lightning_lyapunov.capture.conventions import ByCalls
from lightning_lyapunov.capture.stepping import class_name, twin
from lightning_lyapunov.engine.maps.cell import State, as_parts


class ContinuousTime(Adapter):
    """A CfC or LTC layer: what drives a step are its inputs ``(B, I)``, and beside them the time since the last."""

    def read(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Call:
        """As in the base.

        Raises:
            ValueError: For times of which the layer takes those of one row for those of one unit.
        """
        inputs, state, times = _arguments(*args, **kwargs)
        is_batched = inputs.dim() == 3
        steps = self._time_first(module, inputs)
        if times is not None:
            times = self._time_first(module, times.unsqueeze(-1) if times.dim() < inputs.dim() else times)
            if times.shape[-1] == 1 and times.shape[1] > 1:
                raise ValueError(
                    f"{class_name(module)} takes its timespans {tuple(times.shape[:2])} (T, B) for one of each unit, "
                    "not of each row. Give them in the shape (B, T, units), timespans.unsqueeze(-1).expand(...)"
                )
            steps = torch.cat([steps, times.to(steps.dtype)], -1)
        lengths = torch.full((steps.shape[1],), len(steps))
        before = None if state is None else _rows_of(state, is_batched)
        return Call(steps, lengths, before, _rows_of(output[1], is_batched))

    def _time_first(self, module: Any, values: Tensor) -> Tensor:
        """``(T, B, F)`` of what the layer is given."""
        if values.dim() == 2:
            return values.unsqueeze(1)
        return values.transpose(0, 1) if module.batch_first else values

    def step(self, module: nn.Module, x: Tensor, state: State) -> State:
        """As in the base; where no times were given a step takes one unit of time."""
        layer: Any = module
        cell = _with_own_weights(layer.rnn_cell)
        width = getattr(cell, "input_size", None) or cell.sensory_size
        inputs, times = x[:, :width], x[:, width:] if x.shape[1] > width else 1.0
        if not layer.use_mixed:
            return cell.forward(inputs, as_parts(state)[0], times)[1]
        h, c = layer.lstm(inputs, tuple(as_parts(state)))
        return cell.forward(inputs, h, times)[1], c


def _arguments(input: Tensor, hx: Any = None, timespans: Tensor | None = None) -> tuple[Tensor, Any, Tensor | None]:
    return input, hx, timespans


def _rows_of(state: State, is_batched: bool) -> Parts:
    return tuple(part if is_batched else part.unsqueeze(0) for part in as_parts(state))


def _with_own_weights(cell: Any) -> Any:
    """A cell that computes with the parameters it has now; an LTC keeps a list of those that it was made with."""
    if not hasattr(cell, "_params"):
        return cell
    return twin(cell, _params={name: getattr(cell, name) for name in cell._params})


ADAPTERS: dict[str, Adapter] = {
    "ncps.torch.cfc.CfC": ContinuousTime(),
    "ncps.torch.ltc.LTC": ContinuousTime(),
    "ncps.torch.cfc_cell.CfCCell": ByCalls(),
    "ncps.torch.wired_cfc_cell.WiredCfCCell": ByCalls(),
    "ncps.torch.ltc_cell.LTCCell": ByCalls(),
}
