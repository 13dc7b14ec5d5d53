"""The autoencoder: what must not matter to it, and what it must leave as it was."""

import copy
import math

import pytest
import torch
from scored import mixed
from systems import noise
from torch import nn

from lightning_lyapunov.aelle.autoencoder import HEADS, RANKED, AeLLE, visible
from lightning_lyapunov.aelle.features import CLIPPED, CONTEXT, LEVELS, Rows, exponents_of, hand_features
from lightning_lyapunov.aelle.knowledge import cut

NAN = math.nan


def normalised(latent: int = 8, width: int = 64) -> AeLLE:
    model = AeLLE(latent, width).eval()
    model.normalise(mixed(20, seed=1), torch.ones(20))
    return model


def test_shapes_are_those_of_the_docstring() -> None:
    output = AeLLE(5, 16)(mixed(7))
    assert [tuple(part.shape) for part in output] == [(7, 5), (7, LEVELS + 1), (7, RANKED), (7, len(HEADS))]


def test_the_encoder_sees_levels_on_their_own_scale_and_hand_features() -> None:
    """What forgets faster than can matter, forgets at once."""
    rows = mixed(5)
    rows.spectrum[0, 30:] = -6.0  # about -20 nats per step
    seen = visible(rows.spectrum)
    torch.testing.assert_close(seen[:, : LEVELS + 1], exponents_of(rows.spectrum).clamp(min=-10.0))
    assert (seen[0, 30 : LEVELS + 1] == CLIPPED).all()
    torch.testing.assert_close(seen[:, LEVELS + 1 :], hand_features(rows.spectrum))
    partial = Rows(rows.spectrum.clone(), rows.context)
    partial.spectrum[:, 10:] = NAN
    assert visible(partial.spectrum)[:, 10 : LEVELS + 1].isnan().all()


def test_weights_of_unknown_values_do_not_matter() -> None:
    """What multiplies them is scrambled, and nothing changes."""
    rows = mixed(6)
    rows.spectrum[:, 10:] = NAN
    rows.context[:, 1:4] = NAN
    model = normalised()
    scrambled, size = copy.deepcopy(model), 8
    hidden = visible(rows.spectrum).isnan().all(0).nonzero()[:, 0]
    assert len(hidden) > LEVELS + 1 - 10  # levels, and features made of them
    with torch.no_grad():
        scrambled.encoder.weight[:, hidden] = 1e3
        for layer in (scrambled.heads[0], scrambled.straight):
            layer.weight[:, size + 1 : size + 4] = 1e3
    for ours, theirs in zip(model(rows), scrambled(rows), strict=True):
        assert ours.isfinite().all()
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_of_what_nothing_is_known_something_is_said() -> None:
    """The same of all, and finite."""
    said = normalised()(Rows.unknown(3))
    for part in said:
        assert part.isfinite().all() and torch.equal(part[0], part[2])


def test_unknown_is_not_the_same_as_average() -> None:
    model, rows = normalised(), mixed(3)
    time = CONTEXT.index("log_updates")
    rows.context[:, time] = model.context_centre[time]
    hidden = Rows(rows.spectrum, rows.context.clone())
    hidden.context[:, time] = NAN
    assert not torch.allclose(model(hidden).ranks, model(rows).ranks, atol=1e-4)
    assert torch.equal(model(hidden).latent, model(rows).latent)  # the code is of the spectrum alone


def test_rows_do_not_see_each_other() -> None:
    model, rows = normalised(), mixed(6)
    rows.spectrum[2, 5:] = NAN
    for whole, alone in zip(model(rows), model(rows[torch.tensor([4])]), strict=True):
        torch.testing.assert_close(whole[4:5], alone)


def test_reading_what_was_standardised_is_the_same() -> None:
    model, rows = normalised(), mixed(4)
    for ours, theirs in zip(model.read(model.standard(rows)), model(rows), strict=True):
        assert torch.equal(ours, theirs)


# ------------------------------------------------------------------ normalise


def test_normalise_takes_mean_and_deviation_of_what_is_known() -> None:
    """Of the context by hand; what never varied, or nobody knows, is left in its own unit."""
    rows = mixed(4)
    rows.context[:, 4] = torch.tensor([1.0, 3.0, NAN, 1.0])
    rows.context[:, 5] = 7.0
    rows.context[:, 6] = NAN
    rows.context[:, 7] = torch.tensor([0.0, 1e-3, 0.0, 1e-3])
    model = AeLLE()
    model.normalise(rows, torch.tensor([1.0, 2.0, 5.0, 1.0]))
    # The means of 1, 3, 3 and 1, and of 0 six times and a thousandth thrice.
    torch.testing.assert_close(model.context_centre[4:8], torch.tensor([2.0, 7.0, 0.0, 1e-3 / 3]))
    torch.testing.assert_close(model.context_spread[4:8], torch.tensor([1.0, 1.0, 1.0, 0.02]))


def test_what_was_normalised_has_mean_zero_and_deviation_one() -> None:
    rows, weights = mixed(200), noise(200).abs().float()
    model = AeLLE()
    model.normalise(rows, weights)
    for values in model.standard(rows):
        share = ~values.isnan() * weights.unsqueeze(1)
        known = share.sum(0) > 0
        mean = (values.nan_to_num() * share).sum(0) / share.sum(0)
        square = (values.nan_to_num().square() * share).sum(0) / share.sum(0)
        assert float(mean[known].abs().max()) < 1e-3
        varies = known & (square > 1e-3)
        assert int(varies.sum()) > 10
        torch.testing.assert_close(square[varies], torch.ones(int(varies.sum())), rtol=1e-2, atol=1e-2)


# ------------------------------------------------------------------ spectra completed


def test_completed_keeps_what_is_known_and_knows_the_rest() -> None:
    model, rows = normalised(), mixed(6)
    part = cut(rows, torch.Generator().manual_seed(0)).spectrum
    with torch.no_grad():
        made = model.completed(part)
    known = ~part.isnan()
    assert torch.equal(made[known], part[known]) and made.isfinite().all()
    assert not (made[~known] == 0).all()
    assert torch.equal(model.completed(rows.spectrum), rows.spectrum)


def test_completed_fills_in_what_the_decoder_makes() -> None:
    """A decoder that says 0 everywhere makes the mean of what was seen, on the scale of exponents."""
    model = normalised()
    with torch.no_grad():
        for layer in (model.decoder[0], model.decoder[2]):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        part = mixed(3).spectrum
        part[:, 20:] = NAN
        made = exponents_of(model.completed(part))
    torch.testing.assert_close(made[:, 20:], model.seen_centre[20 : LEVELS + 1].expand(3, -1), rtol=1e-4, atol=1e-5)


def test_where_there_is_no_spectrum_none_is_made_up() -> None:
    spectrum = torch.cat([mixed(1).spectrum, torch.full((1, LEVELS + 1), NAN)])
    spectrum[0, LEVELS] = NAN
    made = normalised().completed(spectrum)
    assert made[0].isfinite().all() and made[1].isnan().all()


# ------------------------------------------------------------------ files


@pytest.mark.parametrize(("latent", "width"), [(3, 16), (8, 64)])
def test_from_state_gives_the_same_model_and_draws_nothing(latent: int, width: int) -> None:
    model = normalised(latent, width)
    before = torch.get_rng_state()
    made = AeLLE.from_state(model.state_dict())
    assert torch.equal(torch.get_rng_state(), before)
    assert not made.training and not any(p.requires_grad for p in made.parameters())
    assert made.state_dict().keys() == model.state_dict().keys()
    assert AeLLE.sizes(model.state_dict()) == (latent, width)
    for ours, theirs in zip(made(mixed(4)), model(mixed(4)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
