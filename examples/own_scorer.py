"""Train a scorer of your own from a small sweep: which GRU will read digits well, told before its first update.

Trains small GRUs whose recurrent weights have random gains, keeps the spectrum that each began with and the accuracy
it came to, fits a scorer on two thirds of them and ranks the others by their spectra alone.

python examples/own_scorer.py                     24 networks, 3 epochs each: a minute
python examples/own_scorer.py --networks 60       a better scorer
"""

import argparse
import logging
import math
from pathlib import Path

import lightning.pytorch as pl
import torch
from digits import DigitReader, Digits, quiet, read_digits
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics.functional.regression import spearman_corrcoef

from lightning_lyapunov import AeLLEScorer, LyapunovSpectrumCallback

GAINS = 0.1, 20.0
"""Between them gains are drawn, evenly on a logarithmic scale: from contracting to saturated."""


def trained(reader: DigitReader, train: Digits, val: Digits, epochs: int) -> tuple[Tensor, float]:
    """The spectrum of a network before its first update, and the accuracy that it came to."""
    lyapunov = LyapunovSpectrumCallback(k=None, scorer=None, every_n_epochs=epochs)
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[lyapunov],
    )  # fmt: skip
    trainer.fit(reader, DataLoader(train, 32, shuffle=True), DataLoader(val, 297))
    return lyapunov.history[0].exponents, float(trainer.callback_metrics["val/accuracy"])


def main() -> None:
    """Sweep, fit, and rank what the scorer has not seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=24)
    parser.add_argument("--hidden", type=int, default=32, help="hidden units")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("own_scorer.safetensors"))
    args = parser.parse_args()

    quiet()
    logging.getLogger("lightning_lyapunov").setLevel(logging.ERROR)  # a line for each network is enough
    torch.set_num_threads(1)  # for so small a network threads cost more than they bring
    pl.seed_everything(args.seed, verbose=False)
    digits = read_digits()
    low, high = map(math.log, GAINS)
    gains = torch.empty(args.networks).uniform_(low, high).exp().tolist()
    spectra, accuracies = [], []
    for n, gain in enumerate(gains, 1):
        spectrum, accuracy = trained(DigitReader("gru", args.hidden, gain), *digits, args.epochs)
        spectra.append(spectrum)
        accuracies.append(accuracy)
        print(f"network {n:>2} of {args.networks}   gain {gain:5.2f}   λ_max {spectrum[0]:+.3f}   {accuracy:6.1%}")

    known = 2 * args.networks // 3
    scorer = AeLLEScorer.fit(spectra[:known], accuracies[:known])
    scorer.save(args.output)

    scores = [scorer.score(spectrum) for spectrum in spectra[known:]]
    print(f"\nFitted on {known} networks. The others, best prediction first, with its 80 % interval:\n")
    print(" gain   predicted              accuracy")
    for score, gain, accuracy in sorted(
        zip(scores, gains[known:], accuracies[known:], strict=True), key=lambda row: -row[0].performance
    ):
        interval = f"[{score.low:.1%}, {score.high:.1%}]"
        print(f"{gain:5.2f}   {score.performance:6.1%} {interval:>15}   {accuracy:6.1%}")
    predicted = torch.tensor([score.performance for score in scores])
    rho = float(spearman_corrcoef(predicted, torch.tensor(accuracies[known:])))
    print(f"\nSpearman correlation of prediction and accuracy: {rho:.2f}")
    print(f'In training: LyapunovSpectrumCallback(scorer="{args.output}")')


if __name__ == "__main__":
    main()
