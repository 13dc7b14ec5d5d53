"""The inputs that reach a recurrent layer in the user's own forward pass.

A forward hook on the layer keeps a bounded, detached copy of what drove it. Nothing is run and no loader is touched for
it. A layer or cell that is called step by step in a Python loop is recorded call by call, and calls whose state is what
the call before returned are joined to one sequence again.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence, pad_sequence

from lightning_lyapunov.capture.finding import class_name
from lightning_lyapunov.engine.maps.cell import State, as_parts
from lightning_lyapunov.engine.measure import Driven
from lightning_lyapunov.engine.sequences import Sequences

Parts = tuple[Tensor, ...]


@dataclass(frozen=True)
class _Call:
    """One call of a layer, or several that continued each other."""

    inputs: Tensor
    """``(T, B, ...)``."""
    lengths: Tensor
    """(B,) steps of each row, on the CPU."""
    before: Parts | None
    """The parts of the state it was given; None if it was given none."""
    after: Parts
    """The parts of the state it returned."""

    @property
    def steps(self) -> int:
        return len(self.inputs)

    @property
    def rows(self) -> int:
        return self.inputs.shape[1]

    def is_continued_by(self, call: _Call) -> bool:
        """Whether ``call`` was given the very state that this one returned."""
        return call.before is not None and all(map(torch.equal, self.after, call.before))


def _rows_begun(calls: list[_Call]) -> int:
    """Rows of the calls that were given no state, each the beginning of a sequence."""
    return sum(call.rows for call in calls if call.before is None)


class _Hook:
    """What a layer holds: a way back to its probe, and nothing that a copy or a pickle of the layer would carry."""

    def __init__(self, probe: Probe | None = None) -> None:
        self._probe = None if probe is None else weakref.ref(probe)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        # A layer that is being compiled is left alone: a recorded call would be another graph, and other rounding.
        if torch.compiler.is_compiling() or self._probe is None or (probe := self._probe()) is None:
            return
        probe.record(args, kwargs, output)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Hook:
        return type(self)()

    def __reduce__(self) -> tuple[type[_Hook], tuple[()]]:
        return type(self), ()


class _UncompiledHook(_Hook):
    """The same for torch's recurrent modules, which are never compiled themselves: neither is the hook."""

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if self._probe is not None and (probe := self._probe()) is not None:
            probe.record(args, kwargs, output)


class Probe:
    """Keeps what drove one layer, up to ``num_sequences`` × ``num_steps``, of the batches it is told to watch.

    Args:
        layer: The module to watch.
        num_sequences: Rows to keep; of a batch the first ones.
        num_steps: Steps to keep of each; the first ones.

    Attributes:
        longest: Steps of the longest sequence that a layer of torch's was given at once, kept or not; 0 for a cell.
    """

    def __init__(self, layer: nn.Module, num_sequences: int, num_steps: int) -> None:
        self.layer = layer
        self.num_sequences, self.num_steps = num_sequences, num_steps
        self._signature = inspect.signature(layer.forward)
        hook = _UncompiledHook if isinstance(layer, nn.RNNBase) else _Hook
        self._handle = layer.register_forward_hook(hook(self), with_kwargs=True)
        self._is_single = True  # whether a state is one tensor rather than a tuple of them
        self._keeps_latest = False
        self.longest = 0
        self.forget()

    def forget(self) -> None:
        """Let go of what was recorded."""
        self._batches: list[list[_Call]] = []
        self._trouble: Exception | None = None
        self._is_recording = False

    def begin_batch(self, *, keep_latest: bool) -> None:
        """Record the calls of one batch, unless the first batches are wanted and there are enough of them.

        Args:
            keep_latest: Keep the latest batches rather than the first; a change of mind forgets what there is.
        """
        if keep_latest != self._keeps_latest:
            self.forget()
        self._keeps_latest = keep_latest
        if keep_latest:
            self._trouble = None  # of an earlier batch; this one may do
        if self._batches and not self._batches[-1]:
            self._batches.pop()  # nothing reached the layer
        enough = self._rows(self._batches) >= self.num_sequences
        self._is_recording = keep_latest or not enough
        if self._is_recording:
            self._batches.append([])

    def end_batch(self) -> None:
        """Stop recording until the next batch."""
        while self._keeps_latest and self._rows(self._batches[1:]) >= self.num_sequences:
            del self._batches[0]
        self._is_recording = False

    def remove(self) -> None:
        """Take the hook off the layer and let go of what was recorded."""
        self._handle.remove()
        self.forget()

    @property
    def has_recorded(self) -> bool:
        """Whether there is anything to measure, or to complain about."""
        return self._trouble is not None or any(self._batches)

    def _rows(self, batches: list[list[_Call]]) -> int:
        """Sequences recorded, for certain: those that began without a state, at least the rows of one call."""
        return sum(max(_rows_begun(batch), max((call.rows for call in batch), default=0)) for batch in batches)

    # ---------------------------------------------------------------- recording

    def record(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Keep one call of the layer; neither raises nor holds on to the graph."""
        if not self._is_recording:
            return
        batch = self._batches[-1]
        try:
            inputs, state = self._arguments(args, kwargs)
            if self._has_enough(batch, state):
                return
            with torch.no_grad():
                call = self._call(inputs, state, output)
        except Exception as error:  # told when the measurement is due, outside the user's forward pass
            self._trouble = error.with_traceback(None)  # whose frames would keep the graph alive
            return
        if call.rows:
            batch.append(call)

    def _has_enough(self, batch: list[_Call], state: Any) -> bool:
        """Whether a call would only add to sequences that are long enough, or to a batch that has enough of them."""
        if state is None:
            return _rows_begun(batch) >= self.num_sequences
        begun = max(1, sum(call.before is None for call in batch))
        return sum(call.steps for call in batch) >= self.num_steps * begun

    def _call(self, inputs: Any, state: Any, output: Any) -> _Call:
        """A bounded copy of one call."""
        after = output
        if isinstance(self.layer, nn.RNNBase):
            inputs, lengths = self._time_first(inputs)
            self.longest = max(self.longest, len(inputs))
            after = output[1]
        else:
            unbatched = isinstance(self.layer, nn.RNNCellBase) and inputs.dim() == 1
            inputs = inputs.view(1, 1, -1) if unbatched else inputs.unsqueeze(0)
            lengths = torch.ones(inputs.shape[1], dtype=torch.long)
        self._is_single = isinstance(after, Tensor)
        batch = inputs.shape[1]
        inputs = inputs[: self.num_steps, : self.num_sequences].detach().clone()
        lengths = lengths[: self.num_sequences].clamp(max=len(inputs))
        return _Call(
            inputs, lengths, None if state is None else self._rows_of(state, batch), self._rows_of(after, batch)
        )

    def _arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """The inputs and the state a call was given, however they were passed."""
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        values = list(bound.arguments.values())
        if len(values) < 2 or not isinstance(values[0], Tensor | PackedSequence):
            raise ValueError(
                f"{class_name(self.layer)}.forward must take (x, state), x a tensor; it takes {list(bound.arguments)}"
            )
        return values[0], values[1]

    def _time_first(self, inputs: Tensor | PackedSequence) -> tuple[Tensor, Tensor]:
        if isinstance(inputs, PackedSequence):
            return pad_packed_sequence(inputs)
        if inputs.dim() == 2:
            inputs = inputs.unsqueeze(1)
        elif self.layer.batch_first:
            inputs = inputs.transpose(0, 1)
        return inputs, torch.full((inputs.shape[1],), len(inputs))

    def _rows_of(self, state: State, batch: int) -> Parts:
        """The first rows of a state, copied; a module's state has its layers before its rows."""
        parts = as_parts(state)
        if not all(isinstance(part, Tensor) for part in parts):
            kinds = [type(part).__name__ for part in parts]
            raise ValueError(f"the state of {class_name(self.layer)} must be a tensor or a tuple of them; got {kinds}")
        if isinstance(self.layer, nn.RNNBase):
            parts = [part if part.dim() == 3 else part.unsqueeze(1) for part in parts]
        elif isinstance(self.layer, nn.RNNCellBase):
            parts = [part.reshape(batch, part.shape[-1]) for part in parts]
        return tuple(part.detach()[self._rows_upto(self.num_sequences)].clone() for part in parts)

    def _rows_upto(self, rows: int) -> tuple[slice, ...]:
        return (slice(None), slice(rows)) if isinstance(self.layer, nn.RNNBase) else (slice(rows),)

    # ---------------------------------------------------------------- giving

    def sequences(self, most: int | None = None) -> tuple[Sequences, State | None, int]:
        """What was recorded, as the engine takes it.

        Args:
            most: The first so many sequences; all there are if None.

        Returns:
            The inputs; the initial state, None for zeros; and the dimension of the state.

        Raises:
            ValueError: If nothing usable reached the layer.
        """
        if self._trouble is not None:
            raise ValueError(f"inputs of the layer could not be recorded: {self._trouble}") from self._trouble
        kept: list[_Call] = []
        for call in (joined for batch in self._batches for joined in self._join(batch)):
            if (room := min(self.num_sequences, most or self.num_sequences) - sum(c.rows for c in kept)) > 0:
                kept.append(self._first_rows(call, room))
        if not kept:
            raise ValueError("inputs: none reached the layer in the forward pass (a compiled cell cannot be watched).")
        steps = max(call.steps for call in kept)
        inputs = torch.cat([_padded(call.inputs, steps) for call in kept], 1)
        lengths = [int(length) for call in kept for length in call.lengths]
        dimension = sum(part.numel() for part in kept[0].after) // kept[0].rows
        return Sequences(inputs, lengths), self._initial_state(kept), dimension

    def _join(self, calls: list[_Call]) -> list[_Call]:
        """Calls that continue each other, as sequences."""
        joined: list[_Call] = []
        for call in calls:
            # Not always the last one: two sequences may take turns, as where two levels share one cell.
            index = next((i for i in reversed(range(len(joined))) if joined[i].is_continued_by(call)), None)
            if index is None:
                joined.append(call)
            else:
                joined[index] = self._continued(joined[index], call)
        torn = len(joined) > 1 and all(call.before is not None for call in joined[1:])
        if torn and all(call.steps == 1 for call in joined):
            raise ValueError(
                f"state: {class_name(self.layer)} is called step by step, but the state it is given is never the one "
                "it returned: it is changed in between. Put the change into the cell, so that a call is a whole step."
            )
        return joined

    def _continued(self, first: _Call, then: _Call) -> _Call:
        """One call out of two; each row goes on where it ended, which need not be where the longest did."""
        lengths = (first.lengths + then.lengths).clamp(max=self.num_steps)
        if bool((first.lengths == first.steps).all()):
            inputs = torch.cat([first.inputs, then.inputs])
        else:
            pairs = zip(first.lengths.tolist(), then.lengths.tolist(), strict=True)
            rows = [torch.cat([first.inputs[:n, b], then.inputs[:m, b]]) for b, (n, m) in enumerate(pairs)]
            inputs = pad_sequence(rows)
        return _Call(inputs[: self.num_steps], lengths, first.before, then.after)

    def _first_rows(self, call: _Call, rows: int) -> _Call:
        upto = self._rows_upto(rows)
        before = None if call.before is None else tuple(part[upto] for part in call.before)
        return _Call(call.inputs[:, :rows], call.lengths[:rows], before, tuple(part[upto] for part in call.after))

    def _initial_state(self, calls: list[_Call]) -> State | None:
        if isinstance(self.layer, nn.RNNBase | nn.RNNCellBase) and all(call.before is None for call in calls):
            return None
        states = [call.before or tuple(map(torch.zeros_like, call.after)) for call in calls]
        axis = 1 if isinstance(self.layer, nn.RNNBase) else 0
        parts = tuple(torch.cat(part, axis) for part in zip(*states, strict=True))
        return parts[0] if self._is_single else parts


def _padded(inputs: Tensor, steps: int) -> Tensor:
    """``inputs`` ``(T, B, ...)`` with zeros appended up to ``steps``."""
    return torch.cat([inputs, inputs.new_zeros((steps - len(inputs), *inputs.shape[1:]))])


def driven_by(network: nn.Module, layers: Mapping[str, nn.Module], *inputs: Any) -> dict[str, Driven]:
    """What reaches the layers of a network in one forward pass on the inputs, whole; without those it passes by."""
    everything = 2**31
    probes = {name: Probe(layer, everything, everything) for name, layer in layers.items()}
    try:
        for probe in probes.values():
            probe.begin_batch(keep_latest=False)
        with torch.no_grad():
            network(*inputs)
        reached = {name: probe for name, probe in probes.items() if probe.has_recorded}
        return {name: Driven(probe.layer, *probe.sequences()) for name, probe in reached.items()}
    finally:
        for probe in probes.values():
            probe.remove()
