"""The benchmark of sparse training. Oracles: torch's own layer and Adam; counts; results made up to a known verdict."""

import importlib.util
import json
import sys
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def study() -> ModuleType:
    spec = importlib.util.spec_from_file_location("study_of_pruning", ROOT / "benchmarks" / "pruning.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclasses look
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=["gru", "lstm"])
def trained(study: ModuleType, request: pytest.FixtureRequest) -> tuple[Any, Any, nn.Module, nn.Linear]:
    """A population after some updates and deaths, and a layer of torch's with the same beginning and batches."""
    data, settings = study.digits(), study.Settings(hidden=8, masks=5)
    population = study.Population(data.task, study.CELLS[request.param], settings, torch.Generator().manual_seed(0))
    start = {key: weight[0].detach().clone() for key, weight in population.weights.items()}
    layer, head = population.cell.module(start), nn.Linear(8, 10)
    head.load_state_dict({"weight": start["out"], "bias": start["out_bias"]})
    layer.bias_hh_l0.requires_grad_(False)  # the population has one bias
    parameters = [p for p in (*layer.parameters(), *head.parameters()) if p.requires_grad]
    adam = torch.optim.Adam(parameters, settings.rate)
    ours, theirs = (torch.Generator().manual_seed(1) for _ in range(2))
    for epoch in (1, 2):
        for _ in range(5):
            population.step(data.task, data.batch(ours))
            batch = data.batch(theirs)
            adam.zero_grad()
            cross_entropy(head(layer(batch.inputs)[0][-1]), batch.targets[-1]).backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            adam.step()
        population.regrow(epoch)
    return population, data, layer, head


def test_the_dense_network_is_trained_as_torch_trains_it(trained: Any) -> None:
    population, data, layer, head = trained
    test = data.test
    with torch.no_grad():
        expected = cross_entropy(head(layer(test.inputs)[0][-1]), test.targets[-1])
    torch.testing.assert_close(population.losses(data.task, test)[0], expected, rtol=0, atol=1e-4)


def test_masks_keep_their_shares_and_half_of_the_weights_move(trained: Any) -> None:
    population, settings = trained[0], trained[0].settings
    masks, weights = (list(population.blocks(of)) for of in (population.masks, population.weights))
    sizes = torch.tensor([mask[0].numel() for mask in masks])
    shares = torch.stack([mask[1:].flatten(1).mean(1) for mask in masks], 1)
    torch.testing.assert_close(shares, population.densities.float())
    overall = (population.densities * sizes).sum(1) / sizes.sum()
    torch.testing.assert_close(overall, torch.full_like(overall, 1 - settings.sparsity), rtol=0, atol=0.01)
    assert population.densities.std(0).min() > 0.01, "the masks differ in how much each block was given"
    assert all(torch.equal(mask[0], torch.ones_like(mask[0])) for mask in masks), "the dense network stays dense"
    assert all(not (weight * (1 - mask)).any() for weight, mask in zip(weights, masks, strict=True))
    before = [mask.clone() for mask in masks]
    population.regrow(0)
    died = sum(float((old * (1 - new))[1:].sum()) for old, new in zip(before, masks, strict=True))
    assert 0.3 < died / sum(float(old[1:].sum()) for old in before) <= 0.51  # some grow where they died


def made_up(study: ModuleType, tell: str) -> list[dict[str, Any]]:
    """Results in which what is told ranks the masks truly, and the rest is noise."""
    generator, lines = torch.Generator().manual_seed(0), []
    settings = study.Settings(masks=12)
    for task in study.DATA:
        for cell in study.STUDIED:
            for network in range(6):
                final = torch.rand(12, generator=generator)
                seen = {name: torch.rand(2, 12, generator=generator) for name in ("loss", "distance")}
                seen |= {tell: seen[tell] * 0.2 + final} if tell in seen else {}
                density = torch.rand(12, 2 * len(study.GATES[cell]), generator=generator)
                line = {"task": task, "cell": cell, "network": network, "settings": asdict(settings)}
                line |= {name: value.tolist() for name, value in seen.items()}
                line |= {"density": density.tolist(), "final": final.tolist(), "seconds": 9.0, "measuring": 1.0}
                lines.append(line)
    return lines


@pytest.mark.parametrize(("tell", "helps"), [("distance", True), ("loss", False), ("nothing", False)])
def test_the_verdict_is_that_of_what_was_made_up(
    study: ModuleType, tell: str, helps: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "DRAWS", 60)
    file = tmp_path / "results.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in made_up(study, tell)), encoding="utf-8")
    text = study.tables(file, study.Settings(masks=12))
    assert f"distance {'helps' if helps else 'does not help'}." in text
    assert study.tables(file, study.Settings(masks=11)).startswith("Nothing to tell yet")


def test_the_control_is_the_block_whose_density_ranks_best_with_its_sign(study: ModuleType) -> None:
    lines = [line for line in made_up(study, "nothing") if line["task"] == study.CHOSEN_ON]
    for line in lines:
        for mask, final in enumerate(line["final"]):
            line["density"][mask][4 if line["cell"] == "gru" else 1] = -final if line["cell"] == "gru" else final
    assert study.control(lines) == {"gru": (4, -1.0), "lstm": (1, 1.0)}
    assert [study.block_name("gru", 4), study.block_name("lstm", 1)] == [
        *("recurrent weights of z", "input weights of f"),
    ]


def test_regret_is_what_the_first_pick_loses_and_the_mean_of_those_that_tie(study: ModuleType) -> None:
    line = {"cell": "gru", "network": 0, "final": [1.0, 0.5, 0.0], "density": [[0.0], [1.0], [2.0]]}
    line |= {"loss": [[0.1, 0.2, 0.3]], "distance": [[0.3, 0.2, 0.1]]}
    regrets = study.Study([line], {name: {"gru": (0, 1.0)} for name in ("density", "own density")}).regrets()
    assert regrets["early loss"].item() == 1.0 and regrets["distance"].item() == 0.0
    assert regrets["loss + distance"].item() == 0.5  # all three tie
