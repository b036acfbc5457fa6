"""What a U-Net's configuration can be."""

from __future__ import annotations

from collections.abc import Iterable

from . import wavelet as wavelets
from .config import UNetConfig
from .entries import check_entries
from .errors import SpectralError


def check(config: UNetConfig) -> None:
    """Refuse what cannot be built.

    Raises:
        SpectralError: names the setting, what was expected, and what to do.
    """

    def positive(values: Iterable[int]) -> bool:
        return all(value > 0 for value in values)

    sizes = (config.in_channels, config.out_channels, config.model_channels, config.num_res_blocks)
    if not positive(sizes) or not config.channel_mult or not positive(config.channel_mult):
        raise SpectralError("A U-Net's channels, channel_mult and num_res_blocks must all be at least 1.")
    limits = {"image_size": 2**14, "transformer_depth": 64, "num_res_blocks": 64, "model_channels": 2**14}
    for name, most in limits.items():
        if not 1 <= getattr(config, name) <= most:
            raise SpectralError(f"A U-Net's {name} is {getattr(config, name)}; expected 1 to {most}.")
    if len(config.channel_mult) > 16 or max(config.channel_mult) > 64:
        raise SpectralError("A U-Net's channel_mult has at most 16 levels of at most 64 times the width.")
    if config.norm_groups < 1 or config.model_channels % config.norm_groups:
        raise SpectralError(
            f"model_channels is {config.model_channels}; group normalisation needs a multiple of {config.norm_groups} "
            "(norm_groups)."
        )
    if config.num_heads < 1 and config.num_head_channels < 1:
        raise SpectralError("A U-Net's attention needs num_heads or num_head_channels; set one of them.")
    if config.use_spatial_transformer and not config.context_dim:
        raise SpectralError("use_spatial_transformer needs context_dim, the width of the context; set it.")
    if config.resampler == "wavelet":
        if config.wavelet != "haar":
            wavelets.filter_bank(config.wavelet)
        for mult in config.channel_mult[1:]:  # levels that features leave upwards, as four bands
            if config.model_channels * mult % 4:
                raise SpectralError(
                    f"{config.model_channels * mult} channels do not split into the four bands of a wavelet; choose "
                    "model_channels whose product with every channel_mult but the first is a multiple of 4."
                )
    if config.stages is not None:
        check_entries(config)
    attending = [mult for i, mult in enumerate(config.channel_mult) if 2**i in config.attention_resolutions]
    for mult in (*attending, config.channel_mult[-1]):  # the middle block always attends
        width = config.model_channels * mult
        if width % (config.num_head_channels if config.num_head_channels > 0 else config.num_heads):
            raise SpectralError(f"{width} channels cannot be split into attention heads; change num_head_channels.")
