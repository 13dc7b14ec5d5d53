"""The engine against other ways to the same exponents, and against the least arithmetic there is.

Every way gets the same network, inputs and initial frame's size, in float32. Ours reorthonormalises at the interval
that the table names, the others at every step. They run in turn in one process; times are CPU times, ratios are medians
over rounds, and "floor" is the time of the bare products, J times the tangents, at the speed of a large matrix product
measured in the same rounds.

    published   the formulas of the published method as they stand: dense Jacobians from products with diagonal
                matrices, times the frame, Householder QR of the batch after every step. For an LSTM the whole state.
    dense       the same with rows scaled instead of diagonal matrices multiplied.
    jacrev      Jacobians by torch.func.jacrev of torch's step, then as above.
    jvp         tangents by torch.func.jvp, vectorised, then QR: no Jacobian.

Usage: python benchmarks/engine.py [--threads N] [--sizes 64 128] [--cells rnn gru] [--rounds N] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import jacrev, jvp, vmap

from lightning_lyapunov import lyapunov_spectrum

BATCH = {64: 16, 128: 16, 256: 8, 512: 4}
INPUT, LEADING, GAIN = 8, 32, 1.3
Way = Callable[[nn.RNNBase, Tensor, int], None]
"""Measures k exponents of a network along inputs ``(T, B, I)``."""


def network(cell: str, hidden: int, *, gain: float = GAIN) -> nn.RNNBase:
    """A network with recurrent weights of standard deviation gain / √H."""
    torch.manual_seed(0)
    layer: nn.RNNBase = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}[cell](INPUT, hidden)
    nn.init.normal_(layer.weight_hh_l0, std=gain / math.sqrt(hidden))
    return layer.requires_grad_(False)


# Jacobians ------------------------------------------------------------------------------------------------------------


def diagonal(values: Tensor) -> Callable[[Tensor], Tensor]:
    """Multiplication from the left by diagonal matrices, as the published formulas have it: a product of matrices."""
    return lambda matrix: torch.diag_embed(values) @ matrix


def scaled(values: Tensor) -> Callable[[Tensor], Tensor]:
    """The same by scaling rows."""
    return lambda matrix: values.unsqueeze(-1) * matrix


def gates_of(layer: nn.RNNBase, x: Tensor, h: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Pre-activations of each gate from the input and from the state, ``(B, H)`` each."""
    from_input = x @ layer.weight_ih_l0.T + layer.bias_ih_l0
    from_state = h @ layer.weight_hh_l0.T + layer.bias_hh_l0
    count = from_input.shape[-1] // layer.hidden_size
    return list(from_input.chunk(count, -1)), list(from_state.chunk(count, -1))


def jacobian(layer: nn.RNNBase, x: Tensor, state: Tensor, by: Callable[[Tensor], Any]) -> tuple[Tensor, Tensor]:
    """Dense Jacobians ``(B, D, D)`` at ``state`` ``(B, D)``, and the next state."""
    h = state[:, : layer.hidden_size]
    a, b = gates_of(layer, x, h)
    weights = layer.weight_hh_l0.chunk(len(a))
    eye = torch.eye(layer.hidden_size)
    if isinstance(layer, nn.LSTM):
        c = state[:, layer.hidden_size :]
        i, f, o = (torch.sigmoid(a[j] + b[j]) for j in (0, 1, 3))
        g = torch.tanh(a[2] + b[2])
        c_next = f * c + i * g
        through_c = by(g * i * (1 - i))(weights[0]) + by(c * f * (1 - f))(weights[1]) + by(i * (1 - g * g))(weights[2])
        s = o * (1 - torch.tanh(c_next) ** 2)
        through_h = by(torch.tanh(c_next) * o * (1 - o))(weights[3]) + by(s)(through_c)
        top = torch.cat([through_h, by(s * f)(eye)], -1)
        bottom = torch.cat([through_c, by(f)(eye)], -1)
        return torch.cat([top, bottom], -2), torch.cat([o * torch.tanh(c_next), c_next], -1)
    if isinstance(layer, nn.GRU):
        r, z = torch.sigmoid(a[0] + b[0]), torch.sigmoid(a[1] + b[1])
        n = torch.tanh(a[2] + r * b[2])
        e = (1 - z) * (1 - n * n)
        through_n = by(e * b[2] * r * (1 - r))(weights[0]) + by(e * r)(weights[2])
        return through_n + by((h - n) * z * (1 - z))(weights[1]) + by(z)(eye), (1 - z) * n + z * h
    h = torch.tanh(a[0] + b[0])
    return by(1 - h * h)(weights[0]), h


def step(layer: nn.RNNBase, x: Tensor, state: Tensor) -> Tensor:
    """One step of torch's formulas for one sequence, ``(D,)`` to ``(D,)``."""
    size = layer.hidden_size
    a, b = gates_of(layer, x, state[:size])
    if isinstance(layer, nn.LSTM):
        i, f, g, o = (a[j] + b[j] for j in range(4))
        c = torch.sigmoid(f) * state[size:] + torch.sigmoid(i) * torch.tanh(g)
        return torch.cat([torch.sigmoid(o) * torch.tanh(c), c])
    if isinstance(layer, nn.GRU):
        r, z = torch.sigmoid(a[0] + b[0]), torch.sigmoid(a[1] + b[1])
        n = torch.tanh(a[2] + r * b[2])
        return (1 - z) * n + z * state
    return torch.tanh(a[0] + b[0])


# Ways -----------------------------------------------------------------------------------------------------------------


def ours(interval: int | None, dtype: torch.dtype | None = torch.float32) -> Way:
    def measure(layer: nn.RNNBase, inputs: Tensor, k: int) -> None:
        lyapunov_spectrum(layer, inputs, k=k, interval=interval, dtype=dtype, transient=0, growth=0)

    return measure


def by_frames(push: Callable[[nn.RNNBase, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]) -> Way:
    """Push the frame of every sequence, then QR of the batch, at each step."""

    def measure(layer: nn.RNNBase, inputs: Tensor, k: int) -> None:
        size = layer.hidden_size * (2 if isinstance(layer, nn.LSTM) else 1)
        state = torch.zeros(inputs.shape[1], size)
        frame = torch.linalg.qr(torch.randn(size, k)).Q.expand(len(state), -1, -1)
        total = torch.zeros(len(state), k)
        for x in inputs:
            frame, state = push(layer, x, state, frame)
            frame, r = torch.linalg.qr(frame)
            total += r.diagonal(dim1=-2, dim2=-1).abs().log()

    return measure


def push_dense(by: Callable[[Tensor], Any]) -> Callable[..., tuple[Tensor, Tensor]]:
    def push(layer: nn.RNNBase, x: Tensor, state: Tensor, frame: Tensor) -> tuple[Tensor, Tensor]:
        matrix, after = jacobian(layer, x, state, by)
        return matrix @ frame, after

    return push


def push_jacrev(layer: nn.RNNBase, x: Tensor, state: Tensor, frame: Tensor) -> tuple[Tensor, Tensor]:
    def one(a: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        after = step(layer, a, s)
        return after, after

    matrix, after = vmap(jacrev(one, argnums=1, has_aux=True))(x, state)
    return matrix @ frame, after


def push_jvp(layer: nn.RNNBase, x: Tensor, state: Tensor, frame: Tensor) -> tuple[Tensor, Tensor]:
    def one(a: Tensor, s: Tensor, tangents: Tensor) -> Tensor:
        return vmap(lambda t: jvp(lambda h: step(layer, a, h), (s,), (t,))[1], in_dims=-1, out_dims=-1)(tangents)

    return vmap(one)(x, state, frame), vmap(lambda a, s: step(layer, a, s))(x, state)


WAYS: dict[str, Way] = {
    "published": by_frames(push_dense(diagonal)),
    "dense": by_frames(push_dense(scaled)),
    "jacrev": by_frames(push_jacrev),
    "jvp": by_frames(push_jvp),
}


# Timing ---------------------------------------------------------------------------------------------------------------


def peak() -> float:
    """Floating operations per second of a large float32 product, now."""
    a = torch.randn(1024, 1024)
    return 3 * 2 * 1024**3 / seconds(lambda: [a @ a for _ in range(3)])


def seconds(work: Callable[[], object]) -> float:
    """Time of this process's threads together: what others on the machine do counts for little."""
    start = time.process_time()
    work()
    return time.process_time() - start


def steps_for(way: Way, layer: nn.RNNBase, inputs: Tensor, k: int, target: float) -> int:
    """Steps that take about ``target`` seconds, at least 4: fewer for the slower ways."""
    way(layer, inputs[:4], k)
    return max(4, min(len(inputs), int(4 * target / max(seconds(lambda: way(layer, inputs[:4], k)), 1e-6))))


def rows(cells: list[str], sizes: list[int], rounds: int, target: float) -> Iterator[dict[str, Any]]:
    """One for each cell, size and number of exponents."""
    for cell in cells:
        for hidden in sizes:
            for leading in (False, True):
                yield row(cell, hidden, leading, rounds, target)


def row(cell: str, hidden: int, leading: bool, rounds: int, target: float) -> dict[str, Any]:
    layer, batch = network(cell, hidden), BATCH.get(hidden, 8)
    size = hidden * (2 if cell == "lstm" else 1)
    k, interval = (LEADING, 4) if leading else (size, 1)
    inputs = torch.randn(128, batch, INPUT, generator=torch.Generator().manual_seed(1))
    ways = {"ours": ours(interval), **WAYS}
    if not leading:
        ways["ours, by default"] = ours(None, None)
    steps = {name: steps_for(way, layer, inputs, k, target) for name, way in ways.items()}
    steps["ours"] = max(steps["ours"], 64)
    if not leading:
        steps["ours, by default"] = 128  # long enough for the law to have found its interval
    floor_flops = (4 if cell == "lstm" else 2) * hidden**2 * k
    costs: dict[str, list[float]] = {name: [] for name in ways}
    floors: list[float] = []
    for _ in range(rounds):
        floors.append(floor_flops / peak())
        for name, way in ways.items():
            spent = seconds(lambda way=way, n=steps[name]: way(layer, inputs[:n], k))
            costs[name].append(spent / (steps[name] * batch))
    ratios = {name: statistics.median(c / o for c, o in zip(costs[name], costs["ours"], strict=True)) for name in ways}
    return {
        "cell": cell,
        "hidden": hidden,
        "k": k,
        "batch": batch,
        "interval": interval,
        "ms": 1e3 * statistics.median(costs["ours"]),
        "floor": statistics.median(f / o for f, o in zip(floors, costs["ours"], strict=True)),
        "ratios": {name: ratios[name] for name in ways if name != "ours"},
        "published / default": None if leading else ratios["published"] / ratios["ours, by default"],
    }


def table(found: list[dict[str, Any]]) -> str:
    """Markdown."""
    head = ["cell", "H", "k", "B", "interval", "ours, ms", "of the floor", *WAYS, "published / ours by default"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for r in found:
        by_default = r["published / default"]
        values = [r["cell"].upper(), r["hidden"], r["k"], r["batch"], r["interval"], f"{r['ms']:.3f}"]
        values += [f"{r['floor']:.0%}", *(f"{r['ratios'][name]:.1f}×" for name in WAYS)]
        values.append("" if by_default is None else f"{by_default:.1f}×")
        lines.append(f"| {' | '.join(map(str, values))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cells", nargs="+", default=["rnn", "gru", "lstm"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[64, 128, 256, 512])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="about so long for each way and round")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found = []
    for r in rows(args.cells, args.sizes, args.rounds, args.seconds):
        found.append(r)
        print(table(found[-1:]).splitlines()[-1], flush=True)
    print(f"\n{args.threads} thread{'s' * (args.threads > 1)}:\n\n{table(found)}")
    if args.json:
        args.json.write_text(json.dumps({"threads": args.threads, "rows": found}, indent=1))
