"""LDM's first stages: image ↔ latent, with a Gaussian posterior (KL) or a codebook (VQ), in LDM's own key layout.

Source: Rombach et al., High-Resolution Image Synthesis with Latent Diffusion Models; layout as in the published
checkpoints (`first_stage_model.*`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import FirstStageConfig
from .errors import SpectralError
from .layers import added, ordered, silu


def _norm(channels: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, channels, eps=1e-6)


def _conv3(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


class ResnetBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), with a 1×1 shortcut where the width changes."""

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.norm1 = _norm(inputs, groups)
        self.conv1 = _conv3(inputs, outputs)
        self.norm2 = _norm(outputs, groups)
        self.conv2 = _conv3(outputs, outputs)
        if inputs != outputs:
            self.nin_shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(silu(self.norm1(x)))
        h = self.conv2(silu(self.norm2(h)))
        return added(h, self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttnBlock(nn.Module):
    """Single-head self-attention over all cells of [B, C, H, W]."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = _norm(channels, groups)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2).transpose(1, 2) for layer in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(h.transpose(1, 2).reshape(x.shape))


class Downsample(nn.Module):
    """Halve the size: pad one cell right and below, then a 3×3 convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double the size: nearest neighbour, then a 3×3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = _conv3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The blocks of one resolution, with attention behind each where `attention` says so."""

    def __init__(self, inputs: int, outputs: int, blocks: int, attention: bool, groups: int) -> None:
        super().__init__()
        self.downsample: Downsample | None = None
        self.upsample: Upsample | None = None
        self.block = nn.ModuleList(ResnetBlock(inputs if i == 0 else outputs, outputs, groups) for i in range(blocks))
        self.attn = nn.ModuleList(AttnBlock(outputs, groups) for _ in range(blocks if attention else 0))

    def forward(self, x: Tensor) -> Tensor:
        for index, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[index](x)
        return x


class Middle(nn.Module):
    """Block, attention, block at the lowest resolution."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, groups)
        self.attn_1 = AttnBlock(channels, groups)
        self.block_2 = ResnetBlock(channels, channels, groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    """Image [B, in_channels, H, W] → features [B, z_channels (× 2 for KL), H/f, W/f]."""

    def __init__(self, config: FirstStageConfig) -> None:
        super().__init__()
        widths, groups = [config.ch * mult for mult in config.ch_mult], config.norm_groups
        self.conv_in = _conv3(config.in_channels, config.ch)
        self.down = nn.ModuleList()
        for index, width in enumerate(widths):
            attention = config.resolution // 2**index in config.attn_resolutions
            inputs = widths[index - 1] if index else config.ch
            level = Level(inputs, width, config.num_res_blocks, attention, groups)
            if index < len(widths) - 1:
                level.downsample = Downsample(width)
            self.down.append(level)
        self.mid = Middle(widths[-1], groups)
        self.norm_out = _norm(widths[-1], groups)
        self.conv_out = _conv3(widths[-1], config.z_channels * (2 if config.kind == "kl" else 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            assert isinstance(level, Level)
            x = level(x)
            if level.downsample is not None:
                x = level.downsample(x)
        return self.conv_out(silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """Features [B, z_channels, h, w] → image [B, out_ch, h·f, w·f]."""

    def __init__(self, config: FirstStageConfig) -> None:
        super().__init__()
        widths, groups = [config.ch * mult for mult in config.ch_mult], config.norm_groups
        self.conv_in = _conv3(config.z_channels, widths[-1])
        self.mid = Middle(widths[-1], groups)
        levels: list[Level] = []
        for index in reversed(range(len(widths))):
            attention = config.resolution // 2**index in config.attn_resolutions
            inputs = widths[min(index + 1, len(widths) - 1)]
            level = Level(inputs, widths[index], config.num_res_blocks + 1, attention, groups)
            if index:
                level.upsample = Upsample(widths[index])
            levels.insert(0, level)
        self.up = nn.ModuleList(levels)
        self.norm_out = _norm(widths[0], groups)
        self.conv_out = _conv3(widths[0], config.out_ch)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            assert isinstance(level, Level)
            x = level(x)
            if level.upsample is not None:
                x = level.upsample(x)
        return self.conv_out(silu(self.norm_out(x))).contiguous()


class Codebook(nn.Module):
    """Nearest-neighbour vector quantisation with `n_embed` vectors of `embed_dim` channels."""

    def __init__(self, n_embed: int, embed_dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_embed, embed_dim)

    def indices(self, z: Tensor) -> Tensor:
        """[B, C, H, W] → index of the nearest code of every cell, [B, H, W]."""
        cells = z.movedim(1, -1).reshape(-1, z.shape[1])
        codes = self.embedding.weight.to(cells.dtype)
        # |z − e|² without |z|², which is the same for every code.
        distance = torch.addmm(codes.square().sum(1), cells, codes.t(), alpha=-2)
        return distance.argmin(1).reshape(z.shape[0], *z.shape[2:])

    def forward(self, z: Tensor) -> Tensor:
        """[B, C, H, W] → the same cells replaced by their nearest codes; gradients pass straight through."""
        quantized = F.embedding(self.indices(z), self.embedding.weight).movedim(-1, 1).to(z.dtype)
        return z + (quantized - z).detach() if z.requires_grad else quantized


class FirstStage(nn.Module):
    """What KL and VQ share: encoder, decoder and the two 1×1 convolutions around the latent."""

    def __init__(self, config: FirstStageConfig) -> None:
        super().__init__()
        check(config)
        double = 2 if config.kind == "kl" else 1
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(double * config.z_channels, double * config.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.z_channels, 1)

    def moments(self, image: Tensor) -> Tensor:
        """What the encoder says before anything is chosen: mean and log-variance (KL), or the raw latent (VQ)."""
        return self.quant_conv(self.encoder(ordered(image))).contiguous()

    def encode(self, image: Tensor) -> Tensor:
        """Image in [−1, 1], [B, 3, H, W] → latent [B, embed_dim, H/f, W/f], not yet scaled."""
        return self.moments(image)

    def decode(self, latent: Tensor) -> Tensor:
        """Latent [B, embed_dim, h, w] → image [B, 3, h·f, w·f], about [−1, 1], not clamped."""
        return self.decoder(self.post_quant_conv(ordered(latent)))


class AutoencoderKL(FirstStage):
    """First stage with a Gaussian posterior; `encode` gives its mode."""

    def posterior(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance (clamped to [−30, 20]) of the latent, each [B, embed_dim, h, w]."""
        mean, log_variance = self.moments(image).chunk(2, dim=1)
        return mean, log_variance.clamp(-30.0, 20.0)

    def encode(self, image: Tensor) -> Tensor:
        """The posterior's mode."""
        return self.posterior(image)[0]


class AutoencoderVQ(FirstStage):
    """First stage with a codebook; the latent is taken before quantising, and `decode` quantises."""

    def __init__(self, config: FirstStageConfig) -> None:
        super().__init__(config)
        assert config.n_embed is not None  # checked above
        self.quantize = Codebook(config.n_embed, config.embed_dim)

    def decode(self, latent: Tensor) -> Tensor:
        return super().decode(self.quantize(latent))


def build(config: FirstStageConfig) -> AutoencoderKL | AutoencoderVQ:
    """The first stage that `config` describes, with fresh weights on the current default device.

    Raises:
        SpectralError: the configuration cannot be built; the setting at fault is named.
    """
    return AutoencoderKL(config) if config.kind == "kl" else AutoencoderVQ(config)


def check(config: FirstStageConfig) -> None:
    """Refuse what cannot be built.

    Raises:
        SpectralError: names the setting and what was expected.
    """
    sizes = (config.embed_dim, config.z_channels, config.num_res_blocks, config.in_channels, config.out_ch)
    if min(*sizes, *config.ch_mult) < 1 or not config.ch_mult:
        raise SpectralError("A first stage's channels, ch_mult and num_res_blocks must all be at least 1.")
    limits = {"resolution": 2**16, "num_res_blocks": 64, "ch": 2**14}
    for name, most in limits.items():
        if not 1 <= getattr(config, name) <= most:
            raise SpectralError(f"A first stage's {name} is {getattr(config, name)}; expected 1 to {most}.")
    if len(config.ch_mult) > 16 or max(config.ch_mult) > 64:
        raise SpectralError("A first stage's ch_mult has at most 16 levels of at most 64 times the width.")
    if config.norm_groups < 1 or config.ch % config.norm_groups:
        raise SpectralError(
            f"A first stage's ch is {config.ch}; group normalisation needs a multiple of {config.norm_groups} "
            "(norm_groups)."
        )
    if config.kind == "vq" and (config.n_embed is None or config.n_embed < 1):
        raise SpectralError("A VQ first stage needs n_embed, the size of its codebook; set it.")
