"""Write the networks that maps are drawn over: ``python -m lightning_lyapunov.bank.atlas BANK``, for each new bank."""

from __future__ import annotations

import sys
from importlib.resources import as_file
from pathlib import Path

import torch

from lightning_lyapunov.aelle.atlas import NETWORKS, SHIPPED, write_networks
from lightning_lyapunov.aelle.features import squash
from lightning_lyapunov.bank.probes import MEASURED
from lightning_lyapunov.bank.records import Bank


def write_atlas(bank: Bank, path: Path, networks: int = NETWORKS) -> None:
    """Write networks of a bank, evenly spaced over it, of those that could be measured before training and at its end.

    Args:
        bank: The bank.
        path: The file.
        networks: How many.
    """
    every = squash(torch.cat([bank.quantiles, bank.measured[..., MEASURED.index("mean"), None]], -1))
    last = torch.tensor([bank.checkpoints.index(end) for end in bank.end.tolist()])
    both = torch.stack([every[:, 0], every[torch.arange(len(bank)), last]])
    measured = (~both.isnan()).all(-1).all(0).nonzero()[:, 0]
    places = torch.linspace(0, len(measured) - 1, min(networks, len(measured))).round().long()
    chosen = measured[places]
    write_networks(path, both[:, chosen], bank.skill(bank.final)[chosen])


if __name__ == "__main__":
    with as_file(SHIPPED) as shipped:
        write_atlas(Bank.load(Path(sys.argv[1])), shipped)
        print(f"{shipped}: {shipped.stat().st_size:,} bytes")
