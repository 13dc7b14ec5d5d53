r"""AeLLE: an autoencoder of Lyapunov exponents whose small latent space predicts how a network will do.

.. math:: q \to z \in \mathbb{R}^L \to \hat q, \qquad (z, \text{context}) \to \text{skill, failure, take-off, stability}

Reconstruction and prediction are learnt together, so that the latent keeps what tells networks apart *and* matters.
Anything may be unknown: parts of the spectrum, all of it, any entry of the context.

Source: Vogt, Zheng, Shlizerman, *Lyapunov-guided representation of recurrent neural network performance*,
arXiv:2204.04876; the quantile input, the masks and the heads are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_lyapunov.aelle.features import CONTEXT, LEVELS, Rows

HEADS = ("skill", "failure", "takeoff", "stability")
"""Final skill in [0, 1]; probabilities that it is below 0.1, that it is above 0.3, and that the trained network is not
chaotic."""


class Output(NamedTuple):
    """What the autoencoder makes of R rows."""

    latent: Tensor
    """(R, L)."""
    reconstruction: Tensor
    """(R, LEVELS + 1), squashed exponents."""
    logits: Tensor
    """(R, len(HEADS)); a sigmoid makes skill and probabilities of them."""


class AeLLE(nn.Module):
    """The autoencoder and its heads.

    Args:
        latent_size: L, dimensions of the code.
        width: Units of the hidden layers.
    """

    def __init__(self, latent_size: int = 8, width: int = 64) -> None:
        super().__init__()
        seen = 2 * (LEVELS + 1)  # values and which of them are known
        known = 2 * len(CONTEXT)
        self.encoder = nn.Sequential(nn.Linear(seen, width), nn.SiLU(), nn.Linear(width, latent_size))
        self.decoder = nn.Sequential(nn.Linear(latent_size, width), nn.SiLU(), nn.Linear(width, LEVELS + 1))
        self.heads = nn.Sequential(
            nn.Linear(latent_size + known, width), nn.SiLU(), nn.Dropout(0.1), nn.Linear(width, len(HEADS))
        )
        # Squashed exponents run from about -7 to 5: brought to order one.
        self.register_buffer("centre", torch.zeros(LEVELS + 1))
        self.register_buffer("spread", torch.ones(LEVELS + 1))

    def forward(self, rows: Rows) -> Output:
        """Code, reconstruction and predictions of R rows."""
        latent = self.encoder(_masked((rows.spectrum - self.centre) / self.spread))
        logits = self.heads(torch.cat([latent, _masked(rows.context)], -1))
        return Output(latent, self.decoder(latent) * self.spread + self.centre, logits)

    @staticmethod
    def from_state(state: Mapping[str, Tensor]) -> AeLLE:
        """An autoencoder in eval mode with the weights of a ``state_dict``; draws nothing from any random state."""
        latent_size, width = state["encoder.2.weight"].shape
        with torch.device("meta"):
            model = AeLLE(latent_size, width)
        model.load_state_dict(state, assign=True)
        return model.eval().requires_grad_(False)

    def normalise(self, rows: Rows) -> None:
        """Take centre and spread of the spectra from the rows that the autoencoder will be fitted on."""
        known = ~rows.spectrum.isnan()
        count = known.sum(0).clamp(min=1)
        self.centre = rows.spectrum.nan_to_num().sum(0) / count
        square = (rows.spectrum - self.centre).nan_to_num().square().sum(0) / count
        self.spread = square.sqrt().clamp(min=0.1)


def _masked(values: Tensor) -> Tensor:
    """Values, unknown ones as 0, and beside them which are known."""
    return torch.cat([values.nan_to_num(), (~values.isnan()).to(values.dtype)], -1)
