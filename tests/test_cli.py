"""Commands are run as typed, in this process where that is enough; what they say is compared with the functions."""

import json
import math
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import joblib
import numpy as np
import pytest
import torch
from fits import Regressor, loader, trainer
from made import numbers, spectrum
from torch import nn

import lightning_lyapunov.demo
from lightning_lyapunov import AeLLEScore, AeLLEScorer, LyapunovSpectrum, LyapunovSpectrumCallback, lyapunov_spectrum
from lightning_lyapunov.bank import __main__ as bank
from lightning_lyapunov.cli import main
from lightning_lyapunov.cli.entry import FAILED, INTERRUPTED, OK, USAGE
from lightning_lyapunov.cli.reading import spectrum_of
from lightning_lyapunov.cli.writing import table_of

LN_Z = -math.log1p(math.exp(-1.0))

MODEL = """
import os

import lightning.pytorch as pl
import torch
from torch import nn


class Net(pl.LightningModule):
    def __init__(self, size: int = 4) -> None:
        super().__init__()
        print("whatever the user's code says")
        self.save_hyperparameters()
        self.below = nn.Linear(3, 5)
        self.rnn = nn.LSTM(5, size, batch_first=True)

    def forward(self, x):
        return self.rnn(self.below(x))[0]


class Touch:
    def __reduce__(self):
        return os.mkdir, ("touched",)
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's working directory: a module of theirs, files of weights, inputs, a checkpoint of a run."""
    home = tmp_path_factory.mktemp("work")
    (home / "their_model.py").write_text(MODEL)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x = torch.randn(6, 24, 3)
        np.save(home / "x.npy", x.numpy())
        torch.save(x, home / "x.pt")

        gru = nn.GRU(1, 3)
        with torch.no_grad():
            for weight in gru.parameters():
                weight.zero_()
            gru.bias_ih_l0[3:6] = 1.0  # of the update gate z: h' = (1 - z) n + z h, each exponent is ln z
        torch.save(gru.state_dict(), home / "gru.pt")
        torch.save(gru, home / "gru_module.pt")
        (home / "list.json").write_text("[-0.1, -0.5]")
        np.save(home / "zeros.npy", np.zeros((20, 2, 1)))

        rnn = nn.RNN(1, 2, nonlinearity="relu")
        nn.init.constant_(rnn.bias_ih_l0, -1.0)
        nn.init.zeros_(rnn.weight_hh_l0)  # no way from a state to the next: all directions are dead
        torch.save(rnn.state_dict(), home / "dead.pt")

        callback = LyapunovSpectrumCallback(k=4)
        fit = trainer(callback)
        fit.fit(Regressor(), loader(), loader())
        fit.save_checkpoint(home / "fit.ckpt")
    return home


@pytest.fixture(scope="module")
def checkpoint(directory: Path) -> Path:
    """Of the user's own module, made by running their file."""
    made: dict[str, Any] = {"__name__": "their_model"}
    exec((directory / "their_model.py").read_text(), made)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = made["Net"](size=6)
    fit = trainer()
    fit.strategy.connect(net)
    fit.save_checkpoint(directory / "net.ckpt", weights_only=True)
    return directory / "net.ckpt"


Run = Callable[..., SimpleNamespace]


@pytest.fixture
def run(directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Run a command in the user's directory: its exit code and both streams."""
    monkeypatch.chdir(directory)

    def run(*words: str) -> SimpleNamespace:
        capsys.readouterr()
        code = main(words)
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    yield run
    sys.modules.pop("their_model", None)


def read(text: str) -> Any:
    """JSON as the standard has it: NaN and Infinity are no part of it."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


GRU = ("spectrum", "gru.pt", "zeros.npy", "--model", "torch.nn:GRU", "--init", '{"input_size": 1, "hidden_size": 3}')
NET = ("spectrum", "net.ckpt", "x.npy", "--model", "their_model:Net")
DEAD = '{"input_size": 1, "hidden_size": 2, "nonlinearity": "relu"}'


# ---------------------------------------------------------------- spectrum


def test_spectrum_of_known_exponents(run: Run) -> None:
    """Without recurrent weights a GRU forgets at the rate ln z of its constant gate."""
    done = run(*GRU, "--format", "json")
    assert done.code == OK
    said = read(done.out)
    assert said["exponents"] == pytest.approx([LN_Z] * 3, rel=1e-6)
    assert said["features"]["gradient_horizon"] == pytest.approx(-1 / LN_Z)
    assert (said["architecture"], said["hidden_size"], said["dimension"]) == ("gru", 3, 3)
    assert (said["steps"], said["transient"], said["sequences"]) == (10, 10, 2)
    assert said["gain"] == pytest.approx(20 * LN_Z, rel=1e-6) == said["log_singular_values"][0]


def direct(directory: Path, k: int) -> LyapunovSpectrum:
    """The spectrum of the same weights by the function: the layer sees what the layer below makes of the inputs."""
    weights = torch.load(directory / "net.ckpt", weights_only=True)["state_dict"]
    below, rnn = nn.Linear(3, 5), nn.LSTM(5, 6, batch_first=True)
    for name, module in (("below.", below), ("rnn.", rnn)):
        module.load_state_dict({key.removeprefix(name): w for key, w in weights.items() if key.startswith(name)})
    return lyapunov_spectrum(rnn, below(torch.from_numpy(np.load(directory / "x.npy"))).detach(), k=k)


def test_inputs_go_through_the_model(run: Run, checkpoint: Path, directory: Path) -> None:
    said = read(run(*NET, "--format", "json", "--k", "3").out)
    assert said["exponents"] == pytest.approx(direct(directory, 3).exponents.tolist(), rel=1e-4, abs=1e-5)


def test_inputs_go_to_the_layer_itself(run: Run, checkpoint: Path) -> None:
    refused = run(*NET, "--feed", "layer")
    assert refused.code == USAGE
    assert "5 wide" in refused.err


def test_npy_and_pt_say_the_same(run: Run, checkpoint: Path) -> None:
    assert run(*NET, "--format", "json").out == run(*NET[:2], "x.pt", *NET[3:], "--format=json").out


def test_only_results_go_to_standard_output(run: Run, checkpoint: Path) -> None:
    done = run(*NET, "--format", "json")
    read(done.out)
    assert "whatever the user's code says" in done.err


def test_dead_directions_are_minus_infinity_and_unknown_is_null(run: Run) -> None:
    done = run("spectrum", "dead.pt", "zeros.npy", "--model", "torch.nn:RNN", "--init", DEAD, "--format", "json")
    said = read(done.out)
    assert said["exponents"] == ["-inf", "-inf"]
    assert said["stderr"] == [None, None]


def test_table_names_units_and_leaves_out_the_middle(run: Run, checkpoint: Path) -> None:
    lines = run(*NET).out.splitlines()
    assert lines[0].startswith("12 of 12 exponents, 6 sequences, 12 steps after a transient of 12")
    sentence = lines[2 : lines.index("", 2)]
    assert all(len(line) <= 80 for line in sentence)
    assert re.fullmatch(
        r"Over your 24 steps a gradient shrinks to \S+ in a typical sequence \(at most \S+\)\.", " ".join(sentence)
    )
    assert any(line.startswith("largest exponent") and line.endswith("nats/step") for line in lines)
    assert [line.split()[0] for line in lines[-12:]] == [str(i) for i in range(1, 13)]


def test_table_of_one_sequence_counts_it_and_says_what_is_unknown() -> None:
    made = spectrum(0.1, -math.inf, math.nan, error=numbers(math.nan, math.nan, math.nan), sequences=1, steps=1)
    lines = list(table_of(made))
    assert lines[0] == "3 of 3 exponents, 1 sequence, 1 step after a transient of 0, float64"
    rows = [line.split()[1:3] for line in lines[-3:]]
    assert rows == [["+0.1000", "unknown"], ["-inf", "unknown"], ["unknown", "unknown"]]
    assert not any(re.search(r"\bnan\b", line) for line in lines)


def test_long_table_says_how_much_it_leaves_out(run: Run) -> None:
    init = '{"input_size": 1, "hidden_size": 40}'
    torch.save(nn.GRU(1, 40).state_dict(), "long.pt")
    lines = run("spectrum", "long.pt", "zeros.npy", "--model", "torch.nn:GRU", "--init", init).out.splitlines()
    numbered = [
        line.split()[0] for line in lines[lines.index("    i    exponent       error   trusted   settled") + 1 :]
    ]
    assert numbered == [*map(str, range(1, 13)), "…", *map(str, range(37, 41))]
    assert "24 more" in lines[-5]


def test_json_holds_all_of_the_spectrum_and_what_a_reader_needs(run: Run, checkpoint: Path) -> None:
    said = read(run(*NET, "--format", "json").out)
    assert set(said) == {
        "format", "unit", "architecture", "hidden_size", "updates", "exponents", "stderr", "error", "trusted",
        "settled", "dimension", "steps", "sequences", "transient", "interval", "dtype", "driven", "volume_rate",
        "complete", "log_singular_values", "log_singular_values_error", "gain", "gain_error", "growth_steps",
        "state_mean", "state_spread", "features", "layers", "per_sequence", "audit", "growth", "local", "visited",
        "stacks",
    }  # fmt: skip
    (layer,) = said["layers"].values()
    assert layer["gain"] == said["gain"] == said["features"]["gradient_gain"] and layer["error"] == said["error"]


def test_figure_is_a_picture(run: Run, tmp_path: Path) -> None:
    done = run(*GRU, "--format", "figure", "--output", str(tmp_path / "new" / "s.png"))
    assert (done.code, done.out) == (OK, "")
    assert (tmp_path / "new" / "s.png").read_bytes().startswith(b"\x89PNG")


def test_output_goes_to_a_file(run: Run, tmp_path: Path) -> None:
    done = run(*GRU, "--format", "json", "--output", str(tmp_path / "s.json"))
    assert done.out == ""
    assert len(read((tmp_path / "s.json").read_text())["exponents"]) == 3


def test_whole_module_needs_trust(run: Run) -> None:
    refused = run("spectrum", "gru_module.pt", "zeros.npy")
    assert refused.code == USAGE
    assert "--trust-pickle" in refused.err
    trusted = run("spectrum", "gru_module.pt", "zeros.npy", "--trust-pickle", "--format", "json")
    assert trusted.code == OK, trusted.err
    assert read(trusted.out)["exponents"] == pytest.approx([LN_Z] * 3, rel=1e-6)


def test_code_in_a_file_is_not_run_without_trust(run: Run, directory: Path) -> None:
    sys.path.insert(0, str(directory))
    try:
        import their_model
    finally:
        sys.path.pop(0)
    torch.save({"state_dict": their_model.Touch()}, directory / "evil.ckpt")
    Path(directory / "evil.npy").write_bytes(pickle.dumps(their_model.Touch()))
    for words in (
        ("spectrum", "evil.ckpt", "x.npy", "--model", "their_model:Net"),
        ("spectrum", "evil.ckpt", "x.npy"),
        ("spectrum", "gru.pt", "evil.npy", *GRU[3:]),
        ("report", "evil.ckpt"),
    ):
        assert run(*words).code == USAGE
        assert not (directory / "touched").exists()
    run("report", "evil.ckpt", "--trust-pickle")
    assert (directory / "touched").exists()  # it would have


def test_overflowing_network_is_a_failed_measurement(run: Run) -> None:
    rnn = nn.RNN(1, 2, nonlinearity="relu")
    for weight in rnn.parameters():
        nn.init.constant_(weight, 1e38)
    torch.save(rnn.state_dict(), "huge.pt")
    done = run("spectrum", "huge.pt", "zeros.npy", "--model", "torch.nn:RNN", "--init", DEAD)
    assert (done.code, done.out) == (FAILED, "")
    assert "overflow" in done.err


# ---------------------------------------------------------------- checkpoints as people save them


def forgetful() -> nn.GRU:
    """A GRU whose exponents are all ln z, as the one of the fixture."""
    gru = nn.GRU(1, 3)
    gru.load_state_dict(torch.load("gru.pt"))
    return gru


def trained(**more: Any) -> dict[str, Any]:
    """As a training loop saves it, with the state of an optimizer that has made a step."""
    gru = forgetful()
    optimizer = torch.optim.Adam(gru.parameters(), 0.0)
    gru(torch.zeros(2, 1))[0].sum().backward()
    optimizer.step()
    return {"epoch": 3, "loss": torch.tensor(0.5), "optimizer_state_dict": optimizer.state_dict(), **more}


def below(name: str) -> dict[str, torch.Tensor]:
    return {name + key: value for key, value in forgetful().state_dict().items()}


KEPT: dict[str, Callable[[], Any]] = {
    "a loop's": lambda: trained(model_state_dict=forgetful().state_dict()),
    "model": lambda: {"model": forgetful().state_dict()},
    "state_dict": lambda: {"state_dict": forgetful().state_dict(), "best": 0.5},
    "net": lambda: {"net": forgetful().state_dict()},
    "module": lambda: {"module": forgetful().state_dict()},
    "ema": lambda: trained(ema=forgetful().state_dict()),
    "two down": lambda: {"agent": {"policy": forgetful().state_dict(), "steps": 7}},
    "DataParallel": lambda: nn.DataParallel(forgetful()).state_dict(),
    "DDP": lambda: {"model": below("module.")},
    "compiled": lambda: {"model": torch.compile(forgetful()).state_dict()},
    "DDP of compiled": lambda: below("module._orig_mod."),
    "averaged": lambda: torch.optim.swa_utils.AveragedModel(forgetful()).state_dict(),
    "in a larger network": lambda: {"state_dict": below("encoder.rnn.") | {"head.weight": torch.zeros(2, 3)}},
    "compiled in a larger one": lambda: below("encoder.rnn._orig_mod."),
    "beside one of another size": lambda: {"a": nn.GRU(1, 4).state_dict(), "b": forgetful().state_dict()},
}


@pytest.mark.parametrize("kept", KEPT)
def test_weights_are_found_where_people_keep_them(run: Run, kept: str) -> None:
    """Only with these weights are the exponents ln z."""
    torch.save(KEPT[kept](), "kept.pt")
    done = run("spectrum", "kept.pt", *GRU[2:], "--format", "json")
    assert done.code == OK, done.err
    assert read(done.out)["exponents"] == pytest.approx([LN_Z] * 3, rel=1e-6)


def test_of_several_weights_one_is_asked_for(run: Run) -> None:
    """The error names the places, and its advice works; the other place holds others."""
    torch.save(trained(model=nn.GRU(1, 3).state_dict(), ema=below("module.")), "two.pt")
    refused = run("spectrum", "two.pt", *GRU[2:])
    assert refused.code == USAGE and "in 2 places, model, ema; choose one, as --weights model." in refused.err
    ours, theirs = (run("spectrum", "two.pt", *GRU[2:], "--weights", w, "--format=json") for w in ("ema", "model"))
    assert read(ours.out)["exponents"] == pytest.approx([LN_Z] * 3, rel=1e-6)
    assert read(theirs.out)["exponents"] != pytest.approx([LN_Z] * 3, rel=1e-2)
    wrong = run("spectrum", "two.pt", *GRU[2:], "--weights", "best")
    assert wrong.code == USAGE and "weights must be one of model, ema in two.pt; got 'best'." in wrong.err


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"epoch": 3, "loss": 0.5}, "no mapping of names to tensors"),
        ([1, 2], "holds a list and in it no mapping"),
        ({"model": {"weight_ih_l0": torch.zeros(2)}}, "Missing key(s)"),
        ({"model": nn.LSTM(1, 3).state_dict()}, "size mismatch"),
    ],
)
def test_weights_that_are_not_there_are_missed_in_one_line(run: Run, content: Any, told: str) -> None:
    torch.save(content, "kept.pt")
    refused = run("spectrum", "kept.pt", *GRU[2:])
    assert (refused.code, refused.out, len(refused.err.splitlines())) == (USAGE, "", 1)
    assert told in refused.err


@pytest.mark.parametrize("change", [("rnn.", "rnn._orig_mod."), ("", "_orig_mod.")], ids=["a layer", "the whole"])
def test_a_lightning_module_that_was_compiled_is_seen_through(
    run: Run, checkpoint: Path, directory: Path, change: tuple[str, str]
) -> None:
    content = torch.load(checkpoint, weights_only=True)
    weights = content["state_dict"]
    content["state_dict"] = {k.replace(*change, 1) if k.startswith(change[0]) else k: v for k, v in weights.items()}
    torch.save(content, "compiled.ckpt")
    done = run("spectrum", "compiled.ckpt", *NET[2:], "--format", "json", "--k", "3")
    assert done.code == OK, done.err
    assert read(done.out)["exponents"] == pytest.approx(direct(directory, 3).exponents.tolist(), rel=1e-4, abs=1e-5)


def test_archives_of_numpy_are_refused_with_a_line_that_works(run: Run) -> None:
    """The line is run as it stands, with the name of an array for NAME."""
    np.savez("many.npz", x=np.zeros((20, 2, 1)), y=np.zeros(3))
    np.savez("weights.npz", **{name: value.numpy() for name, value in forgetful().state_dict().items()})
    inputs, weights = run(*GRU[:2], "many.npz", *GRU[3:]), run("spectrum", "weights.npz", *GRU[2:])
    assert inputs.code == weights.code == USAGE
    (said,), (told,) = inputs.err.splitlines(), weights.err.splitlines()
    assert "(x, y)" in said and "trust" not in said + told
    for line, name in ((said, "numpy.save("), (told, "torch.save(")):
        exec(
            name + line.partition(name)[2].partition(" writes ")[0].replace("NAME", "x"), {"numpy": np, "torch": torch}
        )
    done = run("spectrum", "weights.pt", "inputs.npy", *GRU[3:], "--format", "json")
    assert read(done.out)["exponents"] == pytest.approx([LN_Z] * 3, rel=1e-6)


# ---------------------------------------------------------------- maps that run by themselves

HENON = """
import torch
from torch import nn


class Henon(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(1.4, dtype=torch.float64))

    def forward(self, state):
        x, y = state[:, :1], state[:, 1:]
        return torch.cat([1 - self.a * x**2 + y, 0.3 * x], 1)


class AsCell(Henon):
    def forward(self, x, state):
        return super().forward(state)


class Within(nn.Module):
    def __init__(self):
        super().__init__()
        self.map = AsCell()
"""


@pytest.mark.parametrize(("name", "more"), [("Henon", ()), ("AsCell", ()), ("Within", ("--module", "map"))])
def test_a_map_of_one_s_own_runs_without_inputs(
    run: Run, directory: Path, monkeypatch: pytest.MonkeyPatch, name: str, more: tuple[str, ...]
) -> None:
    """Hénon: the determinant is 0.3 everywhere, the largest exponent 0.419 (Sprott 2003)."""
    monkeypatch.delitem(sys.modules, "their_map", raising=False)
    (directory / "their_map.py").write_text(HENON)
    key = "map.a" if more else "a"
    torch.save({key: torch.tensor(1.4, dtype=torch.float64)}, "henon.pt")
    np.save("starts.npy", np.linspace(0, 0.2, 8).reshape(4, 2))
    words = ("spectrum", "henon.pt", "--model", f"their_map:{name}", *more, "--steps", "2000", "--format=json")
    refused = run(*words)
    assert refused.code == USAGE and "--state FILE" in refused.err
    done = run(*words, "--state", "starts.npy")
    assert done.code == OK, done.err
    said = read(done.out)
    assert said["exponents"][0] == pytest.approx(0.419, abs=0.02)
    assert sum(said["exponents"]) == pytest.approx(math.log(0.3), rel=1e-6)
    assert not said["driven"] and (said["sequences"], said["steps"], said["transient"]) == (4, 1936, 64)


def test_a_layer_runs_at_zero_inputs_from_random_states(run: Run) -> None:
    """h' = tanh(2 h) leaves zero, an unstable point, for h* = tanh(2 h*), where the exponent is ln 2(1 − h*²)."""
    rnn = nn.RNN(1, 2, bias=False)
    with torch.no_grad():
        rnn.weight_hh_l0.copy_(2 * torch.eye(2))
    torch.save(rnn.state_dict(), "bare.pt")
    init = ("--model", "torch.nn:RNN", "--init", '{"input_size": 1, "hidden_size": 2, "bias": false}', "--format=json")
    there = 0.95750402407727
    assert there == pytest.approx(math.tanh(2 * there))
    first, again = (run("spectrum", "bare.pt", *init, "--steps", "400") for _ in range(2))
    assert first.out == again.out
    said = read(first.out)
    assert said["exponents"] == pytest.approx([math.log(2 * (1 - there**2))] * 2, rel=1e-4)
    assert (said["sequences"], said["driven"]) == (8, False)
    np.save("rest.npy", np.zeros((1, 3, 2)))
    stayed = read(run("spectrum", "bare.pt", *init, "--steps", "400", "--state", "rest.npy").out)
    assert stayed["exponents"] == pytest.approx([math.log(2)] * 2, rel=1e-6)


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "LSTMCell"])
def test_every_kind_of_layer_runs_by_itself(run: Run, cell: str) -> None:
    torch.save(getattr(nn, cell)(2, 3).state_dict(), "alone.pt")
    init = '{"input_size": 2, "hidden_size": 3}'
    done = run("spectrum", "alone.pt", "--steps=60", "--model", f"torch.nn:{cell}", "--init", init, "--format=json")
    assert done.code == OK, done.err
    assert len(read(done.out)["exponents"]) == (6 if "LSTM" in cell else 3)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((*GRU, "--steps", "10"), "steps run without inputs"),
        ((*GRU[:2], "none", *GRU[3:]), "--steps N"),
        ((*GRU, "--state", "zeros.npy"), "--steps N"),
        ((*GRU[:2], *GRU[3:], "--steps", "0"), "steps must be at least 1; got 0"),
        ((*GRU[:2], *GRU[3:], "--steps", "9", "--module", "encoder"), "no 'encoder'"),
    ],
)
def test_steps_and_inputs_exclude_each_other(run: Run, words: tuple[str, ...], told: str) -> None:
    refused = run(*words)
    assert refused.code == USAGE and told in refused.err and len(refused.err.splitlines()) == 1


# ---------------------------------------------------------------- score


def test_score_is_the_scorer_s(
    run: Run, checkpoint: Path, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a partial spectrum: what the score is made from must survive the file."""
    text = run(*NET, "--k", "3", "--format", "json").out
    (tmp_path / "s.json").write_text(text)
    said = read(run("score", str(tmp_path / "s.json"), "--format", "json").out)
    spectrum = direct(directory, 3)
    states = {"state_mean": spectrum.state_mean, "state_spread": spectrum.state_spread}
    score = AeLLEScorer.from_pretrained().score(
        spectrum, architecture="lstm", hidden_size=6, updates=0, steps=spectrum.steps + spectrum.transient, **states
    )
    baselines = ("baseline", "baseline_failure_probability", "baseline_takeoff_probability")
    for name in ("performance", "low", "high", "failure_probability", "familiarity", *baselines):
        assert said[name] == pytest.approx(getattr(score, name), abs=1e-3), name
    assert said["speaks"] == list(score.speaks)
    assert said["latent"] == pytest.approx(score.latent.tolist(), abs=1e-3)

    monkeypatch.setattr(sys, "stdin", StringIO(text))
    assert read(run("score", "-", "--format=json").out) == said
    monkeypatch.setattr(sys, "stdin", StringIO(text))
    assert read(run("score", "-", "--format=json", "--updates=400").out) != said


class Attentive(AeLLEScorer):
    """Keeps what it is told."""

    heard: ClassVar[dict[str, Any]] = {}

    def __init__(self) -> None: ...

    def score(self, spectrum: Any, **context: Any) -> AeLLEScore:
        self.heard.clear()
        self.heard.update(context)
        return AeLLEScore(0.5, 0.4, 0.6, 0.1, 0.9, 0.75, 0.9, torch.zeros(4), 0.5)


def test_score_tells_the_scorer_all_that_is_known(
    run: Run, checkpoint: Path, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the file what was measured, from options the rest; and options before the file."""
    monkeypatch.setattr("lightning_lyapunov.cli.commands.scorer_of", lambda _: Attentive())
    (tmp_path / "s.json").write_text(run(*NET, "--format", "json").out)
    spectrum = direct(directory, 12)
    words = ("score", str(tmp_path / "s.json"))
    assert run(*words).code == OK
    states = {"state_mean": spectrum.state_mean, "state_spread": spectrum.state_spread}
    measured = {**states, "steps": spectrum.steps + spectrum.transient}
    unknown = dict.fromkeys(("performance", "learning_rate", "adaptive", "gradient_norm"))
    made = {"architecture": "lstm", "hidden_size": 6, "updates": 0}
    assert Attentive.heard == {**made, **unknown, **{name: pytest.approx(value) for name, value in measured.items()}}

    more = ("--learning-rate=1e-3", "--adaptive", "--gradient-norm=2", "--state-mean=.1", "--state-spread=.2")
    assert run(*words, *more, "--steps", "99", "--performance=.5").code == OK
    told = {"learning_rate": 1e-3, "adaptive": True, "gradient_norm": 2.0, "state_mean": 0.1, "state_spread": 0.2}
    assert Attentive.heard == {**made, **told, "steps": 99, "performance": 0.5}
    (tmp_path / "list.json").write_text(json.dumps([-0.1, -0.5]))
    assert run("score", str(tmp_path / "list.json"), "--adaptive", "false").code == OK
    assert Attentive.heard["steps"] is None and Attentive.heard["adaptive"] is False


def test_score_of_a_file_of_an_older_version(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    """It knew neither errors nor growth, nor the states that the network visits, and is scored without."""
    said = read(run(*NET, "--format", "json").out)
    (tmp_path / "new.json").write_text(json.dumps(said))
    newer = ("error", "settled", "log_singular_values", "log_singular_values_error", "gain", "gain_error")
    newer = (*newer, "state_mean", "state_spread")
    (tmp_path / "old.json").write_text(json.dumps({name: value for name, value in said.items() if name not in newer}))
    old = run("score", str(tmp_path / "old.json"), "--format", "json")
    spectrum, known = spectrum_of(tmp_path / "new.json")
    told = {name: known[name] for name in ("architecture", "hidden_size", "updates")}
    score = AeLLEScorer.from_pretrained().score(spectrum, **told, steps=known["length"])
    assert old.code == OK and read(old.out)["performance"] == pytest.approx(score.performance, abs=1e-6)
    spectrum, _ = spectrum_of(tmp_path / "old.json")
    assert spectrum.error.tolist() == (2 * spectrum.stderr).tolist() and not spectrum.settled.any()


def test_score_of_a_list_of_exponents(run: Run, tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text(json.dumps([-0.1, -0.5, "-inf", None]))
    done = run("score", str(tmp_path / "list.json"), "--architecture", "gru", "--hidden-size", "4")
    assert done.code == OK
    exponents = torch.tensor([-0.1, -0.5, -math.inf, math.nan], dtype=torch.float64)
    score = AeLLEScorer.from_pretrained().score(exponents, architecture="gru", hidden_size=4)
    assert f"{score.performance:.3f}" in done.out.splitlines()[0]


def test_score_warns_of_what_it_does_not_know(run: Run, tmp_path: Path) -> None:
    """Of low familiarity, and of skill that was not told: before training there is none to tell."""
    (tmp_path / "list.json").write_text(json.dumps([-0.1, -0.5, -0.9, -1.5]))
    words = ("score", str(tmp_path / "list.json"), "--hidden-size", "32")
    strange, trained = run(*words, "--updates", "1000000", "--format=json"), run(*words, "--updates", "40")
    assert read(strange.out)["familiarity"] < 0.3 and "warning: the familiarity of 0." in strange.err
    assert read(run(*words, "--updates=40", "--format=json").out)["familiarity"] >= 0.3
    assert "familiarity" not in trained.err and "--performance" in trained.err
    assert run(*words, "--updates", "0").err == ""
    assert "--performance" not in run(*words, "--updates", "40", "--performance", "0.4").err


def test_score_says_what_is_unfamiliar(run: Run, tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text(json.dumps([-0.1, -0.5, -0.9, -1.5]))
    long = ("score", str(tmp_path / "list.json"), "--updates", "1000000")
    assert "  unlike those known in updates: 1,000,000 (known: 0 to 2,000)" in run(*long).out.splitlines()
    assert read(run(*long, "--format=json").out)["unfamiliar"][0] == "updates: 1,000,000 (known: 0 to 2,000)"
    assert "updates" not in run(*long[:2]).out


# ---------------------------------------------------------------- report


def test_report_of_a_checkpoint(run: Run, directory: Path) -> None:
    done = run("report", "fit.ckpt", "--title", "My <run>")
    assert (done.code, done.out) == (OK, "fit.html\n")
    page = (directory / "fit.html").read_text(encoding="utf-8")
    assert "My &lt;run&gt;" in page
    assert page.count("<img ") >= 3
    saved = torch.load("fit.ckpt", weights_only=True)["callbacks"]
    (state,) = [value for key, value in saved.items() if key.startswith("LyapunovSpectrumCallback")]
    assert f"{len(state['history']['measurements'])} measurements" in page


def test_report_asks_which_of_two_histories(run: Run, directory: Path) -> None:
    content = torch.load(directory / "fit.ckpt", weights_only=True)
    ((key, state),) = content["callbacks"].items()
    content["callbacks"][key.replace("'lyapunov'", "'other'")] = state
    torch.save(content, directory / "two.ckpt")
    asked = run("report", "two.ckpt")
    assert asked.code == USAGE
    assert "lyapunov, other" in asked.err


def test_report_of_weights_alone_says_what_is_missing(run: Run, directory: Path) -> None:
    """As gluonts saves them, and ModelCheckpoint(save_weights_only=True): nobody forgot the callback."""
    fit = trainer(LyapunovSpectrumCallback(k=2, report=str(directory / "pages")))
    fit.fit(Regressor(), loader(), loader())
    fit.save_checkpoint("weights.ckpt", weights_only=True)
    (line,) = run("report", "weights.ckpt").err.splitlines()
    assert "holds weights alone" in line and "save_weights_only=False" in line and "was the Trainer" not in line
    assert "LyapunovSpectrumCallback(report='reports')" in line
    assert list((directory / "pages").rglob("*.html"))  # which the advice comes to
    fit.save_checkpoint("whole.ckpt", weights_only=False)
    assert run("report", "whole.ckpt").code == OK


def test_report_of_a_run_without_the_callback_names_those_it_had(run: Run) -> None:
    content = torch.load("fit.ckpt", weights_only=True)
    torch.save({**content, "callbacks": {"ModelCheckpoint{'monitor': None}": {}}}, "other.ckpt")
    (line,) = run("report", "other.ckpt").err.splitlines()
    assert "without a LyapunovSpectrumCallback; its callbacks with a state: ModelCheckpoint." in line


def test_report_of_a_checkpoint_of_the_first_version(run: Run) -> None:
    """Whose history knew steps, exponents and metrics alone, the metrics by the keys they were logged under."""
    content = torch.load("fit.ckpt", weights_only=True)
    ((key, state),) = content["callbacks"].items()
    old = [
        {
            **{name: measured[name] for name in ("step", "epoch", "exponents")},
            "metrics": {f"lyapunov/{name}": value for name, value in measured["metrics"].items()},
        }
        for measured in state["history"]["measurements"]
    ]
    content["callbacks"] = {key: {"history": {"measurements": old}}}
    torch.save(content, "old.ckpt")
    done = run("report", "old.ckpt")
    assert done.code == OK, done.err
    assert f"{len(old)} measurements" in Path("old.html").read_text(encoding="utf-8")


# ---------------------------------------------------------------- bank and demo


def test_bank_is_built_by_the_same_function(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The trial's six populations are to be trained where and in as many processes as was said."""
    built: list[Any] = []
    monkeypatch.setattr(bank, "build", lambda *arguments: built.append(arguments))
    done = run("bank", "build", str(tmp_path / "records"), "--smoke", "--jobs", "2")
    ((populations, directory, jobs),) = built
    assert (len(populations), directory, jobs) == (6, tmp_path / "records", 2)
    assert done.code == USAGE
    assert "records of populations" in done.err  # as nothing was trained


def test_bank_fit_and_report_are_done_by_the_same_functions(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of the module that ``make bank-report`` runs; the scorer that was fitted is one that "score" takes."""
    from lightning_lyapunov.bank.report import writing

    asked: list[Any] = []
    general, weights = AeLLEScorer.from_pretrained(), tmp_path / "w.safetensors"
    monkeypatch.setattr("lightning_lyapunov.bank.records.Bank.load", lambda path: path)
    monkeypatch.setattr(writing, "fit_on", lambda bank, seed: asked.append((bank, seed)) or general)
    done = run("bank", "fit", "records", str(weights), "--seed", "7")
    assert (done.code, asked) == (OK, [(Path("records"), 7)])
    assert done.out == f"fitted on {general.card['networks']} networks: {weights}\n"
    assert AeLLEScorer.load(weights).card == general.card

    monkeypatch.setattr(writing, "write_report", lambda *arguments: asked.append(arguments))
    places = ("--weights", "w", "--page", "p.md", "--picture", "p.png", "--kept", "kept")
    assert run("bank", "report", "records", *places).code == OK
    assert asked[1] == tuple(map(Path, ("records", "w", "p.md", "p.png", "kept")))


def test_bank_on_a_cluster_names_what_is_missing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for backend, needed in (("ray", "lightning-lyapunov[ray]"), ("dask", "dask[distributed]")):
        monkeypatch.setitem(sys.modules, backend, None)
        refused = run("bank", "build", "records", "--smoke", "--backend", backend)
        assert refused.code == USAGE
        assert needed in refused.err


def test_ray_is_a_backend_that_tells_of_each_population_as_it_ends() -> None:
    pytest.importorskip("ray")
    with bank._backend("ray"):
        backend, _ = joblib.parallel.get_active_backend()
        assert "ray" in type(backend).__mro__[1].__module__
        assert backend.supports_return_generator


def test_demo_is_told_where_and_from_which_seed(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(lightning_lyapunov.demo, "run", lambda directory, seed: asked.append((directory, seed)))
    assert run("demo", "--directory", str(tmp_path), "--seed", "3").code == OK
    assert asked == [(tmp_path, 3)]


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("measure",), "no command measure; there are spectrum, depth, score, report, bank, demo, completion."),
        (("spectum",), "no command spectum; did you mean spectrum?"),
        (("bank", "biuld"), "no command biuld; did you mean build?"),
        (("spectrum", "gru.pt"), "spectrum: inputs is missing. lightning-lyapunov spectrum --help"),
        ((*GRU[:3], "more.npy", *GRU[3:]), "spectrum: more.npy is one word too many."),
        (("spectrum", "none.pt", "zeros.npy", "--model", "torch.nn:GRU"), "there is no file none.pt"),
        ((*GRU[:2], "none.npy", *GRU[3:]), "there is no file none.npy"),
        ((*GRU, "--k", "many"), "--k takes a whole number; got many."),
        ((*GRU, "--k"), "--k takes a value."),
        ((*GRU, "--k", "4"), "k must lie in [1, 3]"),
        *(((*GRU, option, "-1"), "got -1.") for option in ("--k", "--interval", "--transient", "--growth")),
        (("spectrum", "gru.pt", *GRU[3:], "--steps", "0"), "steps must be at least 1; got 0."),
        (("depth", *GRU[1:], "--samples", "0"), "samples must be at least 1"),
        *((("score", "list.json", option, "-1"), "got -1.") for option in ("--hidden-size", "--updates", "--steps")),
        (("bank", "build", "records", "--jobs", "0"), "jobs must be at least 1, or -1"),
        ((*GRU, "--format", "xml"), "--format"),
        ((*GRU, "--dtype", "half"), "--dtype takes float32 or float64; got half."),
        ((*GRU, "--transiet", "3"), "spectrum has no option --transiet; did you mean --transient?"),
        ((*GRU, "--module", "encoder"), "no 'encoder'"),
        ((*GRU, "--colour", "red"), "--colour"),
        (GRU[:5], "--init"),
        (("spectrum", "gru.pt", "zeros.npy", "--model", "torch.nn:Nothing"), "torch.nn:Nothing"),
        ((*NET, "--init", '{"sise": 4}'), "--init: their_model:Net takes no sise; did you mean size?"),
        ((*NET, "--init", '{"colour": 4}'), "--init: their_model:Net takes no colour; it takes size."),
        (("score", "net.ckpt"), "if it is a checkpoint, give it to"),
        (("spectrum", "gru.pt", "zeros.npy", "--model", "nowhere.at.all:Net"), "nowhere"),
        (("spectrum", "gru.pt", "zeros.npy", "--model", "torch:Tensor"), "class of modules"),
        (("score", "zeros.npy"), "--format json"),
        (("score", "none.json"), "none.json"),
        (("report", "gru.pt"), "LyapunovSpectrumCallback"),
        (("bank", "fit", "none.safetensors", "w.safetensors"), "none.safetensors"),
    ],
)
def test_errors_are_one_line_on_standard_error(run: Run, words: tuple[str, ...], told: str) -> None:
    done = run(*words)
    assert (done.code, done.out) == (USAGE, "")
    (line,) = done.err.splitlines()
    assert line.startswith("lightning-lyapunov: ") and line[-1] in ".?"
    assert told in line
    assert not re.search(r"<class|Literal|NoneType|jsonargparse|Parser key|subcommand", line)


def test_debug_shows_where(run: Run) -> None:
    assert "Traceback" in run("report", "gru.pt", "--debug").err


def test_ctrl_c_is_no_traceback(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bank, "build", interrupt)
    done = run("bank", "build", str(tmp_path), "--smoke")
    assert (done.code, done.err) == (INTERRUPTED, "lightning-lyapunov: stopped.\n")


def test_without_jsonargparse_its_extra_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jsonargparse", None)
    done = run("demo")
    assert done.code == USAGE
    assert done.err.splitlines() == [
        "lightning-lyapunov: the command line needs jsonargparse, which is not installed: pip install "
        "'lightning-lyapunov[cli]' brings it."
    ]


def test_help_tells_what_each_option_is(run: Run) -> None:
    done = run("spectrum", "--help")
    assert done.code == OK
    for words in ("--trust-pickle ", "Number of leading exponents", "{table,json,figure}", "--output FILE", "--k N"):
        assert words in done.out


@pytest.mark.parametrize("columns", [80, 100])
def test_help_of_every_command_fits_and_names_no_types(run: Run, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    commands = ["spectrum", "depth", "score", "report", "bank", "demo", "completion"]
    for words in ([], *([command] for command in commands), *(["bank", sub] for sub in ("build", "fit", "report"))):
        told = run(*words, "--help").out
        assert max(map(len, told.splitlines())) <= columns
        assert not re.search(r"<class|Literal\[|Optional|Union|NoneType|type:|null|\bPath\b|lightning_lyapunov\.", told)
        options = set(re.findall(r"^ +(--[\w-]+)", told, re.MULTILINE))
        assert not [option for option in options if "_" in option]


def test_bare_commands_print_their_help(run: Run) -> None:
    for words, names in (((), ("spectrum", "depth", "score", "report", "bank", "demo", "completion")),
                         (("bank",), ("build", "fit", "report"))):  # fmt: skip
        done = run(*words)
        assert (done.code, done.err) == (OK, "")
        assert re.findall(r"^  (\w+)  ", done.out, re.MULTILINE) == list(names)


def test_version(run: Run) -> None:
    done = run("--version")
    assert (done.code, done.out) == (OK, f"lightning-lyapunov {lightning_lyapunov.__version__}\n")


# ---------------------------------------------------------------- as a process of its own


def test_python_m_and_exit_code(directory: Path) -> None:
    command = [sys.executable, "-m", "lightning_lyapunov", "report", "none.ckpt"]
    refused = subprocess.run(command, cwd=directory, capture_output=True, text=True)
    assert (refused.returncode, refused.stdout) == (USAGE, "")
    assert refused.stderr == "lightning-lyapunov: there is no file none.ckpt.\n"


def test_a_reader_that_leaves_is_no_error(directory: Path) -> None:
    """The pipe is closed before anything is written to it."""
    command = [sys.executable, "-m", "lightning_lyapunov", *GRU]
    process = subprocess.Popen(command, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == OK
