"""Search for a good network with Optuna, and look at the candidates before any training is spent on them.

Draws candidates that differ in cell, size, recurrent gain and learning rate, lets the pretrained scorer read their
untrained spectra, and trains the best of them; Optuna prunes those whose predicted performance falls behind.

python examples/triage.py                       24 candidates, 6 of them trained: half a minute
python examples/triage.py --candidates 96 --keep 24 --epochs 10
"""

import argparse
from typing import Any

import lightning.pytorch as pl
import optuna
import torch
from digits import DigitReader, Digits, quiet, read_digits
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial, TrialState
from optuna_integration import PyTorchLightningPruningCallback
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_lyapunov import AeLLEScore, AeLLEScorer, LyapunovSpectrumCallback, lyapunov_spectrum

SPACE: dict[str, BaseDistribution] = {
    "cell": CategoricalDistribution(["rnn", "gru", "lstm"]),
    "hidden": IntDistribution(16, 64, log=True),
    "gain": FloatDistribution(0.5, 3.0, log=True),
    "rate": FloatDistribution(1e-4, 3e-2, log=True),
}


class Candidate(DigitReader):
    """A reader of digits with a learning rate of its own."""

    def __init__(self, cell: str, hidden: int, gain: float, rate: float) -> None:
        super().__init__(cell, hidden, gain)
        self.rate = rate

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam at that rate."""
        return torch.optim.Adam(self.parameters(), self.rate)


def look(candidate: Candidate, how: dict[str, Any], scorer: AeLLEScorer, images: Tensor) -> AeLLEScore:
    """What the scorer says of a network that was never trained; a batch of inputs is all it takes, no labels."""
    spectrum = lyapunov_spectrum(candidate.reader, images)
    known: dict[str, Any] = {"architecture": how["cell"], "hidden_size": how["hidden"], "learning_rate": how["rate"]}
    return scorer.score(spectrum, **known, adaptive=True, updates=0)


def train(candidate: Candidate, trial: Trial, digits: tuple[Digits, Digits], epochs: int) -> tuple[str, int, float]:
    """Train until the end or until Optuna prunes: which of the two, after how many epochs, and the accuracy reached."""
    lyapunov = LyapunovSpectrumCallback(
        performance="val/accuracy",  # what the network has reached, which the scorer is told,
        performance_range=(0.1, 1.0),  # and what that is worth: by chance a tenth
        max_overhead=None,  # measure after every epoch, since that is when Optuna asks
    )
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[lyapunov, PyTorchLightningPruningCallback(trial, monitor="aelle/performance")],
    )  # fmt: skip
    end = "trained"
    try:
        trainer.fit(candidate, DataLoader(digits[0], 32, shuffle=True), DataLoader(digits[1], 297))
    except optuna.TrialPruned:
        end = "pruned"
    return end, lyapunov.history[-1].epoch + 1, float(trainer.callback_metrics["val/accuracy"])


def main() -> None:
    """Draw, look, train the best, and tell the study of all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=24, help="how many to look at")
    parser.add_argument("--keep", type=int, default=6, help="how many of them to train")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="6 candidates, 2 of them trained for one epoch")
    args = parser.parse_args()
    if args.quick:
        args.candidates, args.keep, args.epochs = 6, 2, 1

    quiet()
    torch.set_num_threads(1)  # for so small a network threads cost more than they bring
    pl.seed_everything(args.seed, verbose=False)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    digits, scorer = read_digits(), AeLLEScorer.from_pretrained()
    images, _ = next(iter(DataLoader(digits[0], 16)))

    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.RandomSampler(args.seed),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=2),
    )
    trials = [study.ask(SPACE) for _ in range(args.candidates)]
    candidates = {trial.number: Candidate(**trial.params) for trial in trials}
    scores = {t.number: look(candidates[t.number], t.params, scorer, images) for t in trials}
    ranked = sorted(trials, key=lambda trial: -scores[trial.number].performance)

    print("rank   cell   units   gain      rate   predicted   P(fails)   epochs   accuracy")
    for rank, trial in enumerate(ranked, 1):
        how, score = trial.params, scores[trial.number]
        line = f"{rank:>4}   {how['cell']:<4}   {how['hidden']:>5}   {how['gain']:.2f}   {how['rate']:.1e}"
        line += f"   {score.performance:>9.2f}   {score.failure_probability:>8.2f}"
        if rank > args.keep:
            study.tell(trial, state=TrialState.PRUNED)  # before its first update
            print(line)
            continue
        end, epochs, accuracy = train(candidates[trial.number], trial, digits, args.epochs)
        study.tell(trial, accuracy if end == "trained" else None, None if end == "trained" else TrialState.PRUNED)
        print(f"{line}   {epochs:>6}   {accuracy:>8.1%}   {end}", flush=True)

    print(f"\nBest: {study.best_value:.1%} with {study.best_params}.")


if __name__ == "__main__":
    main()
