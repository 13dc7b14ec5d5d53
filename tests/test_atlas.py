"""The networks that maps are drawn over, and the map that an autoencoder makes of them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_lyapunov.aelle import atlas as module
from lightning_lyapunov.aelle.atlas import NETWORKS, SHIPPED, Atlas, known_networks, write_networks
from lightning_lyapunov.aelle.autoencoder import AeLLE
from lightning_lyapunov.aelle.features import LEVELS, SCALE, Rows, exponents_of, squash
from lightning_lyapunov.bank.atlas import write_atlas
from lightning_lyapunov.bank.probes import MEASURED
from lightning_lyapunov.bank.records import Bank

BANK_1 = Path(__file__).parents[1] / "bank" / "bank-1.safetensors"


@pytest.fixture(scope="module")
def toy() -> AeLLE:
    """A small autoencoder, normalised by the networks that ship."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, spectra = AeLLE(5, 8).eval(), known_networks()[0][0]
    model.normalise(Rows(spectra, Rows.unknown(len(spectra)).context), torch.ones(len(spectra)))
    return model


def test_what_ships_is_small_and_of_networks_that_could_be_measured() -> None:
    spectra, skill = known_networks()
    assert Path(str(SHIPPED)).stat().st_size < 500_000
    assert spectra.shape == (2, len(skill), LEVELS + 1) and len(skill) == NETWORKS
    assert spectra.isfinite().all() and ((skill >= 0) & (skill <= 1)).all()
    levels = spectra[..., :LEVELS]
    assert (levels.diff(dim=-1) <= 0).all()  # from the top down
    assert float(skill.std()) > 0.1 and not torch.equal(spectra[0], spectra[1])


def test_points_are_codes_seen_along_their_principal_directions(toy: AeLLE) -> None:
    """Against numpy's eigenvectors of the covariance of the codes."""
    spectra, skill = known_networks()
    with torch.no_grad():
        code = toy(Rows(spectra.flatten(0, 1), Rows.unknown(2 * NETWORKS).context)).latent.double()
    atlas = Atlas.of(toy, SCALE)
    assert atlas.points.shape == (2 * NETWORKS, 2) and torch.equal(atlas.skill, skill.repeat(2))
    torch.testing.assert_close(atlas.centre, code.mean(0), rtol=1e-4, atol=1e-5)
    values, vectors = np.linalg.eigh(np.cov(code.T.numpy()))
    expected = vectors[:, ::-1][:, :2]
    overlap = np.abs(np.sum(expected * atlas.projection.numpy(), 0))
    assert overlap == pytest.approx([1.0, 1.0], abs=1e-4)
    assert atlas.points.var(0).tolist() == pytest.approx(values[::-1][:2].tolist(), rel=1e-3)
    torch.testing.assert_close(atlas.projection.T @ atlas.projection, torch.eye(2, dtype=torch.float64))
    assert (atlas.projection.sum(0) > 0).all()  # always the same of two mirror images
    torch.testing.assert_close(atlas.place(code), atlas.points, rtol=1e-3, atol=1e-4)


def test_a_scorer_that_squashes_otherwise_sees_the_same_exponents_on_its_own_scale(toy: AeLLE) -> None:
    spectra, _ = known_networks()
    exponents = exponents_of(spectra[:, :1].flatten(0, 1))
    with torch.no_grad():
        code = toy(Rows(squash(exponents, 0.2), Rows.unknown(2).context)).latent
    atlas = Atlas.of(toy, 0.2)
    torch.testing.assert_close(atlas.points[[0, NETWORKS]], atlas.place(code), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(atlas.points, Atlas.of(toy, SCALE).points, atol=1e-2)


def test_few_networks_are_evenly_spaced_over_all(toy: AeLLE) -> None:
    """Before training and after: of three the first, the middle and the last. More than there are is all."""
    _, skill = known_networks()
    few = Atlas.of(toy, SCALE, networks=3)
    middle = round((NETWORKS - 1) / 2)
    assert few.points.shape == (6, 2)
    assert torch.equal(few.skill, skill[[0, middle, NETWORKS - 1]].repeat(2))
    assert len(Atlas.of(toy, SCALE, networks=10**6).points) == 2 * NETWORKS


def test_no_networks_and_codes_of_one_value_are_refused(toy: AeLLE) -> None:
    with pytest.raises(ValueError, match="networks must be at least 1; got 0"):
        Atlas.of(toy, SCALE, networks=0)
    with pytest.raises(ValueError, match="codes of at least 2 values to make a map of; got 1"):
        Atlas.of(AeLLE(1, 8), SCALE, networks=3)


def test_a_map_draws_nothing_and_leaves_the_model_as_it_was(toy: AeLLE) -> None:
    before, random = {k: v.clone() for k, v in toy.state_dict().items()}, torch.get_rng_state()
    Atlas.of(toy, SCALE, networks=10)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in toy.state_dict().items())


# ------------------------------------------------------------------ files


def test_networks_come_back_from_a_file_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the precision that they are kept in."""
    spectra, skill = known_networks()
    write_networks(tmp_path / "some.atlas", spectra[:, :7], skill[:7])
    monkeypatch.setattr(module, "SHIPPED", tmp_path / "some.atlas")
    again = known_networks()
    assert torch.equal(again[0], spectra[:, :7]) and torch.equal(again[1], skill[:7])


def test_a_file_of_another_shape_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spectra, skill = known_networks()
    write_networks(tmp_path / "some.atlas", spectra[:, :7], skill[:6])
    monkeypatch.setattr(module, "SHIPPED", tmp_path / "some.atlas")
    with pytest.raises(ValueError, match="spectra"):
        known_networks()


def test_what_is_written_of_a_bank_are_its_own_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with its spectrum before training and at its end; those that could not be measured are passed over."""
    bank = Bank.load(BANK_1)
    bank = bank.subset(range(0, len(bank), 100))
    bank.quantiles[2, 0, 5] = torch.nan
    write_atlas(bank, tmp_path / "some.atlas", networks=10**6)
    monkeypatch.setattr(module, "SHIPPED", tmp_path / "some.atlas")
    spectra, skill = known_networks()
    mean, last = bank.measured[..., MEASURED.index("mean")], bank.checkpoints.index(800)
    assert set(bank.end.tolist()) == {800}
    measured = [
        n for n in range(len(bank))
        if not any(bank.quantiles[n, c].isnan().any() or mean[n, c].isnan() for c in (0, last))
    ]  # fmt: skip
    assert 2 not in measured and len(measured) > 20
    torch.testing.assert_close(skill, bank.skill(bank.final)[measured])
    for moment, c in ((0, 0), (1, last)):
        expected = squash(torch.cat([bank.quantiles[measured, c], mean[measured, c, None]], -1))
        torch.testing.assert_close(spectra[moment], expected, rtol=1e-3, atol=1e-3)
