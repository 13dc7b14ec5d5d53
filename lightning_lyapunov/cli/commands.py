"""The commands: the arguments of these functions are the options, their docstrings the help."""

from __future__ import annotations

import contextlib
import math
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_lyapunov.capture.finding import Found, find
from lightning_lyapunov.capture.probe import driven_by
from lightning_lyapunov.cli.autonomous import measure_alone
from lightning_lyapunov.cli.reading import array_of, network_of, scorer_of, spectrum_of
from lightning_lyapunov.cli.writing import facts_of, one_line, table_of, tell, write, write_figure
from lightning_lyapunov.engine.measure import Driven, measure_layers, union_of_layers
from lightning_lyapunov.engine.settings import Settings
from lightning_lyapunov.engine.spectrum_json import dumps
from lightning_lyapunov.monitoring.facts import Facts
from lightning_lyapunov.monitoring.notices import linked
from lightning_lyapunov.reading.conditions import FAMILIAR
from lightning_lyapunov.reading.depth_history import DepthMeasurement

SCORES = {
    "performance": "predicted final skill",
    "low": "  lower end of its 80 % interval",
    "high": "  upper end",
    "baseline": "the same without the spectrum",
    "failure_probability": "probability that it never learns",
    "takeoff_probability": "probability that it takes off",
    "stability": "probability that it ends stable",
    "familiarity": "familiarity, 0 strange to 1 familiar",
}


def spectrum(
    file: Path,
    inputs: Path,
    *,
    model: str | None = None,
    init: dict[str, Any] | None = None,
    weights: str | None = None,
    module: str | list[str] | None = None,
    feed: Literal["model", "layer"] = "model",
    steps: int | None = None,
    state: Path | None = None,
    k: int | None = None,
    transient: int | None = None,
    interval: int | None = None,
    dtype: Literal["float32", "float64"] | None = None,
    growth: int | None = None,
    format: Literal["table", "json", "figure"] = "table",
    output: Path | None = None,
    trust_pickle: bool = False,
) -> None:
    """Measure the Lyapunov spectrum of a trained network.

    Args:
        file: A Lightning checkpoint or whatever holds a state_dict, with --model; or a module that torch.save wrote,
            with --trust-pickle.
        inputs: What drives the network, .npy or .pt: what its forward takes, as (T, B, I) or batch first. None, and
            left out, for a map that runs by itself, with --steps.
        model: Import path of its class, as pkg.mod:Class; also of a plain module, as torch.nn:LSTM.
        init: Arguments of that class which the checkpoint does not know, as '{"hidden": 64}' or --init.hidden 64.
        weights: Which weights, where the file holds several, as model or ema.
        module: Name of the recurrent layer, or a list of them; all that torch knows if left out.
        feed: Whether the inputs go through the model, and so reach the layer as in training, or to the layer itself.
        steps: Steps to run without inputs: h[t+1] = f(h[t]), a layer of torch's at zero inputs, or a module whose
            forward is (state) -> state or (x, state) -> state.
        state: Where the map begins, .npy or .pt, (B, D) or as the layer takes it; 8 random states if left out.
        k: Number of leading exponents; the whole spectrum if left out.
        transient: Steps that settle and do not count for the exponents; half of them, at most 64, if left out.
        interval: Steps between reorthonormalisations; chosen by the precision law if left out.
        dtype: Arithmetic of the tangent vectors; chosen by the precision law if left out.
        growth: Leading singular values over the whole sequence; 8 if left out, 0 for none.
        format: A table for people, JSON for programs, a figure (PNG).
        output: Where to write it; standard output if left out.
        trust_pickle: Let the file run code while it is read, as pickles do. Only for files whose origin you trust.
    """
    if format == "figure" and output is None and sys.stdout.isatty():
        raise ValueError("output: a figure is no text for a terminal; give --output FILE.png.")
    with contextlib.redirect_stdout(sys.stderr):  # whatever the user's own code has to say
        network, updates = network_of(file, model, init or {}, trust_pickle, weights)
        settings = Settings(k, transient, interval, None if dtype is None else getattr(torch, dtype), growth=growth)
        if steps is None:
            if str(inputs) == "none" or state is not None:
                raise ValueError("steps: a map without inputs takes --steps N, the steps to run.")
            found, unsupported = find(network.eval(), module)
            layers = {name: layer.module for name, layer in found.items()}
            for line in unsupported:
                tell(f"found but not measured: {line}")
            tallies = measure_layers(_driven(network, found, array_of(inputs), feed), settings)
        elif str(inputs) != "none":
            raise ValueError(f"steps run without inputs, and inputs without steps; got {steps} and {inputs}.")
        else:
            start = None if state is None else array_of(state)
            layers, tallies = measure_alone(network.eval(), module, steps, start, settings)
        result = union_of_layers(tallies, k)
    if math.isnan(result.exponents[0]):
        raise ArithmeticError("the largest exponent is NaN: the states of the network overflow along its inputs.")
    if format == "figure":
        from lightning_lyapunov.figures.alone import spectrum_alone

        write_figure(spectrum_alone(result, updates), output)
    elif format == "json":
        write(dumps(facts_of(result, layers, updates)), output)
    else:
        write("\n".join(table_of(result)), output)


def _driven(
    network: nn.Module, found: dict[str, Found], inputs: Tensor, feed: Literal["model", "layer"]
) -> dict[str, Driven]:
    """The layers with what drives them: inputs that go through the network, or straight to the one layer."""
    weights = next(network.parameters(), torch.empty(0))
    inputs = inputs.to(weights.dtype) if inputs.is_floating_point() else inputs
    layers = {name: layer.module for name, layer in found.items()}
    name, only = next(iter(layers.items()))
    if only is network or feed == "layer":
        if len(layers) > 1:
            raise ValueError(f"module must name the one layer that the inputs go to; there are {', '.join(layers)}.")
        return {name or type(only).__name__: Driven(only, inputs, None)}
    try:
        driven = driven_by(network, found, inputs)
    except Exception as error:
        raise ValueError(
            f"inputs {tuple(inputs.shape)} could not go through {type(network).__name__}: "
            f"{one_line(error).rstrip('.')}. They must be what its forward takes; --feed layer drives the recurrent "
            "layer itself."
        ) from error
    for name in layers.keys() - driven.keys():
        tell(f"{name} is not measured: no inputs reached it in the forward pass.")
    if not driven:
        raise ValueError("inputs: none reached a recurrent layer in the forward pass; --feed layer drives it itself.")
    return driven


def score(
    file: Path,
    *,
    architecture: str | None = None,
    hidden_size: int | None = None,
    updates: int | None = None,
    performance: float | None = None,
    learning_rate: float | None = None,
    adaptive: bool | None = None,
    gradient_norm: float | None = None,
    state_mean: float | None = None,
    state_spread: float | None = None,
    steps: int | None = None,
    scorer: str = "general",
    format: Literal["table", "json"] = "table",
    output: Path | None = None,
) -> None:
    """Predict from a spectrum how well its network will end.

    Args:
        file: What "spectrum --format json" wrote, or a JSON list of all exponents in nats per step; - reads standard
            input.
        architecture: Kind of cell: rnn, gru, lstm, or another; what the file says if left out.
        hidden_size: Hidden units; what the file says if left out.
        updates: Updates made so far; what the file says if left out.
        performance: Skill reached so far, 0 by chance and 1 at best; for a scorer of your own, in its unit.
        learning_rate: Base rate of the optimiser: what a warm-up leads to and a schedule decays from.
        adaptive: Whether the optimiser divides by a running size of the gradient, as Adam does and SGD does not.
        gradient_norm: Norm of the last gradient, of all parameters and before clipping.
        state_mean: Mean size of the entries of the states visited; what the file says if left out.
        state_spread: Standard deviation of these entries; what the file says if left out.
        steps: Length of the sequences; what the file says if left out.
        scorer: general, or the file of a scorer of your own.
        format: A table for people, JSON for programs.
        output: Where to write it; standard output if left out.
    """
    measured, known = spectrum_of(file)
    facts = Facts(
        performance,
        learning_rate,
        adaptive,
        gradient_norm,
        known.get("state_mean") if state_mean is None else state_mean,
        known.get("state_spread") if state_spread is None else state_spread,
        known.get("length") if steps is None else steps,
    )
    chosen, made = scorer_of(scorer), known.get("updates") if updates is None else updates
    said = chosen.score(
        measured,
        architecture=architecture or known.get("architecture"),
        hidden_size=known.get("hidden_size") if hidden_size is None else hidden_size,
        updates=made,
        **asdict(facts),
    )
    if format == "json":
        values = {field.name: getattr(said, field.name) for field in fields(said)}
        write(dumps(values), output)
    else:
        width = max(map(len, SCORES.values()))
        lines = [f"{text:<{width}}   {getattr(said, name):.3f}" for name, text in SCORES.items()]
        write("\n".join([*lines, *(f"  unlike those known in {part}" for part in said.unfamiliar)]), output)
    if said.familiarity < FAMILIAR:
        text = (
            f"warning: the familiarity of {said.familiarity:.2f} is below {FAMILIAR}: the scorer knows no networks "
            "like this one, so do not rely on what it says."
        )
        tell(linked(text, "unfamiliar"))
    if performance is None and (made is None or made > 0):
        tell(
            "the skill reached so far was not given; with --performance, from 0 by chance to 1 at best, the scorer "
            "says more of a network in training."
        )


def report(
    runs: list[str],
    *,
    output: Path | None = None,
    prefix: str | None = None,
    title: str | None = None,
    scorer: str = "general",
    trust_pickle: bool = False,
) -> None:
    """Write the HTML report of a run, or one that compares several runs.

    Args:
        runs: Checkpoints of a Trainer that had a LyapunovSpectrumCallback, or a DepthSpectrumCallback; directories of
            runs, the newest checkpoint of each; or files of a history. Of one run the page is about it, of several it
            compares them, the healthy ones first.
        output: The page; if left out beside the checkpoint, and of several runs runs.html in their directory.
        prefix: Which callback's history, where there were several.
        title: Heading of the page.
        scorer: What scored the run, for its place among known networks: general, or the file of a scorer of your own.
        trust_pickle: Let the file run code while it is read, as pickles do. Only for files whose origin you trust.
    """
    from lightning_lyapunov.cli.runs import PAGE, base_of, fits_at, runs_at
    from lightning_lyapunov.figures import LatentMap
    from lightning_lyapunov.report import write_report
    from lightning_lyapunov.report_depth import write_depth_report
    from lightning_lyapunov.report_runs import write_runs_report

    found = runs_at([Path(path) for path in runs], prefix, trust_pickle)
    if len(found) > 1:
        options = {} if title is None else {"title": title}
        print(write_runs_report(fits_at(found), output or base_of(found) / PAGE, **options))
        return
    ((checkpoint, run),) = found
    history, settings = run.history, {"checkpoint": checkpoint.name, **run.settings}
    if history.kind is DepthMeasurement:
        page = output or checkpoint.with_suffix(".html")
        print(write_depth_report(history, page, settings=settings, title=title or f"The depth of {checkpoint.stem}"))
        return
    page = write_report(
        history,
        output or checkpoint.with_suffix(".html"),
        settings=settings,
        title=title or f"Lyapunov spectra of {checkpoint.stem}",
        latent_map=LatentMap.of_bank(scorer_of(scorer)) if any(m.latent is not None for m in history) else None,
    )
    print(page)


def bank_fit(bank: Path, weights: Path, *, seed: int = 0) -> None:
    """Fit a scorer on a bank, as the general one was fitted: some minutes.

    Args:
        bank: Directory of the bank's records.
        weights: File for the scorer; --scorer takes it, and so does the callback.
        seed: Of everything random.
    """
    from lightning_lyapunov.bank.records import Bank
    from lightning_lyapunov.bank.report.writing import fit_on

    scorer = fit_on(Bank.load(bank), seed=seed)
    scorer.save(weights)
    print(f"fitted on {scorer.card['networks']} networks: {weights}")


def bank_report(
    bank: Path,
    *,
    weights: Path = Path("runs/bank/general.safetensors"),
    page: Path = Path("runs/bank/report.md"),
    picture: Path = Path("runs/bank/report.png"),
    kept: Path = Path("runs/bank/left-out"),
) -> None:
    """Fit the general scorer on a bank, evaluate it and write the report: an hour; interrupted, it goes on.

    Args:
        bank: Directory of the bank's records.
        weights: File for the scorer.
        page: File for the report, Markdown.
        picture: File for its figure, PNG.
        kept: Directory where fits without a part of the bank are kept.
    """
    from lightning_lyapunov.bank.report.writing import write_report

    write_report(bank, weights, page, picture, kept)


def demo(directory: Path = Path("lightning_logs"), *, seed: int = 0) -> None:
    """Train a network that will not learn, which is told early, and once more as advised: a minute or two.

    Args:
        directory: Where TensorBoard's files and the reports go.
        seed: Of weights and sequences.
    """
    from lightning_lyapunov.demo import run

    torch.set_num_threads(1)  # for so small a network threads cost more than they bring
    run(directory, seed=seed)
