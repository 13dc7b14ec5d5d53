"""The same Lyapunov exponents by this package and by its peers from PyPI: do they agree, and what does each cost?

Peers take autonomous maps, so the map is a network with a constant input: tanh RNN, GRU (reset gate after the product)
or LSTM (state (h, c), so 2H exponents), recurrent weights N(0, 1.3²/H). The formulas stand here once, for every array
library; a peer that wants a Jacobian gets it in closed form. The peers have an environment of their own, built at the
first start in runs/bench/peers, and each row has a process of its own. A peer and `lyapunov_spectrum` start from the
same state, take the same steps, discard the same transient and reorthonormalise as often, in turn, round after round.

Times are process CPU time, one thread; all include the trajectory. "Compile" is what a first call takes longer than a
later one. |ΔΣλ| compares the sums of the exponents, the worst of the batch: that of a whole spectrum does not depend on
the initial frames, which differ; a leading sum does, by about 1 / steps, until its frame has settled.

Usage: python benchmarks/peers.py [--quick] [--peers NAME ...] [--cells CELL ...]
    [--steps N] [--json FILE]
"""

import argparse
import contextlib
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

Call = Callable[[], Any]  # one measurement: exponents (b, K), b = 1 for a peer without batches
Measure = Callable[..., Any]  # a function of a peer's
Formula = Callable[[Any, Any, Any], Any]  # of state, weight (G H, H) and bias (G H,)

HERE = Path(__file__).resolve()
REQUIREMENTS = HERE.with_name("peers-requirements.txt")
HOME = HERE.parents[1] / "runs" / "bench" / "peers"
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
WASHOUT = 300  # steps from a random state to the attractor
ONE_THREAD = {
    "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "JAX_PLATFORMS": "cpu", "TQDM_DISABLE": "1",
}  # fmt: skip


class UnableError(Exception):
    """What a peer cannot do, in words for the table."""


@dataclass(frozen=True)
class Case:
    cell: str
    hidden: int
    k: int | None = None
    batch: int = 1
    interval: int = 1
    dtype: str = "float32"
    most: int = 32768  # steps

    @property
    def size(self) -> int:
        return self.hidden * (2 if self.cell == "LSTM" else 1)

    @property
    def rank(self) -> int:
        return self.k or self.size

    @property
    def steps(self) -> int:
        """As many as exponents of a map are usually taken from; fewer for larger ones, so that a call takes seconds."""
        return 16 * min(self.most // 16, max(5, int(3e10 / (16 * self.batch * self.size**2 * self.rank))))

    @property
    def transient(self) -> int:
        return self.steps // 4


@dataclass(frozen=True)
class Problem:
    """A case with its numbers: what the peer's process is sent."""

    case: Case
    weight: np.ndarray  # (G H, H), gates in torch's order
    bias: np.ndarray  # (G H,), the constant input
    before: np.ndarray  # (B, D), the state one step before the start
    start: np.ndarray  # (B, D)


# --- the map -------------------------------------------------------------------------------------------------------


def formulas(xp: ModuleType, cell: str, compiled: Callable[[Any], Any] = lambda f: f) -> tuple[Formula, Formula]:
    """One step of a cell and its Jacobian, in the functions that numpy, numba, jax.numpy and torch share."""
    # Arrays are those of xp throughout, so there are no type hints; ``n`` is H, gates stand in torch's order.

    @compiled
    def sigmoid(a):
        return 1 / (1 + xp.exp(-a))

    @compiled
    def rnn(h, weight, bias):
        return xp.tanh(weight @ h + bias)

    @compiled
    def rnn_jacobian(h, weight, bias):
        return (1 - rnn(h, weight, bias) ** 2)[:, None] * weight

    @compiled
    def gru_gates(h, weight, bias):
        n = len(h)
        a = weight @ h
        r, z = sigmoid(a[:n] + bias[:n]), sigmoid(a[n : 2 * n] + bias[n : 2 * n])
        return r, z, xp.tanh(bias[2 * n :] + r * a[2 * n :]), a[2 * n :]

    @compiled
    def gru(h, weight, bias):
        _, z, new, _ = gru_gates(h, weight, bias)
        return (1 - z) * new + z * h

    @compiled
    def gru_jacobian(h, weight, bias):
        n = len(h)
        r, z, new, a = gru_gates(h, weight, bias)
        slope = (1 - z) * (1 - new**2)
        through_r = (slope * a * r * (1 - r))[:, None] * weight[:n]
        through_z = ((h - new) * z * (1 - z))[:, None] * weight[n : 2 * n]
        return xp.diag(z) + through_r + through_z + (slope * r)[:, None] * weight[2 * n :]

    @compiled
    def lstm_gates(h, weight, bias):
        n = len(h)
        a = weight @ h + bias
        return sigmoid(a[:n]), sigmoid(a[n : 2 * n]), xp.tanh(a[2 * n : 3 * n]), sigmoid(a[3 * n :])

    @compiled
    def lstm(state, weight, bias):
        n = len(state) // 2
        i, f, g, o = lstm_gates(state[:n], weight, bias)
        c = f * state[n:] + i * g
        return xp.concatenate((o * xp.tanh(c), c))

    @compiled
    def lstm_jacobian(state, weight, bias):
        n = len(state) // 2
        i, f, g, o = lstm_gates(state[:n], weight, bias)
        squashed = xp.tanh(f * state[n:] + i * g)
        c_by_h = (g * i * (1 - i))[:, None] * weight[:n] + (i * (1 - g**2))[:, None] * weight[2 * n : 3 * n]
        c_by_h = c_by_h + (state[n:] * f * (1 - f))[:, None] * weight[n : 2 * n]
        slope = o * (1 - squashed**2)
        h_by_h = (squashed * o * (1 - o))[:, None] * weight[3 * n :] + slope[:, None] * c_by_h
        upper, lower = (h_by_h, xp.diag(slope * f)), (c_by_h, xp.diag(f))
        return xp.concatenate((xp.concatenate(upper, 1), xp.concatenate(lower, 1)), 0)

    return {"RNN": (rnn, rnn_jacobian), "GRU": (gru, gru_jacobian), "LSTM": (lstm, lstm_jacobian)}[cell]


def make_problem(case: Case) -> Problem:
    """Weights and start states of a case, the same in each run; states lie on the attractor."""
    random = np.random.default_rng(0)
    rows = GATES[case.cell] * case.hidden
    weight = random.normal(0, 1.3 / np.sqrt(case.hidden), (rows, case.hidden))
    bias = random.normal(0, 0.1, rows)  # without an input some of these maps come to rest at 0, by way of denormals
    step, _ = formulas(np, case.cell)
    states = random.normal(0, 0.5, (case.batch, case.size))
    for _ in range(WASHOUT):
        before, states = states, np.stack([step(state, weight, bias) for state in states])
    return Problem(case, *(a.astype(case.dtype) for a in (weight, bias, before, states)))


def save(problem: Problem, path: Path) -> None:
    arrays = {name: getattr(problem, name) for name in ("weight", "bias", "before", "start")}
    np.savez(path, case=json.dumps(asdict(problem.case)), **arrays)


def load(path: Path) -> Problem:
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files if name != "case"}
        return Problem(Case(**json.loads(str(stored["case"]))), **arrays)


# --- ours ----------------------------------------------------------------------------------------------------------


def ours(problem: Problem) -> Call:
    import torch
    from torch import nn

    from lightning_lyapunov import lyapunov_spectrum

    torch.set_num_threads(1)
    case, dtype = problem.case, getattr(torch, problem.case.dtype)
    module = getattr(nn, case.cell)(1, case.hidden).to(dtype).requires_grad_(False)
    for name, value in {"weight_hh": problem.weight, "bias_ih": problem.bias, "weight_ih": 0, "bias_hh": 0}.items():
        getattr(module, f"{name}_l0").copy_(torch.as_tensor(value))
    h, *c = torch.tensor(problem.start)[None].split(case.hidden, -1)
    state = (h.contiguous(), c[0].contiguous()) if c else h
    options = {"k": case.k, "transient": case.transient, "interval": case.interval, "dtype": dtype, "growth": 0}
    return lambda: lyapunov_spectrum(module, None, steps=case.steps, state=state, **options).per_sequence


# --- peers: each builds its call, in its own process ---------------------------------------------------------------


def lyapax(problem: Problem) -> Call:
    import jax
    from lyapax import lyapunov_spectrum

    case, step = problem.case, jax_step(problem)

    def measure(start: Any) -> Any:
        options = {"k": case.k, "renorm_every": case.interval, "t_transient": float(case.transient)}
        return lyapunov_spectrum(step, start, 1.0, case.steps - case.transient, **options).exponents

    return jitted(jax.vmap(measure), jax.numpy.asarray(problem.start))


def chaotax(problem: Problem) -> Call:
    """As its documentation calls it."""
    measure, arguments = chaotax_spectrum(problem)
    return lambda: np.asarray(measure(*arguments))


def chaotax_jit(problem: Problem) -> Call:
    """Inside jit it fails, for it computes its shapes with jax.numpy; unless constants are computed while tracing."""
    import jax

    measure, arguments = chaotax_spectrum(problem)

    def traced(*arguments: Any) -> Any:
        with jax.ensure_compile_time_eval():
            return measure(*arguments)

    return jitted(traced, *arguments)


def chaotax_spectrum(problem: Problem) -> tuple[Measure, tuple[Any, ...]]:
    import jax
    from chaotax import lyapunov_spectrum

    case = problem.case
    every_step_only(case)
    steps = {"rollout_steps": case.steps - case.transient, "warmup_steps": 0, "discard_steps": case.transient}
    measure = lyapunov_spectrum(jax_step(problem), num_exponents=case.k, **steps)
    frame = np.random.default_rng(1).normal(size=(case.batch, case.rank, case.size)).astype(case.dtype)
    return jax.vmap(measure), (jax.numpy.asarray(problem.start), jax.numpy.asarray(frame))


def clvlib_numpy(problem: Problem) -> Call:
    from clvlib import lyap_exp, lyap_exp_from_ic

    return clvlib(problem, np, np.asarray, lyap_exp, lyap_exp_from_ic)


def clvlib_torch(problem: Problem) -> Call:
    import torch
    from clvlib.pytorch import lyap_exp, lyap_exp_from_ic

    torch.set_num_threads(1)
    return clvlib(problem, torch, torch.as_tensor, lyap_exp, lyap_exp_from_ic)


def clvlib(problem: Problem, xp: ModuleType, array: Measure, along: Measure, from_start: Measure) -> Call:
    """From a start alone it fails at any interval but 1 (IndexError), so there it is led along a trajectory."""
    case, (step, jacobian) = problem.case, formulas(xp, problem.case.cell)
    weight, bias, start = array(problem.weight), array(problem.bias), array(problem.start[0])
    maps = (lambda _, x: step(x, weight, bias)), (lambda _, x: jacobian(x, weight, bias))
    ticks = array(np.arange(case.steps + 1, dtype=case.dtype))
    options = {"stepper": "discrete", "n_lyap": case.k, "k_step": case.interval}

    def measure() -> np.ndarray:
        if case.interval == 1:
            history = from_start(*maps, start, ticks, **options)[1]
        else:
            states = [start]
            for _ in range(case.steps):
                states.append(step(states[-1], weight, bias))
            history = along(*maps, xp.stack(states), ticks, **options)[1]
        return without_transient(np.asarray(history)[1:], case)

    return measure


def lyapynov(problem: Problem) -> Call:
    from lyapynov import LCE, DiscreteDS

    case, (step, jacobian) = problem.case, formulas(np, problem.case.cell)
    every_step_only(case)
    maps = [lambda x, _, f=f: f(x, problem.weight, problem.bias) for f in (step, jacobian)]

    def measure() -> np.ndarray:
        system = DiscreteDS(problem.start[0], 0, *maps)
        return without_transient(LCE(system, case.rank, 0, case.steps, True)[1], case)

    return measure


def pynamicalsys(problem: Problem) -> Call:
    """Its own Gram-Schmidt."""
    return pynamicalsys_by(problem, "QR")


def pynamicalsys_householder(problem: Problem) -> Call:
    return pynamicalsys_by(problem, "QR_HH")


def pynamicalsys_by(problem: Problem, method: str) -> Call:
    """Parameters are one vector; Jacobians are taken after each step, so it starts one step earlier."""
    from numba import njit
    from pynamicalsys import DiscreteDynamicalSystem

    case, (step, jacobian) = problem.case, formulas(np, problem.case.cell, njit)
    every_step_only(case)
    shape, split = problem.weight.shape, problem.weight.size

    @njit
    def mapping(u, parameters):
        return step(u, parameters[:split].reshape(shape), parameters[split:])

    @njit
    def derivative(u, parameters, _):
        return jacobian(u, parameters[:split].reshape(shape), parameters[split:])

    parameters = np.concatenate([problem.weight.ravel(), problem.bias])
    system = DiscreteDynamicalSystem(
        mapping=mapping, jacobian=derivative, system_dimension=case.size, parameters=parameters
    )
    options = {"method": method, "num_exponents": case.rank, "return_history": True}
    options["sample_times"] = np.array([case.transient, case.steps])
    before = problem.before[0]

    def measure() -> np.ndarray:
        early, late = system.lyapunov(before, case.steps, **options)
        return (late * case.steps - early * case.transient)[None] / (case.steps - case.transient)

    return measure


def jax_step(problem: Problem) -> Callable[[Any], Any]:
    import jax

    jax.config.update("jax_enable_x64", problem.case.dtype == "float64")
    step, _ = formulas(jax.numpy, problem.case.cell)
    weight, bias = jax.numpy.asarray(problem.weight), jax.numpy.asarray(problem.bias)
    return lambda state: step(state, weight, bias)


def jitted(measure: Measure, *arguments: Any) -> Call:
    import jax

    measure = jax.jit(measure)
    return lambda: np.asarray(measure(*arguments))  # the array is there only when the computation is


def every_step_only(case: Case) -> None:
    if case.interval > 1:
        raise UnableError("reorthonormalises at every step, has no interval")


def without_transient(history: np.ndarray, case: Case) -> np.ndarray:
    """Exponents ``(1, K)`` after the transient, from running means ``(steps / interval, K)`` since the start."""
    early, late = history[case.transient // case.interval - 1], history[-1]
    return ((late * case.steps - early * case.transient) / (case.steps - case.transient))[None]


@dataclass(frozen=True)
class Peer:
    package: str
    build: Callable[[Problem], Call]
    note: str
    batches: bool = False  # else its one trajectory stands for each of the batch
    narrow: bool = False  # computes in float32 too
    widths: tuple[int, ...] = (64, 128)


PEERS = {
    "lyapax": Peer("lyapax", lyapax, "jit of vmap", batches=True, narrow=True, widths=(32, 64, 128, 256, 512)),
    "chaotax": Peer(
        "chaotax", chaotax, "as documented: compiles at every call", batches=True, narrow=True, widths=(64,)
    ),
    "chaotax-jit": Peer("chaotax", chaotax_jit, "jit of vmap, by a detour", batches=True, narrow=True),
    "clvlib-numpy": Peer("clvlib", clvlib_numpy, "numpy"),
    "clvlib-torch": Peer("clvlib", clvlib_torch, "torch", narrow=True),
    "lyapynov": Peer("lyapynov", lyapynov, "numpy"),
    "pynamicalsys": Peer("pynamicalsys", pynamicalsys, "numba, QR", widths=(64,)),
    "pynamicalsys-hh": Peer("pynamicalsys", pynamicalsys_householder, "numba, QR_HH"),
}


# --- measuring -----------------------------------------------------------------------------------------------------


def timed(call: Call, least: float = 0.1) -> float:
    """CPU seconds of one call: the mean of as many as fill ``least`` seconds."""
    calls, start = 0, time.process_time()
    while (spent := time.process_time() - start) < least or not calls:
        call()
        calls += 1
    return spent / calls


def work(name: str, path: Path) -> None:
    """The peer's process: a first call, then a timing for each line that comes; answers are lines of JSON."""
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        for answer in worked(name, path):
            print(json.dumps(answer), file=answers, flush=True)


def worked(name: str, path: Path) -> Iterator[dict[str, Any]]:
    try:
        peer = PEERS[name]
        call, start = peer.build(load(path)), time.process_time()
        sums = np.asarray(call(), dtype=float).sum(1).tolist()
        yield {"version": version(peer.package), "sums": sums, "first": time.process_time() - start}
        for _ in sys.stdin:
            yield {"seconds": timed(call)}
    except UnableError as error:
        yield {"reason": str(error)}
    except Exception as error:  # whatever a peer does wrong is its row
        yield {"reason": f"{type(error).__name__}: {error}".splitlines()[0][:160]}


class Worker:
    """A peer's process, for as long as one row takes."""

    def __init__(self, python: Path, name: str, path: Path) -> None:
        self._log = path.with_suffix(".log").open("w")
        command = [str(python), str(HERE), "--worker", name, "--problem", str(path)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._log}
        self._process = subprocess.Popen(command, text=True, env=os.environ | ONE_THREAD, **pipes)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._log.close()

    def answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"reason": f"its process ended with code {self._process.wait()}"}
        if "reason" in answer:
            raise UnableError(answer["reason"])
        return answer

    def seconds(self) -> float:
        with contextlib.suppress(BrokenPipeError):  # its answer then says why
            print(file=self._process.stdin, flush=True)
        return self.answer()["seconds"]


def compare(python: Path, name: str, case: Case, rounds: int, limit: float) -> dict[str, Any]:
    """A row: the peer and we in turn, for some rounds or ``limit`` seconds."""
    row = {"name": name, "peer": PEERS[name].package, "note": PEERS[name].note, **asdict(case)}
    problem, path = make_problem(case), HOME / "problem.npz"
    save(problem, path)
    try:
        with Worker(python, name, path) as worker:
            return row | {"steps": case.steps, **in_turn(worker, problem, rounds, limit)}
    except UnableError as error:
        return row | {"reason": str(error)}


def in_turn(worker: Worker, problem: Problem, rounds: int, limit: float) -> dict[str, Any]:
    hello, call, case = worker.answer(), ours(problem), problem.case
    sums = np.asarray(call(), dtype=float).sum(1)
    theirs, mine, start = [], [], time.monotonic()
    while len(mine) < rounds and (not mine or time.monotonic() - start < limit):
        theirs.append(worker.seconds())
        mine.append(timed(call))
    runs = len(hello["sums"])  # 1 for a peer without batches
    mine_each, theirs_each = np.array(mine) / case.batch, np.array(theirs) / runs
    return {
        "version": hello["version"],
        "peer_batch": runs,
        "rounds": len(mine),
        "peer_compile_s": max(hello["first"] - statistics.median(theirs), 0.0),
        "peer_ms": 1e3 * statistics.median(theirs_each) / case.steps,
        "ours_ms": 1e3 * statistics.median(mine_each) / case.steps,
        "ratio": statistics.median(theirs_each / mine_each),
        "difference": float(np.abs(sums[:runs] - hello["sums"]).max()),
    }


# --- what is compared, and where -----------------------------------------------------------------------------------


def cases(name: str, quick: bool, cells: list[str]) -> Iterator[Case]:
    """Whole spectra and the 32 leading exponents, these at a longer interval too; batches of both."""
    peer = PEERS[name]
    dtypes = ("float32", "float64") if peer.narrow else ("float64",)
    if quick:
        first = Case("RNN", 32, dtype=dtypes[0])
        yield from (first, replace(first, cell="GRU", k=8), replace(first, cell="LSTM", batch=2))
        yield replace(first, k=8, interval=4)
        return
    for cell, hidden, dtype in itertools.product(cells, peer.widths, dtypes):
        whole = Case(cell, hidden, dtype=dtype)
        leading = replace(whole, k=32)
        if whole.size > 512:
            continue  # minutes a row
        yield whole
        if dtype == dtypes[0] and whole.size > 32:
            yield from (leading, replace(leading, interval=4))
            if hidden <= 128:
                yield from (replace(whole, batch=8), replace(leading, batch=8))


def environment() -> Path:
    """The peers' python; its environment is built when the requirements are new."""
    home = HOME / ".venv"
    python, stamp = home / ("Scripts" if os.name == "nt" else "bin") / "python", home / REQUIREMENTS.name
    if not stamp.exists() or stamp.read_text() != REQUIREMENTS.read_text():
        print(f"Installing the peers into {home.relative_to(HERE.parents[1])} ...", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        if subprocess.run([*install, "-r", str(REQUIREMENTS)]).returncode:
            for line in REQUIREMENTS.read_text().splitlines():  # one that fails must not cost us the others
                if line and not line.startswith("#"):
                    subprocess.run([*install, line])
        shutil.copy(REQUIREMENTS, stamp)
    return python


HEADER = (
    "| peer | cell | H | k | B | interval | dtype | peer compile s | peer ms per step·sequence "
    "| ours ms per step·sequence | peer/ours | \\|ΔΣλ\\| |\n|---|---|---|---|---|---|---|---|---|---|---|---|"
)


def line(row: dict[str, Any]) -> str:
    numbers = [f"not measured: {row['reason']}", *"————"] if "reason" in row else [
        f"{row['peer_compile_s']:.1f}", f"{row['peer_ms']:.4f}", f"{row['ours_ms']:.4f}", f"{row['ratio']:.2f}×",
        f"{row['difference']:.1e}",
    ]  # fmt: skip
    alone = row["batch"] > 1 and row.get("peer_batch") == 1
    fields = [
        f"{row['peer']} {row.get('version', '')}".strip() + f" ({row['note']})", row["cell"], row["hidden"],
        row["k"] or "all", f"{row['batch']} (peer: 1)" if alone else row["batch"], row["interval"], row["dtype"],
    ]  # fmt: skip
    return "| " + " | ".join(map(str, fields + numbers)) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="32 units and 8 leading exponents only, to see it work")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS), metavar="NAME", help=", ".join(PEERS))
    parser.add_argument("--cells", nargs="+", choices=GATES, default=list(GATES), help="cells of the maps")
    parser.add_argument("--steps", type=int, default=32768, help="steps of a row at most")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each row")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds after which a row begins no new round")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there as well")
    parser.add_argument("--worker", choices=PEERS, help=argparse.SUPPRESS)
    parser.add_argument("--problem", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker, options.problem)
        return
    python, rows = environment(), []
    print(HEADER)
    for name in options.peers:
        for case in cases(name, options.quick, options.cells):
            case = replace(case, most=options.steps)
            rows.append(compare(python, name, case, 2 if options.quick else options.rounds, options.limit))
            print(line(rows[-1]), flush=True)
            if options.json:  # after each row, for a run of an hour may be cut short
                options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
