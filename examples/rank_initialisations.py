"""Rank untrained initialisations of one LSTM, before any training is spent on them.

Draws 32 initialisations whose recurrent weights have random gains, lets the pretrained scorer read their spectra, then
trains the three that it ranks first and the three that it ranks last for a few epochs, to see whether it was right.

python examples/rank_initialisations.py                   less than a minute
python examples/rank_initialisations.py --train 16        train all of them, to see the whole order
"""

import argparse
import math

import lightning.pytorch as pl
import torch
from digits import DigitReader, Digits, quiet, read_digits
from torch.utils.data import DataLoader

from lightning_lyapunov import AeLLEScorer, lyapunov_spectrum

GAINS = 0.1, 20.0
"""Between them gains are drawn, evenly on a logarithmic scale: from contracting to saturated."""


def trained(reader: DigitReader, train: Digits, val: Digits, epochs: int) -> float:
    """The accuracy that a network comes to."""
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(reader, DataLoader(train, 32, shuffle=True), DataLoader(val, 297))
    return float(trainer.callback_metrics["val/accuracy"])


def main() -> None:
    """Rank by their spectra, then train both ends of the ranking."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--initialisations", type=int, default=32)
    parser.add_argument("--train", type=int, default=3, help="how many of the first, and of the last, to train")
    parser.add_argument("--hidden", type=int, default=32, help="hidden units")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    quiet()
    torch.set_num_threads(1)  # for so small a network threads cost more than they bring
    pl.seed_everything(args.seed, verbose=False)
    digits = read_digits()
    images, _ = next(iter(DataLoader(digits[0], 32)))  # what drives the networks: no labels are needed

    scorer = AeLLEScorer.from_pretrained()
    low, high = map(math.log, GAINS)
    ranked = []
    for gain in torch.empty(args.initialisations).uniform_(low, high).exp().tolist():
        reader = DigitReader("lstm", args.hidden, gain)
        spectrum = lyapunov_spectrum(reader.reader, images)
        score = scorer.score(spectrum, architecture="lstm", hidden_size=args.hidden, updates=0)
        ranked.append((score, gain, float(spectrum.exponents[0]), reader))
    ranked.sort(key=lambda row: -row[0].performance)

    print("rank    gain    λ_max   predicted skill       P(fails)   accuracy")
    for rank, (score, gain, largest, reader) in enumerate(ranked, 1):
        predicted = f"{score.performance:.2f} [{score.low:.2f}, {score.high:.2f}]"
        line = f"{rank:>4}   {gain:5.2f}   {largest:+.3f}   {predicted}   {score.failure_probability:>8.2f}"
        if min(rank - 1, args.initialisations - rank) < args.train:
            line += f"   {trained(reader, *digits, args.epochs):>8.1%}"
        print(line, flush=True)
    least = min(score.familiarity for score, *_ in ranked)
    print(f"\nFamiliarity {least:.2f} or more: how like those that the scorer was fitted on.")


if __name__ == "__main__":
    main()
