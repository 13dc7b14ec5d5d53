"""Fit the general scorer on a bank, evaluate it, and write weights, card, report and picture."""

from __future__ import annotations

import hashlib
from io import BytesIO
from pathlib import Path

import torch

from lightning_lyapunov.aelle.features import ARCHITECTURES
from lightning_lyapunov.aelle.scorer import AeLLEScorer
from lightning_lyapunov.bank.cells import UNKNOWN_CELLS
from lightning_lyapunov.bank.evaluation import Table, development
from lightning_lyapunov.bank.records import Bank
from lightning_lyapunov.bank.report.draw import draw
from lightning_lyapunov.bank.report.gates import gates
from lightning_lyapunov.bank.report.left_out import fit_general, left_out, say
from lightning_lyapunov.bank.report.page import Page, card
from lightning_lyapunov.bank.report.tables import Comparison
from lightning_lyapunov.files import write_whole

TITLE = ("# How well a network's end can be told from its spectrum",)
FIRST = (
    "# The same recipe on the first bank",
    "",
    "The scorer that ships is fitted on a larger bank since. Here its recipe is held against what was demanded of it",
    "on the first one, [at the end](#what-was-demanded-on-the-first-bank).",
)


def fit_on(bank: Bank, *, seed: int = 0) -> AeLLEScorer:
    """The general scorer of a bank: fitted on the kinds of cell that it knows, and on no family set aside."""
    table = development(Table.of(bank))
    return fit_general(table, seed=seed, checkpoints=list(bank.checkpoints), bank=bank.digest)


def write_report(
    path: Path,
    weights: Path,
    page: Path,
    picture: Path,
    kept: Path,
    *,
    with_gates: bool = False,
    look: bool = False,
    jobs: int = 1,
) -> None:
    """Fit, evaluate and write: about an hour, of which what was done before an interruption is kept.

    Args:
        path: The bank.
        weights: File for the scorer; its card goes beside it.
        page: File for the report, Markdown.
        picture: File for its figure, PNG.
        kept: Directory of what scorers fitted without a part of the bank said of it.
        with_gates: Whether to tell which demands on the first bank are met.
        look: Whether to look at the families set aside; what is seen must change nothing.
        jobs: Processes that fit at once.
    """
    torch.set_num_threads(1)
    bank = Bank.load(path)
    scorer = fit_on(bank)
    fitted = kept / "general.safetensors"
    kept.mkdir(parents=True, exist_ok=True)
    scorer.save(fitted)
    digest = hashlib.sha256(fitted.read_bytes()).hexdigest()
    print(f"fitted on {scorer.card['networks']} networks", flush=True)
    every = Table.of(bank)
    table = development(every)
    family, cell = (Comparison(table, left_out(table, key, kept, digest, jobs=jobs)) for key in ("family", "cell"))
    strange = every[every.where(cell=UNKNOWN_CELLS) & ~every.where(family=bank.set_aside)]
    more = {}
    if len(strange):
        more["Kinds of cell that are not in the fit"] = Comparison(strange, say(scorer, strange.rows, is_unknown=True))
    if look:
        aside = every[every.where(family=bank.set_aside, cell=ARCHITECTURES)]
        more["The families set aside"] = Comparison(aside, say(scorer, aside.rows, is_unknown=False))
    command = "make bank-gates" if with_gates else "make bank-report"
    said = Page(scorer, family, cell, more, picture=picture.name, command=command)
    lines = [*(FIRST if with_gates else TITLE), "", *said.lines()]
    if with_gates:
        lines += ["## What was demanded on the first bank", "", *gates(said), ""]
    write_whole(page, ("\n".join(lines).rstrip() + "\n").encode())
    draw(said).savefig(buffer := BytesIO(), format=picture.suffix[1:] or "png")
    write_whole(picture, buffer.getvalue())
    weights.parent.mkdir(parents=True, exist_ok=True)
    write_whole(weights, fitted.read_bytes())
    kilobytes = weights.stat().st_size / 1024
    write_whole(weights.with_suffix(".md"), card(said, weights.name, kilobytes, digest, page.name).encode())
    print(f"{weights}, {page}, {picture}")
