"""The table of named architectures: the published LDM teachers, and the slim models of the paper's Tables 2 to 4.

`NAME-teacher` is LDM's network, `NAME-lite` the same with fewer channels, `NAME-student` that with wavelet gating.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from . import autoencoder
from .autoencoder import FirstStage
from .config import ConditioningConfig, FirstStageConfig, Kind, ModelConfig, ScheduleConfig, UNetConfig
from .errors import SpectralError
from .unet import UNet

VQ_F4 = FirstStageConfig("vq", embed_dim=3, z_channels=3, ch=128, ch_mult=(1, 2, 4), n_embed=8192)
VQ_F8 = FirstStageConfig(
    "vq", embed_dim=4, z_channels=4, ch=128, ch_mult=(1, 2, 2, 4), attn_resolutions=(32,), n_embed=16384
)
KL_F8 = FirstStageConfig("kl", embed_dim=4, z_channels=4, ch=128, ch_mult=(1, 2, 4, 4))

LINEAR = ScheduleConfig(0.0015, 0.0195)
STABLE = ScheduleConfig(0.00085, 0.012)
#: Of Stable Diffusion's first stage, and of txt2img's, from which it comes.
STABLE_SCALE = 0.18215

_UNCONDITIONAL = UNetConfig(3, 3, 224, (8, 4, 2), channel_mult=(1, 2, 3, 4), num_head_channels=32)
_TEXT = UNetConfig(
    4, 4, 320, (4, 2, 1), 2, (1, 2, 4, 4), image_size=32, num_heads=8, use_spatial_transformer=True, context_dim=1280
)
_STABLE_2 = replace(
    _TEXT, context_dim=1024, image_size=64, num_heads=-1, num_head_channels=64, use_linear_in_transformer=True
)
_CLIP_L = ConditioningConfig("text", width=768, layers=12, heads=12)
#: OpenCLIP's ViT-H: the last of its layers is not run, and texts are filled up with 0.
_CLIP_H = ConditioningConfig(
    "text", width=1024, layers=24, heads=16, activation="gelu", skip_last=1, projection=True, pad_token=0
)
_LDM_TEXT = ConditioningConfig("text", tower="ldm", layers=32, heads=8, vocabulary=30522, pad_token=0)


@dataclass(frozen=True)
class Preset:
    """A teacher, and how wide the slim models are that the paper makes of it.

    Args:
        slim: model_channels of the Lite and student networks.
    """

    unet: UNetConfig
    first_stage: FirstStageConfig
    slim: int = 64
    conditioning: ConditioningConfig = field(default_factory=ConditioningConfig)
    schedule: ScheduleConfig = LINEAR
    scale_factor: float = 1.0


PRESETS: dict[str, Preset] = {
    "ffhq256": Preset(_UNCONDITIONAL, VQ_F4),
    "celebahq256": Preset(_UNCONDITIONAL, VQ_F4),
    "lsun_beds256": Preset(_UNCONDITIONAL, VQ_F4),
    "lsun_churches256": Preset(
        UNetConfig(
            4,
            4,
            192,
            (1, 2, 4, 8),
            2,
            (1, 2, 2, 4, 4),
            image_size=32,
            num_heads=8,
            use_scale_shift_norm=True,
            resblock_updown=True,
        ),
        KL_F8,
        schedule=ScheduleConfig(0.0015, 0.0155),
    ),
    "cin256": Preset(
        UNetConfig(
            4,
            4,
            256,
            (4, 2, 1),
            2,
            (1, 2, 4),
            image_size=32,
            num_head_channels=32,
            use_spatial_transformer=True,
            context_dim=512,
        ),
        VQ_F8,
        conditioning=ConditioningConfig("class", width=512, n_classes=1000, null_class=False),
    ),
    "cin256_v2": Preset(
        UNetConfig(3, 3, 192, (8, 4, 2), 2, (1, 2, 3, 5), num_heads=1, use_spatial_transformer=True, context_dim=512),
        VQ_F4,
        conditioning=ConditioningConfig("class", width=512, n_classes=1001),
    ),
    "text2img256": Preset(
        UNetConfig(
            3, 3, 192, (8, 4, 2), 2, (1, 2, 3, 5), num_head_channels=32, use_spatial_transformer=True, context_dim=640
        ),
        VQ_F4,
        conditioning=replace(_LDM_TEXT, width=640),
    ),
    "txt2img_1p4B": Preset(
        _TEXT,
        KL_F8,
        slim=96,
        conditioning=replace(_LDM_TEXT, width=1280),
        schedule=STABLE,
        scale_factor=STABLE_SCALE,
    ),
    # The paper's text students: txt2img's network with CLIP ViT-L/14's context in place of LDM's own encoder.
    "text_to_image": Preset(
        replace(_TEXT, context_dim=768),
        KL_F8,
        slim=96,
        conditioning=_CLIP_L,
        schedule=STABLE,
        scale_factor=STABLE_SCALE,
    ),
    "stable_diffusion_1": Preset(
        replace(_TEXT, context_dim=768, image_size=64),
        KL_F8,
        slim=96,
        conditioning=_CLIP_L,
        schedule=STABLE,
        scale_factor=STABLE_SCALE,
    ),
    "stable_diffusion_2": Preset(
        _STABLE_2, KL_F8, slim=128, conditioning=_CLIP_H, schedule=STABLE, scale_factor=STABLE_SCALE
    ),
    "stable_diffusion_2_v": Preset(
        replace(_STABLE_2, image_size=96),
        KL_F8,
        slim=128,
        conditioning=_CLIP_H,
        schedule=replace(STABLE, prediction="v"),
        scale_factor=STABLE_SCALE,
    ),
}
ROLES: tuple[Kind, ...] = ("teacher", "lite", "student")


def names() -> list[str]:
    """Every name that `config` and `build` know."""
    return [f"{name}-{role}" for name in PRESETS for role in ROLES]


def config(name: str) -> ModelConfig:
    """The full description of `NAME-teacher`, `NAME-lite` or `NAME-student`.

    Raises:
        SpectralError: there is no such preset; the known ones are named.
    """
    base, _, role = name.rpartition("-")
    if base not in PRESETS or role not in ROLES:
        known = ", ".join(PRESETS)
        raise SpectralError(f"There is no preset {name!r}; expected one of {known}, then -teacher, -lite or -student.")
    preset = PRESETS[base]
    unet = (
        preset.unet if role == "teacher" else slim(preset.unet, preset.slim, "wavelet" if role == "student" else "conv")
    )
    return ModelConfig(
        kind=next(known for known in ROLES if known == role),
        unet=unet,
        first_stage=preset.first_stage,
        conditioning=preset.conditioning,
        schedule=preset.schedule,
        scale_factor=preset.scale_factor,
        preset=name,
    )


def slim(unet: UNetConfig, model_channels: int, resampler: str = "wavelet") -> UNetConfig:
    """The same network with fewer channels: wavelet-gated (a student), or with LDM's resamplers (Lite-LDM)."""
    return replace(unet, model_channels=model_channels, resampler="wavelet" if resampler == "wavelet" else "conv")


def build(
    name: str, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None, **settings: object
) -> UNet:
    """The U-Net of a preset with fresh weights.

    Args:
        name: as `config` takes it.
        settings: fields of UNetConfig to change, `wavelet="db2"` for example.

    Raises:
        SpectralError: there is no such preset.
    """
    unet = config(name).unet
    assert unet is not None
    return UNet(replace(unet, **settings), device=device, dtype=dtype)  # type: ignore[arg-type]


def build_first_stage(
    name: str, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> FirstStage:
    """The first stage of a teacher (`ffhq256`, `txt2img_1p4B`, …) with fresh weights.

    Raises:
        SpectralError: there is no such teacher.
    """
    base = name.rpartition("-")[0] if name.endswith(tuple(f"-{role}" for role in ROLES)) else name
    if base not in PRESETS:
        raise SpectralError(f"There is no teacher {name!r}; expected one of {', '.join(PRESETS)}.")
    with torch.device(device or torch.get_default_device()):
        return autoencoder.build(PRESETS[base].first_stage).to(dtype=dtype or torch.get_default_dtype())
