"""How far apart two spectra are, whatever the widths of their networks."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_lyapunov.engine.spectrum import LyapunovSpectrum
from lightning_lyapunov.reading.history import Measurement


def spectrum_distance(a: LyapunovSpectrum | Measurement | Tensor, b: LyapunovSpectrum | Measurement | Tensor) -> float:
    r"""Distance between two spectra as distributions of growth factors per step, :math:`e^\lambda`.

    .. math:: d(a, b)^2 = \frac{1}{s} \int_0^s \left(e^{\lambda_a(u)} - e^{\lambda_b(u)}\right)^2 du

    with :math:`\lambda(u)` the exponent at level u of the spectrum, the largest at 0 and the smallest at 1. For two of
    one width that is the root mean square of the differences of their factors, in order. A dead direction has factor 0,
    so that :math:`-\infty` is near -8, while the largest exponents count most. Widths may differ. Of partial spectra
    the leading share s that both have is compared, K/D of the state: distances over the same share form a metric,
    those over different ones are not comparable.

    Args:
        a: A spectrum, a measurement of a :class:`~lightning_lyapunov.reading.History`, or the exponents ``(D,)`` of a
            whole state, nats per step, in any order.
        b: Another.

    Returns:
        The distance, a number without unit: 0 for the same spectrum, never above the larger :math:`e^{\lambda_1}`.

    Raises:
        ValueError: If one is none of these, if exponents are not a vector of one or more, or one of them is unknown
            (NaN) or too large for its factor to be finite.

    Source: the distance of Wasserstein, of order 2, between the factors. That between sparse and dense networks as they
    train is due to Zheng and Shlizerman (2025), arXiv:2506.07975, who take the root of the sum of squares in λ itself.

    Example:
        >>> round(spectrum_distance(torch.tensor([0.0, -torch.inf]), torch.tensor([-torch.inf])), 4)  # root of 1/2
        0.7071
    """
    factors = _factors("a", a), _factors("b", b)
    levels = [torch.arange(1, len(f) + 1).double() / _width(one) for f, one in zip(factors, (a, b), strict=True)]
    share = min(float(level[-1]) for level in levels)
    common = torch.cat(levels).unique()  # where either changes; equal fractions are equal numbers
    common = common[common <= share]
    here, there = (f[torch.searchsorted(level, common)] for f, level in zip(factors, levels, strict=True))
    lengths = common.diff(prepend=common.new_zeros(1))
    return float(((here - there).square() * lengths).sum().div(share).sqrt())


def _width(spectrum: LyapunovSpectrum | Measurement | Tensor) -> int:
    """D, the dimension of the state; where it was not kept, the exponents are taken for all of them."""
    return len(spectrum) if isinstance(spectrum, Tensor) else spectrum.dimension or len(spectrum.exponents)


def _factors(name: str, spectrum: LyapunovSpectrum | Measurement | Tensor) -> Tensor:
    """Growth factors (K,) per step, largest first."""
    exponents = spectrum if isinstance(spectrum, Tensor) else getattr(spectrum, "exponents", None)
    if not isinstance(exponents, Tensor):
        raise ValueError(
            f"{name} must be a spectrum, a measurement, or a tensor of exponents; got {type(spectrum).__name__}."
        )
    if exponents.dim() != 1 or not len(exponents):
        raise ValueError(
            f"{name} must be a vector of exponents, (K,) with K of at least 1; got {tuple(exponents.shape)}."
        )
    factors = exponents.detach().cpu().double().exp()
    if not factors.isfinite().all():
        worst = exponents[~factors.isfinite().to(exponents.device)][0]
        raise ValueError(f"{name} must hold exponents that are known, finite or -inf; got {float(worst)}.")
    return factors.sort(descending=True).values
