"""Whether the distance of a sparse network's spectrum from the dense one's tells early how well it will do.

Sparse training from scratch, after Zheng and Shlizerman (2025), arXiv:2506.07975: each epoch the smallest weights of
every matrix die and as many grow at random places. A network is a dense initialisation; its 24 masks share overall
sparsity, weights, batches and settings, and differ in how much each gate's matrices were given. The dense network is
trained beside them, on the same batches. At epochs 2 and 5 of 50 three things are looked at: the loss in validation,
the spectrum, on the same inputs for all, and the densities, which are known without training. Each is to rank the masks
of a network by the loss on the test set in the end, the mean of the last five epochs.

Two tasks: handwritten digits row by row, on which the distance was chosen among five, and on which the density that
serves as control is chosen here, among all blocks of the weights; and characters of English prose, on which nothing is
chosen.

A network with all of its masks is trained as one population, kept as one line; interrupted, it goes on where it was.
The exponents themselves go to runs/bench/pruning, for who wants to try something else.

Usage: python benchmarks/pruning.py [--results FILE] [--networks N] [--quick] [--table]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Generator, Tensor
from torch.nn.functional import one_hot

from lightning_lyapunov import lyapunov_spectrum
from lightning_lyapunov.bank.cells import CELLS, Cell
from lightning_lyapunov.bank.tasks import Batch, Task, loss
from lightning_lyapunov.bank.tasks.sequences import at_the_end
from lightning_lyapunov.bank.tasks.text import ALPHABETS, text
from lightning_lyapunov.reading.distance import spectrum_distance

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results" / "pruning.jsonl"
KEPT = ROOT / "runs" / "bench" / "pruning"
CHOSEN_ON, TESTED_ON = "digits", "characters"
STUDIED = ("gru", "lstm")
GATES = {"gru": "rzn", "lstm": "ifgo"}
"""Letters of the gates, as torch documents them, in the order of the weights."""


@dataclass(frozen=True)
class Settings:
    """Of the whole study; results of other settings are not mixed with these."""

    hidden: int = 32
    masks: int = 24
    sparsity: float = 0.9
    epochs: int = 50
    updates: int = 20
    """In an epoch."""
    read: tuple[int, ...] = (2, 5)
    """Epochs after which is predicted."""
    last: int = 5
    """Epochs, at the end, in which no weights die and whose mean test loss is the final one."""
    rate: float = 1e-2
    """Of Adam; each gradient is clipped to norm 1."""
    death: float = 0.5
    """Share of a matrix's weights that die after the first epoch; it falls to 0 as a cosine."""
    spread: float = 10.0
    """Largest over smallest density of a matrix, before they are scaled to the overall one."""
    probes: int = 16
    """Sequences that spectra are measured on, of the validation set."""


# Tasks ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Data:
    """A task's sequences."""

    task: Task
    batch: Callable[[Generator], Batch]
    """Draws one for training."""
    validation: Batch
    test: Batch


def digits() -> Data:
    """Handwritten digits of 8 x 8 pixels, a row a step; which one is asked at the last."""
    from sklearn.datasets import load_digits

    images, labels = (torch.as_tensor(each) for each in load_digits(return_X_y=True))
    order = torch.randperm(len(labels), generator=Generator().manual_seed(0))
    rows = images.float().view(-1, 8, 8)[order].transpose(0, 1) / 16
    labels = labels.long()[order]

    def batch(chosen: Tensor) -> Batch:
        return Batch(rows[:, chosen], at_the_end(labels[chosen], 8))

    everyone = torch.arange(len(labels))
    task = Task("digits", "digits", 8, 10, 8, "classes", 0.1, lambda *_: batch(everyone))
    return Data(
        task,
        lambda g: batch(torch.randint(1000, (50,), generator=g)),
        batch(everyone[1000:1297]),
        batch(everyone[1297:]),
    )


def characters() -> Data:
    """English prose, letter by letter; the next one is asked at every step."""
    alphabet = ALPHABETS["prose"]
    place = {letter: index for index, letter in enumerate(alphabet)}
    letters = torch.tensor([place[letter] for letter in text("prose")])
    steps, end = 16, len(letters)

    def batch(size: int, first: int, stop: int, generator: Generator) -> Batch:
        starts = torch.randint(first, stop - steps, (size,), generator=generator)
        window = letters[starts + torch.arange(steps + 1)[:, None]]
        return Batch(one_hot(window[:-1], len(alphabet)).float(), window[1:])

    width, held_out = len(alphabet), Generator().manual_seed(0)
    sizes = (width, width, steps)
    task = Task("characters", "characters", *sizes, "classes", 0.17, lambda n, g, _: batch(n, 0, end, g))
    return Data(
        task,
        lambda g: batch(32, 0, 6 * end // 8, g),
        batch(128, 6 * end // 8, 7 * end // 8, held_out),
        batch(512, 7 * end // 8, end, held_out),
    )


DATA = {"digits": digits, "characters": characters}


# Training -------------------------------------------------------------------------------------------------------------


class Population:
    """The dense network, first, and its masks, all with the same weights to begin with, trained side by side."""

    def __init__(self, task: Task, cell: Cell, settings: Settings, generator: Generator) -> None:
        self.cell, self.settings, self.generator = cell, settings, generator
        hidden, count = settings.hidden, settings.masks + 1
        bound = 1 / math.sqrt(hidden)  # torch's own initialisation
        sizes = {
            "ih": (cell.gates * hidden, task.input_size),
            "hh": (cell.gates * hidden, hidden),
            "bias": (cell.gates * hidden,),
            "out": (task.output_size, hidden),
            "out_bias": (task.output_size,),
        }
        one = {key: (2 * torch.rand(size, generator=generator) - 1) * bound for key, size in sizes.items()}
        self.weights = {key: weight.repeat(count, *[1] * weight.dim()) for key, weight in one.items()}
        self.masks = {key: torch.ones_like(self.weights[key]) for key in ("ih", "hh")}
        self.densities = self._draw()
        for key, mask in self.masks.items():
            self.weights[key].mul_(mask)
        for weight in self.weights.values():
            weight.requires_grad_()
        self.first = {key: torch.zeros_like(weight) for key, weight in self.weights.items()}
        self.second = {key: torch.zeros_like(weight) for key, weight in self.weights.items()}
        self.count = 0

    def blocks(self, tensors: dict[str, Tensor]) -> Iterator[Tensor]:
        """Each gate's matrix of the inputs, then of the state, of all networks: views ``(N, H, I or H)``."""
        for key in ("ih", "hh"):
            yield from tensors[key].detach().unflatten(1, (self.cell.gates, -1)).unbind(1)

    def _draw(self) -> Tensor:
        """Draw the masks: each block of each network a share of its own, as many weights in all. Shares (M, blocks)."""
        blocks = list(self.blocks(self.masks))
        sizes = torch.tensor([block[0].numel() for block in blocks]).double()
        wanted = (1 - self.settings.sparsity) * sizes.sum()
        shares = torch.rand(self.settings.masks, len(blocks), generator=self.generator, dtype=torch.float64)
        shares = self.settings.spread**shares
        low, high = shares.new_zeros(len(shares), 1), shares.new_full((len(shares), 1), 1.0)
        for _ in range(60):  # none above 1, so bisected
            scale = (low + high) / 2
            too_many = ((scale * shares).clamp(max=1) * sizes).sum(1, keepdim=True) > wanted
            low, high = torch.where(too_many, low, scale), torch.where(too_many, scale, high)
        counts = ((low * shares).clamp(max=1) * sizes).round().long()
        for index, block in enumerate(blocks):
            drawn = torch.rand(len(counts), block[0].numel(), generator=self.generator)
            block[1:] = (_ranks(drawn) < counts[:, index : index + 1]).view_as(block[1:]).float()
        return counts / sizes

    def forward(self, inputs: Tensor) -> Tensor:
        """Read-outs ``(N, T, B, O)`` on inputs ``(T, B, I)``."""
        steps, batch, _ = inputs.shape
        weights, count = self.weights, self.settings.masks + 1
        flat = inputs.reshape(1, steps * batch, -1).expand(count, -1, -1)
        drive = torch.baddbmm(weights["bias"].unsqueeze(1), flat, weights["ih"].mT)
        state = (inputs.new_zeros(count, batch, self.settings.hidden),) * self.cell.parts
        visited = []
        for step in drive.unflatten(1, (steps, batch)).unbind(1):
            state = self.cell.step(weights, step, state)
            visited.append(state[0])
        states = torch.stack(visited, 1).flatten(1, 2)
        return torch.baddbmm(weights["out_bias"].unsqueeze(1), states, weights["out"].mT).unflatten(1, (steps, batch))

    def step(self, task: Task, batch: Batch) -> None:
        """One update of Adam, each network's gradient clipped for itself."""
        losses = loss(task, self.forward(batch.inputs), batch.targets)
        gradients = dict(zip(self.weights, torch.autograd.grad(losses.sum(), list(self.weights.values())), strict=True))
        for key, mask in self.masks.items():
            gradients[key].mul_(mask)
        norms = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients.values()]).norm(dim=0)
        scale = 1 / norms.clamp(min=1.0)
        self.count += 1
        for key, gradient in gradients.items():
            gradient.mul_(scale.view(-1, *[1] * (gradient.dim() - 1)))
            self.first[key].lerp_(gradient, 0.1)
            self.second[key].lerp_(gradient.square_(), 0.001)
            root = (self.second[key] / (1 - 0.999**self.count)).sqrt_().add_(1e-8)
            rate = self.settings.rate / (1 - 0.9**self.count)
            weight = self.weights[key].detach().addcdiv_(self.first[key], root, value=-rate)
            if key in self.masks:
                weight.mul_(self.masks[key])

    def regrow(self, epoch: int) -> None:
        """The smallest weights of each block die, and as many grow elsewhere, from zero; the dense network's stay."""
        share = self.settings.death * (1 + math.cos(math.pi * epoch / self.settings.epochs)) / 2
        of = [list(self.blocks(tensors)) for tensors in (self.masks, self.weights, self.first, self.second)]
        for mask, *values in zip(*of, strict=True):
            alive, weights = mask[1:].flatten(1), values[0][1:].flatten(1)
            count = (share * alive.sum(1, keepdim=True)).round()
            left = alive * (_ranks(weights.abs().where(alive > 0, math.inf)) >= count)
            drawn = torch.rand(left.shape, generator=self.generator)
            grown = (1 - left) * (_ranks(drawn.where(left == 0, math.inf)) < count)
            mask[1:] = (left + grown).view_as(mask[1:])
            for value in values:
                value[1:] *= left.view_as(mask[1:])

    @torch.no_grad()
    def losses(self, task: Task, batch: Batch) -> Tensor:
        """(N,)."""
        return loss(task, self.forward(batch.inputs), batch.targets)

    def exponents(self, inputs: Tensor) -> Tensor:
        """Whole spectra ``(N, D)``, nats per step; a quarter of the steps settles."""
        options: dict[str, Any] = {"transient": len(inputs) // 4, "growth": 0}
        recurrent = {key: self.weights[key].detach() for key in ("ih", "hh", "bias")}
        networks = [{key: w[n] for key, w in recurrent.items()} for n in range(self.settings.masks + 1)]
        return torch.stack([lyapunov_spectrum(self.cell.module(w), inputs, **options).exponents for w in networks])


def _ranks(values: Tensor) -> Tensor:
    """The place of each value in its row, from 0 for the smallest."""
    return values.argsort(1).argsort(1)


def trained(task: str, cell: str, network: int, settings: Settings) -> tuple[dict[str, Any], Tensor]:
    """A line of the results, and the exponents ``(read, N, D)``."""
    began = time.process_time()
    data = DATA[task]()
    drawn = Generator().manual_seed(int(hashlib.sha256(f"{task} {cell} {network}".encode()).hexdigest()[:12], 16))
    population = Population(data.task, CELLS[cell], settings, drawn)
    probe = data.validation.inputs[:, : settings.probes]
    losses, spectra, final, measuring = [], [], [], 0.0
    for epoch in range(1, settings.epochs + 1):
        for _ in range(settings.updates):
            population.step(data.task, data.batch(drawn))
        if epoch in settings.read:
            losses.append(population.losses(data.task, data.validation))
            before = time.process_time()
            spectra.append(population.exponents(probe))
            measuring += time.process_time() - before
        if epoch > settings.epochs - settings.last:
            final.append(population.losses(data.task, data.test))
        elif epoch < settings.epochs:
            population.regrow(epoch)
    distances = [[spectrum_distance(sparse, all_of[0]) for sparse in all_of[1:]] for all_of in spectra]
    last = torch.stack(final).mean(0)
    return {
        **{"task": task, "cell": cell, "network": network, "settings": asdict(settings)},
        **{"density": _rounded(population.densities), "loss": _rounded(torch.stack(losses)[:, 1:])},
        **{"distance": _rounded(torch.tensor(distances)), "final": _rounded(last[1:])},
        **{"dense_loss": _rounded(torch.stack(losses)[:, 0]), "dense_final": round(float(last[0]), 5)},
        **{"seconds": round(time.process_time() - began, 1), "measuring": round(measuring, 2)},
    }, torch.stack(spectra)


def _rounded(values: Tensor) -> Any:
    return json.loads(json.dumps(values.tolist()), parse_float=lambda number: round(float(number), 5))


def lines(path: Path, settings: Settings) -> list[dict[str, Any]]:
    """What was kept, of these settings."""
    wanted = json.loads(json.dumps(asdict(settings)))
    kept = [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []
    return [line for line in kept if line["settings"] == wanted]


def run(path: Path, networks: int, settings: Settings) -> None:
    done = {(line["task"], line["cell"], line["network"]) for line in lines(path, settings)}
    wanted = [(task, cell, network) for network, task, cell in product(range(networks), DATA, STUDIED)]
    for task, cell, network in wanted:
        if (task, cell, network) in done:
            continue
        line, exponents = trained(task, cell, network, settings)
        KEPT.mkdir(parents=True, exist_ok=True)
        torch.save(exponents, KEPT / f"{task}_{cell}_{network}_{settings.epochs}.pt")
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(task, cell, network, f"{line['seconds']:.0f} s, of which {line['measuring']:.1f} s measuring", flush=True)


# Tables ---------------------------------------------------------------------------------------------------------------

PREDICTORS: dict[str, tuple[str, ...]] = {
    "early loss": ("loss",),
    "distance": ("distance",),
    "loss + distance": ("loss", "distance"),
    "density": ("density",),
    "loss + density": ("loss", "density"),
    "loss + density + distance": ("loss", "density", "distance"),
    "density, best of this task": ("own density",),
    "loss + that + distance": ("loss", "own density", "distance"),
}
"""Sums of ranks of what is named, so that a network of small sum is thought good."""
GAINS = (
    ("loss + distance", "early loss"),
    ("loss + density", "early loss"),
    ("loss + density + distance", "loss + density"),
)
"""Pairs that are compared on the same masks; the last one decides."""
DRAWS = 2000
"""Of the bootstrap: networks of each cell, and masks of each network, with replacement."""


class Study:
    """One task: arrays over networks n, epochs e, masks m; the cells of the networks stand one after the other."""

    def __init__(self, rows: list[dict[str, Any]], controls: dict[str, dict[str, tuple[int, float]]]) -> None:
        rows = sorted(rows, key=lambda row: (row["cell"], row["network"]))
        self.rows, self.cells = rows, np.array([row["cell"] for row in rows])
        self.final = np.array([row["final"] for row in rows])
        self.seen = {name: np.array([row[name] for row in rows]) for name in ("loss", "distance")}
        for name, control in controls.items():
            sides = [np.array(row["density"])[:, control[row["cell"]][0]] * control[row["cell"]][1] for row in rows]
            self.seen[name] = np.repeat(np.array(sides)[:, None], self.seen["loss"].shape[1], 1)

    def scores(self, masks: np.ndarray | None = None, networks: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Of each predictor Spearman's correlation with the final loss ``(n, e)``; of resampled networks and masks."""
        networks = np.arange(len(self.rows)) if networks is None else networks
        masks = np.tile(np.arange(self.final.shape[1]), (len(networks), 1)) if masks is None else masks
        ranks = {key: _ranked(value[networks[:, None], :, masks]) for key, value in self.seen.items()}
        final = _ranked(self.final[networks[:, None], masks][..., None])
        return {name: _correlation(sum(ranks[key] for key in keys), final) for name, keys in PREDICTORS.items()}

    def regrets(self) -> dict[str, np.ndarray]:
        """How much the mask of smallest sum ends above the best, nats ``(n, e)``; the mean of those that tie."""
        ranks = {key: rankdata(value, axis=2) for key, value in self.seen.items()}
        above = (self.final - self.final.min(1, keepdims=True))[:, None]
        regrets = {}
        for name, keys in PREDICTORS.items():
            total = sum(ranks[key] for key in keys)
            first = total == total.min(2, keepdims=True)
            regrets[name] = (above * first).sum(2) / first.sum(2)
        return regrets

    def gains(self) -> tuple[np.ndarray, np.ndarray]:
        """Of each pair of :data:`GAINS` the mean ``(g, e + 1)``, the last over both epochs, and its bounds at 95 %."""
        drawn, masks = np.random.default_rng(0), self.final.shape[1]
        samples = []
        for _ in range(DRAWS):
            groups = [np.flatnonzero(self.cells == cell) for cell in np.unique(self.cells)]
            networks = np.concatenate([drawn.choice(group, len(group)) for group in groups])
            samples.append(self._gain(self.scores(drawn.integers(masks, size=(len(networks), masks)), networks)))
        return self._gain(self.scores()), np.percentile(samples, (2.5, 97.5), axis=0)

    def _gain(self, scores: dict[str, np.ndarray]) -> np.ndarray:
        each = np.stack([(scores[more] - scores[less]).mean(0) for more, less in GAINS])
        return np.concatenate([each, each.mean(1, keepdims=True)], 1)


def _ranked(values: np.ndarray) -> np.ndarray:
    """Ranks along the masks, of ``(n, m, e)``."""
    return rankdata(values, axis=1)


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spearman's, of the ranks of ``(n, m, e)`` along m; 0 where one of them does not vary."""
    a, b = _ranked(a), _ranked(b)
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    scale = np.sqrt((a * a).sum(1) * (b * b).sum(1))
    return (a * b).sum(1) / np.where(scale > 0, scale, 1)


def control(rows: list[dict[str, Any]]) -> dict[str, tuple[int, float]]:
    """Of each cell the block whose density alone ranks the final losses best, and the sign to read it with."""
    chosen = {}
    for cell in STUDIED:
        of = [row for row in rows if row["cell"] == cell]
        density = np.array([row["density"] for row in of])
        scores = _correlation(density, np.array([row["final"] for row in of])[..., None]).mean(0)
        best = int(np.abs(scores).argmax())
        chosen[cell] = best, float(np.sign(scores[best]))
    return chosen


def block_name(cell: str, index: int) -> str:
    gates = GATES[cell]
    return f"{'input' if index < len(gates) else 'recurrent'} weights of {gates[index % len(gates)]}"


def tables(path: Path, settings: Settings) -> str:
    """Everything in Markdown, the verdict last."""
    rows = {task: [line for line in lines(path, settings) if line["task"] == task] for task in DATA}
    if missing := [
        f"{task} {cell}" for task in DATA for cell in STUDIED if not any(r["cell"] == cell for r in rows[task])
    ]:
        return f"Nothing to tell yet: no results of {', '.join(missing)} in {path}."
    fixed = control(rows[CHOSEN_ON])
    studies = {task: Study(rows[task], {"density": fixed, "own density": control(rows[task])}) for task in DATA}
    text = [_introduction(studies, fixed, settings)]
    for task, study in studies.items():
        text += [_ranking(task, study, settings), _gained(task, study, settings)]
    return "\n\n".join([*text, verdict(studies[TESTED_ON])])


def _introduction(studies: dict[str, Study], fixed: dict[str, tuple[int, float]], settings: Settings) -> str:
    counts = [
        f"{task} {(study.cells == cell).sum()} {cell.upper()}" for task, study in studies.items() for cell in STUDIED
    ]
    rows = [row for study in studies.values() for row in study.rows]
    share = sum(row["measuring"] for row in rows) / sum(row["seconds"] for row in rows)
    control = "; ".join(
        f"{cell.upper()} {block_name(cell, index)}, {'fewer' if sign > 0 else 'more'} is better"
        for cell, (index, sign) in fixed.items()
    )
    return (
        f"Networks: {', '.join(counts)}; {settings.masks} masks each, H = {settings.hidden}, sparsity "
        f"{settings.sparsity:g}, {settings.epochs} epochs of {settings.updates} updates. Density that serves as "
        f"control, chosen on {CHOSEN_ON}: {control}. Measuring took {share:.0%} of "
        f"{sum(row['seconds'] for row in rows) / 3600:.1f} hours of one core."
    )


def _ranking(task: str, study: Study, settings: Settings) -> str:
    scores, regrets = study.scores(), study.regrets()
    columns = [(cell, index) for cell in STUDIED for index in range(len(settings.read))]
    heads = [f"{cell.upper()}, epoch {settings.read[index]}" for cell, index in columns]
    spread = np.ptp(study.final, axis=1).mean()
    table = [
        f"**{task}**: Spearman's ρ with the final test loss, mean over networks; regret of the first pick, nats, where "
        f"the best and the worst mask of a network end {spread:.3f} apart on average",
        "",
        f"| predictor | {' | '.join(heads)} | all | regret |",
        f"|---|{'---:|' * (len(heads) + 2)}",
    ]
    for name in PREDICTORS:
        values = [scores[name][study.cells == cell, index].mean() for cell, index in columns]
        cells = " | ".join(f"{value:.2f}" for value in [*values, scores[name].mean()])
        table.append(f"| {name} | {cells} | {regrets[name].mean():.4f} |")
    return "\n".join(table)


def _gained(task: str, study: Study, settings: Settings) -> str:
    means, (low, high) = study.gains()
    heads = [*(f"epoch {epoch}" for epoch in settings.read), "both"]
    table = [
        f"**{task}**: gain in ρ [95 % of {DRAWS} resamples of networks and masks]",
        "",
        f"| gain | {' | '.join(heads)} |",
        f"|---|{'---|' * len(heads)}",
    ]
    for pair, *columns in zip(GAINS, means, low, high, strict=True):
        cells = [f"{mean:+.3f} [{a:+.3f}, {b:+.3f}]" for mean, a, b in zip(*columns, strict=True)]
        table.append(f"| {pair[0]} over {pair[1]} | {' | '.join(cells)} |")
    return "\n".join(table)


def verdict(study: Study) -> str:
    """The rule, fixed before any result on the second task was seen.

    Distance helps if there the gain of loss + density + distance over loss + density, mean over cells, networks and
    both epochs, has an interval above 0, and the mean regret of the first pick falls too.
    """
    _, (low, high) = study.gains()
    regrets = study.regrets()
    more, less = (float(regrets[name].mean()) for name in GAINS[-1])
    gains, falls = bool(low[-1, -1] > 0), more < less
    return (
        f"**Verdict on {TESTED_ON}: distance {'helps' if gains and falls else 'does not help'}.** The gain of "
        f"{GAINS[-1][0]} over {GAINS[-1][1]} has the interval [{low[-1, -1]:+.3f}, {high[-1, -1]:+.3f}], "
        f"{'above 0' if gains else 'not above 0'}; regret {less:.4f} → {more:.4f} nats, which "
        f"{'falls' if falls else 'does not fall'}. Both are required."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of results, to which lines are added")
    parser.add_argument("--networks", type=int, default=10, help="of each cell and task")
    parser.add_argument("--quick", action="store_true", help="a toy, to see that it runs")
    parser.add_argument("--table", action="store_true", help="print the tables of what is there, train nothing")
    given = parser.parse_args()
    settings = Settings(hidden=8, masks=6, epochs=4, read=(1, 2), last=1) if given.quick else Settings()
    if not given.table:
        torch.set_num_threads(1)
        run(given.results, given.networks, settings)
    print(tables(given.results, settings))


if __name__ == "__main__":
    main()
