from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason=""))])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device there is."""
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Each test begins with the same random state, whatever ran before it, and leaves none behind."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
