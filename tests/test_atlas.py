"""The atlas that ships: what the bank gives, read without it."""

import sys
from pathlib import Path

import pytest
import torch

from lightning_lyapunov.aelle import AeLLEScorer
from lightning_lyapunov.aelle.atlas import FORMAT, NETWORKS, Atlas, fingerprint
from lightning_lyapunov.bank.atlas import atlas_of_bank
from lightning_lyapunov.figures import LatentMap
from lightning_lyapunov.files import reading

SHIPPED = Path(sys.modules["lightning_lyapunov"].__file__ or "").parent / "aelle" / "atlas.safetensors"


@pytest.fixture(scope="module")
def scorer() -> AeLLEScorer:
    return AeLLEScorer.from_pretrained()


def test_what_ships_equals_what_the_bank_gives(scorer: AeLLEScorer) -> None:
    """If this fails since bank or weights are new: ``python -m lightning_lyapunov.bank.atlas``."""
    shipped, made = LatentMap.of_bank(scorer), atlas_of_bank(scorer)
    assert shipped.points.shape == (2 * NETWORKS, 2)
    for name, expected in vars(made).items():
        torch.testing.assert_close(getattr(shipped, name), expected, rtol=1e-5, atol=1e-5)


def test_it_is_small() -> None:
    assert SHIPPED.stat().st_size < 50_000


def test_a_map_of_the_general_scorer_is_made_without_the_bank(
    scorer: AeLLEScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lightning_lyapunov.bank.atlas", None)
    assert len(LatentMap.of_bank(scorer).points) == 2 * NETWORKS
    with pytest.raises(ImportError):
        LatentMap.of_bank(scorer, networks=3)  # which is what the file does not hold


def test_a_scorer_of_another_kind_has_a_map_of_its_own(scorer: AeLLEScorer) -> None:
    """Told by weights and scale: whatever is not the one it was made by gets what the bank gives."""
    model, scale = scorer.heads.models[0], float(scorer.card["scale"])
    made_by = fingerprint(model, scale)
    assert Atlas.shipped(made_by) is not None
    assert fingerprint(model, 2 * scale) != made_by != fingerprint(scorer.heads.models[1], scale)
    assert Atlas.shipped(fingerprint(model, 2 * scale)) is None
    few = LatentMap.of_bank(scorer, networks=20)
    assert few.points.shape == (40, 2)


def test_it_comes_back_from_a_file_as_it_was(tmp_path: Path, scorer: AeLLEScorer) -> None:
    atlas = atlas_of_bank(scorer, networks=20)
    atlas.save(tmp_path / "some.atlas", "me")
    with reading(tmp_path / "some.atlas", FORMAT) as (tensors, metadata):
        assert metadata["made by"] == "me"
        assert all(torch.equal(tensors[name], value) for name, value in vars(atlas).items())
