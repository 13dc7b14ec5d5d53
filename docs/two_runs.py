"""The two runs that docs/dashboard.md looks at as a new user does: an LSTM that learns, and an RNN that cannot.

python docs/two_runs.py DIRECTORY     # logs to TensorBoard, MLflow and offline to Weights & Biases: half a minute
"""

import argparse
import os
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_lyapunov import LyapunovSpectrumCallback

TRAINED, UNITS = 1437, 64
"""Pictures to train on, of 1,797; and units of each network."""


class Reader(pl.LightningModule):
    """Reads a digit in 32 steps of two pixels."""

    def __init__(self, rnn: nn.RNNBase) -> None:
        super().__init__()
        self.rnn, self.head = rnn, nn.Linear(UNITS, 10)

    def _loss(self, batch: list[Tensor], name: str) -> Tensor:
        pictures, digits = batch
        scores = self.head(self.rnn(pictures)[0][:, -1])
        self.log(f"{name}_acc", (scores.argmax(1) == digits).float().mean())
        return nn.functional.cross_entropy(scores, digits)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Loss of a batch."""
        return self._loss(batch, "train")

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Accuracy of a batch, logged."""
        self._loss(batch, "val")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), 3e-3)


def network(name: str) -> nn.RNNBase:
    """An LSTM as it comes, or an RNN with recurrent weights of gain 6."""
    if name == "healthy":
        return nn.LSTM(2, UNITS, batch_first=True)
    strong = nn.RNN(2, UNITS, batch_first=True)
    nn.init.normal_(strong.get_parameter("weight_hh_l0"), std=6 / UNITS**0.5)
    return strong


def main() -> None:
    """Train both, and print what the callback makes of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="where the trackers write")
    directory = parser.parse_args().directory
    directory.mkdir(parents=True, exist_ok=True)
    os.chdir(directory)
    digits = load_digits()
    pictures = torch.tensor(digits.images / 16, dtype=torch.float32).reshape(-1, 32, 2)
    data = TensorDataset(pictures, torch.tensor(digits.target))
    trained, held_out = (torch.utils.data.Subset(data, part) for part in (range(TRAINED), range(TRAINED, len(data))))
    for name in ("healthy", "sick"):
        pl.seed_everything(0)
        model, callback = Reader(network(name)), LyapunovSpectrumCallback(report=f"reports/{name}")
        loggers = [
            TensorBoardLogger("tb", name=name),
            MLFlowLogger(
                "two runs", run_name=name, tracking_uri="sqlite:///mlflow.db", artifact_location="./artifacts"
            ),
            WandbLogger(name, offline=True, project="two-runs", reinit=True),
        ]
        trainer = pl.Trainer(
            max_epochs=12, logger=loggers, callbacks=[callback], enable_checkpointing=False, enable_model_summary=False
        )
        trainer.fit(model, DataLoader(trained, 32, shuffle=True), DataLoader(held_out, 256))
        loggers[-1].experiment.finish()
        print(f"{name}: accuracy {float(trainer.callback_metrics['val_acc']):.0%}; {callback.verdict}")


if __name__ == "__main__":
    main()
