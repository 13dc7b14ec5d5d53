"""Across depth in a loop of one's own: the same figures as by hand, and the same loop without it."""

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from deep import ResNet, ViT, images
from torch import nn
from torch.nn import functional as F

from lightning_lyapunov import DepthMonitor, depth_spectrum
from lightning_lyapunov.monitoring.depth_options import DepthOptions
from lightning_lyapunov.monitoring.loggers.charts import VERDICT, charts_of_depth
from lightning_lyapunov.names_depth import LOGGED, QUANTITIES
from lightning_lyapunov.reading.depth_history import DepthMeasurement


def seeded(net: type[nn.Module] = ViT) -> nn.Module:
    torch.manual_seed(0)
    return net()


def always(model: nn.Module, **options: Any) -> DepthMonitor:
    return DepthMonitor(model, **{"max_overhead": None, "figures": False, **options})


def train(model: nn.Module, monitor: DepthMonitor | None = None, updates: int = 6) -> list[torch.Tensor]:
    """A loop that measures every second update; what it leaves."""
    optimizer, (x, y) = torch.optim.Adam(model.parameters(), 1e-2), images(8)
    for step in range(updates):
        if monitor is None:
            loss = F.cross_entropy(model(x), y)
        else:
            with monitor.record():
                loss = F.cross_entropy(model(x), y)
            if step % 2 == 0:
                monitor.measure(step, epoch=0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return [*model.state_dict().values(), torch.get_rng_state()]


@pytest.mark.parametrize("net", [ViT, ResNet])
def test_the_loop_is_to_the_bit_what_it_is_without(net: type[nn.Module]) -> None:
    """Weights, running statistics, their counters and the random state."""
    without = train(seeded(net))
    model = seeded(net)
    with always(model) as monitor:
        left = train(model, monitor)
    assert all(torch.equal(one, other) for one, other in zip(without, left, strict=True))
    assert [m.step for m in monitor.history] == [0, 2, 4]
    assert not any(vars(part)[name] for part in model.modules() for name in vars(part) if name.endswith("_hooks"))


def test_figures_are_those_by_hand_and_go_where_they_are_told_to() -> None:
    calls: list[Any] = []
    model, (x, _) = seeded(), images(8)
    monitor = always(model, to=lambda figures, step: calls.append((step, figures)))
    with monitor.record("validation"), torch.no_grad():
        model(x)
    spectrum = monitor.measure(7, epoch=2)
    with mock.patch("lightning_lyapunov.capture.depth_by_hand.DepthSettings", lambda **_: DepthOptions().settings):
        expected = depth_spectrum(model, x)
    assert spectrum is not None and spectrum is monitor.spectrum
    torch.testing.assert_close(spectrum.per_sample, expected.per_sample, rtol=0, atol=1e-5)
    ((step, row),) = calls
    assert step == 7 and row.keys() == {*(f"depth/{name}" for name in LOGGED), "epoch"}
    assert row["depth/total"] == pytest.approx(float(expected.log_singular_values[0]), abs=1e-5)
    (kept,) = monitor.history
    assert (kept.step, kept.epoch, kept.source, kept.samples) == (7, 2, "validation", 8)
    assert monitor.verdict is not None and monitor.findings


def test_it_goes_on_from_its_state() -> None:
    model = seeded()
    monitor = always(model)
    train(model, monitor)
    again = always(seeded())
    again.load_state_dict(monitor.state_dict())
    assert [m.metrics for m in again.history] == [m.metrics for m in monitor.history]
    assert all(type(m) is DepthMeasurement for m in again.history)


def test_the_page_is_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    model = seeded()
    monitor = always(model, prefix="encoder")
    train(model, monitor, updates=1)
    path = monitor.report(tmp_path)
    assert path == tmp_path / "encoder.html" and "ViT" in path.read_text(encoding="utf-8")


def test_a_model_without_blocks_is_told_of_once_and_a_wrong_option_at_once() -> None:
    monitor = always(model := nn.Linear(3, 2))
    with pytest.warns(UserWarning, match="the spectrum across depth could not be measured") as record:
        for step in range(2):
            with monitor.record():
                model(torch.zeros(4, 3))
            assert monitor.measure(step) is None
    assert len(record) == 1
    with pytest.raises(TypeError, match=r"DepthMonitor has no option num_steps; its options are k, .*num_samples"):
        always(seeded(), num_steps=3)
    with pytest.raises(ValueError, match="module must be the name of a container"):
        DepthMonitor(seeded(), {"blocks": None})  # type: ignore[arg-type]


def test_parameters_in_pieces_are_refused() -> None:
    """As fully_shard leaves them: each knows its other pieces."""
    model = seeded()
    next(model.parameters()).full_tensor = None  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"lie in pieces on several devices \(FSDP2, tensor parallelism\)"):
        always(model)


def test_charts_are_of_what_is_logged() -> None:
    for names in (tuple(QUANTITIES), LOGGED):
        (page,) = charts_of_depth("depth", names).values()
        assert {name for about in page.values() for name in about} <= QUANTITIES.keys()
        assert all("(nats)" in title or "share" in title for title in page if title != VERDICT)
    assert [*charts_of_depth("encoder", LOGGED)] == ["Across depth: encoder"]
