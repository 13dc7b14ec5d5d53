"""Tasks of shapes against the data set they show, and against themselves without the wait."""

import pytest
from batches import changed, columns, draw, variants
from torch import Generator

from lightning_lyapunov.bank.tasks import Task
from lightning_lyapunov.bank.tasks.shapes import digits


@variants("digits")
def test_digits_are_those_of_the_data_set(task: Task) -> None:
    """The pixels, put in a row, are an image whose label is asked at the end."""
    images, labels = pytest.importorskip("sklearn.datasets").load_digits(return_X_y=True)
    known = {tuple(map(int, image)): int(label) for image, label in zip(images, labels, strict=True)}
    for inputs, targets in columns(draw(changed(task, noise=0.0))):
        pixels = [round(6 * value + 5) for step in inputs for value in step][:64]
        assert targets == [[-1]] * (task.steps - 1) + [[known[tuple(pixels)]]]


def test_held_out_digits_are_never_trained_on() -> None:
    pytest.importorskip("sklearn")
    draws = [
        digits(4000, Generator().manual_seed(0), held_out, pixels=4, noise=0.0).inputs.transpose(0, 1).flatten(1)
        for held_out in (False, True)
    ]
    seen, held_out = ({tuple(image) for image in images.tolist()} for images in draws)
    assert len(seen) > 1000
    assert len(held_out) > 400
    assert not seen & held_out
