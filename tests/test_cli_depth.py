"""The command ``depth``: read back what it writes; numbers against the function by hand."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lightning_lyapunov import depth_spectrum
from lightning_lyapunov.cli import main


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.linear(self.norm(x)))


class Net(nn.Module):
    def __init__(self, width: int = 16, depth: int = 6) -> None:
        super().__init__()
        self.first = nn.Linear(3, width)
        self.layers = nn.ModuleList(Block(width) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Net, Tensor, list[str]]:
    monkeypatch.setitem(sys.modules, "some_nets", sys.modules[__name__])
    torch.manual_seed(0)
    net, batch = Net(), torch.randn(10, 3)
    with torch.no_grad():
        net.layers[3].linear.weight.zero_()
        net.layers[3].linear.bias.fill_(-1.0)
    torch.save(net.state_dict(), tmp_path / "weights.pt")
    torch.save(batch, tmp_path / "batch.pt")
    return net, batch, [str(tmp_path / "weights.pt"), str(tmp_path / "batch.pt"), "--model", "some_nets:Net"]


def test_the_table_names_the_dead_block(files: tuple, capsys: pytest.CaptureFixture[str]) -> None:
    net, batch, words = files
    assert main(["depth", *words]) == 0
    told = capsys.readouterr().out
    assert max(map(len, told.splitlines())) <= 80
    assert "block 4 of 6 (layers.3) passes everything on unchanged" in " ".join(told.lower().split())
    found = depth_spectrum(net.eval(), batch, samples=8)
    assert f"{float(found.log_singular_values[0]):+.3f}" in told
    rows = [line.split() for line in told.splitlines() if "layers." in line and line.strip()[0].isdigit()]
    assert [row[1] for row in rows if row[1].startswith("layers.")] == [f"layers.{i}" for i in range(6)]
    assert "nothing" in next(line for line in told.splitlines() if line.split()[:2] == ["4", "layers.3"])


def test_json_holds_every_figure(files: tuple, capsys: pytest.CaptureFixture[str]) -> None:
    net, batch, words = files
    assert main(["depth", *words, "--format", "json", "--k", "3", "--dtype", "float64", "--samples", "5"]) == 0
    facts = json.loads(capsys.readouterr().out)
    found = depth_spectrum(net.eval(), batch, 3, samples=5, dtype=torch.float64)
    assert facts["log_singular_values"] == pytest.approx(found.log_singular_values.tolist(), abs=1e-9)
    assert facts["samples"] == 5 and facts["dtype"] == "float64" and facts["unit"] == "nats"
    assert facts["block_change"][3] == "-inf" and facts["names"] == [f"layers.{i}" for i in range(6)]
    assert math.isclose(facts["features"]["layers.0/gain"], float(found.block_gain[0]))


def test_a_figure(files: tuple, tmp_path: Path) -> None:
    assert main(["depth", *files[2], "--format", "figure", "--output", str(tmp_path / "blocks.png")]) == 0
    assert (tmp_path / "blocks.png").read_bytes()[:4] == b"\x89PNG"


def test_many_blocks_leave_the_middle_out(tmp_path: Path, files: tuple, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(Net(depth=40).state_dict(), tmp_path / "deep.pt")
    words = [str(tmp_path / "deep.pt"), *files[2][1:], "--init", '{"depth": 40}']
    assert main(["depth", *words]) == 0
    assert "(16 more: --format json has all)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--module", "nothing"], "module: the model has no 'nothing'"),
        (["--samples", "0"], "samples must be at least 1"),
        (["--k", "0"], "k must be at least 1"),
    ],
)
def test_refusals(files: tuple, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["depth", *files[2], *words]) == 2
    assert message in capsys.readouterr().err


def test_inputs_that_do_not_fit(files: tuple, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(torch.randn(4, 7), tmp_path / "wide.pt")
    assert main(["depth", files[2][0], str(tmp_path / "wide.pt"), *files[2][2:]]) == 2
    assert "inputs (4, 7) could not go through Net" in capsys.readouterr().err


def test_a_report_from_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import lightning.pytorch as pl
    from torch.utils.data import DataLoader, TensorDataset

    from lightning_lyapunov import DepthSpectrumCallback

    class Fitted(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return self.net(batch[0]).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    torch.manual_seed(0)
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False,
        enable_model_summary=False, callbacks=[DepthSpectrumCallback()],
    )  # fmt: skip
    trainer.fit(Fitted(), DataLoader(TensorDataset(torch.randn(32, 3)), 8))
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    assert main(["report", str(tmp_path / "run.ckpt")]) == 0
    page = (tmp_path / "run.html").read_text("utf-8")
    assert "net.layers.5" in page and capsys.readouterr().out.strip().endswith("run.html")
