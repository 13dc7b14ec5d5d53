from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(params=["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device there is."""
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Each test begins with the same random state, whatever ran before it, and leaves none behind."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
