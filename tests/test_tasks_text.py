"""Tasks of text against the text itself."""

import torch
from batches import draw

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
