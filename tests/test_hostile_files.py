"""Damaged, foreign and malicious files are refused by name, and nothing in them is executed.

Oracle of the mutated ones: a file holds a digest of what it says, so it is either refused or says what it said before,
which shows in the bytes it has when saved again. Those of the forged ones, whose digest is left out as anyone could:
the sizes that the file itself implies.
"""

import hashlib
import json
import math
import pickle
import random
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_records import record, write_bank_1

from lightning_lyapunov import AeLLEScorer
from lightning_lyapunov import files as module
from lightning_lyapunov.aelle import scorer as scorers
from lightning_lyapunov.bank import bank_1
from lightning_lyapunov.bank.records import PER_NETWORK, Bank, read_record, write_record
from lightning_lyapunov.cli.reading import array_of, history_of, loaded, spectrum_of
from lightning_lyapunov.reading.history import History, Measurement

WEIGHTS = Path(scorers.__file__).parent / "weights" / "general.safetensors"
NO = (
    r"path must be a file of format lightning_lyapunov\.(aelle/2|bank/1|bank/2); "
    r".*{} is none, or not as it was written: .*"
)
Header = dict[str, Any]


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


READERS: dict[str, Callable[[Path], Any]] = {"scorer": AeLLEScorer.load, "bank": Bank.load, "record": read_record}


def save_again(kind: str, content: Any, path: Path) -> bytes:
    """What was read, as bytes. Banks of the format before are written no more: how they were made, and all numbers."""
    if kind == "bank":
        tensors = [getattr(content, name).contiguous().numpy().tobytes() for name in PER_NETWORK]
        return json.dumps(content.networks).encode() + b"".join(tensors)
    if kind == "record":
        write_record(content, path)
    else:
        content.save(path)
    return path.read_bytes()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A file of each kind, small ones: a scorer of one's own with the general one inside, a record, a bank of three."""
    directory = tmp_path_factory.mktemp("written")
    paths = {"scorer": directory / "scorer", "bank": directory / "bank", "record": directory / "record"}
    write_record(record("adding-20", "rnn", 4, 6), paths["record"])
    write_bank_1(paths["bank"])
    spectra = [torch.linspace(0.1, -i, 8) for i in range(1, 9)]
    AeLLEScorer.fit(spectra, torch.linspace(0, 1, 8)).save(paths["scorer"])
    return {kind: path.read_bytes() for kind, path in paths.items()}


def parts_of(content: bytes) -> tuple[Header, bytes]:
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def joined(header: bytes, data: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + data


# ------------------------------------------------------------------ damage


def flipped(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def flipped_in_header(content: bytes, rng: random.Random) -> bytes:
    end = 8 + int.from_bytes(content[:8], "little")
    return flipped(content[:end], rng) + content[end:]


def overwritten(content: bytes, rng: random.Random) -> bytes:
    start, length = rng.randrange(len(content)), rng.choice((1, 4, 64, 4096))
    return (
        content[:start] + (rng.randbytes(length) if rng.random() < 0.5 else bytes(length)) + content[start + length :]
    )


def cut_off(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.choice((rng.randrange(len(content)), rng.randrange(64), len(content) - 1))]


def cut_out(content: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(content))
    return content[:start] + content[start + rng.choice((1, 8, 512)) :]


def put_in(content: bytes, rng: random.Random) -> bytes:
    start, from_ = rng.randrange(len(content) + 1), rng.randrange(len(content))
    return content[:start] + content[from_ : from_ + rng.choice((1, 8, 512))] + content[start:]


def exchanged(content: bytes, rng: random.Random) -> bytes:
    """Two stretches of the same length."""
    length = rng.choice((1, 4, 32))
    one, two = sorted(rng.sample(range(len(content) // length), 2))
    a, b = (content[i * length : (i + 1) * length] for i in (one, two))
    return b"".join(
        (content[: one * length], b, content[(one + 1) * length : two * length], a, content[(two + 1) * length :])
    )


def relengthed(content: bytes, rng: random.Random) -> bytes:
    """The header claims another length."""
    return rng.choice((0, 1, 2**16, 2**40, 2**63, 2**64 - 1, rng.randrange(2**12))).to_bytes(8, "little") + content[8:]


def respelt(content: bytes, rng: random.Random) -> bytes:
    """The same said with other spaces and in another order: the one change that must not matter."""
    header, data = parts_of(content)
    keys = list(header)
    rng.shuffle(keys)
    return joined(json.dumps({key: header[key] for key in keys}, indent=rng.randrange(4)).encode(), data)


DAMAGE = (flipped, flipped_in_header, overwritten, cut_off, cut_out, put_in, exchanged, relengthed, respelt)


def survivors(kind: str, content: bytes, count: int, path: Path) -> dict[str, int]:
    """How many of so many damaged files say what was said, by kind of damage; all others are refused by name."""
    path.write_bytes(content)
    said = save_again(kind, READERS[kind](path), path)
    found = dict.fromkeys((damage.__name__ for damage in DAMAGE), 0)
    for number in range(count):
        damage = DAMAGE[number % len(DAMAGE)]
        path.write_bytes(damage(content, random.Random(f"{kind} {number}")))
        try:
            loaded = READERS[kind](path)
        except ValueError as error:
            assert str(path) in str(error)
        else:
            assert save_again(kind, loaded, path) == said, (damage.__name__, number)
            found[damage.__name__] += 1
    return found


@pytest.mark.parametrize("count", [405, pytest.param(3600, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", READERS)
def test_damaged_files_are_refused_or_say_what_they_said(
    kind: str, count: int, written: dict[str, bytes], tmp_path: Path
) -> None:
    found = survivors(kind, written[kind], count, tmp_path / "file")
    assert found["respelt"] == count // len(DAMAGE)
    assert found["flipped"] + found["cut_off"] + found["relengthed"] == 0


@pytest.mark.parametrize("kind", READERS)
def test_every_bit_of_a_value_counts(kind: str, written: dict[str, bytes], tmp_path: Path) -> None:
    """One bit, the last of the data and so a value, that no check of sizes would see."""
    changed = bytearray(written[kind])
    changed[-1] ^= 1
    (tmp_path / "file").write_bytes(changed)
    with pytest.raises(ValueError, match=NO.format("file") + "sha256"):
        READERS[kind](tmp_path / "file")


def test_the_shipped_scorer_is_held_to_its_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the digest in the file; that the card is heeded too stands in test_scorer.py."""
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "general.md").write_bytes(WEIGHTS.with_suffix(".md").read_bytes())
    content = bytearray(WEIGHTS.read_bytes())
    monkeypatch.setattr(scorers, "files", lambda package: tmp_path)
    (folder / "general.safetensors").write_bytes(content)
    AeLLEScorer.from_pretrained()
    content[-1] ^= 1
    (folder / "general.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=NO.format("general.safetensors") + "sha256"):
        AeLLEScorer.from_pretrained()


@pytest.fixture
def any_bank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of the format before need not be the one that was shipped."""
    monkeypatch.setattr(bank_1, "SHA256", None)


def test_the_shipped_bank_is_held_to_its_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of the format before that hold no digest are held to that of the one that was shipped."""
    copy = tmp_path / "bank.safetensors"
    write_bank_1(copy)
    content = bytearray(forged(copy.read_bytes(), lambda header: None))
    monkeypatch.setattr(bank_1, "SHA256", hashlib.sha256(content).hexdigest())
    copy.write_bytes(content)
    Bank.load(copy)
    content[-1] ^= 1
    copy.write_bytes(content)
    with pytest.raises(ValueError, match=NO.format("bank.safetensors") + "sha256"):
        Bank.load(copy)


# ------------------------------------------------------------------ forgeries


def forged(content: bytes, change: Callable[[Header], Any], data: Callable[[bytes], bytes] = bytes) -> bytes:
    """A file without digest whose header was changed."""
    header, values = parts_of(content)
    del header["__metadata__"]["sha256"]
    change(header)
    return joined(json.dumps(header).encode(), data(values))


def within(key: str, **change: Any) -> Callable[[Header], Any]:
    return lambda header: header[key].update(change)


def moved(header: Header, key: str, new: str) -> None:
    header[new] = header.pop(key)


def networks(**change: Any) -> Callable[[Header], Any]:
    """Of the first network of a bank, or of a column of a record."""

    def apply(header: Header) -> None:
        told = json.loads(header["__metadata__"]["networks"])
        (told[0] if isinstance(told, list) else told).update(change)
        header["__metadata__"]["networks"] = json.dumps(told)

    return apply


def told(key: str, text: str) -> Callable[[Header], Any]:
    return lambda header: header["__metadata__"].update({key: text})


def card(**change: Any) -> Callable[[Header], Any]:
    def apply(header: Header) -> None:
        said = json.loads(header["__metadata__"][scorers.FORMAT])
        header["__metadata__"][scorers.FORMAT] = json.dumps({**said, **change})

    return apply


DEEP = "[" * 100_000
FORGERIES: list[tuple[str, Callable[[Header], Any], str]] = [
    ("bank", networks(dimension=10**12), "second must be"),
    ("bank", networks(dimension=-4), "size of at least 1"),
    ("bank", networks(dimension=True), "dimension: int"),
    ("bank", networks(dimension="4"), "dimension: int"),
    ("bank", networks(task=7), "task: str"),
    ("bank", networks(more=7), "number 0 has another"),
    ("bank", told("networks", "[]"), "not empty"),
    ("bank", told("networks", "{}"), "must be a list"),
    ("bank", told("networks", "[7]"), "'int'"),
    ("bank", told("networks", DEEP), "recursion|overflow"),
    ("bank", told("networks", "[" + "9" * 10_000 + "]"), "4300|'int'"),
    ("bank", told("more", ""), "metadata must be format and networks"),
    ("bank", lambda header: header["__metadata__"].pop("networks"), "metadata must be format and networks"),
    ("bank", lambda header: header["__metadata__"].update(networks=[]), "expected a string|InvalidHeader"),
    ("bank", within("final", shape=[1, 3]), "final must be"),
    ("bank", within("final", dtype="I32"), "final must be"),
    ("bank", within("final", dtype="F4"), ""),
    ("bank", within("final", shape=[2**40]), ""),
    ("bank", within("final", shape=[2**62, 2**62]), ""),
    ("bank", within("final", shape=[-9]), ""),
    ("bank", within("final", data_offsets=[0, 2**60]), ""),
    ("bank", within("final", data_offsets=[2**63, 2**63 + 36]), ""),
    ("bank", lambda header: moved(header, "final", "finale"), "final must be .* got nothing"),
    (
        "bank",
        lambda header: header.update(junk={"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}),
        "left out|buffer length",
    ),
    ("bank", lambda header: header.update(junk=json.loads("[" * 500 + "]" * 500)), ""),
    ("record", networks(number=None), "number of type int"),
    ("record", networks(number=[0, 1, 2, 3, 4, True]), "number of type int"),
    ("record", networks(number=[0, 1, 2]), r"columns of one length, at least 1; got lengths of \[3, 6\]"),
    ("record", networks(number=[], gain=1.0), "columns of one length"),
    ("record", networks(number=list(range(7)), gain=1.0), "must be"),
    ("record", networks(clip=1), "clip of type bool"),
    ("record", networks(dimension=0), "at least 1"),
    ("record", networks(layers=2), "layers must be"),
    ("record", networks(layers=[1, 1, 1, 1, 1, 2]), "one number of layers"),
    ("record", networks(more=7), "must be an object of"),
    ("record", told("networks", "{}"), "must be an object of"),
    ("record", told("networks", "[7]"), "must be an object of"),
    ("record", told("networks", DEEP), "recursion|overflow"),
    ("record", told("more", ""), "metadata must be format and networks"),
    ("record", lambda header: moved(header, "quantiles", "spectra"), "quantiles"),
    ("record", within("quantiles", shape=[6, 20, 32]), "quantiles must be"),
    ("record", within("metrics", shape=[6, 20, 3]), "metrics must be"),
    ("record", within("metrics", shape=[6, 60]), "metrics must be"),
    ("scorer", card(scale=0), "scale above 0"),
    ("scorer", card(scale="0.05"), "scale above 0"),
    ("scorer", card(scale=10**400), "too large"),
    ("scorer", card(performance_range=[1.0, 0.0]), "numbers that rise"),
    ("scorer", card(performance_range=[0.0, math.nan]), "numbers that rise"),
    ("scorer", card(performance_range=[0.0]), "values to unpack"),
    ("scorer", card(kinds="gru"), "list of names"),
    ("scorer", card(checkpoints="many"), "list of numbers of updates"),
    ("scorer", card(checkpoints=[-1]), "list of numbers of updates"),
    ("scorer", within("heads.ranges.low", shape=[1, 78]), r"heads.ranges.low must be .*\(1, 78\)"),
    (
        "scorer",
        lambda header: moved(header, "heads.ranges.low", "familiarity.sizes"),
        "familiarity.sizes must be|heads",
    ),
    ("scorer", told(scorers.FORMAT, "[]"), "list indices"),
    ("scorer", told(scorers.FORMAT, DEEP), "recursion|overflow"),
    ("scorer", told("more", ""), "the card alone"),
    ("scorer", within("intervals.spread", shape=[1, 2]), r"intervals.spread must be .*\(1, 2\)"),
    ("scorer", within("average", dtype="I32"), "average must be"),
    ("scorer", lambda header: header["worth.gain"]["shape"].append(1), "worth.gain must be"),
    ("scorer", within("own.context", shape=[13, 8]), "own.context must be"),
    ("scorer", lambda header: moved(header, "own.group", "own.groups"), "own.group must be"),
    ("scorer", lambda header: moved(header, "own.skill", "skill"), "own.* must be left out"),
    ("scorer", within("heads.model.0.encoder.weight", shape=[168, 8]), "heads.model.0.* must be"),
    ("scorer", within("heads.model.0.encoder.weight", shape=[1344]), "heads.model.0.* must be"),
    ("scorer", within("heads.model.0.encoder.weight", shape=[2**40, 0], data_offsets=[0, 0]), ""),
    ("scorer", within("familiarity.reference", shape=[1, -1]), ""),
    (
        "scorer",
        lambda header: moved(header, "heads.model.0.seen_spread", "heads.model.7.seen_spread"),
        "seen_spread must be",
    ),
    ("scorer", lambda header: moved(header, "heads.combination.table", "heads.prior." * 2000 + "x"), "heads"),
    ("scorer", lambda header: moved(header, "average", "heads.prior.prior.prior.model.0.x"), "heads|average"),
]


@pytest.mark.parametrize(
    ("kind", "change", "why"), FORGERIES, ids=[f"{kind}-{i}" for i, (kind, _, _) in enumerate(FORGERIES)]
)
@pytest.mark.usefixtures("any_bank")
def test_forged_files_are_refused_for_what_they_claim(
    kind: str, change: Callable[[Header], Any], why: str, written: dict[str, bytes], tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_bytes(forged(written[kind], change))
    with pytest.raises(ValueError, match=NO.format("file") + f"({why})"):
        READERS[kind](path)


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.usefixtures("any_bank")
def test_files_without_digest_are_read_as_those_of_older_versions(
    kind: str, written: dict[str, bytes], tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_bytes(forged(written[kind], lambda header: None))
    found = save_again(kind, READERS[kind](path), path)
    path.write_bytes(written[kind])
    assert found == save_again(kind, READERS[kind](path), path)


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("bank", "spectra", math.inf),
        ("record", "quantiles", math.inf),
        ("record", "long_leading", math.inf),
        ("record", "measured", -1.0),
        ("record", "long_measured", -1.0),
        ("scorer", "heads.model.0.decoder.0.bias", math.nan),
        ("scorer", "intervals.quantiles", math.inf),
        ("scorer", "familiarity.distances", math.nan),
        ("scorer", "heads.ranges.high", math.nan),
        ("scorer", "heads.ranges.high", -math.inf),
        ("scorer", "heads.model.2.seen_spread", math.inf),
        ("scorer", "own.skill", 0.5),
        ("scorer", "own.group", math.nan),
        ("scorer", "own.context", math.inf),
        ("scorer", "own.spectrum", 1e4),
        ("scorer", "own.fine", math.nan),
    ],
)
@pytest.mark.usefixtures("any_bank")
def test_impossible_numbers_are_refused(
    kind: str, key: str, value: float, written: dict[str, bytes], tmp_path: Path
) -> None:
    def with_value(data: bytes) -> bytes:
        told = parts_of(written[kind])[0][key]
        start, dtype = told["data_offsets"][0], {"F16": np.float16, "F32": np.float32}[told["dtype"]]
        number = np.array(value, dtype).tobytes()
        return data[:start] + number + data[start + len(number) :]

    path = tmp_path / "file"
    path.write_bytes(forged(written[kind], lambda header: None, with_value))
    with pytest.raises(ValueError, match=NO.format("file")):
        READERS[kind](path)


def test_a_scorer_that_knows_no_spectrum_is_refused(written: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(written["scorer"])
    with module.reading(path, scorers.FORMAT) as (tensors, metadata):
        none = {key: tensors[key][:0] for key in ("familiarity.reference", "familiarity.distances")}
    module.write_tensors(path, {**tensors, **none}, metadata)
    with pytest.raises(ValueError, match=NO.format("file") + "(familiarity.* must hold something|buffer length)"):
        AeLLEScorer.load(path)


@pytest.mark.parametrize("kind", READERS)
def test_a_key_that_comes_twice_is_refused(kind: str, written: dict[str, bytes], tmp_path: Path) -> None:
    """Parsers differ in which one they take."""
    header, data = parts_of(written[kind])
    text, key = json.dumps(header), list(header)[-1]
    twice = f'{text[:-1]}, "{key}": {json.dumps(header[key])}}}'
    (tmp_path / "file").write_bytes(joined(twice.encode(), data))
    with pytest.raises(ValueError, match=NO.format("file")):
        READERS[kind](tmp_path / "file")


@pytest.mark.parametrize("kind", READERS)
def test_a_pickle_under_another_name_is_refused_and_not_run(kind: str, tmp_path: Path) -> None:
    path, touched = tmp_path / "file.safetensors", tmp_path / "touched"
    torch.save({"weight": torch.zeros(3), "evil": Touch(touched)}, zipped := BytesIO())
    for content in (zipped.getvalue(), pickle.dumps(Touch(touched)), pickle.dumps(Touch(touched), 0)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=NO.format("file.safetensors")):
            READERS[kind](path)
        assert not touched.exists()
    pickle.loads(content).close()
    assert touched.exists()  # it would have


@pytest.mark.parametrize("kind", READERS)
def test_a_larger_file_is_not_even_read(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.truncate(module.LARGEST + 1)  # takes no room on the disk
    monkeypatch.setattr(Path, "read_bytes", lambda self: pytest.fail("read"))
    with pytest.raises(ValueError, match=NO.format("file") + "268,435,457 bytes are more"):
        READERS[kind](path)


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("content", [b"", b"\0" * 8, b"\2" + b"\0" * 7 + b"{}", b"%PDF-1.7" * 9, b"\x80\x04" * 9])
def test_foreign_files_are_refused(kind: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match=NO.format("file")):
        READERS[kind](tmp_path / "file")


@pytest.mark.parametrize(("kind", "other"), [("scorer", "bank"), ("bank", "record"), ("record", "bank")])
def test_files_of_ours_are_not_taken_for_each_other(
    kind: str, other: str, written: dict[str, bytes], tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(written[other])
    with pytest.raises(ValueError, match=NO.format("file")):
        READERS[kind](tmp_path / "file")


# ------------------------------------------------------------------ what the command line reads


def refused_in_one_line(read: Callable[[], Any]) -> str:
    with pytest.raises(ValueError, match=r".") as caught:
        read()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def npy(**claims: Any) -> bytes:
    """A .npy of ten zeros whose header claims something else."""
    buffer = BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f8", "fortran_order": False, "shape": (5, 2), **claims})
    return buffer.getvalue() + bytes(80)


def zipped_npy() -> bytes:
    buffer = BytesIO()
    np.savez(buffer, np.zeros((5, 2)))
    assert zipfile.is_zipfile(buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        pytest.param(zipped_npy(), id="zipped"),
        npy(shape=(2**40, 2)),
        npy(shape=(2**62, 2**62)),
        npy(shape=(-5, 2)),
        npy(descr="|O"),
        npy(descr="<U4"),
        npy(descr=">f8"),
        npy(descr="<M8[s]"),
        npy()[:90] + b"(" * 30,
    ],
)
def test_hostile_arrays_are_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(content)
    said = refused_in_one_line(lambda: array_of(tmp_path / "x.npy"))
    assert "x.npy" in said and "allocate" not in said  # as it would after it had tried to


def test_arrays_are_read_as_numpy_wrote_them(tmp_path: Path) -> None:
    for values in (np.arange(10.0).reshape(5, 2), np.asfortranarray(np.arange(6).reshape(3, 2))):
        np.save(tmp_path / "x.npy", values)
        assert array_of(tmp_path / "x.npy").tolist() == values.tolist()


@pytest.mark.parametrize("suffix", [".npy", ".pt"])
def test_damaged_inputs_are_refused_in_one_line_or_are_arrays(suffix: str, tmp_path: Path) -> None:
    """What they say nobody knows, for they hold no digest of ours."""
    path = tmp_path / f"x{suffix}"
    buffer = BytesIO()
    if suffix == ".npy":
        np.save(buffer, np.zeros((5, 2, 3)))
    else:
        torch.save(torch.zeros(5, 2, 3), buffer)
    refused = 0
    for number in range(240):
        path.write_bytes(DAMAGE[number % len(DAMAGE[:8])](buffer.getvalue(), random.Random(number)))
        try:
            assert array_of(path).dim() >= 2
        except ValueError as error:
            assert path.name in str(error) and "\n" not in str(error)
            refused += 1
    assert refused > 60


SPECTRUM = {
    "exponents": [0.1, -0.2], "stderr": [0.0, 0.0], "trusted": [True, True], "dimension": 2, "steps": 3,
    "sequences": 4, "transient": 0, "interval": 1.0, "driven": True, "dtype": "float64", "volume_rate": None,
}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"sequences": -1}, {"sequences": "many"}, {"sequences": 10**30}, {"dtype": "nn"}, {"stderr": [0.0]},
        {"dimension": 1}, {"exponents": [[0.1], 0.2]}, {"exponents": {}}, {"trusted": "yes"}, {"interval": None},
        {"volume_rate": []}, {"exponents": [10**400, 0]}, {"error": [0.0]}, {"error": None}, {"settled": [True]},
        {"settled": "yes"},
    ],
)  # fmt: skip
def test_hostile_spectra_are_refused_in_one_line(change: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(json.dumps({**SPECTRUM, **change}))
    assert "s.json" in refused_in_one_line(lambda: spectrum_of(tmp_path / "s.json"))


def test_a_spectrum_that_claims_many_sequences_takes_no_memory(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(json.dumps({**SPECTRUM, "sequences": 10**15}))
    spectrum, _ = spectrum_of(tmp_path / "s.json")
    assert getattr(spectrum, "sequences", 0) == 10**15


@pytest.mark.parametrize("text", ["", "7", '{"exponents"', pytest.param(DEEP, id="deep"), "null"])
def test_what_is_no_spectrum_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(text)
    assert "s.json" in refused_in_one_line(lambda: spectrum_of(tmp_path / "s.json"))


@pytest.mark.parametrize(
    "states",
    [
        [],
        {7: {}},
        {"LyapunovSpectrumCallback{": {}},
        {"LyapunovSpectrumCallback{'prefix': open('x', 'w')}": {"history": {}}},
        {"LyapunovSpectrumCallback{'prefix': " + "(" * 5000 + "}": {"history": {}}},
        {"LyapunovSpectrumCallback{'module': None}": {"history": {}}},
        {"LyapunovSpectrumCallback{'prefix': 'lyapunov'}": {}},
        {"LyapunovSpectrumCallback{'prefix': 'lyapunov'}": None},
    ],
)
def test_hostile_checkpoints_are_refused_in_one_line(states: Any, tmp_path: Path) -> None:
    torch.save({"callbacks": states}, tmp_path / "x.ckpt")
    content = loaded(tmp_path / "x.ckpt", trust_pickle=False)
    assert "x.ckpt" in refused_in_one_line(lambda: history_of(content, tmp_path / "x.ckpt", None))
    assert not Path("x").exists()


def test_a_good_checkpoint_is_read() -> None:
    """That those above are refused for what is wrong with them."""
    history = History()
    history.append(Measurement(0, 0, torch.zeros(2), {}))
    content = {"callbacks": {"LyapunovSpectrumCallback{'prefix': 'lyapunov'}": {"history": history.state_dict()}}}
    assert len(history_of(content, Path("x.ckpt"), None)) == 1
