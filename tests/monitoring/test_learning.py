"""The base rate and the kind of an optimiser. Oracle: the constant that its schedule was made from."""

import math
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn, optim
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.utils.parametrizations import weight_norm
from torch.optim import lr_scheduler as schedulers

from lightning_lyapunov.monitoring.learning import Learning, kind_of

RATE = 3e-3


def layer() -> nn.GRU:
    torch.manual_seed(0)
    return nn.GRU(2, 4)


def update(module: nn.Module, optimizer: Any, schedule: Any = None) -> None:
    optimizer.zero_grad()
    module(torch.ones(3, 1, 2))[0].square().sum().backward()
    optimizer.step()
    if isinstance(schedule, schedulers.ReduceLROnPlateau):
        schedule.step(1.0)
    elif schedule is not None:
        schedule.step()


def rate(optimizer: Any, *layers: nn.Module) -> float | None:
    """At first sight."""
    return Learning().of([optimizer], layers)[0]


# ---------------------------------------------------------------- schedules


def warm_then_cosine(optimizer: Any) -> Any:
    parts = [schedulers.LinearLR(optimizer, 1e-4, total_iters=5), schedulers.CosineAnnealingLR(optimizer, 15)]
    return schedulers.SequentialLR(optimizer, parts, [5])


SCHEDULES: dict[str, Any] = {
    "none": lambda optimizer: None,
    "warm-up from zero": lambda o: schedulers.LambdaLR(o, lambda t: min(t / 10, 1.0)),
    "linear": lambda o: schedulers.LinearLR(o, 1 / 3, total_iters=5),
    "warm-up, then cosine": warm_then_cosine,
    "one cycle": lambda o: schedulers.OneCycleLR(o, max_lr=RATE, total_steps=30),
    "cyclic": lambda o: schedulers.CyclicLR(o, RATE / 10, RATE, step_size_up=8, cycle_momentum=False),
    "steps": lambda o: schedulers.StepLR(o, 4, 0.1),
    "restarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, 4),
    "exponential": lambda o: schedulers.ExponentialLR(o, 0.5),
    "plateau": lambda o: schedulers.ReduceLROnPlateau(o, patience=2),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_it_is_the_rate_that_a_schedule_is_about_all_along(name: str) -> None:
    """Before the first update and after each of twenty."""
    module = layer()
    optimizer = optim.Adam(module.parameters(), RATE / 25 if name == "one cycle" else RATE)
    schedule = SCHEDULES[name](optimizer)
    learning, told, now = Learning([optimizer]), [], set()
    for _ in range(20):
        now.add(optimizer.param_groups[0]["lr"])
        told.append(learning.of([optimizer], [module])[0])
        update(module, optimizer, schedule)
    # CyclicLR's upper end is known to older torch once it is reached.
    told = told[9:] if name == "cyclic" else told
    assert told == [pytest.approx(RATE)] * len(told)
    assert (len(now) == 1) == (name == "none")


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name not in ("none", "plateau", "cyclic")])
def test_a_schedule_tells_it_at_first_sight_however_late(name: str) -> None:
    """As after a resume: the optimiser's state holds it."""
    module = layer()
    optimizer = optim.AdamW(module.parameters(), RATE)
    schedule = SCHEDULES[name](optimizer)
    for _ in range(12):
        update(module, optimizer, schedule)
    again = optim.AdamW(module.parameters(), RATE / 7)
    again.load_state_dict(optimizer.state_dict())
    assert rate(again, module) == pytest.approx(RATE)


def test_a_warm_up_by_hand_leads_to_what_the_optimiser_was_made_with() -> None:
    module = layer()
    optimizer = optim.SGD(module.parameters(), RATE)
    learning = Learning([optimizer])
    for t in range(10):
        optimizer.param_groups[0]["lr"] = RATE * t / 20
        assert learning.of([optimizer], [module]) == (pytest.approx(RATE), False)


def test_what_rises_by_hand_is_known_as_far_as_it_has_come() -> None:
    module = layer()
    optimizer = optim.Adam(module.parameters(), 0.0)
    learning, told = Learning([optimizer]), []
    for t in range(4):
        optimizer.param_groups[0]["lr"] = RATE * (0, 1, 2, 1)[t]
        told.append(learning.of([optimizer], [module]))
    assert told == [(None, True), *((pytest.approx(RATE * n), True) for n in (1, 2, 2))]


def test_what_was_seen_before_training_can_be_forgotten() -> None:
    module = layer()
    optimizer = optim.Adam(module.parameters(), 0.5)
    learning = Learning([optimizer])
    optimizer.param_groups[0]["lr"] = RATE
    learning.forget()
    assert learning.of([optimizer], [module])[0] == pytest.approx(RATE)


# ---------------------------------------------------------------- groups


def test_it_is_that_of_the_groups_that_hold_the_layer() -> None:
    """Of 9 entries at one rate and 3 at another it is the geometric mean, 9 to 3."""
    rnn, out = nn.RNN(2, 1, bias=False), nn.Linear(1, 1)
    other = nn.RNN(8, 1, bias=False)
    groups = [
        {"params": [*out.parameters()], "lr": 0.7},
        {"params": [*other.parameters()], "lr": 1e-3},
        {"params": [*rnn.parameters()], "lr": 1e-1},
        {"params": [nn.Parameter(torch.zeros(5))], "lr": 0.0},
    ]
    optimizer = optim.SGD(groups, 1e-3)
    assert rate(optimizer, rnn) == pytest.approx(1e-1)
    assert rate(optimizer, rnn, other) == pytest.approx(math.exp((9 * math.log(1e-3) + 3 * math.log(1e-1)) / 12))
    optimizer.param_groups[1]["lr"] = 0.0  # which trains nothing
    assert rate(optimizer, rnn, other) == pytest.approx(1e-1)
    assert rate(optimizer, nn.RNN(2, 1)) is None


def test_of_several_optimisers_it_is_the_one_that_holds_the_layer() -> None:
    generator, discriminator = layer(), nn.Linear(4, 1)
    both = [optim.SGD(discriminator.parameters(), 0.1), optim.RMSprop(generator.parameters(), RATE)]
    assert Learning(both).of(both, [generator]) == (pytest.approx(RATE), True)
    assert Learning(both).of(both, [discriminator]) == (pytest.approx(0.1), False)
    assert Learning(both).of(both, [generator, discriminator])[1] is None  # of two kinds
    assert Learning().of([], [generator]) == (None, None)


def test_frozen_layers_have_none() -> None:
    module = layer()
    optimizer = optim.Adam(module.parameters(), RATE)
    assert rate(optimizer, module.requires_grad_(False)) is None


def test_parametrised_weights_are_those_behind() -> None:
    module = weight_norm(layer(), "weight_hh_l0")
    held = [p for n, p in module.named_parameters() if "original" in n]
    rest = [p for n, p in module.named_parameters() if "original" not in n]
    optimizer = optim.Adam([{"params": held, "lr": RATE}, {"params": rest, "lr": 0.0}])
    assert held and rate(optimizer, module) == pytest.approx(RATE)


@pytest.mark.parametrize("number", [torch.tensor(RATE), torch.tensor(RATE, dtype=torch.float64), RATE], ids=repr)
def test_a_rate_may_be_a_tensor(number: Any) -> None:
    module = layer()
    assert rate(optim.Adam(module.parameters(), number, foreach=False), module) == pytest.approx(RATE)


@pytest.mark.parametrize("number", [0.0, -1.0, math.nan, math.inf, None, "fast", torch.zeros(())], ids=repr)
def test_what_is_no_rate_is_not_known(number: Any) -> None:
    module = layer()
    optimizer = optim.Adam(module.parameters(), RATE)
    optimizer.param_groups[0]["lr"] = number
    assert Learning([optimizer]).of([optimizer], [module]) == (None, True)


# ---------------------------------------------------------------- kinds

Ours = {"Adam", "AdamW", "NAdam", "RAdam", "Adamax", "RMSprop", "Adagrad"}


@pytest.mark.parametrize("name", sorted(Ours | {"SGD", "ASGD"}))
def test_kinds_of_torch_whose_rate_is_a_step(name: str) -> None:
    module = layer()
    optimizer = getattr(optim, name)(module.parameters(), lr=RATE)
    assert Learning().of([optimizer], [module]) == (pytest.approx(RATE), name in Ours)


@pytest.mark.parametrize(
    ("name", "adaptive"), [("Adadelta", True), ("Adafactor", True), ("Muon", True), ("LBFGS", None), ("Rprop", None)]
)
def test_kinds_of_torch_whose_rate_is_another(name: str, adaptive: bool | None) -> None:
    if not hasattr(optim, name):
        pytest.skip("this torch has none")
    module = layer()
    weights = [p for p in module.parameters() if p.dim() == 2 or name != "Muon"]
    optimizer = getattr(optim, name)(weights, lr=RATE)
    assert Learning().of([optimizer], [module]) == (None, adaptive)


def of_name(name: str, base: type = optim.Optimizer, rate: float = RATE, parameters: Any = None) -> Any:
    """An optimiser of somebody else's, known by its name."""
    kind = type(name, (base,), {})
    return kind(parameters, {"lr": rate}) if base is optim.Optimizer else kind(parameters, rate)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        *((name, (RATE, True)) for name in ("FusedAdam", "PagedAdamW8bit", "AdamW4bit", "DeepSpeedCPUAdam")),
        *((name, (RATE, True)) for name in ("AdamWScheduleFree", "RAdamScheduleFree", "AdamWScheduleFreeReference")),
        *((name, (RATE, False)) for name in ("SGDScheduleFree", "FusedSGD", "_SGD")),
        *((name, (None, True)) for name in ("Prodigy", "DAdaptAdam", "DAdaptAdaGrad")),
        *((name, (None, None)) for name in ("Lion", "Lamb", "DAdaptSGD", "Adamant", "NotSGD", "Optimizer")),
    ],
)  # fmt: skip
def test_kinds_of_others_are_known_by_name(name: str, told: Any) -> None:
    module = layer()
    said = Learning().of([of_name(name, parameters=module.parameters())], [module])
    assert said == (told[0] and pytest.approx(told[0]), told[1])


def test_a_class_of_one_s_own_is_of_the_kind_that_it_derives_from() -> None:
    module = layer()
    assert kind_of(of_name("Mine", optim.NAdam, parameters=module.parameters())) == "NAdam"


def test_an_adaptive_step_of_one_or_more_is_a_factor_for_a_schedule() -> None:
    """Noam's schedule multiplies 1 by the rate; for SGD 1 may well be the rate."""
    module = layer()
    optimizer = optim.Adam(module.parameters(), 1.0)
    schedule = schedulers.LambdaLR(optimizer, lambda t: 64**-0.5 * min((t + 1) ** -0.5, (t + 1) * 4000**-1.5))
    for _ in range(3):
        assert Learning([optimizer]).of([optimizer], [module]) == (None, True)
        update(module, optimizer, schedule)
    assert rate(optim.SGD(module.parameters(), 20.0), module) == pytest.approx(20.0)


# ---------------------------------------------------------------- wrappers


class Wrapper(optim.Optimizer):
    """As Accelerate's."""

    def __init__(self, inner: optim.Optimizer) -> None:
        self.optimizer = inner


class Sharpness(optim.Optimizer):
    """As SAM, with groups of its own and a base that makes the steps."""

    def __init__(self, parameters: Any, base: Any, **defaults: Any) -> None:
        super().__init__(parameters, defaults)
        self.base_optimizer = base(self.param_groups, **defaults)


def test_wrapped_optimisers_are_seen_through() -> None:
    module = layer()
    adam = optim.Adam(module.parameters(), RATE)
    for wrapped in (Wrapper(adam), Wrapper(Wrapper(adam)), Sharpness(module.parameters(), optim.Adam, lr=RATE)):
        assert Learning().of([wrapped], [module]) == (pytest.approx(RATE), True)
    assert kind_of(Sharpness(module.parameters(), optim.SGD, lr=RATE)) == "SGD"


def test_what_fabric_sets_up_is_seen_through() -> None:
    fabric = Fabric(accelerator="cpu", devices=1)
    module = layer()
    wrapped, optimizer = fabric.setup(module, optim.Adam(module.parameters(), RATE))
    assert Learning([optimizer]).of([optimizer], [wrapped]) == (pytest.approx(RATE), True)


def test_an_optimiser_in_pieces_is_of_the_kind_of_its_pieces(tmp_path: Any) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        module = layer()
        optimizer = ZeroRedundancyOptimizer(module.parameters(), optim.AdamW, lr=RATE)
        assert Learning([optimizer]).of([optimizer], [module]) == (pytest.approx(RATE), True)
    finally:
        torch.distributed.destroy_process_group()


def test_looking_changes_nothing() -> None:
    module = layer()
    optimizer = optim.Adam(module.parameters(), RATE)
    update(module, optimizer)
    before = str(optimizer.state_dict()), [p.grad.clone() for p in module.parameters() if isinstance(p.grad, Tensor)]
    learning = Learning([optimizer])
    learning.of([optimizer], [module])
    after = str(optimizer.state_dict()), [p.grad for p in module.parameters()]
    assert before[0] == after[0] and all(map(torch.equal, before[1], after[1]))  # type: ignore[arg-type]
