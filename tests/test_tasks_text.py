"""Tasks of text against the text itself."""

import torch
from batches import draw, options

from lightning_lyapunov.bank.tasks import TASKS, text_sha256
from lightning_lyapunov.bank.tasks.text import ALPHABETS, text


def test_text_is_hashed_and_its_alphabet_is_the_one_asked() -> None:
    for source, letters in ALPHABETS.items():
        read = text(source)
        assert len(read) > 200_000
        assert set(read) == set(letters)
        assert len(text_sha256(source)) == 64
    inputs, targets = draw(TASKS["chars-prose"], 4)
    words = "".join(ALPHABETS["prose"][index] for index in inputs[:, 0].argmax(-1).tolist())
    assert words in text("prose")
    assert torch.equal(inputs[1:].argmax(-1), targets[:-1])


def test_a_text_that_breaks_off_is_continued_after_the_wait() -> None:
    task = TASKS["chars-wait"]
    steps, wait = options(task)["steps"], options(task)["wait"]
    inputs, targets = draw(task, 16)
    assert not inputs[steps:].any()
    assert (targets[:-1] == -1).all()
    shown = torch.cat((inputs[:steps].argmax(-1), targets[-1:]))
    for letters in shown.T:
        assert "".join(ALPHABETS["prose"][index] for index in letters.tolist()) in text("prose")
    assert len(inputs) == steps + wait == task.steps
