"""Spectra of another run, which one is compared with as it trains: of the dense network while a sparse one trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lightning_lyapunov.engine.spectrum import LyapunovSpectrum
from lightning_lyapunov.monitoring.checkpoint import histories_in
from lightning_lyapunov.names import key_of
from lightning_lyapunov.reading.distance import spectrum_distance
from lightning_lyapunov.reading.history import History, Measurement

Spectra: TypeAlias = "str | Path | History | LyapunovSpectrum | Sequence[tuple[int, LyapunovSpectrum | Tensor]]"
"""A file that holds a history; a history; one spectrum, for all updates; or pairs of updates made and a spectrum, or
exponents ``(D,)`` of the whole state, nats per step."""
NEAR = 0.1
"""Share of the updates made so far by which those of the reference may differ."""


class Reference:
    """What the spectra of a run are compared with; where there is nothing to compare with that is told once.

    Args:
        spectra: Of the other run; None: nothing is compared.
        prefix: That of the keys, and of the callback whose history is read where a checkpoint holds several.
        tell: Says something once, with ``warn`` and ``subject``.
    """

    def __init__(self, spectra: Spectra | None, prefix: str, tell: Callable[..., None]) -> None:
        self._given, self._prefix, self._tell = spectra, prefix, tell
        self._by_step: list[tuple[int | None, str, LyapunovSpectrum | Measurement | Tensor]] = []

    def load(self) -> None:
        """Get the spectra ready, if they can be had."""
        if self._given is None:
            return
        try:
            self._by_step = _by_step(self._given, self._prefix)
        except Exception as error:
            self._tell(
                f"reference could not be read, {self._key} is not logged: {error}",
                warn="no-reference",
                subject="reference",
            )

    @property
    def _key(self) -> str:
        return key_of("distance", self._prefix)

    def distance(self, spectrum: LyapunovSpectrum, step: int, source: str) -> float | None:
        """How far a spectrum is from that of the reference after as many updates, as near as there is one.

        Args:
            spectrum: Of this run.
            step: Updates made so far.
            source: What drove the network: only what was driven by the same is compared, where that is known.

        Returns:
            The distance of :func:`~lightning_lyapunov.spectrum_distance`; None where there is nothing near, of the same
            source, or where exponents are not known.
        """
        if not self._by_step:
            return None
        comparable = [one for one in self._by_step if one[1] in ("", source)]
        if not comparable:
            sources = ", ".join(sorted({one[1] for one in self._by_step}))
            self._tell(f"{self._key} is not logged: the reference is of {sources}, not {source}.", subject="source")
            return None
        at, _, nearest = min(comparable, key=lambda one: 0 if one[0] is None else abs(one[0] - step))
        if at is not None and abs(at - step) > NEAR * step:
            self._tell(
                f"{self._key} is not logged after {step} updates: the nearest of the reference was measured after "
                f"{at}. It should be measured at the same updates, with max_overhead=None.",
                subject="near",
            )
            return None
        exponents = nearest if isinstance(nearest, Tensor) else nearest.exponents
        if spectrum.exponents.isnan().any() or exponents.isnan().any():
            return None
        return spectrum_distance(spectrum, nearest)


def _by_step(given: Spectra, prefix: str) -> list[tuple[int | None, str, LyapunovSpectrum | Measurement | Tensor]]:
    """Updates, source and spectrum of each; no updates where it stands for all of them.

    Raises:
        ValueError: If a file holds no history, or nothing was measured.
        OSError: If there is no such file.
    """
    if isinstance(given, LyapunovSpectrum):
        return [(None, "", given)]
    if isinstance(given, str | Path):
        given = _history_in(Path(given), prefix)
    if isinstance(given, History):
        pairs: list[Any] = [(m.step, m.source, m) for m in given]
    else:
        pairs = [(int(step), "", one) for step, one in given]
        for _, _, one in pairs:
            spectrum_distance(one, one)  # which refuses what is no spectrum
    if not pairs:
        raise ValueError("reference must hold at least one measurement; got none.")
    return pairs


def _history_in(file: Path, prefix: str) -> History:
    """The history in a checkpoint of a Trainer, or in the state of a callback, a monitor or a history itself.

    Raises:
        ValueError: If the file holds none, or that of several callbacks of other prefixes.
        OSError: If there is no such file.
    """
    content = torch.load(file, map_location="cpu", weights_only=True)
    found = histories_in(content)
    if isinstance(content, dict) and not found:
        found = {prefix: content.get("history", content)}
    if len(found) > 1 and prefix not in found:
        raise ValueError(f"prefix must be one of those in {file}, {', '.join(found)}; got {prefix!r}.")
    history = History(prefix)
    if found:
        history.load_state_dict(found.get(prefix, next(iter(found.values()))))
    if not len(history):
        raise ValueError(
            f"reference must be a file with a measured history, as a checkpoint of the other run, or what "
            f"torch.save(callback.state_dict(), 'dense.pt') writes; {file} holds none."
        )
    return history
