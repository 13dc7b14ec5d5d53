"""Results as JSON, and back: each number as it was, each format under a name of its own.

JSON knows neither NaN nor infinity: null stands for what is not known, "inf" and "-inf" for what is infinite.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

SPECTRUM, DEPTH = "lightning_lyapunov.spectrum/1", "lightning_lyapunov.depth/1"
"""Formats: of a spectrum, and of one across depth."""
DTYPES = {"float32": torch.float32, "float64": torch.float64}
BRIEF = ("exponents", "stderr", "error", "settled", "dimension", "log_singular_values", "log_singular_values_error",
         "gain", "gain_error", "growth_steps")  # fmt: skip
"""What is repeated of a single layer."""
KINDS = {"trusted": torch.bool, "settled": torch.bool}
KINDS |= dict.fromkeys(("starts", "ends", "lengths"), torch.int64)
"""Of arrays that hold no float64."""
DEEPEST = 4
"""Axes of an array at most."""
R = TypeVar("R")


def dumps(facts: Mapping[str, Any]) -> str:
    """Facts on one line."""
    return json.dumps(plain(facts), allow_nan=False)


def loads(text: str | bytes, form: str) -> dict[str, Any]:
    """What was written in a format.

    Raises:
        ValueError: If it is no JSON, or of another format; the message says which.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"an object with the figures of a measurement is needed; this is a {type(content).__name__}")
    found = content.get("format", form)  # what was written by hand may leave it out
    if found != form:
        meant = {SPECTRUM: "LyapunovSpectrum.from_json reads it", DEPTH: "DepthSpectrum.from_json reads it"}
        advice = meant.get(found, "a newer version of this package may read it") if isinstance(found, str) else ""
        raise ValueError(f"its format must be {form!r}; got {found!r}{'; ' * bool(advice)}{advice}")
    return content


def plain(value: Any) -> Any:
    """A value as JSON can say it; of a dataclass all fields, by name."""
    if isinstance(value, Tensor):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    return value


def read(kind: type[R], content: Mapping[str, Any]) -> R:
    """The dataclass whose fields these are; what is not among them is passed over.

    Raises:
        KeyError: If a field without a default is missing.
        TypeError, ValueError: If a value is not of its field's type.
    """
    if not isinstance(content, Mapping):
        raise TypeError(f"{kind.__name__} must be an object with its fields; got {type(content).__name__}")
    hints, known = get_type_hints(kind), {}
    for field in fields(kind):  # type: ignore[arg-type]  # a dataclass
        if field.name in content:
            known[field.name] = _as(hints[field.name], content[field.name], field.name)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise KeyError(field.name)
    return kind(**known)


def _as(hint: Any, value: Any, name: str) -> Any:
    """A plain value as a field of this type holds it."""
    inner = [one for one in get_args(hint) if one not in (type(None), Ellipsis)]
    if type(None) in get_args(hint):
        return None if value is None else _as(inner[0], value, name)
    if get_origin(hint) is tuple:
        return tuple(_as(inner[0], one, name) for one in value)
    if isinstance(get_origin(hint), type) and issubclass(get_origin(hint), Mapping):
        return {str(key): _as(inner[-1], one, name) for key, one in value.items()}
    if hint is Tensor:
        return numbers(value, KINDS.get(name, torch.float64))
    if hint is torch.dtype:
        return DTYPES[value]
    if hint is float:
        return number(value)
    if is_dataclass(hint):
        return read(hint, value)  # type: ignore[arg-type]
    if type(value) is not hint:
        raise TypeError(f"{name} must be of type {hint.__name__}; got {value!r}")
    return value


def written(spectrum: Any) -> dict[str, Any]:
    """All fields of a spectrum, its layers, and the figures that follow from it, for readers of the file."""
    content = _without_layers(spectrum)
    brief = {name: content[name] for name in BRIEF if name in content}
    return {**content, "layers": {name: written(part) for name, part in spectrum.parts.items()} or {"l0": brief}}


def _without_layers(spectrum: Any) -> dict[str, Any]:
    names = [field.name for field in fields(spectrum) if field.name != "parts"]
    content = {name: plain(getattr(spectrum, name)) for name in names}
    told = {name: getattr(spectrum, name) for name in ("complete", "state_mean", "state_spread")}
    if (growth := spectrum.growth) is not None:
        told |= {
            "log_singular_values": growth.log_singular_values,
            "log_singular_values_error": growth.error,
            "gain": growth.gain,
            "gain_error": growth.gain_error,
            "growth_steps": float(growth.lengths.double().mean()),
        }
    return {**content, **plain(told)}


def completed(content: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields of a spectrum, and those of its layers by name, whichever version wrote them.

    Older ones wrote the figures of the whole alone; the first of them neither errors nor what has settled.
    """
    count, known = len(content["exponents"]), {name: value for name, value in content.items() if name != "layers"}
    known["parts"] = {}
    known.setdefault("error", [2 * number(value) for value in content["stderr"]])
    known.setdefault("settled", [False] * count)
    if "per_sequence" in content:
        return known, {name: part for name, part in content["layers"].items() if "per_sequence" in part}
    unknown = torch.full((1, 1), math.nan, dtype=torch.float64)
    known["per_sequence"] = unknown.expand(int(content["sequences"]), count)  # takes no memory, whatever is claimed
    return known, {}


def check(spectrum: Any) -> None:
    """Refuse a spectrum whose parts do not fit one another, which no measurement gives.

    Raises:
        ValueError: For such a one.
    """
    count = {len(getattr(spectrum, name)) for name in ("exponents", "stderr", "error", "trusted", "settled")}
    if len(count) > 1 or max(count) > spectrum.dimension or spectrum.sequences < 1:
        raise ValueError(
            "exponents, stderr, error, trusted and settled must be of one length, at most dimension; sequences 1 or "
            "more"
        )
    if not math.isfinite(spectrum.interval):
        raise ValueError("interval must be a number")
    if spectrum.per_sequence.shape != (spectrum.sequences, *spectrum.exponents.shape):
        raise ValueError(f"per_sequence must be of {spectrum.sequences} × {max(count)} numbers")


def why(error: Exception) -> str:
    """What was wrong with a content, in a clause without a full stop."""
    if isinstance(error, KeyError) and error.args:
        return f"{error.args[0]} is missing"
    return str(error).rstrip(".") or type(error).__name__


def number(value: Any) -> float:
    """A number; NaN for what is not known."""
    return math.nan if value is None else float(value)


def numbers(value: Any, dtype: torch.dtype = torch.float64) -> Tensor:
    """Numbers in lists, as a tensor."""
    if isinstance(value, Tensor):
        return value
    if not isinstance(value, list):
        raise TypeError(f"an array must be a list; got {type(value).__name__}")
    return torch.tensor(_floats(value) if dtype == torch.float64 else value, dtype=dtype)


def _floats(value: Any, depth: int = 0) -> Any:
    if not isinstance(value, list):
        return number(value)
    if depth == DEEPEST:
        raise ValueError(f"an array has {DEEPEST} axes at most")
    return [_floats(one, depth + 1) for one in value]
