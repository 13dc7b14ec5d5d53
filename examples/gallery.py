"""A gallery of spectra: two networks that learn, and one that forgets, explodes, is dead, was regularised too much.

Trains each for some seconds to hold a symbol for 40 steps (see rescue.py), draws its spectrum, and prints what the
diagnosis makes of it, and what the exponent comes to in the long run. Also draws what an exponent is, how a small
perturbation of a state grows or fades, what a gradient feels over a sequence, and where along it memory is lost.

python examples/gallery.py                           the pictures and sentences of docs/reading-a-spectrum.md
python examples/gallery.py --along                   the last picture alone, which takes a second
python examples/gallery.py --quick --output DIR      shorter trainings, written elsewhere
"""

import argparse
import math
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rescue import (
    HIDDEN,
    SYMBOLS,
    keeping_lstm,
    orthogonal_rnn,
    plain_lstm,
    plain_rnn,
    quiet,
    recall_data,
    strong_rnn,
    trained,
)
from torch import Tensor, nn

from lightning_lyapunov import lyapunov_spectrum
from lightning_lyapunov.figures import growth_along, spectrum_now
from lightning_lyapunov.reading import History, Measurement, findings
from lightning_lyapunov.reading.words import plus_minus

SEED = 1
LONG = 1000
"""Steps after which a rate is one in the long run."""


def silent_rnn() -> nn.RNN:
    """Rectified units with a bias so far below zero that no input switches one on."""
    layer = nn.RNN(SYMBOLS, HIDDEN, nonlinearity="relu", batch_first=True)
    nn.init.constant_(layer.get_parameter("bias_ih_l0"), -2.0)
    return layer


@dataclass(frozen=True)
class Exhibit:
    """A network, how it is trained, and the state that the diagnosis should find."""

    name: str
    make: Callable[[], nn.RNNBase]
    state: str
    weight_decay: float = 0.0
    seed: int = SEED


EXHIBITS = [
    Exhibit("healthy", keeping_lstm, "remembering"),
    Exhibit("mild", orthogonal_rnn, "mild growth"),
    Exhibit("forgetting", plain_lstm, "forgetting"),
    Exhibit("exploding", strong_rnn, "exploding", seed=5),
    Exhibit("dead", silent_rnn, "collapsed"),
    Exhibit("over-regularised", orthogonal_rnn, "collapsed", weight_decay=0.03),
]


def in_the_long_run(layer: nn.RNNBase) -> str:
    """The largest exponent where the noise after the symbol goes on and on, with its error."""
    inputs, _ = recall_data(16, SEED, LONG)[:]
    spectrum = lyapunov_spectrum(layer, inputs, k=1, growth=0)
    largest, error = float(spectrum.exponents[0]), float(spectrum.error[0])
    if largest == -math.inf:
        return "-inf"
    return f"{plus_minus(largest, error)} nats/step, {'settled' if spectrum.settled[0] else 'not settled'}"


def perturbed(layer: nn.RNN, inputs: Tensor, size: float = 1e-7) -> Tensor:
    """Distance ``(T,)`` between two runs whose states differed by ``size`` at the start, as a multiple of it."""
    start = torch.zeros(1, inputs.shape[0], layer.hidden_size, dtype=inputs.dtype)
    push = torch.randn(start.shape, dtype=inputs.dtype, generator=torch.Generator().manual_seed(0))
    push = size * push / push.norm(dim=-1, keepdim=True)
    with torch.no_grad():
        difference = layer(inputs, start + push)[0] - layer(inputs, start)[0]
    return (difference.norm(dim=-1) / size).log().mean(0).exp()


def what_an_exponent_is(steps: int = 40) -> Figure:
    """How a perturbation grows or fades in three networks, and the slope that the largest exponent gives it."""
    figure = Figure(figsize=(8, 4), dpi=110, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    inputs = 0.1 * torch.randn(64, steps, SYMBOLS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cases = [("gain 3", strong_rnn, "#b2182b"), ("gain 1, orthogonal", orthogonal_rnn, "#6b6b6b"),
             ("as PyTorch makes it", plain_rnn, "#2166ac")]  # fmt: skip
    for name, make, colour in cases:
        torch.manual_seed(SEED)
        layer = make().double()
        largest = float(lyapunov_spectrum(layer, inputs, k=1, growth=0).exponents[0])
        distance = perturbed(layer, inputs)
        time, settled = torch.arange(1, steps + 1), steps // 2
        line = float(distance[settled - 1]) * torch.exp(largest * (time - settled))
        axes.semilogy(time, distance, color=colour, linewidth=2, label=f"{name}: λ₁ = {largest:+.2f}")
        axes.semilogy(time, line, color=colour, linewidth=1, linestyle="--")
    axes.axhline(1.0, color="0.3", linewidth=1)
    axes.set_xlabel("steps")
    axes.set_ylabel("size of a perturbation\n(1 at the start)")
    axes.legend(loc="lower left", frameon=False)
    figure.suptitle("The largest exponent is the slope: dashed, growth by λ₁ nats per step")
    return figure


def what_a_gradient_feels(lengths: tuple[int, ...] = (2, 3, 4, 6, 8, 12, 16, 24, 32, 40)) -> Figure:
    """What a gradient grows by over sequences of so many steps, beside what the long-run rate would make of it."""
    figure = Figure(figsize=(8, 4), dpi=110, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    torch.manual_seed(SEED)
    layer = strong_rnn().double()
    inputs = 0.1 * torch.randn(64, 2000, SYMBOLS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rate = float(lyapunov_spectrum(layer, inputs[:8], k=1, growth=0).exponents[0])
    growths = [lyapunov_spectrum(layer, inputs[:, :steps], k=1).growth for steps in lengths]
    most = [float(growth.log_singular_values[0]) for growth in growths if growth is not None]
    typical = [growth.gain for growth in growths if growth is not None]
    real = [loss_gradient(layer, inputs[:, :steps]) for steps in lengths]
    axes.semilogy(lengths, torch.tensor(most).exp(), color="#b2182b", linewidth=2, label="at most: σ₁")
    axes.semilogy(lengths, torch.tensor(typical).exp(), color="0.1", linewidth=2, label="typical: the gain")
    axes.semilogy(lengths, real, "o", color="0.1", markerfacecolor="white", label="gradients of a random loss")
    label = f"growth by λ₁ = {rate:+.2f} nats per step"
    axes.semilogy(lengths, torch.tensor([rate * steps for steps in lengths]).exp(), "--", color="#2166ac", label=label)
    axes.axhline(1.0, color="0.3", linewidth=1)
    axes.set_xlabel("steps of the sequence")
    axes.set_ylabel("growth of a gradient from\nits last step to its first")
    axes.legend(loc="upper left", frameon=False)
    figure.suptitle("A rate for the long run, and what happens over a sequence")
    return figure


def where_memory_is_lost(steps: int = 40, mark: int = 24) -> Figure:
    """How a push fares in a GRU that keeps its state, but for one step of each sequence whose input lets go of it."""
    torch.manual_seed(SEED)
    layer = nn.GRU(SYMBOLS, HIDDEN, batch_first=True)
    gate = slice(HIDDEN, 2 * HIDDEN)  # of the update, which keeps the state where it is open
    with torch.no_grad():
        layer.get_parameter("bias_ih_l0")[gate] = 4.0
        layer.get_parameter("weight_ih_l0")[gate, 0] = -6.0
    inputs = 0.1 * torch.randn(64, steps, SYMBOLS, generator=torch.Generator().manual_seed(0))
    inputs[:, mark, 0] = 1.0
    history = History()
    history.append(Measurement.of(lyapunov_spectrum(layer, inputs, interval=1)))
    return growth_along(history)


def loss_gradient(layer: nn.RNN, inputs: Tensor) -> float:
    """The norm of a loss's gradient by the first state over that by the last, for random read-outs of the last state.

    Root mean square over read-outs, mean of its logarithm over sequences.
    """
    start = torch.zeros(1, len(inputs), layer.hidden_size, dtype=inputs.dtype, requires_grad=True)
    last = layer(inputs, start)[1]
    readouts = torch.randn(32, *last.shape, dtype=inputs.dtype, generator=torch.Generator().manual_seed(1))
    readouts = readouts / readouts.norm(dim=-1, keepdim=True)
    gradients = torch.stack([torch.autograd.grad((last * u).sum(), start, retain_graph=True)[0] for u in readouts])
    return float(gradients.square().sum(-1).mean(0).log().mean().div(2).exp())


def main() -> None:
    """Train, draw, and say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three epochs each, not six")
    parser.add_argument("--along", action="store_true", help="only where along a sequence memory is lost")
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "docs" / "gallery")
    args = parser.parse_args()

    quiet()
    torch.set_num_threads(1)  # for so small a network threads cost more than they bring
    args.output.mkdir(parents=True, exist_ok=True)
    where_memory_is_lost().savefig(args.output / "along.png")
    if args.along:
        return
    for exhibit in EXHIBITS:
        history, accuracy, layer = trained(
            exhibit.make, exhibit.seed, epochs=3 if args.quick else 6, weight_decay=exhibit.weight_decay
        )
        spectrum_now(history).savefig(args.output / f"{exhibit.name}.png")
        largest = float(history[-1].exponents[0])
        lines = [
            f"accuracy {accuracy:.0%}, by chance {1 / SYMBOLS:.0%}; λ_max {largest:+.3f} nats/step",
            f"over {LONG:,} steps λ_max {in_the_long_run(layer)}",
        ]
        lines += [f"[{finding.state}] {finding.text}" for finding in findings(history)]
        said = "\n".join(textwrap.fill(line, 78, subsequent_indent="    ") for line in lines)
        (args.output / f"{exhibit.name}.txt").write_text(said + "\n", encoding="utf-8")
        print(f"\n{exhibit.name}\n{said}")
    what_an_exponent_is().savefig(args.output / "exponent.png")
    what_a_gradient_feels().savefig(args.output / "growth.png")
    print(f"\nPictures  {args.output}")


if __name__ == "__main__":
    main()
