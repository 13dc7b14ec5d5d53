"""The states and arguments that reach the blocks of a network in somebody else's forward pass.

The chain is found in the first batch that is recorded, by what flows between all modules, and proved by a replay: each
block, called again with what was kept of it, must return what it returned. From then on only the blocks are watched,
and kept are the states before the first of them and what each is given beside its state.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from lightning_lyapunov.capture.chain_arguments import MOST_KEPT, Copies
from lightning_lyapunov.capture.chain_blocks import RecordedBlock
from lightning_lyapunov.capture.chain_finder import BlockNames, find_chain
from lightning_lyapunov.capture.chain_paths import FEWEST, holds_weights, is_block, kind_of, sample_axis
from lightning_lyapunov.capture.chain_plan import ChainPlan, Run, listed, runs_of
from lightning_lyapunov.capture.chain_records import Record, side_by_side
from lightning_lyapunov.capture.chain_replay import Proof, Recorder, blocks_of, prove, prove_from_random_state
from lightning_lyapunov.capture.flow import Flow, FlowWatch, shown, uncompiled, watchable


@dataclass(frozen=True)
class ChainExtent:
    """How much was seen in the batches that were recorded."""

    samples: int
    """How many there were, those included that were not kept."""


@dataclass(eq=False)
class KnownChain:
    """What is known of the chain of a model, by all who watch it."""

    plan: ChainPlan | None = None
    proof: Proof = field(default_factory=Proof)
    refusal: ValueError | None = None


class ChainProbe:
    """Keeps what goes into the blocks of a network, of the batches it is told to watch.

    Args:
        model: The network; its chain is not known before the first batch.
        module: Where the chain is: a container, or the names of the blocks in order; wherever it is found if None.
        num_samples: Samples to keep; of a batch the first ones.
        known: What another probe has found out about the same model, to be shared with it.
        most: Bytes to keep at most while it is not known which blocks are the chain; where there is more, only later
            batches are recorded. No bound if None.

    Attributes:
        known: The chain, once there was a batch.

    Raises:
        ValueError: If there is no module of such a name, or the model is compiled as a whole.
    """

    def __init__(
        self,
        model: nn.Module,
        module: BlockNames | None = None,
        num_samples: int = 8,
        *,
        known: KnownChain | None = None,
        most: int | None = MOST_KEPT,
    ) -> None:
        self.known = known or KnownChain()
        self._model, self._module, self.num_samples, self._most = model, module, num_samples, most
        self._modules, self._is_partly_compiled = watchable(model)
        self._check_names()
        attentions = [part for part in model.modules() if isinstance(part, nn.MultiheadAttention)]
        self._rows = int(bool(attentions) and not any(part.batch_first for part in attentions))
        self._watch: FlowWatch | None = None
        self._chain: tuple[ChainPlan | None, dict[nn.Module, str]] = (None, {})
        self._own_seconds = self._watch_seconds = 0.0
        self._keeps_latest = self._is_paused = False
        self.forget()

    def _check_names(self) -> None:
        if len(self._modules) == 1 and self._is_partly_compiled:
            raise ValueError(
                "module: the model is compiled as a whole, and no block of it can be watched: give the model without "
                "torch.compile, or compile its blocks one by one, as in `layers[i] = torch.compile(layers[i])`."
            )
        if self._module is None:
            return
        names = [self._module] if isinstance(self._module, str) else list(self._module)
        if not names:
            raise ValueError("module must name at least one block; got none.")
        has = {shown(name): module for name, module in self._model.named_modules(remove_duplicate=False)}
        for name in names:
            if name not in has:
                outer = sorted(one for one in has if one and one.count(".") < 2)
                raise ValueError(f"module: the model has no {name!r}; it has {listed(outer) or 'no parts'}.")
        # A module that stands in several places is called by the first of its names.
        first = {uncompiled(module): name for module, name in self._modules.items()}
        names = [first.get(uncompiled(has[name]), name) for name in names]
        self._module = names[0] if isinstance(self._module, str) else names

    def forget(self) -> None:
        """Let go of what was recorded; the chain stays known."""
        self._stop()
        self._batches: list[list[Record]] = []
        self._trouble: ValueError | None = None
        self._is_same_rows = False

    # ---------------------------------------------------------------- when to record

    def begin_batch(self, *, keep_latest: bool) -> None:
        """Record one batch, unless the first batches are wanted and there are enough of them.

        Args:
            keep_latest: Keep the latest batches rather than the first; a change of mind forgets what there is.
        """
        self.end_batch()
        if keep_latest != self._keeps_latest:
            self.forget()
        self._keeps_latest = keep_latest
        if keep_latest:
            self._trouble = None
        if self.known.refusal is not None or (not keep_latest and self._samples(self._batches) >= self.num_samples):
            return
        if not self._batches or self._batches[-1]:
            self._batches.append([])
        self._is_same_rows = False
        self._start()

    def end_turn(self, *, is_again: bool) -> None:
        """A part of the batch has ended, and an update may follow.

        Args:
            is_again: Whether what follows before the next batch is another pass over the same rows for certain.
        """
        if self._watch is not None:
            self._take()
            self._is_same_rows = is_again
            if self._watched_for != self._wants():  # the chain is known by now
                self._stop()
                self._start()

    def end_batch(self) -> None:
        """Stop recording until the next batch."""
        if self._watch is None:
            return
        self._take()
        self._stop()
        while self._keeps_latest and self._samples(self._batches[1:]) >= self.num_samples:
            del self._batches[0]

    def remove(self) -> None:
        """Leave the model as it was found, and let go of what was recorded."""
        self.forget()

    def pause(self) -> None:
        """Let calls pass for now, as those that a measurement makes."""
        self._take()
        self._is_paused = True
        if self._watch is not None:
            self._watch.is_paused = True

    def go_on(self) -> None:
        """Record again, if it was recorded before."""
        self._is_paused = False
        if self._watch is not None:
            self._watch.is_paused = False

    def _wants(self) -> tuple[ChainPlan | None, bool, int | None]:
        """What decides which modules are watched, and what is kept of them."""
        known = self.known
        return known.plan, known.proof.is_begun, min(known.proof.open, default=None)

    def _start(self) -> None:
        start = time.perf_counter()
        plan, is_begun, place = self._watched_for = self._wants()
        whole: set[nn.Module] = set()
        if plan is None:
            modules, wanted = self._modules, self._candidates()
        else:
            modules = self._of_chain(plan)
            whole = set() if place is None else set(plan.links[place].modules)
            wanted = {plan.links[0].modules[0], *(whole if is_begun else self._provable(plan))}
        copies = Copies(self.num_samples, self._rows, self._most if plan is None else None)
        self._recorder = Recorder(copies, wanted, whole, self._rows, notes_draws=not is_begun)
        self._watch = FlowWatch(modules, self._recorder, is_compiled=self._is_partly_compiled)
        self._watch.is_paused = self._is_paused
        self._watch.start()
        self._own_seconds += time.perf_counter() - start

    def _of_chain(self, plan: ChainPlan) -> dict[nn.Module, str]:
        """The modules of a chain as they are called, and the normalisations in them."""
        if self._chain[0] is not plan:
            parts = {part for block in plan.modules for part in block.modules()}
            norms = {part for part in parts if isinstance(part, _BatchNorm | _InstanceNorm)}
            wanted = norms.union(plan.modules)
            self._chain = plan, {one: name for one, name in self._modules.items() if uncompiled(one) in wanted}
        return self._chain[1]

    def _provable(self, plan: ChainPlan) -> set[nn.Module]:
        """As many blocks as there is room to keep the states of."""
        found: set[nn.Module] = set()
        room = math.inf if self._most is None else self._most
        for link, shape in zip(plan.links, plan.shapes[1:], strict=True):
            shape = torch.Size(shape)
            samples = shape[sample_axis(shape, self._rows)]
            room -= 4 * shape.numel() * min(samples, self.num_samples) // max(samples, 1)
            if room > 0:
                found.update(link.modules)
        return found

    def _candidates(self) -> set[nn.Module]:
        """Modules that may turn out to be blocks."""
        modules = {uncompiled(module): name for module, name in self._modules.items()}
        weighty = {module for module in modules if holds_weights(module)}
        if self._module is not None:
            names = [self._module] if isinstance(self._module, str) else list(self._module)
            inside = tuple(f"{name}." if name else "" for name in names)
            return {module for module in weighty if f"{modules[module]}.".startswith(inside)}
        if self._most is None:
            return weighty
        counts = Counter(kind_of(module) for module in weighty if is_block(module))
        blocks = {module for module in weighty if is_block(module) and counts[kind_of(module)] >= FEWEST}
        return blocks or weighty

    def _stop(self) -> None:
        if self._watch is not None:
            self._watch_seconds += self._watch.seconds
            self._watch.stop()
            self._watch = None

    # ---------------------------------------------------------------- what was recorded

    @property
    def seconds(self) -> float:
        """Spent recording, finding the chain and proving it."""
        return self._own_seconds + self._watch_seconds + (0.0 if self._watch is None else self._watch.seconds)

    @property
    def has_recorded(self) -> bool:
        """Whether there is anything to measure, or to complain about."""
        self._take()
        return self.known.refusal is not None or self._trouble is not None or any(self._batches)

    @property
    def batches_needed(self) -> int:
        """Batches that bring as many samples as are wanted, going by the last one; 1 before there was any."""
        last = next((batch for batch in reversed(self._batches) if batch), None)
        if last is None or any(record.is_normalised_by_batch for record in last):
            return 1  # samples of different batches were normalised in different ways
        return math.ceil(self.num_samples / max(self._samples([last]), 1))

    @property
    def plan(self) -> ChainPlan:
        """The chain.

        Raises:
            ValueError: If there is none, or none was recorded yet.
        """
        self._take()
        if self.known.refusal is not None:
            raise ValueError(str(self.known.refusal))
        if self.known.plan is None:
            raise ValueError(str(self._trouble or _NOTHING))
        return self.known.plan

    @property
    def extent(self) -> ChainExtent:
        """How much was seen in the batches that were recorded."""
        return ChainExtent(sum(record.seen for batch in self._batches for record in batch))

    def states(self, most: int | None = None) -> tuple[list[RecordedBlock], Tensor, Tensor | None]:
        """The chain and what goes into it, as the engine takes them.

        Args:
            most: Samples at most, those without padding first; all that were kept if None.

        Returns:
            The blocks; the states before the first, ``(B, ...)``, of type float32 at least; and which tokens count,
            ``(B, T)`` bool, None where all do.

        Raises:
            ValueError: If there is no chain, it could not be proved, or nothing was recorded.
        """
        self._take()
        plan = self.plan
        if not any(self._batches):
            raise ValueError(str(self._trouble or f"{plan.names[0]}: {_NOTHING}"))
        records = [record for batch in reversed(self._batches) for record in batch]
        record = side_by_side(records, self.num_samples)
        record.blocks = self.known.proof.settled(record.blocks)
        blocks, state, alive = record.chosen(min(self.num_samples, most or self.num_samples))
        return blocks, state.to(torch.promote_types(state.dtype, torch.float32)), alive

    def _samples(self, batches: Sequence[Sequence[Record]]) -> int:
        return sum(record.samples for batch in batches for record in batch)

    # ---------------------------------------------------------------- after a pass

    def _take(self) -> None:
        """Take what the forward pass has brought so far: to be called outside of it, before the next update."""
        watch = self._watch
        if watch is None or not watch.flow.calls or self.known.refusal is not None:
            return
        start = time.perf_counter()
        flow, trouble = watch.flow, watch.trouble
        watch.begin_anew()
        had_room = self._recorder.begin_anew()
        try:
            with torch.inference_mode(False), torch.no_grad():
                self._take_from(flow, had_room=had_room)
                if trouble is not None and not any(self._batches):
                    self._trouble = ValueError(f"inputs of the blocks could not be recorded: {trouble}")
        except ValueError as error:
            self._trouble = ValueError(str(error))  # without its frames, which hold tensors
        except Exception as error:  # told when the measurement is due, and never in the user's training
            self._trouble = ValueError(f"module: the blocks could not be called again: {error}")
        finally:
            self._own_seconds += time.perf_counter() - start

    def _take_from(self, flow: Flow, *, had_room: bool) -> None:
        known = self.known
        is_new = known.plan is None
        plan = known.plan or find_chain(flow, self._module, rows=self._rows)
        known.plan = plan
        runs = runs_of(flow, plan)
        if is_new and not had_room:
            return  # the next batch is kept, of these blocks alone
        if not runs:
            self._complain(flow, plan)
            return
        records = [(record, run) for run in runs if (record := self._record(run, plan)) is not None]
        if not records:
            return
        self._prove(*records[0])
        if self._is_same_rows:
            self._batches[-1].clear()
        self._batches[-1] += [record for record, _ in records]

    def _complain(self, flow: Flow, plan: ChainPlan) -> None:
        """Where blocks were called, but not one after another as before, look for the chain again.

        Raises:
            ValueError: Then.
        """
        called = {call.module for call in flow.calls} & set(plan.modules)
        if 2 * len(called) >= len(plan.modules):
            self.known.plan, self.known.proof = None, Proof()
            raise ValueError(
                f"module: the chain of {plan.words} was not passed from end to end in the forward pass, as it was "
                "before. Name blocks that always follow each other, or give callables to depth_spectrum."
            )

    def _record(self, run: Run, plan: ChainPlan) -> Record | None:
        blocks = blocks_of(run, plan.links, self._rows)
        first = run[0][0]
        state = None if first.kept is None else first.kept.before
        if blocks is None or state is None:
            return None
        return Record(state, blocks, self._rows, first.shapes[0][sample_axis(first.shapes[0], self._rows)])

    def _prove(self, record: Record, run: Run) -> None:
        """Replay what was not proved before.

        Raises:
            ValueError: If a block does not return what it returned; it is never measured then.
        """
        proof, blocks = self.known.proof, record.blocks
        try:
            if not proof.is_begun:
                prove(proof, blocks, run)
            elif proof.open:
                place = min(proof.open)
                is_shown = prove_from_random_state(blocks[place], run[place])
                proof.failures += not is_shown
                if is_shown or proof.failures > len(blocks):  # an update always comes before it can be replayed
                    proof.open.discard(place)
        except ValueError as error:
            self.known.refusal = ValueError(str(error))
            raise


_NOTHING = "nothing reached the blocks in the forward pass (what a compiled model does inside cannot be watched)."
