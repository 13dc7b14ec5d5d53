"""Runs on the command line: the histories in checkpoints, in directories of runs, and in files of their own."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_lyapunov.cli.reading import history_of, loaded
from lightning_lyapunov.cli.writing import tell
from lightning_lyapunov.reading.depth_history import DepthMeasurement
from lightning_lyapunov.reading.history import History, Measurement
from lightning_lyapunov.report_runs import Run, fits_of

PAGE = "runs.html"
"""Name of the page about several runs."""
PAGES = ("{prefix}.html", "report.html", "report/{prefix}.html", "reports/{prefix}.html")
"""Where in its directory the own page of a run is looked for, beside that which has the name of the checkpoint."""


def runs_at(paths: Sequence[Path], prefix: str | None, trust_pickle: bool) -> list[tuple[Path, Run]]:
    """The runs that paths stand for, each with its file; what holds no history is left out, and said.

    A file is a checkpoint of a Trainer, or what ``torch.save`` wrote of the ``state_dict()`` of a monitor or a history.
    A directory stands for the runs below it: each folder with checkpoints is one, of which the newest is read.

    Raises:
        ValueError: If no run is left; of a single path the message says what is wrong with it.
        FileNotFoundError: If there is no such path.
    """
    files = [file for path in paths for file in _files_at(path)]
    folders = [_folder(file).resolve() for file in files]
    base = Path(os.path.commonpath(folders)) if folders else Path()
    found: list[tuple[Path, Run]] = []
    for file, folder in zip(files, folders, strict=True):
        inside = folder.relative_to(base).as_posix()
        is_one_of_several = folders.count(folder) > 1 or (folder == base and file.parent.name != "checkpoints")
        name = "/".join([inside] * (inside != ".") + [file.stem] * is_one_of_several) or folder.name
        try:
            run = _run_of(file, name, prefix, trust_pickle)
        except ValueError as error:
            if len(files) == 1:
                raise
            tell(f"{file} is left out: {error}")
            continue
        found.append((file, run))
    if not found:
        named = ", ".join(map(str, paths[:4])) + ", …" * (len(paths) > 4)
        raise ValueError(
            f"runs: there is no history in {named}: give checkpoints of a Trainer with a LyapunovSpectrumCallback or a "
            "DepthSpectrumCallback, or directories that hold some."
        )
    return found


def fits_at(found: Sequence[tuple[Path, Run]]) -> list[Run]:
    """The runs, those of one callback's fits one by one."""
    return [fit for _, run in found for fit in fits_of(run)]


def base_of(found: Sequence[tuple[Path, Run]]) -> Path:
    """The directory that holds all of them, as a path that is short to print."""
    base = os.path.commonpath([_folder(file).resolve() for file, _ in found])
    return Path(os.path.relpath(base))


def settings_of(content: Any) -> dict[str, object]:
    """What a checkpoint knows of how its run was made."""
    kept = content if isinstance(content, Mapping) else {}
    both = (kept.get(name) for name in ("hyper_parameters", "datamodule_hyper_parameters"))
    return {str(name): value for one in both if isinstance(one, Mapping) for name, value in one.items()}


def _files_at(path: Path) -> Iterator[Path]:
    """The files of the runs that a path stands for."""
    if not path.is_dir():
        if not path.exists():
            raise FileNotFoundError(f"there is no file {path}.")
        if path.name == PAGE:
            return
        if path.suffix in (".html", ".csv", ".json", ".yaml", ".txt", ".png"):
            tell(f"{path} is left out: it is no checkpoint.")
        else:
            yield path
        return
    folders: dict[Path, list[Path]] = {}
    for file in sorted(path.rglob("*.ckpt")):
        folders.setdefault(_folder(file), []).append(file)
    if not folders:
        tell(f"{path} is left out: there is no checkpoint (*.ckpt) below it.")
    for files in folders.values():
        yield max(files, key=lambda file: (file.stat().st_mtime, file.name))


def _folder(file: Path) -> Path:
    """The directory of its run."""
    return file.parent.parent if file.parent.name == "checkpoints" else file.parent


def _run_of(file: Path, name: str, prefix: str | None, trust_pickle: bool) -> Run:
    content = loaded(file, trust_pickle)
    history = _history_in(content, file, prefix)
    reached = content.get("global_step") if isinstance(content, dict) else None
    if isinstance(reached, int) and history.missed is None and reached > history[-1].step:
        history.missed = reached, "the checkpoint was written before the next measurement"
    return Run(name, history, settings_of(content), _page_of(file, history.prefix))


def _history_in(content: Any, file: Path, prefix: str | None) -> History[Any]:
    """The history in a checkpoint of a Trainer, or in the state of a monitor or of a history."""
    state = content.get("history", content) if isinstance(content, dict) and "callbacks" not in content else None
    written = state.get("measurements") if isinstance(state, dict) else None
    if not isinstance(written, list):
        return history_of(content, file, prefix)
    across = any(isinstance(one, dict) and "block_gain" in one for one in written)
    kind: Any = DepthMeasurement if across else Measurement
    history: History[Any] = History(prefix or ("depth" if across else "lyapunov"), kind)
    history.load_state_dict(state)
    if not len(history):
        raise ValueError(f"checkpoint: {file} was written before the first measurement.")
    return history


def _page_of(file: Path, prefix: str) -> Path | None:
    """The own page of a run, where one lies."""
    places = [file.with_suffix(".html"), *(_folder(file) / page.format(prefix=prefix) for page in PAGES)]
    return next((place for place in places if place.is_file()), None)
