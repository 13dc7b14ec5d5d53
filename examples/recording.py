"""A real recording: a GRU learns to forecast a chaotic laser, and is asked whether it learnt the chaos as well.

The recording is the intensity of a far-infrared laser, 10,093 samples (Hübner, Abraham and Weiss 1989; data set A of
the Santa Fe competition), which comes with the package reservoirpy. Three exponents that must not be confused:

recording     how fast neighbouring stretches of the recording part, by the data alone: a rough estimate
driven        the GRU as it forecasts, fed with the recording: what it makes of its own perturbations
closed loop   the GRU fed with its own forecasts: the dynamics that it has learnt

python examples/recording.py             about half a minute
python examples/recording.py --quick     a small network, one epoch: some seconds
"""

import argparse
import math

import lightning.pytorch as pl
import torch
from rescue import quiet
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_lyapunov import LyapunovSpectrum, LyapunovSpectrumCallback, lyapunov_spectrum
from lightning_lyapunov.bank.tasks.dynamics import laser
from lightning_lyapunov.reading import findings
from lightning_lyapunov.reading.words import plus_minus

WINDOW, UNASKED = 64, 8
"""Samples of a training sequence; the first ones, whose forecasts are not asked, as little is known from so short a
past."""


class Forecaster(pl.LightningModule):
    """A GRU that reads samples one by one, and a linear layer that names the next one."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(1, hidden, batch_first=True), nn.Linear(hidden, 1)

    def forward(self, samples: Tensor) -> Tensor:
        """Forecasts ``(B, T, 1)`` of the sample after each ``(B, T, 1)``."""
        return self.head(self.gru(samples)[0])

    def errors(self, batch: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Errors and what was to be forecast, ``(B, WINDOW - UNASKED, 1)``."""
        (samples,) = batch
        targets = samples[:, 1 + UNASKED :]
        return self(samples[:, :-1])[:, UNASKED:] - targets, targets

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Mean squared error."""
        return self.errors(batch)[0].square().mean()

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """R²: share of the variance that the forecast explains."""
        errors, targets = self.errors(batch)
        self.log("val/r2", 1 - errors.square().mean() / targets.var())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def windows(series: Tensor, every: int) -> TensorDataset:
    """Stretches ``(WINDOW + 1, 1)`` of a series ``(L, 1)``, one begun in so many samples."""
    return TensorDataset(series.unfold(0, WINDOW + 1, every).mT.contiguous())


def rate_of_the_recording(series: Tensor, dimension: int, first: int = 5, last: int = 25) -> float:
    """Nats per sample by which near neighbours among its stretches part, between so many samples later.

    After Rosenstein, Collins and De Luca, Physica D 65 (1993) 117-134, four neighbours of every fourth stretch.
    Stretches of ``dimension`` samples stand for the state; neighbours in time do not count.
    """
    stretches = series[:, 0].double().unfold(0, dimension, 1)
    count = len(stretches) - last
    here = torch.arange(0, count, 4)
    distance = torch.cdist(stretches[here], stretches[:count])
    distance[(here[:, None] - torch.arange(count)).abs() < 50] = math.inf
    near = distance.topk(4, largest=False).indices
    apart = [(stretches[here + t][:, None] - stretches[near + t]).norm(dim=-1) for t in (first, last)]
    seen = (apart[0] > 0) & (apart[1] > 0)  # the recording has 8 bits: some stretches are the same
    return float((apart[1][seen].log().mean() - apart[0][seen].log().mean()) / (last - first))


def closed_loop(model: Forecaster, samples: Tensor, steps: int) -> LyapunovSpectrum:
    """The GRU fed with its own forecasts: an autonomous map of its state, begun where ``samples`` ``(B, T, 1)`` end."""
    cell = nn.GRUCell(1, model.gru.hidden_size)
    cell.load_state_dict({name: getattr(model.gru, f"{name}_l0") for name in cell.state_dict()})
    with torch.no_grad():
        _, state = model.gru(samples)
    return lyapunov_spectrum(lambda _, h: cell(model.head(h), h), None, state=state[0], steps=steps, k=1)


def shown(spectrum: LyapunovSpectrum) -> str:
    """The largest exponent with its error, whether it has settled, and its range over the sequences."""
    each = spectrum.per_sequence[:, 0]
    return (
        f"{plus_minus(float(spectrum.exponents[0]), float(spectrum.error[0])):>16}   "
        f"{'yes' if spectrum.settled[0] else 'no':>7}   "
        f"{float(each.min()):+.3f} to {float(each.max()):+.3f} over {spectrum.sequences} sequences"
    )


def main() -> None:
    """Forecast, measure, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small network and one epoch")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    hidden, epochs, steps, every = (32, 1, 150, 16) if args.quick else (64, 8, 900, 8)

    quiet()
    torch.set_num_threads(1)  # for so small a network threads cost more than they bring
    pl.seed_everything(args.seed, verbose=False)
    series = laser()[:, 0]
    split = len(series) * 3 // 4
    train, val = windows(series[:split], every), windows(series[split:], 32)

    model = Forecaster(hidden)
    lyapunov = LyapunovSpectrumCallback(max_overhead=None, performance="val/r2", performance_range=(0.0, 1.0))
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[lyapunov],
    )  # fmt: skip
    trainer.fit(model, DataLoader(train, 32, shuffle=True), DataLoader(val, len(val)))

    print(f"R² of the next sample {float(trainer.callback_metrics['val/r2']):.3f} after {epochs} epochs.\n")
    for finding in findings(lyapunov.history):
        print(f"  [{finding.state}] {finding.text}")
    rates = [rate_of_the_recording(series, dimension) for dimension in (4, 8, 16)]
    (held_out,) = val[:]
    driven = lyapunov_spectrum(model.gru, held_out[:, :-1], k=1)
    free = closed_loop(model, held_out[:8, :-1], steps)
    print("\nLargest exponent, nats per sample      settled")
    print(f"recording     {min(rates):+.3f} to {max(rates):+.3f}             by stretches of 4 to 16 samples")
    print(f"driven        {shown(driven)}")
    print(f"closed loop   {shown(free)}")
    if free.settled[0] and float(free.exponents[0] - free.error[0]) > 0:
        print("\nLeft alone, the network is chaotic as the recording is.")
    else:
        print("\nIt forecasts, but left alone it is not chaotic: it has learnt the next sample, not the chaos.")


if __name__ == "__main__":
    main()
