"""What a measurement costs on an accelerator, and whether it finds there what it finds on the CPU, in four minutes.

    numbers   spectra and growth of every kind of network in float64, on the device and on the CPU
    counts    operators, launches and waits of a measurement, by steps; in the time loop nothing may be waited for
    tests     those that take a device, on this one
    sizes     seconds and memory of a measurement, and of a training step of the same network, H = 64 to 1,024

Each line is kept as soon as it is measured, in benchmarks/results/gpu.jsonl, where it takes the place of what the same
device had; docs/gpu.md is written anew from all of them. Where there is no accelerator, or with --small, a trial of
less than a minute goes the same way with small networks, into runs/bench. Nothing is changed on the device.

    make gpu                         all of it
    make gpu ARGS=--small            the trial
    python benchmarks/gpu.py --only counts numbers
    python benchmarks/gpu.py --page  just the page, from what is there
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from gpu_page import page
from memory import bound
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_lyapunov import depth_spectrum, lyapunov_spectrum
from lightning_lyapunov.engine import exponents, growth

ROOT = Path(__file__).resolve().parents[1]
RESULTS, TRIAL = ROOT / "benchmarks" / "results" / "gpu.jsonl", ROOT / "runs" / "bench" / "gpu.jsonl"
PAGE = ROOT / "docs" / "gpu.md"
CELLS = {"RNN": nn.RNN, "GRU": nn.GRU, "LSTM": nn.LSTM}
INPUT, STEPS, LEADING = 8, 64, 32
Row = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What is measured, and in how many seconds."""

    hidden: tuple[int, ...]
    batches: tuple[int, ...]
    counted: tuple[int, ...]
    """Units of the networks whose operators are counted."""
    until: dict[str, float]
    """Seconds from the start, by part, after which no line of it is begun."""
    tests: float
    """Seconds for the tests."""
    longest: float
    """Seconds that one measurement may be expected to take."""
    repeated: float
    """Seconds in which one is repeated."""
    tested: tuple[str, ...]
    """Where the tests stand."""


WHOLE = Plan(
    hidden=(64, 128, 256, 512, 1024),
    batches=(16, 64, 256),
    counted=(64, 256),
    until={"numbers": 25, "counts": 60, "tests": 60, "sizes": 205},
    tests=75,
    longest=6,
    repeated=0.5,
    tested=("tests/engine", "tests/training/test_no_trace.py"),
)
SMALL = Plan(
    hidden=(16, 32),
    batches=(4, 8),
    counted=(64,),
    until={"numbers": 15, "counts": 30, "tests": 30, "sizes": 50},
    tests=300,  # where ten will do, but for a machine that others share
    longest=5,
    repeated=0.05,
    tested=("tests/engine/test_tangent.py",),
)


# The device -----------------------------------------------------------------------------------------------------------


def name_of(device: torch.device) -> str:
    """What a table calls it; of a CPU what it computes with."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} thread(s)"


def clock(device: torch.device) -> float:
    """Seconds since whenever; on a CPU those of this process alone, so that what else it does counts for nothing."""
    return time.monotonic() if device.type == "cuda" else time.process_time()


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """That a call takes, until the device is through with it."""
    if device.type != "cuda":
        begun = clock(device)
        call()
        return clock(device) - begun
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    call()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) / 1e3


def repeated(call: Callable[[], object], device: torch.device, budget: float) -> dict[str, float]:
    """Median time of a call, half the range, and of how many: as many as the budget has, three of those below a second.

    It must have been made before.
    """
    taken = [seconds(call, device)]
    while len(taken) < 20 and (sum(taken) < budget or (len(taken) < 3 and taken[0] < 1.0)):
        taken.append(seconds(call, device))
    return {"s": statistics.median(taken), "spread": (max(taken) - min(taken)) / 2, "times": len(taken)}


def grown(call: Callable[[], object], device: torch.device) -> int | None:
    """Bytes that a call takes at most beside what was there; None on a CPU, where nothing says so."""
    if device.type != "cuda":
        call()
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    return torch.cuda.max_memory_allocated(device) - before


# Numbers --------------------------------------------------------------------------------------------------------------


def leaky(x: Tensor, h: Tensor) -> Tensor:
    """A cell that no family knows: it is differentiated by torch."""
    return 0.5 * h + 0.5 * torch.tanh(1.5 * h.roll(1, -1) + x.sum(-1, keepdim=True))


def numbers(plan: Plan, device: torch.device) -> Iterator[Row]:
    """Differences between the device and the CPU, of exponents, growth and gain, nats."""
    hidden = plan.hidden[0]
    inputs = torch.randn(STEPS, 8, INPUT, generator=torch.Generator().manual_seed(1)).double()

    def recurrent(system: Any, where: torch.device, **options: Any) -> list[Tensor]:
        state = options.pop("state", None)
        found = lyapunov_spectrum(
            system.to(where) if isinstance(system, nn.Module) else system,
            inputs.to(where),
            state=None if state is None else state.to(where),
            dtype=torch.float64,
            **options,
        )
        # An exponent that rounding may have moved is no measure of the device.
        return [found.exponents[found.trusted], found.log_singular_values, torch.as_tensor(found.gain)]

    def across(system: nn.Module, where: torch.device) -> list[Tensor]:
        found = depth_spectrum(system.to(where), inputs[0].to(where), dtype=torch.float64)
        return [found.log_singular_values, found.gain_per_sample]

    cases: dict[str, Callable[[torch.device], list[Tensor]]] = {}
    for k in (LEADING // 4, None):
        for name, kind in CELLS.items():
            cases[f"{name} of 2 × {hidden}, k = {k or 'all'}"] = lambda where, kind=kind, k=k: recurrent(
                made(kind, hidden, layers=2).double(), where, k=k
            )
    state = torch.zeros(8, hidden).double()
    cases[f"a cell of one's own, {hidden}"] = lambda where: recurrent(leaky, where, k=8, state=state)
    cases["16 blocks across depth"] = lambda where: across(blocks(hidden), where)
    for name, case in cases.items():
        there, here = case(device), case(torch.device("cpu"))
        apart = max(
            float((a.cpu().double() - b.double()).abs().nan_to_num(0.0).max()) for a, b in zip(there, here, strict=True)
        )
        yield {"of": name, "apart": apart, "same": apart <= 1e-9}


def made(kind: type[nn.RNNBase], hidden: int, layers: int = 1) -> nn.RNNBase:
    torch.manual_seed(0)
    return kind(INPUT, hidden, layers).requires_grad_(False)


def blocks(hidden: int) -> nn.Sequential:
    torch.manual_seed(0)
    middle = [nn.Sequential(nn.Linear(hidden, hidden), nn.Tanh()) for _ in range(15)]
    return nn.Sequential(nn.Linear(INPUT, hidden), *middle)


# Counts ---------------------------------------------------------------------------------------------------------------


class Counted(TorchDispatchMode):
    """Counts operators that compute, each at least one kernel, and those whose result the processor waits for."""

    VIEWS = (
        *("view", "_unsafe_view", "as_strided", "alias", "detach", "transpose", "t", "permute", "unsqueeze", "squeeze"),
        *("select", "slice", "split", "unbind", "expand", "diagonal"),
        *("empty", "new_empty", "empty_like", "empty_strided"),
    )
    READS = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "unique", "bincount")

    def __init__(self) -> None:
        super().__init__()
        self.operators = self.reads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.split(".")[0]
        self.operators += name not in self.VIEWS
        self.reads += name in self.READS
        return func(*args, **(kwargs or {}))


class Loop:
    """What was done in the time loop: steps that a frame was carried along, operators, and waits for the device."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.steps, self.operators, self.waits = device, 0, 0, 0

    def watched(self, carry: Callable[..., Any]) -> Callable[..., Any]:
        def watching(steps: Any, running: list[int], *args: Any, **options: Any) -> Any:
            with warnings.catch_warnings(record=True) as said, waits_are_told(self.device), Counted() as counted:
                warnings.simplefilter("always")
                result = carry(steps, running, *args, **options)
            self.steps += len(running)
            self.operators += counted.operators
            self.waits += counted.reads + sum("synchroniz" in str(one.message) for one in said)
            return result

        return watching


@contextmanager
def waits_are_told(device: torch.device) -> Iterator[None]:
    """The driver warns of whatever waits for it."""
    if device.type != "cuda":
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def counts(plan: Plan, device: torch.device) -> Iterator[Row]:
    """By step, from the difference of two lengths: what is done once for a measurement drops out."""
    batch = plan.batches[0]
    for hidden in plan.counted:
        for name, kind in CELLS.items():
            for k in (min(LEADING, hidden // 2), None):
                layer = made(kind, hidden).to(device)
                few, many = (
                    counted(layer, torch.randn(steps, batch, INPUT, device=device), k) for steps in (STEPS, 2 * STEPS)
                )
                each = {
                    key: None if few[key] is None else (many[key] - few[key]) / STEPS
                    for key in ("operators", "launches", "waits")
                }
                loop = many["loop"]
                yield {
                    "cell": name,
                    "hidden": hidden,
                    "batch": batch,
                    "k": k,
                    **each,
                    "pushed": loop.operators / loop.steps,
                    "in_loop": loop.waits,
                }


def counted(layer: nn.Module, inputs: Tensor, k: int | None) -> Row:
    """Of one measurement: operators, kernel launches, waits for the device, and what its time loop did."""

    def measure() -> None:
        lyapunov_spectrum(layer, inputs, k=k, transient=0)

    measure()
    with Counted() as whole:
        measure()
    loop, found = Loop(inputs.device), {"operators": whole.operators, "launches": None, "waits": None}
    with ExitStack() as stack:
        for module in (exponents, growth):
            stack.enter_context(patch.object(module, "carry", loop.watched(module.carry)))
        measure()
    if inputs.device.type == "cuda":
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
            measure()
        names = [event.name for event in profiled.events()]
        found["launches"] = sum("LaunchKernel" in name for name in names)
        found["waits"] = sum(name.endswith("Synchronize") for name in names)
    return {**found, "loop": loop}


# Tests ----------------------------------------------------------------------------------------------------------------


def tests(plan: Plan, device: torch.device) -> Iterator[Row]:
    """Those whose names have the device in them: pytest in a process of its own, with what it said before its time."""
    command = [sys.executable, "-m", "pytest", *plan.tested, "-v"]
    command += ["-p", "no:cacheprovider", "--color=no", "-k", device.type]
    kept = TRIAL.with_name("gpu-tests.txt")
    with kept.open("w", encoding="utf-8") as file:
        try:
            subprocess.run(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, timeout=plan.tests, check=False)
            ended = True
        except subprocess.TimeoutExpired:
            ended = False
    said = kept.read_text(encoding="utf-8")
    outcomes = {word: len(re.findall(rf" {word}\b.*\[ *\d+%\]", said)) for word in ("PASSED", "FAILED", "ERROR")}
    failed = sorted(set(re.findall(r"^(?:FAILED|ERROR) (\S+)", said, re.MULTILINE)))
    broken = outcomes["FAILED"] + outcomes["ERROR"]
    yield {"passed": outcomes["PASSED"], "failed": broken, "names": failed, "all": ended}


# Sizes ----------------------------------------------------------------------------------------------------------------


def sizes(plan: Plan, device: torch.device) -> Iterator[Row]:
    """Seconds of a measurement and of a training step; what would take too long, by the size before it, is left out."""
    for k in (min(LEADING, plan.hidden[0] // 2), None):
        for name, kind in CELLS.items():
            work = spent = 0.0
            for hidden in plan.hidden:
                for batch in plan.batches:
                    row: Row = {"cell": name, "hidden": hidden, "batch": batch, "k": k}
                    size = hidden * (2 if name == "LSTM" else 1)
                    its_work = batch * size**2 * (k or size)
                    expected = spent * max(1.0, its_work / work) if work else 0.0
                    if expected > plan.longest:
                        yield row | {"left_out": f"expected to take {expected:.0f} s"}
                        continue
                    try:
                        found = sized(kind, hidden, batch, k, device, plan)
                    except RuntimeError as error:
                        if "out of memory" not in str(error):
                            raise
                        torch.cuda.empty_cache()
                        yield row | {"left_out": "out of memory"}
                        continue
                    work, spent = its_work, found["measurement"]["s"]
                    limit = bound(name.lower(), hidden, STEPS, batch, k)
                    yield row | found | {"bound": limit}


def sized(kind: type[nn.RNNBase], hidden: int, batch: int, k: int | None, device: torch.device, plan: Plan) -> Row:
    layer, inputs = made(kind, hidden).to(device), torch.randn(STEPS, batch, INPUT, device=device)
    spectra: list[Any] = []

    def measure() -> None:
        spectra[:] = [lyapunov_spectrum(layer, inputs, k=k)]

    peak = grown(measure, device)
    measurement = repeated(measure, device, plan.repeated)
    step = training_step(kind, hidden, inputs)
    step()
    found = {"dtype": str(spectra[0].dtype).removeprefix("torch."), "interval": spectra[0].interval}
    return found | {"measurement": measurement, "step": repeated(step, device, plan.repeated / 2), "peak": peak}


def training_step(kind: type[nn.RNNBase], hidden: int, inputs: Tensor) -> Callable[[], object]:
    """Forward, backward and Adam, float32, as torch does it: the next input is to be foretold at every step."""
    layer = made(kind, hidden).requires_grad_(True).to(inputs.device)
    out = nn.Linear(hidden, INPUT, device=inputs.device)
    optimiser = torch.optim.Adam([*layer.parameters(), *out.parameters()])

    def step() -> None:
        optimiser.zero_grad()
        (out(layer(inputs)[0][:-1]) - inputs[1:]).square().mean().backward()
        optimiser.step()

    return step


# Run ------------------------------------------------------------------------------------------------------------------

PARTS: dict[str, Callable[[Plan, torch.device], Iterator[Row]]] = {
    "numbers": numbers,
    "counts": counts,
    "tests": tests,
    "sizes": sizes,
}


def run(plan: Plan, device: torch.device, parts: list[str], path: Path) -> bool:
    """Measure and keep each line at once; whether nothing failed."""
    begun, name, fine = clock(device), name_of(device), True
    path.parent.mkdir(parents=True, exist_ok=True)
    others = [row for row in kept(path) if row["device"] != name or row["part"] not in parts]
    path.write_text("".join(json.dumps(row) + "\n" for row in others), encoding="utf-8")
    about = {"device": name, "torch": torch.__version__, "cuda": torch.version.cuda, "trial": plan is SMALL}
    for part in parts:
        for row in PARTS[part](plan, device):
            spent = clock(device) - begun
            line = json.dumps({"part": part, **about, **row, "at": time.strftime("%Y-%m-%d %H:%M", time.gmtime())})
            with path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
            print(f"{spent:5.0f} s  {part}: {json.dumps(row)}", flush=True)
            fine &= row.get("same", True) and not row.get("failed") and not row.get("in_loop")
            if spent > plan.until[part]:
                print(f"{spent:5.0f} s  {part}: its time is up; what is not measured by now is left out", flush=True)
                break
    return fine


def kept(path: Path) -> list[Row]:
    """Lines that are there."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="the trial, which it is anyway without an accelerator")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--page", action="store_true", help="run nothing")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    is_trial = args.small or device.type == "cpu"
    if device.type == "cpu":
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    path = TRIAL if is_trial else RESULTS
    fine = args.page or run(SMALL if is_trial else WHOLE, device, args.only, path)
    print(f"\n{page(kept(path))}")
    PAGE.write_text(page(kept(RESULTS) or kept(TRIAL)), encoding="utf-8")
    sys.exit(not fine)


if __name__ == "__main__":
    main()
