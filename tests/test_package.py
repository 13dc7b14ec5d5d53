"""What a user installs: the wheel, what it asks for, and mathematics that needs torch alone."""

import hashlib
import json
import math
import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import lightning_lyapunov

ROOT = Path(__file__).parents[1]
MALICIOUS = ["2.6.2", "2.6.3"]

IMPORTS = """
import sys, lightning_lyapunov
lightning_lyapunov.lyapunov_spectrum
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""

# Without recurrent weights a GRU is h' = (1 - z) n + z h with a constant gate z = sigmoid(b): each exponent is ln z.
MEASURE = """
import json, torch, lightning_lyapunov
gru = torch.nn.GRU(input_size=1, hidden_size=3)
with torch.no_grad():
    for weight in gru.parameters():
        weight.zero_()
    gru.bias_ih_l0[3:6] = 1.0  # b, the bias of the update gate
spectrum = lightning_lyapunov.lyapunov_spectrum(gru, torch.zeros(20, 2, 1))
print(json.dumps([lightning_lyapunov.__file__, spectrum.exponents.tolist()]))
"""

# A scorer that reached for the network or for pickle would fail here.
SCORE = """
import json, pickle, socket, torch
def refuse(*args, **kwargs): raise AssertionError("a scorer comes from the wheel alone")
socket.socket = socket.create_connection = pickle.load = pickle.loads = pickle.Unpickler = refuse
import lightning_lyapunov
before = torch.random.get_rng_state()
scorer = lightning_lyapunov.AeLLEScorer.from_pretrained()
score = scorer.score(torch.linspace(-0.05, -2.0, 32), architecture="gru", hidden_size=32, updates=0)
assert torch.equal(before, torch.random.get_rng_state())
print(json.dumps([lightning_lyapunov.__file__, score.low, score.performance, score.high, score.familiarity]))
"""


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command apart from the settings of pip and Python around it, and return what it printed."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))}
    env["PIP_CONFIG_FILE"] = os.devnull
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the wheel and the sdist of this checkout."""
    directory = tmp_path_factory.mktemp("built")
    run(sys.executable, "-m", "hatchling", "build", "-d", directory, cwd=ROOT)
    return directory


@pytest.fixture(scope="module")
def wheel(built: Path) -> zipfile.ZipFile:
    (path,) = built.glob("*.whl")
    return zipfile.ZipFile(path)


@pytest.fixture(scope="module")
def requirements(wheel: zipfile.ZipFile) -> list[Requirement]:
    """What the wheel asks for, its extras included, except itself."""
    # By its name: a zipfile.Path of the open file would have that list directories too, to the tests that follow.
    (info,) = [path for path in zipfile.Path(str(wheel.filename)).iterdir() if path.name.endswith(".dist-info")]
    declared = [Requirement(line) for line in PathDistribution(info).requires or ()]
    return [requirement for requirement in declared if requirement.name != "lightning-lyapunov"]


@pytest.fixture(scope="module")
def user(wheel: zipfile.ZipFile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new environment, outside the checkout, that holds the wheel and borrows our dependencies."""
    home = tmp_path_factory.mktemp("user")
    run(sys.executable, "-m", "venv", home / "venv", cwd=home)
    python = home / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--no-deps", "--no-index", Path(str(wheel.filename)), cwd=home)
    run(python, "-m", "pip", "uninstall", "--yes", "setuptools", cwd=home)  # up to Python 3.11, one too old for torch
    # The .pth files of a directory named by a .pth file are not read: our editable install stays out of sight.
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=home).strip())
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    return python


def test_importing_the_mathematics_imports_torch_alone(tmp_path: Path) -> None:
    imported = set(run(sys.executable, "-c", IMPORTS, cwd=tmp_path).split())
    assert "torch" in imported
    heavy = {"lightning", "pytorch_lightning", "torchmetrics", "matplotlib", "wandb", "tensorboard", "sklearn"}
    assert not imported & heavy


def test_installed_wheel_measures_a_known_spectrum(user: Path) -> None:
    file, exponents = json.loads(run(user, "-I", "-c", MEASURE, cwd=user.parent))
    assert Path(file).is_relative_to(user.parents[1])
    assert exponents == pytest.approx([-math.log1p(math.exp(-1.0))] * 3, rel=1e-6)


def test_installed_wheel_scores_a_spectrum_offline(user: Path) -> None:
    file, low, performance, high, familiarity = json.loads(run(user, "-I", "-c", SCORE, cwd=user.parent))
    assert Path(file).is_relative_to(user.parents[1])
    assert 0 <= low <= performance <= high <= 1
    assert familiarity > 0.5


def test_weights_and_bank_are_small_enough_to_ship(wheel: zipfile.ZipFile) -> None:
    sizes = {info.filename: info.file_size for info in wheel.infolist()}
    assert sizes["lightning_lyapunov/aelle/weights/general.safetensors"] < 5e6
    assert sizes["lightning_lyapunov/bank/bank.safetensors"] < 6e6


def test_card_names_the_weights_beside_it(wheel: zipfile.ZipFile) -> None:
    weights = wheel.read("lightning_lyapunov/aelle/weights/general.safetensors")
    card = wheel.read("lightning_lyapunov/aelle/weights/general.md").decode()
    assert hashlib.sha256(weights).hexdigest() in card


def test_installing_replaces_no_dependency(user: Path) -> None:
    """Without an index pip fails if anything is missing, and says so if it changes anything."""
    printed = run(user, "-m", "pip", "install", "--no-index", "lightning-lyapunov", cwd=user.parent)
    assert "Requirement already satisfied: torch>=" in printed
    assert "installed" not in printed.replace("already installed", "")


def test_wheel_holds_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    package = ROOT / "lightning_lyapunov"
    files = {path.relative_to(ROOT).as_posix() for path in package.rglob("*") if path.is_file()}
    shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert shipped == {name for name in files if "__pycache__" not in name}
    assert "lightning_lyapunov/py.typed" in shipped
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in wheel.namelist())


def test_torch_is_asked_for_plainly(requirements: list[Requirement]) -> None:
    """An upper bound, a build or an address would replace the torch that a user chose for their machine."""
    (torch,) = [requirement for requirement in requirements if requirement.name == "torch"]
    assert [clause.operator for clause in torch.specifier] == [">="]
    assert "+" not in str(torch)
    assert torch.url is None
    assert torch.marker is None


def test_only_known_bad_releases_are_excluded(requirements: list[Requirement]) -> None:
    assert {clause.operator for requirement in requirements for clause in requirement.specifier} == {">=", "!="}
    core = {requirement.name: requirement.specifier for requirement in requirements if requirement.marker is None}
    lightning = {"lightning", "pytorch-lightning", "torchmetrics"}
    assert core.keys() == {"torch", *lightning, "tensorboard", "wandb", "safetensors"}
    for name in ("lightning", "pytorch-lightning"):
        assert list(core[name].filter(["2.4.0", *MALICIOUS, "2.6.6"])) == ["2.4.0", "2.6.6"]


def test_pins_satisfy_what_the_package_declares(requirements: list[Requirement]) -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins: dict[str, list[Version]] = {}
    for pin in [Requirement(line) for line in lines if line and not line.startswith("#")]:
        (clause,) = pin.specifier
        pins.setdefault(canonicalize_name(pin.name), []).append(Version(clause.version))
    for requirement in requirements:
        assert all(version in requirement.specifier for version in pins[canonicalize_name(requirement.name)])
    assert not any(version.local for version in pins["torch"])


def test_sdist_holds_what_the_tests_need(built: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = archive.getnames()
    shipped = {name.partition("/")[2] for name in names}
    assert {"Makefile", "constraints.txt", "pyproject.toml", "LICENSE", "tests/test_package.py"} <= shipped


def test_every_public_name_exists() -> None:
    for name in lightning_lyapunov.__all__:
        assert getattr(lightning_lyapunov, name).__doc__, name
