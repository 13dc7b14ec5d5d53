"""A gallery of spectra: a healthy network, and one that forgets, is chaotic, is dead, was regularised too much.

Trains each for some seconds to hold a symbol for 40 steps (see rescue.py), draws its spectrum, and prints what the
diagnosis makes of it. Also draws what an exponent is: how a small perturbation of a state grows or fades.

python examples/gallery.py                           the pictures and sentences of docs/reading-a-spectrum.md
python examples/gallery.py --quick --output DIR      shorter trainings, written elsewhere
"""

import argparse
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rescue import HIDDEN, SYMBOLS, orthogonal_rnn, plain_lstm, plain_rnn, quiet, strong_rnn, trained
from torch import Tensor, nn

from lightning_lyapunov import lyapunov_spectrum
from lightning_lyapunov.diagnosis import findings
from lightning_lyapunov.figures import spectrum_now

SEED = 1


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


EXHIBITS = [
    Exhibit("healthy", orthogonal_rnn, "remembering"),
    Exhibit("forgetting", plain_lstm, "forgetting"),
    Exhibit("chaotic", strong_rnn, "chaotic"),
    Exhibit("dead", silent_rnn, "collapsed"),
    Exhibit("over-regularised", orthogonal_rnn, "collapsed", weight_decay=0.03),
]


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
        largest = float(lyapunov_spectrum(layer, inputs, k=1, transient=10).exponents[0])
        distance = perturbed(layer, inputs)
        time = torch.arange(1, steps + 1)
        line = float(distance[9]) * torch.exp(largest * (time - 10))
        axes.semilogy(time, distance, color=colour, linewidth=2, label=f"{name}: λ₁ = {largest:+.2f}")
        axes.semilogy(time, line, color=colour, linewidth=1, linestyle="--")
    axes.axhline(1.0, color="0.3", linewidth=1)
    axes.set_xlabel("steps")
    axes.set_ylabel("size of a perturbation\n(1 at the start)")
    axes.legend(loc="lower left", frameon=False)
    figure.suptitle("The largest exponent is the slope: dashed, growth by λ₁ nats per step")
    return figure


def main() -> None:
    """Train, draw, and say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three epochs each, not six")
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "docs" / "gallery")
    args = parser.parse_args()

    quiet()
    torch.set_num_threads(1)  # for so small a network threads cost more than they bring
    args.output.mkdir(parents=True, exist_ok=True)
    for exhibit in EXHIBITS:
        history, accuracy = trained(
            exhibit.make, SEED, epochs=3 if args.quick else 6, weight_decay=exhibit.weight_decay
        )
        spectrum_now(history).savefig(args.output / f"{exhibit.name}.png")
        largest = float(history[-1].exponents[0])
        lines = [f"accuracy {accuracy:.0%}, by chance {1 / SYMBOLS:.0%}; λ_max {largest:+.3f} nats/step"]
        lines += [f"[{finding.state}] {finding.text}" for finding in findings(history)]
        said = "\n".join(textwrap.fill(line, 78, subsequent_indent="    ") for line in lines)
        (args.output / f"{exhibit.name}.txt").write_text(said + "\n", encoding="utf-8")
        print(f"\n{exhibit.name}\n{said}")
    what_an_exponent_is().savefig(args.output / "exponent.png")
    print(f"\nPictures  {args.output}")


if __name__ == "__main__":
    main()
