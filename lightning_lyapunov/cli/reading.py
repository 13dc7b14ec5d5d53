"""What the command line reads: networks, inputs, checkpoints and spectra; without trust nothing that could run code."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import pickle
import sys
import warnings
import zipfile
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from lightning_lyapunov.aelle import AeLLEScorer
from lightning_lyapunov.cli.weights import load_weights
from lightning_lyapunov.cli.writing import one_line
from lightning_lyapunov.engine.spectrum import LyapunovSpectrum
from lightning_lyapunov.engine.spectrum_json import number, numbers
from lightning_lyapunov.monitoring.checkpoint import CALLBACK, histories_in
from lightning_lyapunov.reading.depth_history import DepthMeasurement
from lightning_lyapunov.reading.history import History, Measurement
from lightning_lyapunov.reading.kept import Kept

KINDS: dict[str, type[Kept]] = {CALLBACK: Measurement, "DepthSpectrumCallback": DepthMeasurement}
"""What the history of each callback is of."""
LIGHTNING = "pytorch-lightning_version"
"""A key of every checkpoint of a Trainer."""


def existing(file: Path) -> Path:
    """A path, which must be that of a file."""
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}.")
    return file


def loaded(file: Path, trust_pickle: bool) -> Any:
    """What ``torch.save`` wrote; without trust tensors and plain values only."""
    if existing(file).suffix == ".npz":
        raise ValueError(
            f"{file} is an archive of NumPy; torch.save({{name: torch.from_numpy(array) for name, array in "
            f"numpy.load({str(file)!r}).items()}}, 'weights.pt') writes the same as a file that is read here."
        )
    with existing(file).open("rb") as stream:
        try:
            return torch.load(stream, map_location="cpu", weights_only=not trust_pickle)
        except pickle.UnpicklingError as error:
            if trust_pickle:
                raise ValueError(f"{file} is no file of torch.save.") from error
            raise ValueError(
                f"{file} holds more than tensors and plain values, or is no file of torch.save. To read it would run "
                "code in it: if you trust where it comes from, add --trust-pickle."
            ) from error
        except (ImportError, AttributeError) as error:
            raise ValueError(f"{file} holds objects of classes that cannot be imported from here: {error}.") from error
        except Exception as error:  # whatever a damaged file makes the parsers raise
            raise ValueError(
                f"{file} is no file that torch.save wrote whole ({one_line(error).rstrip('.')})."
            ) from error


def network_of(
    file: Path, model: str | None, init: Mapping[str, Any], trust_pickle: bool, weights: str | None = None
) -> tuple[nn.Module, int | None]:
    """The network of a checkpoint, of a file of weights, or a whole module; and its updates where the file knows.

    Args:
        file: What ``torch.save`` or a Trainer wrote.
        model: Import path of the class; of a whole module None.
        init: Arguments of the class that the file does not know.
        trust_pickle: Whether the file may run code.
        weights: Where in the file the weights are, if that is not clear.

    Raises:
        ValueError: If no network can be made of it; the message says what would do.
        FileNotFoundError: If there is no such file.
    """
    if model is None:
        if not trust_pickle:
            raise ValueError(
                f"model: give --model pkg.mod:Class, the class whose weights are in {file}; or, if the file is a whole "
                "module whose origin you trust, add --trust-pickle: to read it runs code in it."
            )
        network = loaded(file, trust_pickle)
        if not isinstance(network, nn.Module):
            raise ValueError(f"model: {file} holds no module but {type(network).__name__}; give --model pkg.mod:Class.")
        return network, None
    made_by, content = _imported(model), loaded(file, trust_pickle)
    facts = content if isinstance(content, Mapping) else {}
    updates = facts.get("global_step")
    _check_init(made_by, model, init)
    try:
        if hasattr(made_by, "load_from_checkpoint") and LIGHTNING in facts:
            network = _lightning_module(made_by, facts, file, init, trust_pickle, weights)
        else:
            network = made_by(**init)
            load_weights(network, content, file, weights)
    except (TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise ValueError(
            f"{model} could not be made from {file}: {one_line(error)} Arguments that the file does not know are "
            """given as --init '{"name": value}'."""
        ) from error
    return network, updates if isinstance(updates, int) else None


def _check_init(made_by: Any, model: str, init: Mapping[str, Any]) -> None:
    """Refuse arguments that the class does not take, which Lightning would leave out without a word."""
    taken = inspect.signature(made_by).parameters
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in taken.values()):
        return
    for name in init:
        if name not in taken:
            close = get_close_matches(name, taken, n=1)
            instead = f"did you mean {close[0]}?" if close else f"it takes {', '.join(taken) or 'none'}."
            raise ValueError(f"--init: {model} takes no {name}; {instead}")


def _lightning_module(
    made_by: Any, content: Mapping[str, Any], file: Path, init: Mapping[str, Any], trust_pickle: bool, where: str | None
) -> nn.Module:
    """A LightningModule, made as Lightning makes it; names that wrappers changed are seen through."""
    # Older releases do not know the option: they read pickles, but this file has just shown that it is none.
    knows = "weights_only" in inspect.signature(made_by.load_from_checkpoint).parameters
    options = {"map_location": "cpu", **({"weights_only": not trust_pickle} if knows else {}), **init}
    if where is None:
        with contextlib.suppress(RuntimeError):  # names that are not those of the class
            return cast(nn.Module, made_by.load_from_checkpoint(file, **options))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that names are missing, which come next
        network = cast(nn.Module, made_by.load_from_checkpoint(file, strict=False, **options))
    load_weights(network, {"state_dict": content["state_dict"]} if where is None else content, file, where)
    return network


def _imported(model: str) -> Any:
    """The class of an import path, which may be a module of the working directory."""
    where, _, name = model.replace(":", ".").rpartition(".")
    try:
        found = getattr(importlib.import_module(where), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"model must be an import path as pkg.mod:Class; {model!r}: {error}.") from error
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        what = getattr(found, "__qualname__", type(found).__name__)
        raise ValueError(f"model must be a class of modules, torch.nn.Module or derived from it; {model!r} is {what}.")
    return found


def array_of(file: Path) -> Tensor:
    """One array of at least two axes, from .npy or .pt."""
    if existing(file).suffix == ".npz":
        raise ValueError(
            f"inputs must be one array; {file} is an archive of arrays{_names_in(file)}: numpy.save('inputs.npy', "
            f"numpy.load({str(file)!r})['NAME']) writes the one called NAME."
        )
    if file.suffix == ".npy":
        values: Any = _numpy_array(file)
    else:
        values = loaded(file, trust_pickle=False)
    if not isinstance(values, Tensor) or values.dim() < 2:
        what = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(f"inputs must be one array, (T, B, I) or batch first; {file} holds {what}.")
    return values


def _numpy_array(file: Path) -> Tensor:
    import numpy as np

    try:
        # Mapped first, since this compares the size that the file claims with its own before memory is taken.
        with np.errstate(over="raise"):
            return torch.from_numpy(np.array(np.lib.format.open_memmap(file, mode="r")))
    except OSError:
        raise
    except Exception as error:  # whatever a damaged file makes the parsers raise
        raise ValueError(
            f"inputs must be one array of numbers as numpy.save writes it; {file}: {one_line(error)}"
        ) from error


def _names_in(file: Path) -> str:
    """The names of an archive's arrays, without reading one; nothing where it is none."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = [one_line(name.removesuffix(".npy"))[:40] for name in archive.namelist()[:8]]
    except Exception:  # whatever a damaged file makes the parser raise
        return ""
    return f" ({', '.join(names)})" if names else ""


def history_of(content: Any, file: Path, prefix: str | None) -> History[Any]:
    """The history of the callback with a prefix, or of the only one, of recurrent layers or across depth."""
    states = content.get("callbacks") if isinstance(content, dict) else None
    found: dict[str, tuple[type[Kept], Any]] = {}
    try:
        for callback, kind in KINDS.items():
            found |= {name: (kind, state) for name, state in histories_in(content, callback).items()}
    except Exception as error:  # whatever a foreign file makes the parser of keys raise
        raise ValueError(f"checkpoint: {file} holds a state of no {CALLBACK}: {one_line(error)}") from error
    if not found:
        raise ValueError(f"checkpoint: {file} {_without_history(content, states)}")
    if prefix is None and len(found) == 1:
        (prefix,) = found
    if prefix is None or prefix not in found:
        asked = "" if prefix is None else f"; got {prefix!r}"
        raise ValueError(f"prefix must be one of those in {file}, {', '.join(found)}{asked}.")
    kind, state = found[prefix]
    history = History(prefix, kind)
    history.load_state_dict(state)
    if not len(history):
        raise ValueError(f"checkpoint: {file} was written before the first measurement.")
    return history


def _without_history(content: Any, states: Any) -> str:
    """Why a file holds no history, and what has one."""
    page = f"{CALLBACK}(report='reports') writes the page itself when the fit ends"
    if not isinstance(content, dict) or LIGHTNING not in content:
        return f"is no checkpoint of a Trainer, which keeps the history of its {CALLBACK}; {page}."
    if states is None:
        return (
            "holds weights alone, as save_weights_only=True and some libraries save them: the history of a "
            f"{CALLBACK} is not among them; {page}, and ModelCheckpoint(save_weights_only=False) keeps the history."
        )
    those = ", ".join(one_line(str(key).partition("{")[0]) for key in list(states)[:8]) or "none"
    return f"was written without a {CALLBACK}; its callbacks with a state: {those}."


def spectrum_of(file: Path) -> tuple[LyapunovSpectrum | Tensor, Mapping[str, Any]]:
    """A spectrum, and what is known of its network, out of JSON; a list of exponents is one of a whole spectrum.

    Among what is known is ``length``, steps of the longest sequence, where inputs drove the network.
    """
    try:
        text = sys.stdin.read() if str(file) == "-" else existing(file).read_text("utf-8")
        content = json.loads(text)
        if isinstance(content, list):
            return numbers(content), {}
        result = LyapunovSpectrum.from_json(text)
        content |= {name: number(content.get(name)) for name in ("state_mean", "state_spread")}
        content["length"] = result.steps + result.transient if result.driven else None
    except UnicodeDecodeError as error:
        raise ValueError(
            f'file must hold what "spectrum --format json" writes, which {file} does not: if it is a checkpoint, give '
            'it to "spectrum" first.'
        ) from error
    except (TypeError, ValueError, ArithmeticError, RecursionError) as error:
        raise ValueError(
            f'file must hold what "spectrum --format json" writes, or a JSON list of exponents; {file}: '
            f"{one_line(error)}"
        ) from error
    return result, content


def scorer_of(name: str) -> AeLLEScorer:
    """The general scorer, or one from a file."""
    return AeLLEScorer.from_pretrained() if name == "general" else AeLLEScorer.load(name)
