"""A checkpoint's U-Net as a native ComfyUI MODEL: core's samplers, masks, previews, offloading and casting work."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models_base
import torch
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor

from ..spectral import checkpoint
from ..spectral.attention import SelfAttention, as_files_have_them
from ..spectral.checkpoint import CheckpointFile
from ..spectral.config import ModelConfig, ScheduleConfig, UNetConfig
from ..spectral.diffusion import Schedule
from ..spectral.errors import SpectralError
from ..spectral.fdm import Process
from ..spectral.formats.source import UNET
from ..spectral.presets import STABLE_SCALE
from ..spectral.unet import UNet
from . import control, inputs, patcher, saving, staged
from .control import Additions
from .patches import Patches

try:
    from comfy import patcher_extension
except ImportError:  # before 2025
    patcher_extension = None


@dataclass(frozen=True)
class Companions:
    """What a loaded MODEL knows about itself, for the nodes that fit latents and conditioning to it.

    Args:
        config: the checkpoint's configuration.
        classes: class embeddings [n_classes, width], the null class last; None unless it is conditioned on classes.
        clip: the CLIP of the same checkpoint, or what says why there is none; None unless it is conditioned on text.
    """

    config: ModelConfig
    classes: Tensor | None = None
    clip: Any = None


#: Where to get latents that fit a MODEL.
OWN_LATENT = "use Empty Latent (Spectral Diffusion) with this MODEL, or VAE Encode with the VAE beside it"


class NativeUNet(UNet):
    """The U-Net under the signature by which ComfyUI calls its diffusion models."""

    def __init__(self, config: UNetConfig, *, dtype: Any, device: Any, operations: Any, **_ldm_names: Any) -> None:
        super().__init__(config, dtype=dtype, device=device, operations=operations, attention=optimized_attention)
        # Where core's own U-Net says its shape, and nodes such as RenormCFG look for it.
        self.in_channels, self.out_channels = config.in_channels, config.out_channels
        self.model_channels = config.model_channels
        # Stable Diffusion 2.x overflows in half precision; core computes its attention in float32 as well.
        self.attn_precision = torch.float32 if config.use_linear_in_transformer else None

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor | None = None,
        y: Tensor | None = None,
        control: Additions | None = None,
        transformer_options: dict[str, Any] | None = None,
        **others: Any,
    ) -> Tensor:
        """Latent [B, C, H, W] in ComfyUI's scale, time steps [B] → noise or velocity of the same shape."""
        options = {} if transformer_options is None else transformer_options
        given = (x, timesteps, context, y, control, options)
        if patcher_extension is None:
            return self._predict(*given, **others)
        kinds = patcher_extension.WrappersMP
        wrappers = patcher_extension.get_all_wrappers(kinds.DIFFUSION_MODEL, options)
        run = patcher_extension.WrapperExecutor.new_class_executor(self._predict, self, wrappers)
        return run.execute(*given, **others)  # type: ignore[no-any-return]

    def _predict(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor | None,
        _y: Tensor | None,
        control: Additions | None,
        options: dict[str, Any],
        **_others: Any,
    ) -> Tensor:
        """As `forward`, which nodes such as EasyCache wrap in their own."""
        hooks = Patches(options, control, timesteps, x, self.config.model_channels, self.attn_precision)
        context = context if self.config.use_spatial_transformer else None
        place = options.get(staged.PLACE)
        return super().forward(x, timesteps, context, hooks=hooks, stage=place.stage if place else 0)


class SpectralModel(comfy.model_base.BaseModel):  # type: ignore[misc]
    """ComfyUI's BaseModel around `NativeUNet`; `spectral` tells our nodes what it was loaded from."""

    spectral: Companions

    def __init__(self, model_config: SpectralModelConfig, model_type: Any, device: Any = None) -> None:
        unet = partial(NativeUNet, model_config.spectral)
        super().__init__(model_config, model_type, device=device, unet_model=unet)
        schedule = model_config.schedule
        if schedule.zero_terminal_snr and not getattr(self.model_sampling, "zsnr", False):
            self.model_sampling.set_sigmas(zero_terminal_sigmas(schedule))  # before ComfyUI knew of it

    def memory_required(self, input_shape: Any, *others: Any, **named: Any) -> Any:
        """Bytes that sampling takes; core asks for them first of all, so that here a latent of no use is noticed.

        Raises:
            SpectralError: the latent is none of this model's.
        """
        inputs.latent_shape(input_shape, "This model", self.diffusion_model.config.in_channels, OWN_LATENT)
        return super().memory_required(input_shape, *others, **named)

    def extra_conds(self, **kwargs: Any) -> dict[str, Any]:
        """What the network is given besides the latent; checks that the conditioning is made for this model.

        Raises:
            SpectralError: the conditioning comes from another model's CLIP, ControlNet or GLIGEN, or conditioning or
                latents hold numbers that are not finite, or an area lies outside of the picture.
        """
        width = self.spectral.config.conditioning.width
        if self.spectral.config.conditioning.kind == "none":
            # Core wants some context; this network reads none.
            kwargs["cross_attn"] = torch.zeros(1, 1, 1)
        else:
            inputs.context(kwargs.get("cross_attn"), width, _source(self.spectral.config))
        if kwargs.get("latent_image") is not None:
            inputs.finite(kwargs["latent_image"], "The connected latents")
        if kwargs.get("area") is not None and kwargs.get("noise") is not None:
            inputs.area(kwargs["area"], kwargs["noise"].shape)
        control.check(kwargs.get("control"), self.diffusion_model.config.in_channels, width)
        control.check_gligen(kwargs.get("gligen"), self.diffusion_model)
        conds: dict[str, Any] = super().extra_conds(**kwargs)
        return conds

    def state_dict_for_saving(self, *given: Any, **named: Any) -> dict[str, Tensor]:
        """What Save Checkpoint and Model Save write: this project's file, with whatever patches have changed.

        Args:
            given, named: as this version of core calls it: the state dicts of CLIP and VAE, in newer ones our own too.

        Raises:
            SpectralError: the VAE or the CLIP is none that goes with this model.
        """
        parts = inspect.signature(super().state_dict_for_saving).bind(*given, **named).arguments
        clip, first_stage = (parts.pop(f"{name}_state_dict", None) for name in ("clip", "vae"))
        network = self.diffusion_model
        weights = as_files_have_them(network, parts.get("unet_state_dict", network.state_dict()))
        return saving.state_dict(self.spectral.config, weights, self.spectral.classes, clip, first_stage)


class StagedModel(staged.StagedCalls, SpectralModel):
    """A student that works in stages (f-DM), for the f-DM Sampler alone."""

    def __init__(self, model_config: SpectralModelConfig, model_type: Any, device: Any = None) -> None:
        super().__init__(model_config, model_type, device)
        stages, pairs = model_config.spectral.stages, self.diffusion_model.stage_pairs
        assert stages is not None
        named = {int(index): pair for index, pair in pairs.items()}
        self.process = Process(Schedule.from_config(model_config.schedule), stages, named)
        staged.with_stages(self.model_sampling, self.process)


def is_stable_latent(config: ModelConfig) -> bool:
    """Whether the latents are those of Stable Diffusion, which previews and other nodes know already."""
    unet = config.unet
    return unet is not None and unet.in_channels == 4 and config.scale_factor == STABLE_SCALE


class SpectralModelConfig(comfy.supported_models_base.BASE):  # type: ignore[misc]
    """What core asks of a model's description: LDM's names for LoRA key maps, the latent format, the schedule."""

    supported_inference_dtypes = (torch.float16, torch.bfloat16, torch.float32)
    unet_extra_config: ClassVar[dict[str, Any]] = {}

    def __init__(self, config: ModelConfig, rgb: RgbFactors | None) -> None:
        assert config.unet is not None
        super().__init__(_ldm_names(config.unet))
        self.spectral = config.unet
        self.latent_format = latent_format(config, rgb)
        self.sampling_settings = {
            "beta_schedule": "linear",
            "linear_start": config.schedule.linear_start,
            "linear_end": config.schedule.linear_end,
            "timesteps": config.schedule.steps,
            "zsnr": config.schedule.zero_terminal_snr,
        }
        self.schedule = config.schedule
        self.predicts_velocity = config.schedule.prediction == "v"

    def get_model(self, state_dict: Any = None, prefix: str = "", device: Any = None) -> SpectralModel:
        types = comfy.model_base.ModelType
        kind = SpectralModel if self.spectral.stages is None else StagedModel
        return kind(self, types.V_PREDICTION if self.predicts_velocity else types.EPS, device)


#: ᾱ of the last step where a schedule of zero terminal SNR needs a finite σ; ComfyUI's own number.
TERMINAL_ALPHA = 4.8973451890853435e-08


def zero_terminal_sigmas(schedule: ScheduleConfig) -> Tensor:
    """σ = √((1 − ᾱ) / ᾱ) of every step, [T] float64, the last one of `TERMINAL_ALPHA`."""
    alphas = Schedule.from_config(schedule).alphas_cumprod.clone()
    alphas[-1] = TERMINAL_ALPHA
    return ((1.0 - alphas) / alphas).sqrt()


@dataclass(frozen=True)
class RgbFactors:
    """The linear map from a latent cell (in the U-Net's scale) to a colour in [−1, 1], for previews."""

    factors: list[list[float]]
    bias: list[float]


def latent_format(config: ModelConfig, rgb: RgbFactors | None) -> Any:
    """ComfyUI's description of the latents that the U-Net sees: first-stage latents × `scale_factor`."""
    assert config.unet is not None
    if is_stable_latent(config):
        return comfy.latent_formats.SD15()
    made = comfy.latent_formats.LatentFormat()
    made.scale_factor = config.scale_factor
    made.latent_channels = config.unet.in_channels
    if rgb is not None:
        made.latent_rgb_factors = rgb.factors
        made.latent_rgb_factors_bias = rgb.bias
    return made


def build(file: CheckpointFile, companions: Companions, rgb: RgbFactors | None) -> Any:
    """The checkpoint's U-Net as a MODEL (`comfy.model_patcher.ModelPatcher`) on the offload device.

    Args:
        rgb: for previews; without it there are none.

    Raises:
        SpectralError: the file's tensors do not fit its configuration.
    """
    weights = file.part(UNET)
    management = comfy.model_management
    device, offload = management.get_torch_device(), management.unet_offload_device()
    described = SpectralModelConfig(file.config, rgb)
    dtypes = described.supported_inference_dtypes
    count = sum(tensor.numel() for tensor in weights.values())
    dtype = management.unet_dtype(model_params=count, supported_dtypes=dtypes)
    described.set_inference_dtype(dtype, management.unet_manual_cast(dtype, device, dtypes))
    # Built without memory, then filled in place: opening takes the memory of the weights once.
    model = described.get_model(device="meta")
    checkpoint.fill(model.diffusion_model, weights, f"{file.path.name}: {UNET}", offload, dtype, device)
    if described.spectral.stages is not None:
        model.diffusion_model.stage_pairs.float()  # no layers of core's, which would cast what they are given
    for module in model.diffusion_model.modules():
        if isinstance(module, SelfAttention):
            module.third_axis = False  # core merges what has the shape of the parameter
    model.device = offload
    model.spectral = companions
    made = comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=offload)
    return patcher.counting(made, patcher.UNET)


def companions_of(model: Any) -> Companions:
    """What a connected MODEL was loaded from.

    Raises:
        SpectralError: it does not come from our loader.
    """
    found = getattr(model.model, "spectral", None)
    if not isinstance(found, Companions):
        raise SpectralError("This node needs a MODEL from Load Checkpoint (Spectral Diffusion); connect that one.")
    return found


def _source(config: ModelConfig) -> str:
    """How a person gets conditioning that fits."""
    if config.conditioning.kind == "text":
        return "use CLIP Text Encode with the CLIP of its own Load Checkpoint node"
    if config.conditioning.kind == "class":
        return "use Class Label and Unconditional (Spectral Diffusion) with this MODEL"
    return "use CLIP Text Encode with the CLIP that belongs to it, such as one from Load CLIP"


def _ldm_names(config: UNetConfig) -> dict[str, Any]:
    """The configuration as core's own loaders write it: one entry per level, one transformer depth per block."""
    depth = config.transformer_depth if config.use_spatial_transformer else 0
    per_level = [depth if 2**level in config.attention_resolutions else 0 for level in range(len(config.channel_mult))]
    blocks = config.num_res_blocks
    return {
        "image_size": config.image_size,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "model_channels": config.model_channels,
        "num_res_blocks": [blocks] * len(config.channel_mult),
        "channel_mult": list(config.channel_mult),
        "num_heads": config.num_heads,
        "num_head_channels": config.num_head_channels,
        "use_spatial_transformer": config.use_spatial_transformer,
        "use_linear_in_transformer": config.use_linear_in_transformer,
        "context_dim": config.context_dim,
        "transformer_depth": [depth for depth in per_level for _ in range(blocks)],
        "transformer_depth_output": [depth for depth in per_level for _ in range(blocks + 1)],
        "transformer_depth_middle": depth,
    }
