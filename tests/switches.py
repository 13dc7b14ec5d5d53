"""The switches of torch that a measurement turns, and must turn back."""

from collections.abc import Callable
from typing import Any

import torch


def precision() -> dict[str, Any]:
    """Every switch of the precision of float32 products that this torch has, as it reads."""
    backends = torch.backends
    readers: dict[str, Callable[[], Any]] = {
        "all": torch.get_float32_matmul_precision,
        "cuda allows TF32": lambda: backends.cuda.matmul.allow_tf32,
        "cudnn allows TF32": lambda: backends.cudnn.allow_tf32,
        "cudnn": lambda: backends.cudnn.enabled,
        "generic": lambda: backends.fp32_precision,  # type: ignore[attr-defined]
        "cuda.matmul": lambda: backends.cuda.matmul.fp32_precision,
    }
    for library in ("cudnn", "mkldnn"):
        for product in ("matmul", "conv", "rnn"):
            path = (library, product)
            readers[".".join(path)] = lambda p=path: getattr(getattr(backends, p[0]), p[1]).fp32_precision
    found = {}
    for name, read in readers.items():
        try:
            found[name] = read()
        except (RuntimeError, AttributeError) as error:  # mixed old and new switches, or a torch without the new ones
            found[name] = type(error).__name__
    return found
