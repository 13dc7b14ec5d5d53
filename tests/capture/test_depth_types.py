"""float32 is enough for leading values: the same networks in float64, eight values each."""

import pytest
import torch
from chains import ResNet, ViT
from torch import nn

from lightning_lyapunov import depth_spectrum


@pytest.mark.parametrize("net", [ViT, ResNet])
def test_eight_leading_values_in_float32_are_those_in_float64(net: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = net().eval()
    images = torch.randn(3, 3, 8, 8)
    narrow, wide = (depth_spectrum(model, images, 8, dtype=dtype) for dtype in (torch.float32, torch.float64))
    assert (narrow.dtype, wide.dtype) == (torch.float32, torch.float64)
    torch.testing.assert_close(narrow.log_singular_values, wide.log_singular_values, rtol=0, atol=1e-4)
    torch.testing.assert_close(narrow.block_gain, wide.block_gain, rtol=0, atol=1e-4)
