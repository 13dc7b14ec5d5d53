r"""What a measurement across the depth of a network says, with its errors, and how far it is to be believed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from lightning_lyapunov.engine.spectrum_json import DEPTH, dumps, loads, plain, read, why
from lightning_lyapunov.engine.statistics import half_width, mean_and_error

FIGURES = (
    *("log_singular_values", "stderr", "error", "trusted", "exponents", "gain", "gain_error", "typical", "anisotropy"),
    *("block_gain", "block_gain_error", "block_change", "contributions", "state_growth", "depth", "samples"),
)
"""What follows from the samples, and is written beside them."""
TRUSTED = 0.05
"""Nats that a logarithm may still be too low by where it is trusted."""


@dataclass(frozen=True, eq=False)
class DepthSpectrum:
    r"""Singular values of a chain of D blocks, sample by sample, and their means over B samples.

    Means are of logarithms. A sample in which nothing is left, :math:`-\infty`, is left out of them as long as most
    others live.
    """

    names: tuple[str, ...]
    """(D,) of the blocks."""
    dimensions: tuple[int, ...]
    """(D + 1,) width of the state before the first block and after each."""
    per_sample: Tensor
    r"""``(B, K)`` nats: the leading :math:`\ln\sigma_i` of the whole chain, largest first; :math:`-\infty` beyond its
    rank."""
    iteration_error: Tensor
    """``(B, K)`` nats: how far they may still be below the true ones, which they are never above; inf where rounding
    hides a value."""
    gain_per_sample: Tensor
    r"""(B,) nats: :math:`\tfrac12\ln(\|J\|_F^2 / n_D)`, root mean square growth of a random gradient going back."""
    typical_per_sample: Tensor
    """(B,) nats: mean logarithm of the same growth, at most the gain."""
    block_gain_per_sample: Tensor
    """``(B, D)`` nats: the gain of each block alone."""
    block_change_per_sample: Tensor
    r"""``(B, D)`` nats: :math:`\tfrac12\ln(\|J_l v - v\|^2 / \|v\|^2)`, how much a block changes random perturbations v
    of the first state as they reach it; :math:`-\infty` where all pass as they are, NaN where the width changes or
    nothing reaches it."""
    contributions_per_sample: Tensor
    """``(B, D, K)`` nats: share of each block in each singular value; over the blocks they sum to it."""
    state_growth_per_sample: Tensor
    """(B,) nats: growth of the root mean square of the state itself."""
    passes: float
    """Vectors that were carried through the chain for each sample."""
    dtype: torch.dtype
    """Floating type of the arithmetic."""
    conditional: tuple[str, ...] = ()
    """Names of blocks that are given states of before the chain, as the skips of a UNet, which are held fixed."""
    normalisation: str = ""
    """Statistics that BatchNorm was measured with: ``batch``, those of the batch recorded, or ``running``."""

    # ------------------------------------------------------------------ of the chain

    @property
    def depth(self) -> int:
        """D, the number of blocks."""
        return len(self.names)

    @property
    def samples(self) -> int:
        """B, the number of samples."""
        return len(self.per_sample)

    @property
    def log_singular_values(self) -> Tensor:
        r"""(K,) nats in all: mean :math:`\ln\sigma_i` over samples."""
        return _over_samples(self.per_sample)[0]

    @property
    def exponents(self) -> Tensor:
        """(K,) nats per block: the same over D. Not to be compared between depths."""
        return self.log_singular_values / self.depth

    @property
    def stderr(self) -> Tensor:
        """(K,) nats: standard error of :attr:`log_singular_values`, from the spread between samples."""
        return _over_samples(self.per_sample)[1]

    @property
    def error(self) -> Tensor:
        """(K,) nats: half-width of their 95 % bar.

        Student's factor times the standard error and, in quadrature, what the iteration left.
        """
        iteration = self.iteration_error.mean(0)
        return torch.hypot(_half_width(self.per_sample), iteration)

    @property
    def trusted(self) -> Tensor:
        """(K,) bool: found to within .05 nats, mean over samples; or beyond the rank of the chain, and known to be."""
        found = (self.iteration_error.mean(0) <= TRUSTED) & ~self.per_sample.isnan().any(0)
        is_dead = self.per_sample[:, :1].isneginf().all()
        return found | self._is_beyond_rank.all(0) | is_dead

    @property
    def _is_beyond_rank(self) -> Tensor:
        places = torch.arange(self.per_sample.shape[1], device=self.per_sample.device)
        return (places >= min(self.dimensions)).expand_as(self.per_sample)

    @property
    def gain(self) -> float:
        """Mean gain over samples, nats."""
        return _mean(self.gain_per_sample)

    @property
    def gain_stderr(self) -> float:
        """Its standard error, nats."""
        return float(_over_samples(self.gain_per_sample.unsqueeze(1))[1])

    @property
    def gain_error(self) -> float:
        """Half-width of its 95 % bar, nats."""
        return float(_half_width(self.gain_per_sample.unsqueeze(1)))

    @property
    def typical(self) -> float:
        """Mean growth of a typical random gradient, nats."""
        return _mean(self.typical_per_sample)

    @property
    def anisotropy(self) -> float:
        r""":math:`\ln\sigma_1` less the gain, nats: 0 where all directions are alike; it rises with depth."""
        return float(self.log_singular_values[0]) - self.gain

    @property
    def state_growth(self) -> float:
        """Growth of the state itself, nats: information alone."""
        return _mean(self.state_growth_per_sample)

    # ------------------------------------------------------------------ of its blocks

    @property
    def block_gain(self) -> Tensor:
        """(D,) nats: gain of each block alone, mean over samples."""
        return _over_samples(self.block_gain_per_sample)[0]

    @property
    def block_gain_error(self) -> Tensor:
        """(D,) nats: half-widths of their 95 % bars."""
        return _half_width(self.block_gain_per_sample)

    @property
    def block_change(self) -> Tensor:
        """(D,) nats: how much each block changes what passes it, mean over samples; NaN where the width changes."""
        return _over_samples(self.block_change_per_sample)[0]

    @property
    def contributions(self) -> Tensor:
        """``(D, K)`` nats: share of each block in each singular value, mean over samples."""
        return self.contributions_per_sample.mean(0)

    # ------------------------------------------------------------------ as a whole

    @staticmethod
    def merge(several: Sequence[DepthSpectrum]) -> DepthSpectrum:
        """That of all their samples, of one chain."""
        first = several[0]
        told: dict[str, Any] = {}
        for name in (f.name for f in fields(DepthSpectrum)):
            value = getattr(first, name)
            told[name] = torch.cat([getattr(one, name) for one in several]) if isinstance(value, Tensor) else value
        told["passes"] = max(one.passes for one in several)
        return DepthSpectrum(**told)

    def to(self, device: torch.device | str) -> DepthSpectrum:
        """The same on another device."""
        told: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {n: v.to(device) if isinstance(v, Tensor) else v for n, v in told.items()}
        return DepthSpectrum(**moved)

    def numpy(self) -> Any:
        """The leading ln σ as an array of NumPy's, ``(K,)`` float64, nats, largest first; a copy on the CPU."""
        return self.log_singular_values.detach().to("cpu", torch.float64, copy=True).numpy()

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values, as :meth:`to_json` writes them, and beside them the means over samples."""
        figures = {name: getattr(self, name) for name in FIGURES}
        return {"format": DEPTH, "unit": "nats", **plain(figures), **plain(self)}

    def to_json(self) -> str:
        """JSON on one line, which :meth:`from_json` makes the same spectrum of, to the last bit of every number.

        It is what ``lightning-lyapunov depth --format json`` writes. Null stands for what is not known, ``"inf"`` and
        ``"-inf"`` for what is infinite.
        """
        return dumps(self.to_dict())

    @staticmethod
    def from_json(text: str | bytes) -> DepthSpectrum:
        """The spectrum that :meth:`to_json` or the command line wrote, on the CPU; all floating numbers are float64.

        Args:
            text: JSON; of a file ``Path("depth.json").read_text()``.

        Raises:
            ValueError: If it is not that, of another format, or of an older version, which wrote means alone; the
                message says what is wrong.
        """
        try:
            content = loads(text, DEPTH)
            if "per_sample" not in content and "log_singular_values" in content:
                raise ValueError("it holds means alone, as an older version wrote them; measure again")
            made = read(DepthSpectrum, content)
            if made.per_sample.shape != made.iteration_error.shape or len(made.dimensions) != made.depth + 1:
                raise ValueError("per_sample and iteration_error must be of one shape, dimensions one more than names")
            return made
        except (KeyError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
            raise ValueError(f"text must be what DepthSpectrum.to_json wrote: {why(error)}.") from error

    def plot(self) -> Any:
        """What each block does to a gradient: a ``matplotlib.figure.Figure``, which notebooks show by themselves.

        Elsewhere ``spectrum.plot().savefig("depth.png")``.

        Raises:
            ModuleNotFoundError: Without Matplotlib; the message says how to install it.
        """
        from lightning_lyapunov.figures.alone import depth_alone

        return depth_alone(self)

    def _repr_html_(self) -> str:
        """A small table, for notebooks."""
        from lightning_lyapunov.reading.notebook import table_of_depth

        return table_of_depth(self)

    def __repr__(self) -> str:
        total, error = float(self.log_singular_values[0]), float(self.error[0])
        return (
            f"DepthSpectrum({self.depth} blocks, ln σ₁ {total:+.3f} ± {error:.3f} nats, gain {self.gain:+.3f} ± "
            f"{self.gain_error:.3f}, {int(self.trusted.sum())} of {len(self.trusted)} trusted, {self.samples} samples)"
        )


def _over_samples(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, standard error and number (K,) of what samples ``(B, K)`` gave, each counting once."""
    return mean_and_error(values, values.new_ones(len(values)))


def _half_width(values: Tensor) -> Tensor:
    _, stderr, samples = _over_samples(values)
    return half_width(stderr, samples)


def _mean(values: Tensor) -> float:
    return float(_over_samples(values.unsqueeze(1))[0])
