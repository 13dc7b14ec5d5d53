"""What any kind of measurement offers to a history: a small kind of our own goes through a checkpoint and back."""

import io
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from lightning_lyapunov.reading.history import BYTES, History, Measurement
from lightning_lyapunov.reading.kept import Kept, read_state


@dataclass(frozen=True)
class Weighed(Kept):
    """The size of some weights."""

    step: int
    epoch: int
    metrics: dict[str, float]
    norms: Tensor
    names: list[str] = field(default_factory=list)
    unit: str = "kg"
    share: float | None = None

    NEWER: ClassVar[tuple[str, ...]] = ("unit",)

    @classmethod
    def _repaired(cls, known: dict[str, Any], written: Any, prefix: str) -> dict[str, Any]:
        return known | {"metrics": {key.removeprefix(f"{prefix}/"): value for key, value in known["metrics"].items()}}


def weighed(step: int, size: int = 3, **more: Any) -> Weighed:
    return Weighed(step, 0, {"norm": float(step)}, torch.arange(size).float(), **more)


def through_a_file(state: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def test_a_history_of_another_kind_comes_back_as_it_was() -> None:
    history, again = History("scales", Weighed), History("scales", Weighed)
    for step in (0, 4, 0, 8):
        history.append(weighed(step, names=["a", "b"], share=0.5))
    assert again.load_state_dict(through_a_file(history.state_dict())) == []
    assert [m.step for m in again] == [0, 8] and [m.step for run in again.earlier for m in run] == [0, 4]
    for ours, theirs in zip(history, again, strict=True):
        assert type(theirs) is Weighed and torch.equal(ours.norms, theirs.norms)
        assert (ours.names, ours.unit, ours.share, ours.metrics) == (
            *(theirs.names, theirs.unit, theirs.share, theirs.metrics),
        )
    assert again.values("norm") == [0.0, 8.0]


def test_a_history_is_of_recurrent_layers_unless_it_is_told_otherwise() -> None:
    assert History().kind is Measurement and History("scales", Weighed).kind is Weighed


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"unit": None}, []),  # left out, as an older version does
        ({"norms": [1.0]}, ["norms of a measurement is list"]),
        ({"share": "half"}, ["share of a measurement is str"]),
        ({"names": {}}, ["names of a measurement is dict"]),
        ({"colour": "red"}, ["colour of a measurement is not known"]),
        ({"step": None}, ["a measurement has no step"]),
    ],
)
def test_what_another_version_wrote_is_used_as_far_as_it_goes(change: dict[str, Any], told: list[str]) -> None:
    written = {name: value for name, value in (weighed(4).plain() | change).items() if value is not None}
    written.setdefault("share", None)
    kept, amiss = Weighed.restored(written, "scales")
    assert amiss == told
    assert (kept is None) == (not {"step", "norms"} <= written.keys() or isinstance(written["norms"], list))
    assert kept is None or kept.step == 4


def test_a_kind_repairs_what_it_wrote_before() -> None:
    kept, amiss = Weighed.restored(weighed(0).plain() | {"metrics": {"scales/norm": 2.0}}, "scales")
    assert amiss == [] and kept is not None and kept.metrics == {"norm": 2.0}


def test_no_dictionary_at_all_is_told_of() -> None:
    assert Weighed.restored([], "scales") == (None, ["a measurement is list, not a dictionary"])
    assert read_state({"a": 1, "b": 2}, {"a": int}, "it") == ({"a": 1}, ["b of it is not known"])


def test_what_is_plain_is_a_copy_of_what_is_shown_alone() -> None:
    large = torch.zeros(10**6)
    plain = Weighed(0, 0, {}, large[:4]).plain()
    assert plain["norms"].untyped_storage().nbytes() == 16


@pytest.mark.parametrize("size", [1, 1000, 20_000])
def test_the_size_told_is_about_that_in_a_file_and_bounds_the_history(size: int) -> None:
    """Oracle: the bytes that torch.save writes for one more measurement."""

    def saved(count: int) -> int:
        history = History("scales", Weighed)
        for step in range(count):
            history.append(weighed(step, size, names=["a"] * 20))
        buffer = io.BytesIO()
        torch.save(history.state_dict(), buffer)
        return buffer.tell()

    one = (saved(8) - saved(2)) / 6
    assert 0.9 * one < weighed(0, size, names=["a"] * 20).size < 1.1 * one + 700
    assert saved(600) < 1.25 * BYTES
