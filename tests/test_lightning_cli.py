"""Both callbacks in LightningCLI: by short name once the package is imported, with help for each option."""

import inspect
import re
from typing import Any

import pytest
from fits import Regressor

import lightning_lyapunov
from lightning_lyapunov import LyapunovEarlyStopping, LyapunovSpectrumCallback

pytest.importorskip("jsonargparse")
pytestmark = pytest.mark.filterwarnings("ignore")


def cli(*arguments: str) -> Any:
    from lightning.pytorch.cli import LightningCLI

    return LightningCLI(Regressor, run=False, args=list(arguments))


def test_class_names_alone_are_enough(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ours, stopper = cli(
        "--trainer.callbacks+=LyapunovSpectrumCallback", "--trainer.callbacks.k=4", "--trainer.callbacks.figures=null",
        "--trainer.callbacks+=LyapunovEarlyStopping", "--trainer.callbacks.conditions=chaotic",
    ).trainer.callbacks[:2]  # fmt: skip
    assert isinstance(ours, LyapunovSpectrumCallback) and (ours.k, ours.figures) == (4, None)
    assert isinstance(stopper, LyapunovEarlyStopping) and stopper.conditions == ["chaotic"]


@pytest.mark.parametrize(
    "name", ["LyapunovSpectrumCallback", "DepthSpectrumCallback", "LyapunovEarlyStopping", "LyapunovConditioning"]
)
def test_each_option_has_a_type_and_a_text(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: the signature, and the first words that the docstring has for each argument."""
    kind = getattr(lightning_lyapunov, name)
    with pytest.raises(SystemExit):
        cli(f"--trainer.callbacks.help={name}")
    help_text = re.sub(r"\s+", " ", capsys.readouterr().out)
    for option in inspect.signature(kind).parameters:
        told = re.search(rf"{option}:\s+(.+?)[.;,(]", re.sub(r"\s+", " ", inspect.getdoc(kind) or ""))
        assert told is not None, f"{option} has no text"
        assert re.search(rf"--trainer\.callbacks\.{option}[ +].*?{re.escape(told[1])}.*?\(type: ", help_text), option
