"""What others offer for the same work; each comes with the extra `bench` and is left out where it is not installed."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ...spectral import presets
from ..tokens import declare_torchvision_operators

Function = Callable[[], Tensor]


def missing(error: ImportError, without: str) -> None:
    """Tell that a peer is not there."""
    print(
        f"{error.name} cannot be imported ({error}); {without} is left out. "
        "pip install 'spectral-diffusion[bench]' brings the peers.",
        file=sys.stderr,
    )


def diffusers_unet(preset: str) -> nn.Module:
    """diffusers' UNet2DModel of the shape of an unconditional preset, with fresh weights.

    Raises:
        ImportError: diffusers is not installed.
    """
    declare_torchvision_operators()
    from diffusers import UNet2DModel
    from diffusers.utils import logging

    logging.set_verbosity_error()  # it warns of casts to the type that it has

    unet = presets.config(preset).unet
    assert unet is not None
    attending = [2**level in unet.attention_resolutions for level in range(len(unet.channel_mult))]
    network: Any = UNet2DModel(
        sample_size=unet.image_size,
        in_channels=unet.in_channels,
        out_channels=unet.out_channels,
        layers_per_block=unet.num_res_blocks,
        block_out_channels=tuple(unet.model_channels * mult for mult in unet.channel_mult),
        down_block_types=tuple("AttnDownBlock2D" if one else "DownBlock2D" for one in attending),
        up_block_types=tuple("AttnUpBlock2D" if one else "UpBlock2D" for one in reversed(attending)),
        attention_head_dim=unet.num_head_channels,
        norm_eps=1e-5,
        flip_sin_to_cos=True,
        freq_shift=0,
        downsample_padding=1,
    )
    return network  # type: ignore[no-any-return]


def pytorch_wavelets_resamplers(x: Tensor, gates: Tensor) -> tuple[Function, Function]:
    """WG-Down and WG-Up (but for its projection) by pytorch_wavelets and a product for each band.

    Args:
        x: features [B, C, H, W].
        gates: [B, 4, C] to go down, [B, 4, C/4] to go up; only one of the two functions can then be called.

    Raises:
        ImportError: pytorch_wavelets is not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its pkg_resources
        from pytorch_wavelets import DWTForward, DWTInverse
    forward: Any = DWTForward(J=1, wave="haar", mode="periodization").to(x.device)
    inverse: Any = DWTInverse(wave="haar", mode="periodization").to(x.device)
    g = gates[..., None, None]

    def down() -> Tensor:
        low, (high,) = forward(x)
        return low * g[:, 0] + (high * g[:, 1:].transpose(1, 2)).sum(2)  # type: ignore[no-any-return]

    def up() -> Tensor:
        bands = x.unflatten(1, g.shape[1:3]) * g
        return inverse((bands[:, 0], [bands[:, 1:].transpose(1, 2)]))  # type: ignore[no-any-return]

    return down, up


def ptwt_resamplers(x: Tensor, gates: Tensor) -> tuple[Function, Function]:
    """The same by ptwt.

    Raises:
        ImportError: ptwt is not installed.
    """
    ptwt: Any = importlib.import_module("ptwt")

    g = gates[..., None, None].unbind(1)

    def down() -> Tensor:
        low, high = ptwt.wavedec2(x, "haar", mode="periodic", level=1)
        total: Tensor = low * g[0]
        for band, gate in zip(high, g[1:], strict=True):
            total = total + band * gate
        return total

    def up() -> Tensor:
        ll, *high = (band * gate for band, gate in zip(x.chunk(4, dim=1), g, strict=True))
        return ptwt.waverec2((ll, tuple(high)), "haar")  # type: ignore[no-any-return]

    return down, up
