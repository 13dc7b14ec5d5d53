"""Tables for notebooks are parsed again: well-formed, without scripts or colours of their own, with the figures."""

import math
from xml.etree import ElementTree

import torch
from made import growth, numbers, spectrum
from torch import nn

from lightning_lyapunov import DepthSpectrum, LyapunovSpectrum, depth_spectrum
from lightning_lyapunov.reading.notebook import MOST


def rows_of(shown: str) -> dict[str, str]:
    """The table by its row headings; what is not well-formed does not parse."""
    table = ElementTree.fromstring(shown)
    assert {node.tag for node in table.iter()} == {"table", "caption", "tbody", "tr", "th", "td"}
    assert "script" not in shown and "#" not in shown and "color:inherit" in shown  # of the page around it
    return {row[0].text or "": row[1].text or "" for row in table.iter("tr")}


def union() -> LyapunovSpectrum:
    return LyapunovSpectrum.union(
        {"<i>": spectrum(0.13, -0.5, growth=growth([2.5, 2.5], steps=100)), "below": spectrum(-0.2)},
        growth=growth([1.5, 1.7], steps=100),
    )


def test_a_spectrum_says_what_matters() -> None:
    rows = rows_of(union()._repr_html_())
    assert rows["largest exponent"].startswith("+0.13 ± 0.03 nats") and "settled: a rate" in rows["largest exponent"]
    assert rows["exponents"] == "3 of 3, 3 settled, 3 trusted"
    assert rows["a gradient"].startswith("Over your 100 steps a gradient grows 5.0-fold in a typical sequence")
    assert rows["measured"] == "2 sequences, 100 steps after a transient of 0, driven by inputs"
    assert rows["layer <i>"] == "+0.13 ± 0.03 nats/step, a gradient × 12"


def test_what_is_unknown_is_said() -> None:
    rows = rows_of(spectrum(math.nan, error=numbers(math.nan), settled=numbers(0) > 0, sequences=1)._repr_html_())
    assert rows["largest exponent"] == "unknown, not settled: no rate in the long run"
    assert rows["a gradient"] == "growth over a sequence was not measured"


def test_blocks_are_listed_and_those_of_a_deep_chain_thinned() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        deep: DepthSpectrum = depth_spectrum(nn.Sequential(*(nn.Linear(4, 4) for _ in range(40))), torch.randn(2, 4))
    rows = rows_of(deep._repr_html_())
    assert rows["largest growth"].endswith("nats over 40 blocks") and rows["found"]
    blocks = [name for name in rows if name.startswith("block ")]
    assert (len(blocks), blocks[0], blocks[-1]) == (MOST, "block 1, 0", "block 40, 39")
