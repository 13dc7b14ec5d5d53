"""Subclasses of torch's recurrent layers: whether torch's own step, with their weights, does what they did.

A subclass with a forward pass of its own mostly hands on to torch's: it packs by the lengths that it is given, or takes
other arguments. Then it is measured as the layer that it is. What it returned in the user's forward pass is compared
with what torch's layer returns for the same inputs, up to the rounding of that layer itself.
"""

from __future__ import annotations

import re
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.rnn import PackedSequence

from lightning_lyapunov.capture.finding import class_name
from lightning_lyapunov.capture.joining import Kept
from lightning_lyapunov.engine.maps.families import family_of

T = TypeVar("T", bound=nn.Module)

MODES: dict[str, tuple[type[nn.RNNBase], dict[str, str]]] = {
    "LSTM": (nn.LSTM, {}),
    "GRU": (nn.GRU, {}),
    "RNN_TANH": (nn.RNN, {"nonlinearity": "tanh"}),
    "RNN_RELU": (nn.RNN, {"nonlinearity": "relu"}),
}
"""Torch's layers by the ``mode`` that :class:`torch.nn.RNNBase` keeps."""
ROUNDING = 1024
"""Units in the last place that two ways of computing the same may differ by, before the network amplifies it."""
AMPLIFIED = 32
"""How many times as far as torch's layer in one precision from itself in the other the outputs may lie."""


ADVICE = "Give its own step, module={'name': step} with step(module, x, state) -> state, which is then measured."


@dataclass(frozen=True, eq=False)
class Sample:
    """What a layer returned in one call."""

    call: Kept
    outputs: Tensor
    """``(T, B, H)``"""
    weights: list[Tensor]
    """Those of the layer at that time, in its own order."""
    is_training: bool
    """Whether the layer was in training mode."""


def is_foreign(layer: nn.Module) -> bool:
    """Whether a recurrent layer computes with a forward pass that is not torch's."""
    if not isinstance(layer, nn.RNNBase):
        return False
    own = [kind.forward for kind, _ in MODES.values() if isinstance(layer, kind)]
    return type(layer).forward not in own or "forward" in vars(layer)


def plain_layer(layer: nn.RNNBase) -> nn.RNNBase:
    """Torch's own layer with the weights of a subclass: a shallow copy, in eval mode, without hooks.

    Raises:
        ValueError: If it has not the attributes of torch's, or parametrised weights, which belong to its class.
    """
    mode = getattr(layer, "mode", None)
    if mode not in MODES:
        raise ValueError(f"{class_name(layer)} has mode={mode!r}; torch's layers have one of {', '.join(MODES)}.")
    if is_parametrized(layer):
        raise ValueError(
            f"{class_name(layer)} has parametrised weights and a forward pass of its own, so torch's cannot be put in "
            "its place."
        )
    kind, attributes = MODES[mode]
    plain = shallow(layer, kind)
    vars(plain).update(attributes, training=False)
    vars(plain).pop("forward", None)
    return plain


def shallow(layer: T, kind: type[T] | None = None) -> T:
    """A copy that holds the same tensors, and can be given others; without forward hooks.

    Args:
        layer: Whose.
        kind: Class of the copy; that of the layer if None.
    """
    copy: Any = object.__new__(kind or type(layer))
    vars(copy).update(vars(layer))
    vars(copy).update(_parameters=dict(layer._parameters), _forward_hooks=OrderedDict(), _backward_hooks=OrderedDict())
    if isinstance(layer, nn.RNNBase):
        vars(copy)["_flat_weights"] = list(layer._flat_weights)
    return copy


STATE = re.compile(r"(init(ial)?_?)?(hx|h_?0|c_?0|h|c|hc|hidden|cell|states?)(_?(0|state|states|init))?s?")
"""What people call the arguments that are the state."""


def state_and_lengths(arguments: Mapping[str, Any]) -> tuple[Any, Any]:
    """The state and the lengths among the arguments of a subclass's forward, by their names; None where there are none.

    Args:
        arguments: By name, the inputs first.
    """
    others = list(arguments.items())[1:]
    states = [value for name, value in others if STATE.fullmatch(name) and isinstance(value, Tensor | tuple | list)]
    lengths = [value for name, value in others if "len" in name and isinstance(value, Tensor | tuple | list)]
    masks = [value for name, value in others if "mask" in name and isinstance(value, Tensor) and value.dim() == 2]
    if masks and not lengths:  # ones, then zeros: what is padding
        mask = masks[0].bool()
        lengths = [mask.sum(1)] if torch.equal(mask, mask.long().cummin(1).values.bool()) else []
    state = None if not states else states[0] if len(states) == 1 else tuple(states)
    return state, lengths[0] if lengths else None


def parts_returned(layer: nn.Module, output: Any) -> tuple[Any, tuple[Tensor, ...]]:
    """What a layer returned: its outputs, and the parts of its state, of which there may be none.

    Raises:
        ValueError: If it returned something else.
    """
    outputs, *rest = output if isinstance(output, tuple | list) and not hasattr(output, "batch_sizes") else (output,)
    parts = [part for one in rest for part in (one if isinstance(one, tuple | list) else (one,))]
    if not isinstance(outputs, Tensor | PackedSequence) or not all(isinstance(part, Tensor) for part in parts):
        kinds = [type(part).__name__ for part in (outputs, *parts)]
        raise ValueError(f"{class_name(layer)} must return outputs, or outputs and its state; it returned {kinds}")
    return outputs, tuple(parts)


def dimension_of(layer: nn.RNNBase) -> int:
    """Of the state of all its layers and directions."""
    plain = plain_layer(layer)
    family = family_of(plain)
    assert family is not None
    return sum(family.sizes(plain)) * layer.num_layers * (2 if layer.bidirectional else 1)


def check_likeness(layer: nn.RNNBase, sample: Sample) -> None:
    """Compare what a subclass returned with what torch's layer returns for the same inputs and weights.

    Raises:
        ValueError: If they differ by more than rounding; the message says by how much, and what to do.
    """
    if sample.is_training and layer.num_layers > 1 and layer.dropout > 0:
        raise ValueError(
            f"{class_name(layer)} replaces the forward pass of {_kind(layer)}, and was only seen in training, with "
            f"dropout={layer.dropout} between its layers: whether torch's step does the same cannot be told. With "
            "validation batches it can."
        )
    single, single_state = _outputs_of(layer, sample, torch.float32)
    double, double_state = _outputs_of(layer, sample, torch.float64)
    dtype = sample.outputs.dtype
    if sample.outputs.shape != single.shape or [*map(len, sample.call.after)] != [len(single_state[0])] * len(
        sample.call.after
    ):
        raise ValueError(
            f"{class_name(layer)} replaces the forward pass of {_kind(layer)} by another one: it returned outputs of "
            f"shape {tuple(sample.outputs.shape)}, time first, where torch's are {tuple(single.shape)}. {ADVICE}"
        )
    ours, state = (double, double_state) if dtype == torch.float64 else (single, single_state)
    eps = torch.finfo(dtype).eps
    amplified = AMPLIFIED * eps / torch.finfo(torch.float32).eps
    lengths = sample.call.lengths.to(ours.device)
    runs = (torch.arange(len(ours), device=ours.device).unsqueeze(1) < lengths).unsqueeze(-1)
    # A chaotic network makes much of little: what counts as rounding grows along the sequence.
    rounding = ((single - double).abs() * runs).amax((1, 2)).cummax(0).values
    apart = ((sample.outputs.double() - ours).abs() * runs).amax((1, 2))
    found = [*zip(apart.tolist(), rounding.tolist(), strict=True)]
    whole = [b for b, total in enumerate(sample.call.totals) if total == sample.call.steps[b]]
    if whole and sample.call.after:
        for returned, part, one, other in zip(sample.call.after, state, single_state, double_state, strict=True):
            apart, rounding = (returned.double() - part).abs(), (one - other).abs()
            found.append((float(apart[whole].amax()), float(rounding[whole].amax())))
    for difference, rounded in found:
        limit = max(rounded * amplified, ROUNDING * eps)
        if not difference <= limit:
            raise ValueError(
                f"{class_name(layer)} replaces the forward pass of {_kind(layer)} by another one: what it returned "
                f"differs from torch's step with its weights by {difference:.2g}, where rounding makes {limit:.1g}. "
                f"{ADVICE}"
            )


def _kind(layer: nn.RNNBase) -> str:
    return f"nn.{MODES[layer.mode][0].__name__}"


def _outputs_of(layer: nn.RNNBase, sample: Sample, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """What torch's layer returns: ``(T, B, H)``, and its state, rows first; in float64, computed in ``dtype``."""
    plain, call = plain_layer(layer), sample.call
    given = None if call.before is None else [part.to(dtype).transpose(0, 1).contiguous() for part in call.before]
    state = None if given is None else tuple(given) if len(given) == 2 else given[0]
    packed = nn.utils.rnn.pack_padded_sequence(call.inputs.to(dtype), call.lengths, enforce_sorted=False)
    vars(plain)["_flat_weights"] = [weight.to(dtype) for weight in sample.weights]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on CUDA torch would like the weights in one piece of memory
        outputs, after = plain(packed, state)
    padded, _ = nn.utils.rnn.pad_packed_sequence(outputs, total_length=len(call.inputs))
    parts = after if isinstance(after, tuple) else (after,)
    return padded.double(), [part.transpose(0, 1).double() for part in parts]
