"""Where the signals of f-DM's stages enter and leave a U-Net: at the level of their own size."""

from __future__ import annotations

from dataclasses import dataclass

from . import autoencoder
from .config import StagesConfig, UNetConfig
from .errors import SpectralError
from .fdm.process import check

#: The entry through LDM's own first and last convolution.
FIRST_ENTRY = "0"


@dataclass(frozen=True)
class Entry:
    """A stage's.

    Args:
        key: of its convolutions, by the first stage that has them; stages of one size and channels share them.
        level: of the U-Net, 0 being the latent's size.
        channels: of the stage's signal.
        block: the index among `input_blocks` of the one whose place its convolution takes.
    """

    key: str
    level: int
    channels: int
    block: int


def entries(config: UNetConfig) -> list[Entry]:
    """The entries of all stages, K + 1 of them; stage 0 has LDM's own."""
    assert config.stages is not None
    found = [Entry(FIRST_ENTRY, 0, config.in_channels, 0)]
    for index, boundary in enumerate(config.stages.boundaries, 1):
        before = found[-1]
        if boundary.transform == "blur":
            found.append(before)
            continue
        pair = boundary.autoencoder
        factor = boundary.factor if boundary.transform == "downsample" or pair is None else pair.downscale
        level = before.level + factor.bit_length() - 1
        channels = before.channels if pair is None else pair.embed_dim
        found.append(Entry(str(index), level, channels, level * (config.num_res_blocks + 1)))
    return found


def factors(stages: StagesConfig | None) -> int:
    """How many cells of the latent one cell of the last stage stands for, along one side."""
    product = 1
    for boundary in stages.boundaries if stages is not None else ():
        if boundary.transform == "downsample":
            product *= boundary.factor
        elif boundary.autoencoder is not None:
            product *= boundary.autoencoder.downscale
    return product


def check_entries(config: UNetConfig) -> None:
    """That every stage finds its level, and every autoencoder the signals that it takes.

    Raises:
        SpectralError: names the stage, or the setting at fault.
    """
    assert config.stages is not None
    if config.in_channels != config.out_channels:
        raise SpectralError("A U-Net of stages predicts as many channels as it sees; set out_channels to in_channels.")
    if not config.stages.boundaries:
        raise SpectralError("stages has no boundaries; give it some, or leave it out.")
    check(config.stages)
    channels = config.in_channels
    for index, boundary in enumerate(config.stages.boundaries, 1):
        pair = boundary.autoencoder
        if (boundary.transform == "vae") != (pair is not None):
            raise SpectralError(
                f"Stage {index} has the transform {boundary.transform!r}; an autoencoder belongs to a vae alone."
            )
        if pair is not None:
            autoencoder.check(pair)
            if (pair.in_channels, pair.out_ch) != (channels, channels):
                raise SpectralError(
                    f"The autoencoder of stage {index} codes {pair.in_channels} channels, but the signal before it has "
                    f"{channels}; give one that was trained on such signals."
                )
            channels = pair.embed_dim
            if pair.embed_dim > pair.in_channels * pair.downscale**2:
                raise SpectralError(f"The autoencoder of stage {index} makes more numbers than it is given.")
    deepest, levels = entries(config)[-1].level, len(config.channel_mult)
    if deepest >= levels:
        raise SpectralError(
            f"The last stage is {2**deepest} times smaller than the latent, but a U-Net of {levels} levels goes to "
            f"{2 ** (levels - 1)} times smaller; choose smaller factors, or a longer channel_mult."
        )
