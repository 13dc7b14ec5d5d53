"""The search of triage.py on Ray Tune: a sweep that runs on this machine, or on a cluster by one option.

Ray's own callback for Lightning reports the accuracy and the predicted performance after each epoch, and ASHA stops the
trials whose prediction falls behind. Untrained networks that the scorer expects to fail are not trained at all.

python examples/ray_tune.py                          8 trials on two processors: less than a minute
python examples/ray_tune.py --address auto           on the Ray cluster that this machine belongs to
"""

import argparse
import logging
import os
import tempfile
from typing import Any

import lightning.pytorch as pl
import torch
from digits import quiet, read_digits
from torch.utils.data import DataLoader
from triage import Candidate, look

from lightning_lyapunov import AeLLEScorer, LyapunovSpectrumCallback

# Read when Ray is imported: nothing is sent anywhere, and no table is printed beside ours.
os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AIR_NEW_OUTPUT": "0"}

import ray
from ray import tune
from ray.tune.integration.pytorch_lightning import TuneReportCheckpointCallback
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.basic_variant import BasicVariantGenerator

HOPELESS = 0.5
"""Probability of failure above which a network is not trained."""
METRICS = {"accuracy": "val/accuracy", "predicted": "aelle/performance"}
"""What Ray is told, under its name there."""


def trial(config: dict[str, Any]) -> None:
    """One candidate, in a process of its own."""
    how = {key: config[key] for key in ("cell", "hidden", "gain", "rate")}
    quiet()
    torch.set_num_threads(1)
    pl.seed_everything(config["seed"], verbose=False)
    digits = read_digits()
    candidate = Candidate(**how)
    score = look(candidate, how, AeLLEScorer.from_pretrained(), next(iter(DataLoader(digits[0], 16)))[0])
    if score.failure_probability > HOPELESS:
        tune.report({"accuracy": 0.1, "predicted": score.performance, "epochs": 0})  # by chance a tenth
        return
    lyapunov = LyapunovSpectrumCallback(performance="val/accuracy", performance_range=(0.1, 1.0), max_overhead=None)
    trainer = pl.Trainer(
        max_epochs=config["epochs"], accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
        callbacks=[lyapunov, TuneReportCheckpointCallback(METRICS, save_checkpoints=False)],
    )  # fmt: skip
    trainer.fit(candidate, DataLoader(digits[0], 32, shuffle=True), DataLoader(digits[1], 297))


def main() -> None:
    """Start Ray, search, and show every trial."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--cpus", type=int, default=2, help="trials at a time on this machine")
    parser.add_argument("--address", help="of a Ray cluster; without it Ray is started here and ended again")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="2 trials of one epoch, one at a time")
    args = parser.parse_args()
    if args.quick:
        args.trials, args.epochs, args.cpus = 2, 1, 1

    space = {
        "cell": tune.choice(["rnn", "gru", "lstm"]),
        "hidden": tune.lograndint(16, 65),
        "gain": tune.loguniform(0.5, 3.0),
        "rate": tune.loguniform(1e-4, 3e-2),
        "epochs": args.epochs,
        "seed": args.seed,
    }
    here = {} if args.address else {"num_cpus": args.cpus, "include_dashboard": False}
    ray.init(args.address, log_to_driver=False, logging_level=logging.WARNING, **here)
    try:
        with tempfile.TemporaryDirectory() as kept:
            results = tune.Tuner(
                tune.with_resources(trial, {"cpu": 1}),
                param_space=space,
                tune_config=tune.TuneConfig(
                    num_samples=args.trials,
                    search_alg=BasicVariantGenerator(random_state=args.seed),
                    reuse_actors=True,  # one process after the other would import torch anew
                    scheduler=ASHAScheduler(metric="predicted", mode="max", max_t=args.epochs, grace_period=1),
                ),
                run_config=tune.RunConfig(storage_path=kept, verbose=0),
            ).fit()
    finally:
        ray.shutdown()

    if results.errors:
        raise results.errors[0]
    found = [(result.config or {}, result.metrics or {}) for result in (results[i] for i in range(len(results)))]
    print("cell   units   gain      rate   epochs   predicted   accuracy")
    for how, m in sorted(found, key=lambda one: -one[1]["accuracy"]):
        line = f"{how['cell']:<4}   {how['hidden']:>5}   {how['gain']:.2f}   {how['rate']:.1e}"
        epochs = m.get("epochs", m["training_iteration"])
        print(f"{line}   {epochs:>6}   {m['predicted']:>9.2f}   {m['accuracy']:>8.1%}")


if __name__ == "__main__":
    main()
