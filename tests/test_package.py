"""What a user installs: the wheel, what it asks for, and mathematics that needs torch alone."""

import ast
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
from pathlib import Path, PurePosixPath

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import lightning_lyapunov

ROOT = Path(__file__).parents[1]
MALICIOUS = ["2.6.2", "2.6.3"]
FOLDERS = ("lightning_lyapunov", "tests", "examples", "benchmarks", "clients", "docs")
FILES = {
    "README.md", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "SECURITY.md", "Makefile", "mkdocs.yml",
    "pyproject.toml", ".gitignore", "constraints.txt", "constraints-oldest.txt", "PKG-INFO",
}  # fmt: skip
"""What the sdist holds: these folders, and these files beside them."""
KINDS = {".py", ".typed", ".html", ".json", ".safetensors", ".md", ".png", ".txt", ".jsonl", ".css"}
"""Kinds of file in the folders."""
SOURCES = [path for folder in ("lightning_lyapunov", "examples") for path in sorted((ROOT / folder).rglob("*.py"))]
"""What users run."""

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
def sdist(built: Path) -> Path:
    (path,) = built.glob("*.tar.gz")
    return path


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
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
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


def test_weights_are_small_enough_to_ship_and_the_bank_stays_at_home(wheel: zipfile.ZipFile) -> None:
    sizes = {info.filename: info.file_size for info in wheel.infolist()}
    assert sizes["lightning_lyapunov/aelle/weights/general.safetensors"] < 5e6
    assert not [name for name in sizes if name.startswith(("bank", "lightning_lyapunov/bank")) and ".safe" in name]


def test_card_names_the_weights_beside_it(wheel: zipfile.ZipFile) -> None:
    weights = wheel.read("lightning_lyapunov/aelle/weights/general.safetensors")
    card = wheel.read("lightning_lyapunov/aelle/weights/general.md").decode()
    assert hashlib.sha256(weights).hexdigest() in card


def test_installing_replaces_no_dependency(user: Path) -> None:
    """Without an index pip fails if anything is missing, and says so if it changes anything; with every extra."""
    everything = "lightning-lyapunov[plot,cli,optuna,ray,demo,bank,test]"
    printed = run(user, "-m", "pip", "install", "--no-index", everything, cwd=user.parent)
    assert "Requirement already satisfied: torch>=" in printed
    assert "installed" not in printed.replace("already installed", "")


def test_wheel_holds_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    about = {name.partition(".dist-info/")[2] for name in wheel.namelist() if ".dist-info/" in name}
    shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert shipped == files_on_disk("lightning_lyapunov")
    assert {PurePosixPath(name).suffix for name in shipped} <= KINDS
    assert "lightning_lyapunov/py.typed" in shipped
    assert about == {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"}


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
        assert list(core[name].filter(["2.6.1", *MALICIOUS, "2.6.4"])) == ["2.6.1", "2.6.4"]


def pins_of(file: str) -> dict[str, list[Version]]:
    """Version by name; several where it depends on the Python."""
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    pins: dict[str, list[Version]] = {}
    for pin in [Requirement(line) for line in lines if line and not line.startswith("#")]:
        (clause,) = pin.specifier
        assert clause.operator == "=="
        pins.setdefault(canonicalize_name(pin.name), []).append(Version(clause.version))
    return pins


def test_pins_satisfy_what_the_package_declares(requirements: list[Requirement]) -> None:
    pins = pins_of("constraints.txt")
    for requirement in requirements:
        assert all(version in requirement.specifier for version in pins[canonicalize_name(requirement.name)])
    assert not any(version.local for version in pins["torch"])


def test_oldest_pins_are_the_floors_that_the_package_declares(requirements: list[Requirement]) -> None:
    """So that `make test-oldest` tries what is promised; only what documents and lints is not part of it."""
    oldest = pins_of("constraints-oldest.txt")
    tested = [r for r in requirements if not any(f'"{extra}"' in str(r.marker) for extra in ("docs", "dev"))]
    assert len(tested) > 20
    for requirement in tested:
        (floor,) = [clause.version for clause in requirement.specifier if clause.operator == ">="]
        assert oldest[canonicalize_name(requirement.name)] == [Version(floor)], requirement.name


def files_on_disk(*folders: str) -> set[str]:
    files = (path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file())
    return {path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts}


def test_sdist_holds_sources_tests_and_documents_and_nothing_else(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
    assert all(member.isfile() for member in members)  # no links, no devices
    shipped = {member.name.partition("/")[2] for member in members}
    assert shipped == files_on_disk(*FOLDERS) | FILES
    within = [PurePosixPath(name) for name in shipped - FILES]
    assert {path.suffix for path in within} <= KINDS
    assert not {part for path in within for part in path.parts} & {"runs", "site", "wandb", "mlruns", "lightning_logs"}
    assert not any(part.startswith(".") for path in within for part in path.parts)


def test_builds_are_reproducible_from_the_sdist_too(built: Path, sdist: Path, tmp_path: Path) -> None:
    """Another directory, other file times and no version control give the same bytes."""
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path)
    (source,) = tmp_path.iterdir()
    for path in source.rglob("*"):
        os.utime(path, (1e9, 1e9))
    run(sys.executable, "-m", "hatchling", "build", "-d", tmp_path / "again", cwd=source)
    again = {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()}
    assert {Path(name).suffix for name in again} == {".gz", ".whl"}
    assert again == {path.name: path.read_bytes() for path in built.iterdir() if path.name != ".gitignore"}


# ---------------------------------------------------------------- other systems


def test_names_of_files_are_good_on_every_system(wheel: zipfile.ZipFile, sdist: Path) -> None:
    """Windows knows no case, forbids some characters, and reserves the names of devices."""
    with tarfile.open(sdist) as archive:
        for names in (wheel.namelist(), archive.getnames()):
            assert len({name.lower() for name in names}) == len(names)
            for part in {part for name in names for part in name.split("/")}:
                assert not set(part) & set('<>:"\\|?*') and part.isascii() and part.isprintable()
                assert not part.endswith((".", " "))
                assert part.split(".")[0].upper() not in {"CON", "PRN", "AUX", "NUL"}
                assert not (part[:3].upper() in {"COM", "LPT"} and part[3:4].isdigit())
            assert max(map(len, names)) < 150  # of 260 for the whole path


# Modules and functions that are not on Windows.
POSIX = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "termios", "tty"}
POSIX_OS = {"fork", "forkpty", "getuid", "geteuid", "getppid", "killpg", "mkfifo", "nice", "setsid", "sysconf", "uname"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_text_names_its_encoding_and_nothing_needs_posix(path: Path) -> None:
    """Read from the source: what a file is encoded in by default, and what os can do, differ between systems."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert not {alias.name for alias in node.names} & POSIX
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
            assert node.attr not in POSIX_OS
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            assert name not in {"open", "read_text", "write_text"} or names_encoding(node), f"line {node.lineno}"


def names_encoding(call: ast.Call) -> bool:
    """Whether a call that opens a file says how text is encoded, or that it is none."""
    given = [argument.value for argument in call.args if isinstance(argument, ast.Constant)]
    given += [word.value.value for word in call.keywords if isinstance(word.value, ast.Constant) and word.arg == "mode"]
    named = any(word.arg == "encoding" for word in call.keywords) or "utf-8" in given
    binary = any(isinstance(value, str) and "b" in value and set(value) <= set("rwxab+") for value in given)
    return named or binary or ast.unparse(call.func) == "os.open"


# ---------------------------------------------------------------- what could run code or reach others

REACHES_OUT = {
    "asyncio", "ctypes", "ftplib", "http", "marshal", "multiprocessing", "requests", "shelve", "smtplib", "socket",
    "ssl", "subprocess", "urllib", "webbrowser",
}  # fmt: skip


@pytest.mark.parametrize("path", [p for p in SOURCES if FOLDERS[0] in p.parts], ids=lambda path: path.stem)
def test_package_reaches_for_no_network_no_process_and_no_pickle(path: Path) -> None:
    """Read from the source, for what no test happens to run; SECURITY.md promises it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not {name.partition(".")[0] for name in names} & REACHES_OUT
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in {"eval", "exec", "compile", "os.system", "pickle.load", "pickle.loads"}
            assert called != "torch.load" or "weights_only" in {word.arg for word in node.keywords}


def test_every_public_name_exists() -> None:
    for name in lightning_lyapunov.__all__:
        assert getattr(lightning_lyapunov, name).__doc__, name


def test_no_trainer_gets_the_callback_unasked(wheel: zipfile.ZipFile) -> None:
    """Lightning adds what the group ``lightning.pytorch.callbacks_factory`` names to every Trainer there is."""
    (info,) = [path for path in zipfile.Path(str(wheel.filename)).iterdir() if path.name.endswith(".dist-info")]
    assert {point.group for point in PathDistribution(info).entry_points} == {"console_scripts"}
