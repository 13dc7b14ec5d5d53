"""The inputs that reach a recurrent layer in somebody else's forward pass.

A forward hook copies what the layer is given. A layer called once per batch gives one tensor of whole sequences; a cell
called step by step in a Python loop is recorded call by call, and rows that go on from where a row of an earlier call
ended are joined to sequences again.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from lightning_lyapunov.capture.calls import Adapter, Call, Parts
from lightning_lyapunov.capture.conventions import (
    RawCall,
    Recognised,
    adapted,
    keep,
    needs_raw_calls,
    read_calls,
    signature_of,
    watch_forward,
)
from lightning_lyapunov.capture.finding import Found, class_name
from lightning_lyapunov.capture.joining import Kept, Thread, chosen, join, without_doubles
from lightning_lyapunov.capture.likeness import (
    Sample,
    check_likeness,
    dimension_of,
    is_foreign,
    parts_returned,
    plain_layer,
    shallow,
    state_and_lengths,
)
from lightning_lyapunov.engine.maps.cell import State, as_parts
from lightning_lyapunov.engine.maps.weights import weights_written_by_others
from lightning_lyapunov.engine.measure import Driven
from lightning_lyapunov.engine.sequences import Sequences

UNSEEN = "a compiled cell cannot be watched, nor a layer of torch's that is called as layer.forward(...)"
"""Why nothing may be seen of a layer that is run."""
SHORT = 8
"""Sequences of fewer steps are measured only where there are not enough others."""


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


@dataclass(eq=False)
class _Batch:
    """What was recorded of one batch."""

    calls: list[Kept] = field(default_factory=list)
    raw: list[tuple[int, RawCall]] = field(default_factory=list)
    """Calls of a cell whose convention is still to be recognised, each with its turn."""
    turn: int = 0
    """Parts of the batch before this one, at the end of each of which there may have been an update."""
    is_again: bool = False
    """Whether they are passes over the same rows for certain."""
    rows: int = 0
    """Most rows of a call, kept or not."""
    begun: int = 0
    """Rows kept that were given no state: each begins a sequence."""
    begins: int = 0
    """Calls kept that were given no state."""
    steps: int = 0
    """Steps kept."""
    work: int = 0
    """Steps kept of this turn, times rows."""
    tails: list[_Tail] = field(default_factory=list)
    """What followed where there was enough."""
    is_in_tail: bool = False
    """Whether the last call was not kept."""
    raw_tail: int = 0
    """Calls whose convention is not known that followed where there was enough."""

    last_turn: int = 0
    """That of the last call."""
    is_spoilt: bool = False
    """Whether a call could not be read."""

    def begin_anew(self) -> None:
        """Let go of what was recorded."""
        self.calls, self.raw, self.tails = [], [], []
        self.begun, self.begins, self.steps, self.work, self.is_in_tail, self.raw_tail = 0, 0, 0, 0, False, 0

    @property
    def is_empty(self) -> bool:
        return not self.calls and not self.raw

    @property
    def certain(self) -> int:
        """Sequences kept, for certain: those that began without a state, at least the rows of one call."""
        kept = [call.rows for call in self.calls] + [raw.rows for _, raw in self.raw]
        if self.is_spoilt:
            return 0
        return max([self.begun, *kept], default=0)


class _Tail:
    """How far rows go on after the last call that was kept: counted where they are, without a look from the host."""

    def __init__(self, last: Kept, is_plain: bool) -> None:
        self.last, self.is_plain = last, is_plain
        self.count = 0
        self.state = _flat(last.after)
        self._goes_on = torch.ones(last.rows, dtype=torch.bool, device=self.state.device)
        self.steps = torch.zeros(last.rows, dtype=torch.long, device=self.state.device)

    def note(self, call: Call) -> None:
        """Count a call that is not kept."""
        self.count += 0 if call.before is None else call.inputs.shape[0]
        if self.is_plain:
            return
        if call.before is None:
            self._goes_on.zero_()
            return
        before, after = _flat(call.before), _flat(call.after)
        rows = min(len(before), len(self._goes_on))
        self._goes_on[rows:] = False
        self._goes_on[:rows] &= (before[:rows] == self.state[:rows]).all(1)
        self.steps[:rows] += self._goes_on[:rows] * call.lengths[:rows].to(self.steps.device, non_blocking=True)
        self.state = torch.cat([after[:rows], self.state[rows:]])


def _flat(state: Parts) -> Tensor:
    return torch.cat([part.detach().flatten(1) for part in state], 1)


@dataclass(frozen=True)
class Extent:
    """How much was seen in the batches that were recorded."""

    sequences: int
    """How many there were, those included that were not kept."""
    longest: int
    """Steps of the longest."""
    pieces: float | None
    """Steps of each on average, where rows begin anew inside a batch; None where none does."""


class Probe:
    """Keeps what drove one layer, up to ``num_sequences`` × ``num_steps``, of the batches it is told to watch.

    Args:
        layer: The module to watch.
        num_sequences: Rows to keep; of a batch the first ones.
        num_steps: Steps to keep of each; the first ones.
        adapter: How the layer is read and stepped, if it is not torch's own and its convention is not to be recognised.
        is_compiled: Whether it runs inside a compiled module, which would be compiled again if it were watched closer.

    Attributes:
        seconds: Spent recording.
        written_in_training: Whether the weights that another module writes are those of a training pass.
    """

    def __init__(
        self,
        layer: nn.Module,
        num_sequences: int,
        num_steps: int,
        adapter: Adapter | None = None,
        *,
        is_compiled: bool = False,
    ) -> None:
        self.layer, self._is_compiled = layer, is_compiled
        self.num_sequences, self.num_steps = num_sequences, num_steps
        self.seconds = 0.0
        self._are_tails_plain = False
        self._is_paused = False
        self._adapter = self._given = adapter
        is_scripted = isinstance(layer, torch.jit.ScriptModule)  # which takes no hooks, but can be watched
        self._is_layer = isinstance(layer, nn.RNNBase)
        self._is_cell = not is_scripted and type(layer).forward in _CELL_FORWARDS and "forward" not in vars(layer)
        self._is_foreign = is_foreign(layer)
        self._is_alike = False  # whether torch's own step is known to do what a foreign layer does
        self._read = self._reader()
        self._signature = signature_of(layer)
        self._is_scripted = is_scripted
        own = self._is_layer and not self._is_foreign
        self._hook = (_UncompiledHook if own else _Hook)(self)  # one for good: another would be compiled anew
        self._handle: Any = None
        if is_compiled:
            self._watch()  # for good: what is compiled without a hook does not call one later
        self._forward: Any = None  # the watch over calls that go past the hooks
        # A cell may be called as cell.forward(...), past its hooks.
        self._calls_forward = is_scripted or not (self._is_layer or is_compiled)
        self._is_single = True  # whether a state is one tensor rather than a tuple of them
        self._keeps_latest = False
        self.forget()

    def _reader(self) -> Callable[[tuple[Any, ...], dict[str, Any], Any], Call] | None:
        """How a call is read; None where that is still to be recognised."""
        adapter = self._adapter
        if adapter is not None and not needs_raw_calls(adapter):
            return partial(adapter.read, self.layer)
        if self._is_layer:
            return self._layer_call
        return self._cell_call if self._is_cell else None

    def forget(self) -> None:
        """Let go of what was recorded."""
        self._batches: list[_Batch] = []
        self._trouble: Exception | None = None
        self._is_recording = False
        self._sample: Sample | None = None
        self._written: dict[str, Tensor] = {}
        self.written_in_training = False
        self._joined: tuple[list[Thread], Extent] | None = None

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
        if self._batches and self._batches[-1].is_empty:
            self._batches.pop()  # nothing reached the layer
        enough = sum(batch.certain for batch in self._batches) >= self.num_sequences
        self._is_recording = keep_latest or not enough
        if self._is_recording:
            self._batches.append(_Batch())
            self._watch()
            if self._calls_forward:
                self._forward = watch_forward(self.layer, self.record)

    def end_turn(self, *, is_again: bool) -> None:
        """A part of the batch has ended.

        Args:
            is_again: Whether what follows before the next batch is another pass over the same rows for certain.
        """
        if self._is_recording and not self._batches[-1].is_empty:
            self._batches[-1].turn += 1
            self._batches[-1].is_again = is_again

    def end_batch(self) -> None:
        """Stop recording until the next batch."""
        self._stop_watching()
        while self._keeps_latest and sum(batch.certain for batch in self._batches[1:]) >= self.num_sequences:
            del self._batches[0]
        self._is_recording = False

    def remove(self) -> None:
        """Take the hook off the layer and let go of what was recorded."""
        self._is_compiled = False
        self._stop_watching()
        self.forget()

    def _watch(self) -> None:
        """Put the hook on the layer: only while a batch is recorded, as others may copy, save or export the model."""
        if self._handle is None and not self._is_scripted:
            self._handle = self.layer.register_forward_hook(self._hook, with_kwargs=True)

    def pause(self) -> None:
        """Let calls pass for now, as those that a measurement makes; the layer is as it was found."""
        self._is_paused = True
        if self._forward is not None:
            self._forward.remove()
            self._forward = None

    def go_on(self) -> None:
        """Record again, if it was recorded before."""
        self._is_paused = False
        if self._is_recording and self._calls_forward:
            self._forward = watch_forward(self.layer, self.record)

    def _stop_watching(self) -> None:
        if self._handle is not None and not self._is_compiled:
            self._handle.remove()
            self._handle = None
        if self._forward is not None:
            self._forward.remove()
            self._forward = None

    @property
    def has_recorded(self) -> bool:
        """Whether there is anything to measure, or to complain about."""
        return self._trouble is not None or not all(batch.is_empty for batch in self._batches)

    @property
    def batches_needed(self) -> int:
        """Batches that bring as many sequences as are wanted, going by the last one; 1 before there was any."""
        last = next((batch.certain for batch in reversed(self._batches) if not batch.is_empty), self.num_sequences)
        return -(-self.num_sequences // max(last, 1))

    # ---------------------------------------------------------------- recording

    def record(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Keep one call of the layer; neither raises nor holds on to the graph."""
        if not self._is_recording or self._is_paused:
            return
        start = time.perf_counter()
        try:
            with torch.no_grad():
                self._record(self._batches[-1], args, kwargs, output)
        except Exception as error:  # told when the measurement is due, outside the user's forward pass
            self._trouble = error.with_traceback(None)  # whose frames would keep the graph alive
            self._batches[-1].is_spoilt = True  # somebody else may have called the model, in a way of his own
        self.seconds += time.perf_counter() - start

    def _record(self, batch: _Batch, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self._joined = None
        if self._read is None:
            if batch.work >= self.num_sequences * self.num_steps:
                if batch.raw[-1][0] == batch.turn:
                    batch.raw_tail += 1
                    return
                batch.begin_anew()
            raw = keep(self.layer, args, kwargs, output, self.num_sequences, self._signature)
            batch.raw.append((batch.turn, raw))
            batch.rows, batch.work = max(batch.rows, _rows_of(args, kwargs)), batch.work + raw.rows
            return
        call = self._read(args, kwargs, output)
        if len(call.lengths) == 0:
            return
        batch.rows = max(batch.rows, len(call.lengths))
        if self._is_another_pass(batch, call):
            batch.begin_anew()
        if not self._has_room(batch, call):
            if not batch.is_in_tail:
                batch.tails.append(_Tail(batch.calls[-1], self._are_tails_plain))
                batch.is_in_tail = True
            batch.tails[-1].note(call)
            return
        kept = self._bounded(call, batch)
        if call.before is None:
            batch.begun, batch.begins = batch.begun + kept.rows, batch.begins + 1
        batch.calls.append(kept)
        batch.is_in_tail = False
        batch.steps += len(kept.inputs)
        batch.work += kept.rows * len(kept.inputs)
        if len(batch.calls) == 1:
            self._note_weights(kept, output)

    def _is_another_pass(self, batch: _Batch, call: Call) -> bool:
        """Whether a call begins another pass over the rows of the batch, so that those before it no longer count."""
        if not batch.calls or batch.last_turn == batch.turn:
            return False
        batch.last_turn = batch.turn
        if call.before is None and batch.is_again:
            return True
        if self._has_room(batch, call):
            return False  # it is kept, and whether it goes on from the calls before it is seen later
        if call.before is None:
            return True  # of as many rows as are wanted, the latest
        last = batch.tails[-1].state if batch.is_in_tail else _flat(batch.calls[-1].after)
        before = _flat(call.before)[: len(last)]
        return before.shape != last.shape or not torch.equal(before, last)

    def _has_room(self, batch: _Batch, call: Call) -> bool:
        """Whether a call adds to what is wanted: a sequence that begins, or steps of some that are not long enough."""
        if not batch.calls:
            return True
        if call.before is None:
            return batch.begun < self.num_sequences
        if batch.begins:
            return batch.steps < self.num_steps * batch.begins and not batch.is_in_tail
        return batch.work < self.num_sequences * self.num_steps

    def _bounded(self, call: Call, batch: _Batch) -> Kept:
        rows = slice(self.num_sequences)
        inputs = call.inputs[: self.num_steps, rows].detach().clone()
        before, after = (
            None if state is None else tuple(part[rows].detach().clone() for part in state)
            for state in (call.before, call.after)
        )
        assert after is not None
        lengths = call.lengths[rows]
        kept = lengths.clamp(max=len(inputs))
        return Kept(inputs, kept, before, after, lengths.tolist(), batch.turn, self.layer.training, batch.is_again)

    def _note_weights(self, kept: Kept, output: Any) -> None:
        """Keep what tells later with which weights the layer ran, and whether as torch's would."""
        if self._is_foreign and not self._is_alike:
            outputs, _ = self._time_first(parts_returned(self.layer, output)[0])
            outputs = outputs[: self.num_steps, : self.num_sequences].detach().clone()
            weights = [weight.detach().clone() for weight in self.layer._flat_weights]  # type: ignore[union-attr]
            self._sample = Sample(kept, outputs, weights, self.layer.training)
        if isinstance(self.layer, nn.RNNBase | nn.RNNCellBase):
            written = weights_written_by_others(self.layer)
            self._written = {name: weight.detach().clone() for name, weight in written.items()}
            self.written_in_training = bool(written) and self.layer.training

    # ---------------------------------------------------------------- reading calls

    def _layer_call(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Call:
        """A call of one of torch's layers, or of a subclass; the parts of its state are ``(B, layers, size)`` here."""
        given, state, lengths = self._arguments(args, kwargs)
        inputs, counts = self._time_first(given)
        if lengths is not None and not isinstance(given, PackedSequence):
            counts = torch.as_tensor(lengths).detach().cpu().long().clamp(max=len(inputs))
        _, after = parts_returned(self.layer, output)
        self._is_single = len(after) == 1
        return Call(inputs, counts, None if state is None else self._rows_first(state), self._rows_first(after))

    def _cell_call(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Call:
        inputs, state, _ = self._arguments(args, kwargs)
        inputs = inputs.view(1, -1) if inputs.dim() == 1 else inputs
        self._is_single = isinstance(output, Tensor)
        before, after = (
            None if s is None else tuple(part.reshape(len(inputs), part.shape[-1]) for part in as_parts(s))
            for s in (state, output)
        )
        assert after is not None
        return Call.of_step(inputs, before, after)

    def _arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any, Any]:
        """The inputs, the state and the lengths that a call was given, however they were passed."""
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        values = list(bound.arguments.values())
        if self._is_foreign and values and isinstance(values[0], Tensor | PackedSequence):
            return values[0], *state_and_lengths(bound.arguments)
        if len(values) < 2 or not isinstance(values[0], Tensor | PackedSequence):
            raise ValueError(
                f"{class_name(self.layer)}.forward must take (x, state), x a tensor; it takes {list(bound.arguments)}"
            )
        return values[0], values[1], None

    def _time_first(self, inputs: Tensor | PackedSequence) -> tuple[Tensor, Tensor]:
        if isinstance(inputs, PackedSequence):
            return pad_packed_sequence(inputs)
        if inputs.dim() == 2:
            inputs = inputs.unsqueeze(1)
        elif self.layer.batch_first:
            inputs = inputs.transpose(0, 1)
        return inputs, torch.full((inputs.shape[1],), len(inputs))

    def _rows_first(self, state: State) -> Parts:
        parts = as_parts(state)
        if not all(isinstance(part, Tensor) for part in parts):
            kinds = [type(part).__name__ for part in parts]
            raise ValueError(f"the state of {class_name(self.layer)} must be a tensor or a tuple of them; got {kinds}")
        parts = [(part if part.dim() == 3 else part.unsqueeze(1)).transpose(0, 1) for part in parts]
        is_flat = self._given is not None and all(part.shape[1] == 1 for part in parts)
        return tuple(part.squeeze(1) if is_flat else part for part in parts)  # as a step of one layer takes it

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
        threads, _ = self._threads()
        threads = chosen(threads, min(self.num_sequences, most or self.num_sequences), SHORT)
        rows = [thread.inputs for thread in threads]
        inputs = Sequences(nn.utils.rnn.pad_sequence(rows), [len(row) for row in rows])
        return inputs, self._initial_state(threads), self._dimension(threads[0], inputs)

    @property
    def extent(self) -> Extent:
        """How much was seen in the batches that were recorded.

        Raises:
            ValueError: If nothing usable reached the layer.
        """
        return self._threads()[1]

    def system(self, layer: nn.Module) -> Any:
        """What the engine is to measure.

        Args:
            layer: The one that is watched, or a copy of it whose parameters are whole.

        Raises:
            ValueError: If it is a subclass of torch's layer that does something else; the message says what to do.
        """
        if self._written:
            layer = shallow(layer)
            for name, weight in self._written.items():
                layer._parameters.pop(name, None)
                setattr(layer, name, weight)
        if self._adapter is not None:
            make = getattr(self._adapter, "system", None)  # of a scan, which is known by its gates
            return adapted(layer, self._adapter) if make is None else make(layer)
        if self._is_foreign:
            assert isinstance(layer, nn.RNNBase)
            if not self._is_alike and self._sample is not None:
                check_likeness(layer, self._sample)
                self._is_alike, self._sample = True, None
            return plain_layer(layer)
        return layer

    def _threads(self) -> tuple[list[Thread], Extent]:
        """The sequences, each row once, and how much was seen."""
        if self._joined is None:
            sound = [batch for batch in self._batches if not batch.is_spoilt]
            if self._trouble is not None and all(batch.is_empty for batch in sound):
                raise ValueError(f"inputs of the layer could not be recorded: {self._trouble}") from self._trouble
            if any(batch.raw for batch in sound):
                self._recognise(sound)
            batches = [batch for batch in sound if not batch.is_empty]
            joined: list[list[Thread]] = []
            for batch in batches:
                calls = self._calls_of(batch)
                joined.append(threads := join(calls, self.num_steps))
                self._check_is_joined(calls, threads)
                if all(t.pieces[0][0] is calls[0] and t.pieces[-1][0] is calls[-1] for t in threads):
                    calls[-1].totals[:] = [total + batch.raw_tail for total in calls[-1].totals]
                batch.raw_tail = 0  # else it is not known which rows went on
            threads = without_doubles([thread for threads in joined for thread in threads if self._is_begun(thread)])
            if not threads:
                raise ValueError(f"inputs: none reached the layer in the forward pass ({UNSEEN}).")
            more = sum(max(batch.rows - self.num_sequences, 0) for batch in batches)
            totals = [thread.total for thread in threads]
            pieces = sum(totals) / len(totals) if any(thread.is_anew for thread in threads) else None
            self._joined = threads, Extent(len(threads) + more, max(totals), pieces)
        return self._joined

    def _dimension(self, thread: Thread, inputs: Sequences) -> int:
        call, row = thread.pieces[0]
        if not call.after and self._is_foreign and self._given is None:
            return dimension_of(self.layer)  # type: ignore[arg-type]
        if not call.after and self._is_layer:
            raise ValueError(
                f"{class_name(self.layer)} returns no state, so that of its step is not known: give an Adapter that "
                "reads its calls, module={'name': adapter}."
            )
        if not call.after:
            return int(self.system(self.layer).dimension(inputs))
        return sum(part[row].numel() for part in call.after)

    def _calls_of(self, batch: _Batch) -> list[Kept]:
        """The calls of a batch, all the steps that followed counted in."""
        for tail in batch.tails:
            plain = [tail.count] * tail.last.rows
            more = plain if tail.is_plain else tail.steps.tolist()
            # Where all rows went on to the end, calls are merely counted from then on: following them takes time.
            self._are_tails_plain = more == plain
            tail.last.totals[:] = [total + n for total, n in zip(tail.last.totals, more, strict=True)]
        batch.tails.clear()
        return batch.calls

    def _recognise(self, batches: list[_Batch]) -> None:
        """Read the calls of a cell whose convention was not known."""
        turns = [(batch, turn) for batch in batches for turn in range(batch.turn + 1)]
        raws = [[raw for of, raw in batch.raw if of == turn] for batch, turn in turns]
        self._adapter, read = read_calls(self.layer, raws, self._given)
        is_single = isinstance(self._adapter, Recognised) and self._adapter.is_single
        for (batch, turn), calls in zip(turns, read, strict=True):
            kept = [
                Kept(
                    c.inputs,
                    c.lengths,
                    c.before,
                    c.after,
                    c.lengths.tolist(),
                    turn,
                    self.layer.training,
                    batch.is_again,
                )
                for c in calls
            ]
            batch.calls += kept
            batch.raw = [(of, raw) for of, raw in batch.raw if of != turn]
            self._is_single = is_single or (kept != [] and len(kept[0].after) == 1 and self._given is not None)

    def _is_begun(self, thread: Thread) -> bool:
        """Whether the state is known that it begins in; a cell that keeps it to itself may not show the first one."""
        if self._adapter is None or thread.before is None:
            return True
        return not any(bool(part.isnan().any()) for part in thread.before)

    def _check_is_joined(self, calls: list[Kept], threads: list[Thread]) -> None:
        """Complain of a loop in which no row ever goes on from the state that it came to."""
        steps = [total for call in calls for total in call.totals]
        torn = len(calls) > 1 and all(call.before is not None for call in calls[1:])
        if torn and max(steps) == 1 and max(thread.total for thread in threads) == 1:
            raise ValueError(
                f"state: {class_name(self.layer)} is called step by step, but the state it is given is never the one "
                "it returned: it is changed in between. Put the change into the cell, so that a call is a whole step; "
                "or, where a cell of your own calls this one, name that, module='name'."
            )

    def _initial_state(self, threads: list[Thread]) -> State | None:
        """As the system takes it; None for zeros."""
        befores = [thread.before for thread in threads]
        has_state = bool(threads[0].pieces[0][0].after)
        knows_zeros = self._given is None and (self._is_layer or self._is_cell)
        if all(before is None for before in befores) and (knows_zeros or not has_state):
            return None
        zeros = [
            tuple(torch.zeros_like(part[row]) for part in call.after) for call, row in (t.pieces[0] for t in threads)
        ]
        states = [before if before is not None else zero for before, zero in zip(befores, zeros, strict=True)]
        axis = 1 if self._is_layer and self._given is None else 0
        parts = tuple(torch.stack(part, axis) for part in zip(*states, strict=True))
        # An adapter's step takes one tensor, or a tuple of as many as there are.
        is_single = len(parts) == 1 if self._read is not None and self._given is not None else self._is_single
        return parts[0] if is_single else parts


def _rows_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Rows of the first tensor among the arguments."""
    return next((len(given) for given in (*args, *kwargs.values()) if isinstance(given, Tensor) and given.dim()), 0)


_CELL_FORWARDS = (nn.RNNCell.forward, nn.GRUCell.forward, nn.LSTMCell.forward)


def probe_of(found: Found, num_sequences: int, num_steps: int) -> Probe:
    """A probe for a layer that was found."""
    return Probe(found.module, num_sequences, num_steps, found.adapter, is_compiled=found.is_compiled)


def driven_by(network: nn.Module, layers: Mapping[str, Found], *args: Any, **kwargs: Any) -> dict[str, Driven]:
    """What reaches the layers of a network in one forward pass, whole; without those that it passes by.

    Args:
        network: In eval mode.
        layers: Inside it.
        *args: What its forward takes.
        **kwargs: The same by name.
    """
    everything = 2**31
    probes = {name: probe_of(layer, everything, everything) for name, layer in layers.items()}
    try:
        for probe in probes.values():
            probe.begin_batch(keep_latest=False)
        with torch.no_grad():
            network(*args, **kwargs)
        for probe in probes.values():
            probe.end_batch()
        reached = {name: probe for name, probe in probes.items() if probe.has_recorded}
        recorded = {name: probe.sequences() for name, probe in reached.items()}
        return {name: Driven(probe.system(probe.layer), *recorded[name]) for name, probe in reached.items()}
    finally:
        for probe in probes.values():
            probe.remove()
