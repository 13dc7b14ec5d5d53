"""The quickstarts and the answers to questions: each is short, runs as it stands, and prints what its page shows."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
import wandb
from tracked import quiet_mlflow, quiet_wandb

DOCS = Path(__file__).parents[1] / "docs"


def code_of(text: str, language: str = "python") -> str:
    return "".join(re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL))


TITLE, *SECTIONS = re.split(r"^## ", (DOCS / "quickstart.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
NETWORK = code_of(TITLE)
QUICKSTARTS = {text.split("\n", 1)[0]: code for text in SECTIONS if (code := code_of(text))}
TRACES = {"TensorBoard": "runs/**/*tfevents*", "Weights & Biases": "wandb/offline-run-*", "MLflow": "**/lyapunov*"}
TRACES |= {"No tracker at all": "runs/report/lyapunov.html"}
"""What each leaves behind."""


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the code runs: with the network of the page, and trackers that tell nobody."""
    network = ModuleType("network")
    monkeypatch.setitem(sys.modules, "network", network)
    monkeypatch.chdir(tmp_path)
    quiet_wandb(tmp_path, monkeypatch)
    quiet_mlflow(tmp_path, monkeypatch)
    exec(NETWORK, vars(network))
    yield tmp_path
    wandb.teardown()


@pytest.mark.parametrize("name", QUICKSTARTS)
def test_quickstart_is_short_and_runs(name: str, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """But for MLflow's database, which needs more than its client: plain files stand in for it."""
    code = QUICKSTARTS[name]
    assert NETWORK.count("\n") <= 15 and code.count("\n") <= 15
    exec(code.replace("sqlite:///mlflow.db", (directory / "mlflow").as_uri()), {})
    assert re.search(r"^(healthy|watch|act): |gradient|steps", capsys.readouterr().out, re.MULTILINE)
    assert name not in TRACES or list(directory.glob(TRACES[name]))


def test_answers_print_what_the_page_shows(capsys: pytest.CaptureFixture[str]) -> None:
    """Words as they stand; numbers to a tenth or to 2, and within a factor of ten where they have an exponent."""
    text = (DOCS / "faq.md").read_text(encoding="utf-8")
    with torch.random.fork_rng():
        exec(code_of(text), {})
    shown, printed = code_of(text, "text").splitlines(), capsys.readouterr().out.splitlines()
    number = r"-?\b\d+(?:\.\d+)?(?:e-?\d+)?|nan"
    assert len(shown) == len(printed) > 8
    for ours, theirs in zip(printed, shown, strict=True):
        assert re.sub(number, "", ours) == re.sub(number, "", theirs)
        for now, then in zip(re.findall(number, ours), re.findall(number, theirs), strict=True):
            if "e-" in then:
                assert 0.1 < float(now) / float(then) < 10
            else:
                assert float(now) == pytest.approx(float(then), rel=0.1, abs=2, nan_ok=True), ours
