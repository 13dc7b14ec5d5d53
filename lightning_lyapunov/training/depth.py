"""The guest in a Trainer that measures a network across its depth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from lightning_lyapunov.engine.depth_spectrum import DepthSpectrum
from lightning_lyapunov.monitoring.depth_session import DepthSession
from lightning_lyapunov.reading.depth_rules import verdict
from lightning_lyapunov.reading.verdict import Verdict
from lightning_lyapunov.training.guest import Guest


class DepthSpectrumCallback(Guest):
    r"""Measures what the blocks of a deep network do to a gradient while it trains, and logs what that says.

    A deep network is a chain of blocks, and a gradient goes back through the product of their Jacobians. The blocks are
    found by what flows between modules in the model's own forward pass, and proved: each, called again with what was
    kept of it, must return what it returned. What was found is said once. A measurement takes some samples that reach
    the first block, and is made once per set of weights: before the first update, then when validation ends, or where
    the fit does not validate, at the end of an epoch. Dropout is off. Batch normalisation is taken with the running
    statistics where validation drives it; as long as those have hardly seen data, training batches are measured in its
    place, with the statistics of the batch. Training is not touched: weights, gradients, buffers and random states
    after a fit are bit for bit those without the callback. A measurement that fails warns once a fit and logs nothing.

    Args:
        module: Name of the container of the blocks, as "encoder.layers", or the names of the blocks in their order. If
            None they are found: at least three of a kind in a row, with what links them.
        k: Leading singular values of the whole chain; the figures are about the first.
        num_samples: Samples measured, on all devices together; their spread gives the error bars.
        every_n_epochs: Measure in one epoch out of so many; the first one always, also after a resume.
        every_n_train_steps: Measure when so many updates were made since the last time, also within an epoch, driven by
            training batches throughout. Takes the place of ``every_n_epochs``.
        max_overhead: Share of the training time so far that everything together may take, recording, measuring,
            logging, pictures and report; or one second in all where that is more. Where a whole measurement would break
            it, fewer samples are measured, down to one, then fewer singular values, and where not even that fits, none
            this time. The first ones and the last are always made. None: no bound.
        prefix: First part of the keys. Two callbacks in one Trainer need different ones.
        metrics: What the loggers get: "default", seven figures; "all"; or a list of names. Monitors can watch all of
            them in any case.
        figures: Whether to draw pictures for the loggers that take them (TensorBoard, W&B): at the first two
            measurements, then ever more rarely, as far as ``max_overhead`` allows, and when training ends. They need
            matplotlib.
        report: Directory in which to write a page about the run, with pictures and what they mean in words, when the
            fit ends. It needs matplotlib.
        prog_bar: Whether to show the largest growth on the progress bar.
        dtype: Arithmetic of the measurement; that of the states, at least float32, if None. The run's own precision
            does not reach the measurement.
        tolerance: Nats to which the largest growth is found, in at most 18 passes of two vectors; what these leave open
            widens its error bar.

    Attributes:
        history: What was measured in the last fit, a :class:`~lightning_lyapunov.reading.History` of measurements
            across depth; on rank zero. Those of earlier fits are kept apart, in ``history.earlier``.
        spectrum: The last :class:`~lightning_lyapunov.DepthSpectrum` of this fit, the same on all ranks; None before
            the first.

    Raises:
        ValueError: For an argument out of range.
        MisconfigurationException: In ``setup``, if another callback uses the same prefix, or if the Trainer's strategy
            keeps parameters in flat pieces (FSDP1, the third stage of DeepSpeed).

    Keys, under the prefix ``depth``, with their units. Monitors see all of them, the loggers those that ``metrics``
    asks for. A value that is unknown is not there.

    =============================  ===========  ========================================================================
    ``total``                      nats         the most that a gradient can grow from the last block back to the
                                                first, ln σ₁ of the product of their Jacobians
    ``total_error``                nats         half-width of the 95 % bar of ``total``
    ``total_stderr``               nats         standard error of ``total``, from the spread between samples alone
    ``max``                        nats/block   ``total`` over the number of blocks
    ``gain``                       nats         what a gradient of random direction grows by on the way, per unit
    ``gain_error``                 nats         half-width of the 95 % bar of ``gain``
    ``typical``                    nats         the mean logarithm of the same growth
    ``anisotropy``                 nats         ``total`` less ``gain``: 0 where all directions are alike
    ``state_growth``               nats         what the states grow by from the first block to the last
    ``block_gain_max``             nats         largest gain of a block by itself
    ``block_gain_min``             nats         smallest gain of a block by itself
    ``trusted_fraction``           share        of the growths measured those that are found
    ``floored``                    count        growths below −100, which are logged as −100
    ``verdict``                    0 to 2       0 healthy, 1 watch, 2 act: what was right of 80 %, or 95 %, of a
                                                benchmark's networks
    ``seconds``                    s            what the measurement took
    ``overhead``                   share        what recording, measuring, logging and pictures took, of the training
                                                time so far
    ``<block>/gain``               nats         gain of each block by itself, of up to 64
    =============================  ===========  ========================================================================

    Other callbacks of the Trainer that have a method ``on_depth_measurement(trainer, callback)`` are called after each
    measurement, on every rank.

    Example::

        keep = ModelCheckpoint(monitor="val_loss")
        trainer = Trainer(callbacks=[DepthSpectrumCallback("encoder.layers"), keep])
    """

    _session_type = DepthSession
    _shown = "total"
    _acts = "on_depth_measurement"

    spectrum: DepthSpectrum | None

    def __init__(
        self,
        module: str | Sequence[str] | None = None,
        *,
        k: int = 2,
        num_samples: int = 8,
        every_n_epochs: int = 1,
        every_n_train_steps: int | None = None,
        max_overhead: float | None = 0.03,
        prefix: str = "depth",
        metrics: Literal["default", "all"] | Sequence[str] = "default",
        figures: bool = True,
        report: str | None = None,
        prog_bar: bool = False,
        dtype: Literal["float32", "float64"] | None = None,
        tolerance: float = 0.05,
    ) -> None:
        self.num_samples = num_samples
        super().__init__(
            module,
            k=k,
            dtype=dtype,
            tolerance=tolerance,
            every_n_epochs=every_n_epochs,
            every_n_train_steps=every_n_train_steps,
            max_overhead=max_overhead,
            prefix=prefix,
            metrics=metrics,
            figures=figures,
            report=report,
            prog_bar=prog_bar,
        )

    @property
    def verdict(self) -> Verdict | None:
        """What to make of the fit so far: ``healthy``, ``watch`` or ``act``, with a sentence; None before the first."""
        return verdict(self.history)


if hasattr(torch.serialization, "add_safe_globals"):  # a pickle of one holds its arguments and plain values
    torch.serialization.add_safe_globals([DepthSpectrumCallback])
