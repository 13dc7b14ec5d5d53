"""The one act of a guest in a Trainer: the spectrum of a recurrent layer is set before the layer is trained."""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from inspect import signature
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lightning_lyapunov.capture.finding import find
from lightning_lyapunov.capture.probe import Probe, probe_of
from lightning_lyapunov.conditioning import Conditioning, condition
from lightning_lyapunov.conditioning.condition import Method, Shape, check, check_layer
from lightning_lyapunov.conditioning.flossing import Descent
from lightning_lyapunov.conditioning.rows import SEQUENCES, STEPS
from lightning_lyapunov.conditioning.weights import put_back, put_back_on_error
from lightning_lyapunov.engine.isolation import evaluating
from lightning_lyapunov.engine.maps.families import family_of
from lightning_lyapunov.engine.system import unwrap
from lightning_lyapunov.monitoring.loggers.trackers import log_measurement, prepare
from lightning_lyapunov.monitoring.notices import Notices
from lightning_lyapunov.monitoring.showing import defaults_of, described
from lightning_lyapunov.training.copies import copies, ties
from lightning_lyapunov.training.logging import logging_step
from lightning_lyapunov.training.pickling import added_to
from lightning_lyapunov.training.ranks import TrainerRanks, inform, warn

KEEP_PIECES = frozenset({"FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy", "XLAFSDPStrategy"})
"""Strategies that train weights in pieces, or a copy of them, which cannot be set from outside."""


@dataclass(frozen=True)
class _Done:
    """What became of a layer: plain values, so that they can be saved and sent to other ranks."""

    text: str
    applied: bool
    is_blind: bool
    figures: dict[str, float]
    weights: dict[str, Tensor]
    """Those that were set, by name, on the CPU."""


class LyapunovConditioning(pl.Callback):
    r"""Sets the Lyapunov spectrum of recurrent layers, before they are trained, for a task of a known lag.

    Once, before the first update, each layer is given to :func:`~lightning_lyapunov.condition`, with the inputs that
    reach it in the model's own forward pass, so that it can hold something for ``lag`` steps from the start. It is for
    whoever knows that the task asks for that: where nothing is to be held for long, gated cells learn worse for it.

    The inputs are those of the sanity check, and the layers are set when training starts. Where no sanity check reaches
    them they are those of the first training batch, and the layers are set after the first update, since until then
    gradients belong to the weights as they were made. Of several ranks rank zero conditions, on its inputs, and gives
    the weights to the others.

    Only weights are touched, and only once: never those of a network that has been trained, as in a fit that goes on
    from a checkpoint, whoever wrote it. (Weights that you load into the model yourself are taken for new ones.)
    Optimisers, schedulers, gradients, modes and random state stay as they are. What cannot be set, frozen parameters
    for instance, or those of half precision, is said once and left as it was; so is a layer that comes out no better.

    Layers of one stack, as ``nn.LSTM(num_layers=2)``, are set from below, each on what the layers already set give it.
    Modules of their own are set on what reached them before any was set: where one feeds another, ``condition`` them by
    hand, from below, if its new outputs are of another size.

    Order in the list of callbacks: before a :class:`~lightning_lyapunov.LyapunovSpectrumCallback` whose first
    measurement is to be of the conditioned network (behind it, and without a sanity check, that is of the network as it
    was made); before callbacks that copy weights when training starts, or after an update, as running averages do. A
    copy that is left with the old weights, also one inside the model such as a target network, is warned of; so are
    weights that are shared with other modules, and a search for the learning rate that comes before it.

    Args:
        module: Name of the layer to condition, or several. If None all recurrent layers and cells of torch's.
        lag: Steps that something is to be held for. There is no default, as nobody else knows; four times too long
            costs.
        shape: "hold": all exponents close below 0; "spread": gates of time constants from 1.5 steps to the lag.
        method: "scaling", closed forms and one bisection; "flossing", gradient steps on the exponents, also of a cell
            of your own that is named.
        k: Exponents that are looked at, or flossed; the leading H if None.
        steps: Gradient steps at most; this and what follows is for flossing alone, up to transient, and max_seconds.
        tolerance: Mean square of the exponents at which to stop, (nats/step)².
        learning_rate: That of flossing's own Adam.
        clip: Largest norm of a gradient.
        num_steps: Steps of the window that each gradient step looks at.
        transient: Of these so many settle first.
        num_sequences: Sequences to record, of which at most 16 are used, half of them to measure the result on; the
            first 256 steps of each.
        max_seconds: After which the best weights so far are taken.
        seed: Of what is drawn on the way.
        prefix: First part of the keys. Two instances in one Trainer need different ones.

    Attributes:
        report: What became of the layer, a :class:`~lightning_lyapunov.Conditioning`; where the model has
            several, of each, by name. None if this instance has done nothing; on rank zero.

    Raises:
        ValueError: For an argument out of range.
        MisconfigurationException: In ``setup``, if another instance uses the same prefix, or if the Trainer's strategy
            trains weights in pieces or a copy of them (FSDP, tensor parallelism, DeepSpeed).

    Keys, under the prefix ``conditioning``, logged once; with several layers under ``conditioning/<layer>``. A value
    that is not finite is not there.

    ==========================  ===========  ===========================================================================
    ``max_before``              nats/step    largest exponent of the layer as it was made
    ``max_after``               nats/step    largest exponent as it was set
    ``rms_before``              nats/step    root mean square of the exponents less their target, as it was made
    ``rms_after``               nats/step    the same as it was set
    ``reach_before``            nats         what the end of a sequence feels of its first input, a logarithm, as made
    ``reach_after``             nats         the same as it was set
    ``steps``                   count        gradient steps
    ``largest_gradient``        --           largest norm of a gradient on the way; of flossing alone
    ``seconds``                 s            what it took
    ==========================  ===========  ===========================================================================

    Example::

        trainer = Trainer(callbacks=[LyapunovConditioning(lag=40), LyapunovSpectrumCallback()])
    """

    def __init__(
        self,
        module: str | Sequence[str] | None = None,
        *,
        lag: float,
        shape: Shape = "hold",
        method: Method = "scaling",
        k: int | None = None,
        steps: int = 300,
        tolerance: float = 1e-3,
        learning_rate: float = 2e-3,
        clip: float = 0.1,
        num_steps: int = 55,
        transient: int = 16,
        num_sequences: int = 2 * SEQUENCES,
        max_seconds: float = 30.0,
        seed: int = 0,
        prefix: str = "conditioning",
    ) -> None:
        self.module = module if module is None or isinstance(module, str) else list(module)
        self.lag, self.shape, self.method, self.k, self.steps = lag, shape, method, k, steps
        self.tolerance, self.learning_rate, self.clip = tolerance, learning_rate, clip
        self.num_steps, self.transient, self.num_sequences = num_steps, transient, num_sequences
        self.max_seconds, self.seed, self.prefix = max_seconds, seed, prefix
        self._check()
        self._notices = Notices(type(self).__name__, inform, warn)
        self._model: weakref.ref[pl.LightningModule] | None = None
        self._probes: dict[str, Probe] = {}
        self._begin()

    def _check(self) -> None:
        check(self.lag, self.shape, self.method, self.k)
        Descent(
            self.steps, self.tolerance, self.learning_rate, self.clip, self.num_steps, self.transient, self.max_seconds,
            self.seed,
        )  # fmt: skip
        if self.module is not None and not self.module:
            raise ValueError("module must name at least one layer, or be None for all; got none.")
        if isinstance(self.num_sequences, bool) or not isinstance(self.num_sequences, int) or self.num_sequences < 1:
            raise ValueError(f"num_sequences must be a whole number, at least 1; got {self.num_sequences!r}.")
        if not self.prefix or self.prefix != self.prefix.strip("/"):
            raise ValueError(f"prefix must be a name without slashes at its ends; got {self.prefix!r}.")

    def _begin(self) -> None:
        self.report: Conditioning | dict[str, Conditioning] | None = None
        self._done: dict[str, _Done] = {}
        self._is_due = False

    # ---------------------------------------------------------------- being a guest

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse what cannot work, before anything has begun."""
        if stage != "fit":
            return
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        others = [c for c in callbacks if isinstance(c, LyapunovConditioning) and c is not self]
        if any(other.prefix == self.prefix for other in others):
            raise MisconfigurationException(
                f"Two LyapunovConditionings use the prefix {self.prefix!r}; give one of them another prefix=."
            )
        if kind := next((kind for kind in KEEP_PIECES if _is_a(trainer.strategy, kind)), None):
            raise MisconfigurationException(
                f"{type(self).__name__}: {kind} trains weights in pieces, or a copy of them, which cannot be "
                "set from here. Condition the layer before its model is given to the Trainer, "
                f"condition(model.rnn, inputs, lag={self.lag:g}), or use DDPStrategy."
            )
        self._notices.begin()
        if self._model is None or self._model() is not pl_module:
            self._begin()  # a checkpoint is loaded after this
            self._model = weakref.ref(pl_module)
        if any(_is_a(c, "LearningRateFinder") for c in callbacks):
            self._notices.tell(
                "LearningRateFinder tries learning rates on the network as it was made, and it is conditioned after "
                f"that. For a rate of the conditioned one, condition(model.rnn, inputs, lag={self.lag:g}) before both, "
                "and leave this callback out.",
                warn="rate-found-before",
            )

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the layers, which ``configure_model`` may only just have made, and watch what drives them."""
        self._release()
        if trainer.fast_dev_run or trainer.barebones:  # type: ignore[attr-defined]
            return
        if self._done:
            told = "; ".join(f"{_shown(name)}: {done.text}" for name, done in self._done.items())
            self._notices.tell(f"this was done before, and is not done again: {told}")
            return
        try:
            found, unsupported = find(pl_module, self.module)
        except ValueError as error:
            self._notices.tell(f"nothing is conditioned, training goes on as it would: {error}", warn="not-conditioned")
            return
        if unsupported:
            self._notices.tell(f"found but not conditioned: {'; '.join(unsupported)}.", warn="not-conditioned")
        self._probes = {name: probe_of(layer, self.num_sequences, STEPS) for name, layer in found.items()}
        self._is_due = True

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Take the hooks off again."""
        if stage == "fit":
            self._release()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Take the hooks off also when the fit breaks off: Lightning calls nothing else then."""
        self._release()

    def _release(self) -> None:
        for probe in self._probes.values():
            probe.remove()
        self._probes, self._is_due = {}, False

    # ---------------------------------------------------------------- when

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Record the batches of the sanity check."""
        if self._is_due and trainer.sanity_checking:
            for probe in self._probes.values():
                probe.begin_batch(keep_latest=False)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stop recording."""
        if self._is_due:
            for probe in self._probes.values():
                probe.end_batch()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Condition on what the sanity check brought; never a network that has been trained."""
        if not self._is_due:
            return
        if (updates := _updates(trainer)) > 0:
            self._is_due = False
            self._notices.tell(
                f"nothing is done: this fit goes on after {updates} update{'s' * (updates != 1)}, and a network that "
                "has been trained is not conditioned."
            )
        elif TrainerRanks(trainer).from_first(any(probe.has_recorded for probe in self._probes.values())):
            self._condition(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Record the first training batches if no sanity check did."""
        if self._is_due:
            for probe in self._probes.values():
                probe.begin_batch(keep_latest=True)

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Keep passes over the same rows apart, as those of a closure that is evaluated again."""
        if self._is_due:
            for probe in self._probes.values():
                probe.end_turn(is_again=pl_module.automatic_optimization)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Condition after the first update, if no sanity check brought inputs.

        Before it the weights must stay: the graph of the forward pass refers to them, and so do gradients that are
        accumulated over batches.
        """
        if not self._is_due:
            return
        for probe in self._probes.values():
            probe.end_batch()
        if trainer.global_step > 0 or not pl_module.automatic_optimization:
            self._condition(trainer, pl_module)
            if self._done:
                self._notices.tell(
                    "this was done after the first update, on inputs of training, as no sanity check had brought any."
                )

    # ---------------------------------------------------------------- conditioning

    def _condition(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Condition all layers, on all ranks alike; rank zero does it, on its inputs."""
        self._is_due = False
        ranks = TrainerRanks(trainer)
        with trainer.profiler.profile(f"[{type(self).__name__}]condition"):  # type: ignore[attr-defined]
            self._done = ranks.from_first(self._set_all(trainer, pl_module) if ranks.is_first else {})
        for name, done in self._done.items():
            parameters = dict(self._probes[name].layer.named_parameters())
            with torch.no_grad():
                for of, weight in done.weights.items() if not ranks.is_first else ():
                    parameters[of].copy_(weight)
            self._notices.tell(
                f"{_shown(name)}: {done.text}", warn="not-conditioned" if done.is_blind or not done.applied else ""
            )
        self._log(trainer)
        for probe in self._probes.values():
            probe.forget()  # hooks of compiled modules stay: without them they would be compiled anew

    def _set_all(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, _Done]:
        """Condition the layers one by one: what became of those that could be."""
        done: dict[str, _Done] = {}
        reports: dict[str, Conditioning] = {}
        with ExitStack() as stack:
            found = {name: stack.enter_context(put_back_on_error(probe.layer)) for name, probe in self._probes.items()}
            for name, probe in self._probes.items():
                try:
                    reports[name], done[name] = self._set(probe, found[name])
                except Exception as error:  # one layer's trouble is not another's, nor the run's
                    put_back(probe.layer, found[name])
                    self._notices.tell(f"{_shown(name)} is left as it was: {error}", warn="not-conditioned")
                    continue
                with suppress(Exception):  # advice about other people's objects must not end a run
                    self._warn_of_others(name, probe.layer, found[name], trainer, pl_module)
        self.report = reports if len(self._probes) > 1 else next(iter(reports.values()), None)
        return done

    def _set(self, probe: Probe, found: Mapping[str, Tensor]) -> tuple[Conditioning, _Done]:
        """Condition a layer along the inputs that reached it, which was ``found`` with other weights."""
        with evaluating(probe.layer):  # a cell of the user's own is called to learn how, and others may be recording
            inputs, state, _ = probe.sequences()
        system = probe.system(probe.layer)
        if family_of(unwrap(system)) is None:
            check_layer(unwrap(probe.layer), self.method)  # which knows it by its own name
        report = condition(
            system,
            inputs,
            lag=self.lag,
            shape=self.shape,
            method=self.method,
            state=state,
            k=self.k,
            steps=self.steps,
            tolerance=self.tolerance,
            learning_rate=self.learning_rate,
            clip=self.clip,
            num_steps=self.num_steps,
            transient=self.transient,
            max_seconds=self.max_seconds,
            seed=self.seed,
        )
        weights = {name: weight.detach().cpu() for name, weight in _changed(probe.layer, found).items()}
        return report, _Done(str(report), report.applied, report.is_blind, _figures(report), weights)

    def _warn_of_others(
        self, name: str, layer: nn.Module, found: Mapping[str, Tensor], trainer: pl.Trainer, model: nn.Module
    ) -> None:
        """Say who else is concerned by a layer's weights, which were ``found`` otherwise."""
        changed = _changed(layer, found)
        if tied := ties(model, layer, changed.values()):
            self._notices.tell(
                f"{_shown(name)} shares weights that were set with {_listed(tied)}.", warn="weights-held-elsewhere"
            )
        guests = [guest for guest in trainer.callbacks if guest is not self]  # type: ignore[attr-defined]
        layers = [probe.layer for probe in self._probes.values()]
        own = [tensor for one in layers for tensor in (*one.parameters(), *one.buffers())]
        # By all its matrices: of a layer with gates, biases alone are set, which are too alike to tell whose they are.
        if changed and (held := copies(model, guests, found.values(), own)):
            self._notices.tell(
                f"weights that {_shown(name)} had before are still held by {_listed(held)}. If that is to follow the "
                f"layer, copy them anew in on_train_start, behind {type(self).__name__} in the list of callbacks; a "
                "callback that copies weights in training stands behind it too.",
                warn="weights-held-elsewhere",
            )

    def _log(self, trainer: pl.Trainer) -> None:
        """Give the figures to loggers and monitors, once."""
        values = {
            "/".join([self.prefix, *([name] if len(self._probes) > 1 else []), figure]): value
            for name, done in self._done.items()
            for figure, value in done.figures.items()
        }
        trainer.callback_metrics.update({key: torch.tensor(value) for key, value in values.items()})
        step, row = logging_step(trainer, "before training"), {**values, "epoch": trainer.current_epoch}
        for logger in trainer.loggers if values else ():
            try:
                prepare(logger, self.prefix, ())
                log_measurement(logger, row, step)
            except Exception as error:  # a tracker that is down is no reason to end a run
                kind = type(logger).__name__
                self._notices.tell(
                    f"{kind} refused the figures ({type(error).__name__}: {error}).", warn="logger-refused"
                )

    # ---------------------------------------------------------------- state

    def __repr__(self) -> str:
        done = "; ".join(f"{_shown(name)}: {one.text}" for name, one in vars(self).get("_done", {}).items())
        defaults = defaults_of(LyapunovConditioning)
        return described(type(self).__name__, defaults, lambda name: getattr(self, name), done)

    def __getstate__(self) -> dict[str, Any]:
        """Arguments and plain values: what Lightning hangs on a callback is not pickled, nor is the model."""
        arguments = {name: getattr(self, name) for name in _ARGUMENTS}
        added = added_to(self, vars(LyapunovConditioning(lag=1.0)))
        return {"arguments": arguments, "state": self.state_dict(), "added": added}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make it anew, as it was; the report is not there."""
        LyapunovConditioning.__init__(self, **state["arguments"])
        self.load_state_dict(state["state"])
        vars(self).update(state["added"])

    @property
    def state_key(self) -> str:
        """One per prefix and choice of layers."""
        return self._generate_state_key(prefix=self.prefix, module=self.module)

    def state_dict(self) -> dict[str, Any]:
        """What was done, in words and figures: a network is conditioned once."""
        return {
            name: {"text": done.text, "applied": done.applied, "figures": dict(done.figures)}
            for name, done in self._done.items()
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Know what was done before a checkpoint was written."""
        self._done = {
            name: _Done(str(done.get("text", "")), bool(done.get("applied")), False, dict(done.get("figures", {})), {})
            for name, done in state_dict.items()
            if isinstance(done, Mapping)
        }


_ARGUMENTS = tuple(signature(LyapunovConditioning).parameters)
_FIGURES = (
    *("rms_before", "rms_after", "reach_before", "reach_after"),
    *("steps", "largest_gradient", "seconds"),
)
"""Attributes of a report that are logged by their own names."""


def _figures(report: Conditioning) -> dict[str, float]:
    """What is logged of a layer, by name: finite numbers only."""
    figures = {"max_before": float(report.before.exponents[0]), "max_after": float(report.after.exponents[0])}
    figures |= {name: float(getattr(report, name)) for name in _FIGURES}
    return {name: value for name, value in figures.items() if math.isfinite(value)}


def _changed(layer: nn.Module, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parameters of a layer that are no longer as they were found, by name."""
    return {name: weight for name, weight in layer.named_parameters() if not torch.equal(weight, found[name])}


def _updates(trainer: pl.Trainer) -> int:
    """Updates made so far, those included that manual optimisation makes past the Trainer: batches, of these."""
    return max(trainer.global_step, logging_step(trainer, "before training"))


def _shown(name: str) -> str:
    return name or "the model"


def _listed(names: Sequence[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _is_a(thing: object, name: str) -> bool:
    """Whether it is of a class of this name, from whichever of the two Lightning packages."""
    return any(kind.__name__ == name for kind in type(thing).__mro__)


if hasattr(torch.serialization, "add_safe_globals"):  # a pickle of one holds its arguments and plain values
    torch.serialization.add_safe_globals([LyapunovConditioning])
