r"""AeLLE: an autoencoder of Lyapunov exponents whose small latent space predicts how a network will do.

.. math:: q \to z \in \mathbb{R}^L \to \hat q, \qquad (z, \text{context}) \to \text{skill, failure, take-off, stability}

Reconstruction and prediction are learnt together, so that the latent keeps what tells networks apart *and* matters.
Anything may be unknown: parts of the spectrum, all of it, any entry of the context. Each question has two answers: a
*rank*, which only has to put the networks of one task in order, and a *level*, which should be right on average.

Source: Vogt, Zheng, Shlizerman, *Lyapunov-guided representation of recurrent neural network performance*,
arXiv:2204.04876; the quantile input, the masks and the heads are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_lyapunov.aelle.features import CLIPPED, CONTEXT, HAND, LEVELS, Rows, exponents_of, hand_features, squash

HEADS = ("skill", "failure", "takeoff", "stability")
"""Final skill in [0, 1]; probabilities that it is below 0.1, that it is above 0.3, and that the trained network is not
chaotic."""
RANKED = 3
"""Heads that networks of a task are ranked by, the first ones."""
_SEEN = LEVELS + 1 + len(HAND)
"""Levels of the spectrum and its mean on their own scale, and features made by hand."""


class Output(NamedTuple):
    """What the autoencoder makes of R rows."""

    latent: Tensor
    """(R, L)."""
    reconstruction: Tensor
    """(R, LEVELS + 1): levels and mean on their own scale, in units of what they vary by."""
    ranks: Tensor
    """(R, RANKED): larger for more skill, likelier failure, likelier take-off than others of the task."""
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
        known = latent_size + 2 * len(CONTEXT)
        answers = RANKED + len(HEADS)
        self.encoder = nn.Linear(2 * _SEEN, latent_size)
        self.decoder = nn.Sequential(nn.Linear(latent_size, width), nn.SiLU(), nn.Linear(width, LEVELS + 1))
        self.heads = nn.Sequential(nn.Linear(known, width), nn.SiLU(), nn.Dropout(0.1), nn.Linear(width, answers))
        self.straight = nn.Linear(known, answers)
        for name, size in (("seen", _SEEN), ("context", len(CONTEXT))):
            self.register_buffer(f"{name}_centre", torch.zeros(size))
            self.register_buffer(f"{name}_spread", torch.ones(size))

    seen_centre: Tensor
    seen_spread: Tensor
    context_centre: Tensor
    context_spread: Tensor

    def forward(self, rows: Rows) -> Output:
        """Code, reconstruction and predictions of R rows."""
        return self.read(self.standard(rows))

    def standard(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Spectrum ``(R, S)`` and context of rows, each entry in units of what it varies by."""
        seen = (visible(rows.spectrum) - self.seen_centre) / self.seen_spread
        return seen, (rows.context - self.context_centre) / self.context_spread

    def read(self, standard: tuple[Tensor, Tensor]) -> Output:
        """The same as :meth:`forward`, of what :meth:`standard` made."""
        seen, context = standard
        latent = self.encoder(_masked(seen))
        known = torch.cat([latent, _masked(context)], -1)
        answers = self.heads(known) + self.straight(known)
        return Output(latent, self.decoder(latent), answers[:, :RANKED], answers[:, RANKED:])

    def completed(self, spectrum: Tensor) -> Tensor:
        """Squashed spectra ``(R, LEVELS + 1)`` with what is not known of them as the decoder makes it."""
        unknown = spectrum.isnan()
        seen = (visible(spectrum) - self.seen_centre) / self.seen_spread
        made = self.decoder(self.encoder(_masked(seen)))
        exponents = made * self.seen_spread[: LEVELS + 1] + self.seen_centre[: LEVELS + 1]
        return torch.where(unknown & ~unknown.all(1, keepdim=True), squash(exponents), spectrum)

    @staticmethod
    def from_state(state: Mapping[str, Tensor]) -> AeLLE:
        """An autoencoder in eval mode with the weights of a ``state_dict``; draws nothing from any random state."""
        with torch.device("meta"):
            model = AeLLE(*AeLLE.sizes(state))
        model.load_state_dict(state, assign=True)
        return model.eval().requires_grad_(False)

    @staticmethod
    def sizes(state: Mapping[str, Tensor]) -> tuple[int, int]:
        """Latent size and width of the autoencoder that a ``state_dict`` is of."""
        return state["encoder.weight"].shape[0], state["decoder.0.weight"].shape[0]

    def normalise(self, rows: Rows, weights: Tensor) -> None:
        """Take centre and spread of all entries from the rows that the autoencoder will be fitted on."""
        for name, values in (("seen", visible(rows.spectrum)), ("context", rows.context)):
            share = ~values.isnan() * weights.unsqueeze(1)
            total = share.sum(0).clamp(min=1e-9)
            centre = (values.nan_to_num() * share).sum(0) / total
            square = ((values - centre).nan_to_num().square() * share).sum(0) / total
            setattr(self, f"{name}_centre", centre)
            # What never varied in the fit is not to be blown up where it varies later.
            setattr(self, f"{name}_spread", torch.where(square < 1e-8, 1.0, square.sqrt().clamp(min=0.02)))


def visible(spectrum: Tensor) -> Tensor:
    """``(R, LEVELS + 1 + len(HAND))``: what the encoder sees of squashed spectra; NaN where unknown."""
    return torch.cat([exponents_of(spectrum).clamp(min=CLIPPED), hand_features(spectrum)], 1)


def _masked(values: Tensor) -> Tensor:
    """Values, unknown ones as 0, and beside them which are known."""
    return torch.cat([values.nan_to_num(), (~values.isnan()).to(values.dtype)], -1)
