"""The networks that look at images, against their own libraries; files that are no such networks are refused."""

from __future__ import annotations

import io
import json
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from spectral_diffusion.spectral import checkpoint
from spectral_diffusion.spectral.config import ModelConfig
from spectral_diffusion.spectral.errors import SpectralError
from spectral_diffusion.training import cli
from spectral_diffusion.training.data.config import DataConfig
from spectral_diffusion.training.data.dataset import open_images
from spectral_diffusion.training.evaluation import features
from spectral_diffusion.training.evaluation.distances import Moments, frechet, kid
from spectral_diffusion.training.evaluation.features import Clip, EfficientNetLite0, Inception
from spectral_diffusion.training.evaluation.reference import open_reference, pick
from spectral_diffusion.training.tokens import declare_torchvision_operators, tokenize

from . import clip, tiny


def evaluated(folder: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """The report of `evaluate … --json` against the data in a folder."""
    assert cli.main(["evaluate", "--data", str(folder / "data"), "--out", str(folder / "out"), *arguments]) == 0
    return json.loads(capsys.readouterr().out)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def efficient_net() -> EfficientNetLite0:
    return EfficientNetLite0()


@pytest.fixture(scope="module")
def emoji() -> Tensor:
    return pick(open_reference(DataConfig(subgroups=("face-*",)), 64), range(24))[0]


def test_features_are_those_of_the_network_that_classifies(efficient_net: EfficientNetLite0) -> None:
    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    seen: list[Tensor] = []
    hook = efficient_net.net._blocks[10].register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    with torch.no_grad():
        logits = efficient_net.net((images * 255 - 127) / 128)
    hook.remove()
    middle, last = efficient_net(images)
    assert middle.shape == (2, EfficientNetLite0.MIDDLE) and last.shape == (2, EfficientNetLite0.LAST)
    torch.testing.assert_close(efficient_net.net._fc(last), logits)
    torch.testing.assert_close(middle, seen[0].mean((2, 3)))


def test_what_ruins_pictures_moves_them_away(efficient_net: EfficientNetLite0, emoji: Tensor) -> None:
    """Half of the faces against the other half, then as blurs and with noise."""
    half, other = emoji[::2], emoji[1::2]
    blurred = nn.functional.interpolate(nn.functional.avg_pool2d(other, 4), scale_factor=4, mode="bilinear")
    noisy = (other + 0.1 * torch.randn(other.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    gathered, last = [], []
    for images in (half, other, blurred, noisy):
        middle, deep = efficient_net(images)
        gathered.append(Moments(EfficientNetLite0.MIDDLE))
        gathered[-1].add(middle)
        last.append(deep)
    fd = [frechet(gathered[0], found) for found in gathered[1:]]
    kernel = [kid(last[0], found).mean for found in last[1:]]
    assert fd[1] > 1.2 * fd[0] and fd[2] > 1.2 * fd[0]
    assert kernel[1] > 2 * abs(kernel[0]) and kernel[2] > 2 * abs(kernel[0])


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("openai", [False, True], ids=["openclip", "openai"])
def test_clip_scores_are_open_clips(tmp_path: Path, suffix: str, openai: bool) -> None:
    theirs: Any = clip.in_open_clip(quick_gelu=openai)
    path = tmp_path / f"clip{suffix}"
    sizes = {name: torch.tensor(32) for name in ("input_resolution", "context_length", "vocab_size")} if openai else {}
    state = {name: tensor.contiguous() for name, tensor in theirs.state_dict().items()} | sizes
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    texts = ["a red apple", "clown face", ""]
    normalise = clip.open_clip().image_transform(32, is_train=False).transforms[-1]
    with torch.no_grad():
        seen = theirs.encode_image(normalise(images), normalize=True)
        read = theirs.encode_text(clip.open_clip().get_tokenizer("ViT-B-32")(texts), normalize=True)
    ours = Clip(path)
    torch.testing.assert_close(ours(images, texts), 100 * (seen * read).sum(-1).clamp_min(0), rtol=1e-4, atol=1e-4)
    assert ours.about()["activation"] == ("quick_gelu" if openai else "gelu")
    assert torch.equal(tokenize(texts, pad=0), clip.open_clip().get_tokenizer("ViT-B-32")(texts))


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-L-14", "ViT-H-14", "ViT-g-14", "ViT-bigG-14"])
def test_published_clip_models_are_told_by_their_shapes(name: str) -> None:
    known = clip.open_clip().get_model_config(name)
    with torch.device("meta"):
        whole = clip.open_clip().model.CLIP(known["embed_dim"], known["vision_cfg"], known["text_cfg"])
        told = features._described(whole.state_dict(), name)
        again = clip.open_clip().model.CLIP(told["embed_dim"], told["vision_cfg"], told["text_cfg"])
    heads = [(block.attn.num_heads, block.attn.embed_dim) for block in whole.modules() if hasattr(block, "attn")]
    assert heads == [
        (block.attn.num_heads, block.attn.embed_dim) for block in again.modules() if hasattr(block, "attn")
    ]
    assert {key: tensor.shape for key, tensor in again.state_dict().items()} == {
        key: tensor.shape for key, tensor in whole.state_dict().items()
    }


def test_what_is_no_clip_model_is_a_sentence(tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in clip.in_open_clip().state_dict().items() if "visual" not in name}
    save_file(state, tmp_path / "text.safetensors")
    with pytest.raises(SpectralError, match=r"text\.safetensors holds no CLIP model .*visual\.conv1\.weight"):
        Clip(tmp_path / "text.safetensors")
    with pytest.raises(SpectralError, match="open_clip knows no model 'ViT-Z'"):
        Clip(tmp_path / "text.safetensors", "ViT-Z")
    with pytest.raises(SpectralError, match="does not hold ViT-B-32"):
        Clip(tmp_path / "text.safetensors", "ViT-B-32")


def test_clip_scores_of_a_text_model_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    about = ModelConfig("student", tiny.CONDITIONED, tiny.FIRST_STAGE, tiny.TEXT, scale_factor=0.5)
    checkpoint_file = tiny.write(tmp_path / "model.safetensors", about)
    tiny.pictures(tmp_path / "data", count=4)
    save_file(dict(clip.in_open_clip().state_dict()), tmp_path / "clip.safetensors")
    options = ["--clip", str(tmp_path / "clip.safetensors"), "--steps", "1", "--count", "4", "--json"]
    report = evaluated(tmp_path, capsys, str(checkpoint_file), *options)
    scorer = Clip(tmp_path / "clip.safetensors")
    data = open_images(DataConfig(str(tmp_path / "data"), 16))
    expected = scorer(pick(data, range(4))[0], data.captions).mean().item()
    assert report["clip_score_data"] == pytest.approx(expected, abs=1e-2)
    assert 0 <= report["clip_score"] <= 100
    assert report["features"]["clip"]["sha256"] == checkpoint.sha256(tmp_path / "clip.safetensors")


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """torch-fidelity's Inception with random weights, and a file of them in torch's oldest format, as pytorch-fid's."""
    declare_torchvision_operators()
    library = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)

    class Unfilled(library.FeatureExtractorInceptionV3):  # type: ignore[misc, name-defined]
        def load_state_dict(self, *_arguments: Any, **_options: Any) -> None: ...

    net = tiny.randomized(Unfilled("inception", ["2048"], empty), 4)
    for parameter in net.parameters():  # what its ReLUs halve
        parameter.mul_(2**0.5 if parameter.dim() == 4 else 1)
    path = tmp_path_factory.mktemp("inception") / "pt_inception.pth"
    torch.save(net.state_dict(), path, _use_new_zipfile_serialization=False)
    return net, path


def test_inception_features_are_torch_fidelitys(inception: tuple[nn.Module, Path]) -> None:
    net, path = inception
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    (expected,) = net(images)
    torch.testing.assert_close(Inception(path)(images.float() / 255), expected)


def test_fid_is_reported_when_its_weights_are_given(
    inception: tuple[nn.Module, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And is scipy's, of torch-fidelity's own features."""
    net, path = inception
    for name, side in (("data", 16), ("made", 16)):
        tiny.pictures(tmp_path / name, 5 if name == "data" else 8, side)
    given = ["--images", str(tmp_path / "made"), "--inception", str(path), "--json"]
    report = evaluated(tmp_path, capsys, *given)
    seen = []
    for name in ("data", "made"):
        files = sorted((tmp_path / name).rglob("*.png"))
        pixels = np.stack([np.asarray(Image.open(file)).transpose(2, 0, 1) for file in files])
        seen.append(net(torch.from_numpy(pixels))[0].double().numpy())
    (a, b), (mean_a, mean_b) = (np.cov(x, rowvar=False) for x in seen), (x.mean(0) for x in seen)
    # tr √(A B) from the eigenvalues of the small matrix that has the same ones: both are of rank below 8.
    root = scipy.linalg.eigvals(centred(seen[0]) @ centred(seen[1]).T @ centred(seen[1]) @ centred(seen[0]).T)
    between = np.sqrt(np.clip(root.real, 0, None)).sum()
    assert report["fid"] == pytest.approx(((mean_a - mean_b) ** 2).sum() + np.trace(a + b) - 2 * between, rel=1e-3)
    assert report["features"]["inception"]["weights"] == "pt_inception.pth"
    assert any("FID says little" in note for note in report["notes"])


def centred(features: np.ndarray) -> np.ndarray:
    """[N, D] whose product with its transpose is the covariance."""
    return (features - features.mean(0)) / np.sqrt(len(features) - 1)  # type: ignore[no-any-return]


class Harmful:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch harmed",)


@pytest.mark.parametrize("content", [pickle.dumps(Harmful(), 2), b"\x80\x02nonsense", pickle.dumps([1], 2)])
def test_a_file_that_is_not_weights_is_refused_and_not_run(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("inception.pth").write_bytes(content)
    with pytest.raises(SpectralError, match=r"inception\.pth is "):
        Inception(Path("inception.pth"))
    assert not Path("harmed").exists()


def test_other_weights_are_no_inception(inception: tuple[nn.Module, Path], tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(SpectralError, match=r"other\.pth does not hold the Inception of FID"):
        Inception(tmp_path / "other.pth")


def test_without_torch_fidelity_a_sentence_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"weight": torch.zeros(1)}, tmp_path / "inception.pth")
    for name in [name for name in sys.modules if name.partition(".")[0] == "torch_fidelity"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(SpectralError, match="pip install torch-fidelity"):
        Inception(tmp_path / "inception.pth")
