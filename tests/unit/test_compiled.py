"""The student's U-Net through torch.compile, torch.export and ONNX: one graph, the same numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from spectral_diffusion.spectral import presets
from spectral_diffusion.spectral.unet import UNet

from .tiny import randomized


@pytest.fixture(scope="module")
def student() -> UNet:
    """The depth and the places of the paper's student for text; narrow."""
    unet = presets.build(
        "text_to_image-student", model_channels=16, norm_groups=4, num_heads=2, channel_mult=(1, 2), context_dim=8
    )
    return randomized(unet).eval()


def inputs(batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(batch)
    x = torch.randn(batch, 4, 8, 8, generator=generator)
    return x, torch.linspace(900, 5, batch), torch.randn(batch, 3, 8, generator=generator)


def test_export_takes_any_batch(student: UNet) -> None:
    batch = torch.export.Dim("batch", min=2, max=64)
    with torch.no_grad():
        sizes = {name: {0: batch} for name in ("x", "timesteps", "context")}
        exported = torch.export.export(student, inputs(), dynamic_shapes=sizes).module()
        for count in (2, 5):
            torch.testing.assert_close(exported(*inputs(count)), student(*inputs(count)), rtol=1e-4, atol=1e-5)


def test_other_wavelets_are_exported_and_leave_nothing_behind() -> None:
    unet = randomized(
        presets.build("ffhq256-student", model_channels=16, norm_groups=4, num_head_channels=8, wavelet="db2")
    )
    x, t = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1)), torch.tensor([5.0])
    with torch.no_grad():
        exported = torch.export.export(unet.eval(), (x, t), strict=False).module()
        found = unet(x, t)
        assert type(found) is Tensor
        torch.testing.assert_close(exported(x, t), found, rtol=1e-4, atol=1e-5)


def test_compiled_in_one_graph_it_predicts_and_learns_the_same(student: UNet) -> None:
    """AOTAutograd makes the backward pass here, not ours."""
    torch._dynamo.reset()
    compiled = torch.compile(student, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(*inputs()), student(*inputs()), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradients(compiled, student), gradients(student, student), rtol=1e-3, atol=1e-4)


def gradients(call: nn.Module, network: UNet) -> list[Tensor]:
    network.zero_grad()
    call(*inputs()).square().sum().backward()
    return [weight.grad.clone() for weight in network.parameters() if weight.grad is not None]


@pytest.mark.filterwarnings("ignore")
def test_onnx_runtime_predicts_the_same(student: UNet, tmp_path: Path) -> None:
    path = tmp_path / "student.onnx"
    with torch.no_grad():
        torch.onnx.export(student, inputs(), path, dynamo=True, verbose=False)
        expected = student(*inputs()).numpy()
    session = onnxruntime.InferenceSession(path)
    given = {place.name: value.numpy() for place, value in zip(session.get_inputs(), inputs(), strict=True)}
    np.testing.assert_allclose(session.run(None, given)[0], expected, rtol=1e-3, atol=1e-4)
