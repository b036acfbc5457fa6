"""Layouts of CLIP text towers: there and back, and states equal to the library's whose weights they are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from spectral_diffusion.spectral.config import ConditioningConfig
from spectral_diffusion.spectral.errors import SpectralError
from spectral_diffusion.spectral.formats import text_keys
from spectral_diffusion.spectral.ldm_text import LdmTextEncoder
from spectral_diffusion.spectral.text import END, TextTower
from spectral_diffusion.training.tokens import tokenize

from . import clip, tiny

TEXTS = ["", "a red apple and a green pear", "Cat FACE, with   tears of joy!", "word " * 200]
LDM = ConditioningConfig("text", width=32, layers=2, heads=3, tower="ldm", vocabulary=50, pad_token=0, context_length=9)


def text_part(model: Any) -> dict[str, Tensor]:
    """An OpenCLIP model's tensors without those of its picture tower."""
    return {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("visual.")}


def tower(weights: dict[str, Tensor], **about: Any) -> TextTower:
    with torch.device("meta"):
        module = TextTower(text_keys.describe(weights, **about))
    module.load_state_dict(weights, assign=True)
    return module.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def small() -> dict[str, Tensor]:
    return text_part(clip.in_open_clip())


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    """To 1e-4 of the largest value, everywhere."""
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 * theirs.abs().max().item())


@pytest.mark.parametrize(
    ("name", "layers", "activation", "skip_last"),
    [("ViT-L-14", 2, "quick_gelu", 0), ("ViT-H-14", 3, "gelu", 0), ("ViT-H-14", 3, "gelu", 1)],
    ids=["vit-l", "vit-h", "vit-h-penultimate"],
)
def test_states_of_published_sizes_equal_open_clips(name: str, layers: int, activation: Any, skip_last: int) -> None:
    theirs = clip.published(name, layers, quick_gelu=activation == "quick_gelu")
    weights = text_keys.from_open_clip(text_part(theirs))
    ours = tower(weights, activation=activation, skip_last=skip_last)
    tokens = tokenize(TEXTS, pad=0)
    assert torch.equal(tokens, clip.open_clip().get_tokenizer(name)(TEXTS))
    found = ours(tokens)
    assert_close(found, clip.states(theirs, tokens, skip_last))
    assert found.std() > 0.1


def test_the_projection_makes_open_clips_features(small: dict[str, Tensor]) -> None:
    theirs = clip.in_open_clip()
    ours, tokens = tower(text_keys.from_open_clip(small), activation="gelu"), tokenize(TEXTS)
    at_end = ours(tokens)[torch.arange(len(TEXTS)), (tokens == END).int().argmax(-1)]
    projected = F.linear(at_end, ours.state_dict()[text_keys.PROJECTION])
    assert_close(F.normalize(projected, dim=-1), theirs.encode_text(tokens, normalize=True))  # type: ignore[operator]


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_states_equal_transformers(activation: Any) -> None:
    theirs: Any = clip.in_transformers(activation)
    stored = {k: v for k, v in theirs.state_dict().items() if k.startswith(("text_model.", "text_projection."))}
    ours, tokens = tower(text_keys.from_transformers(stored), activation=activation), tokenize(TEXTS)
    found = theirs.text_model(input_ids=tokens)
    assert_close(ours(tokens), found.last_hidden_state)
    projected = F.linear(ours(tokens)[0, 1], ours.state_dict()[text_keys.PROJECTION])
    assert_close(projected, theirs.text_projection(found.last_hidden_state[0, 1]))


def test_open_clips_names_return(small: dict[str, Tensor]) -> None:
    back = text_keys.to_open_clip(text_keys.from_open_clip(small))
    assert set(back) == set(small) - {"logit_scale"}
    assert all(torch.equal(back[name], small[name]) for name in back)


@pytest.mark.parametrize("prefix", ["text_model.", ""], ids=["prefix", "bare"])
def test_transformers_names_return(prefix: str, small: dict[str, Tensor]) -> None:
    ours = text_keys.from_open_clip(small)
    theirs = {name.replace("text_model.", prefix): tensor for name, tensor in text_keys.to_transformers(ours).items()}
    older = theirs | {f"{prefix}embeddings.position_ids": torch.arange(77)[None]}
    back = text_keys.from_transformers(older)
    assert set(back) == set(ours) and all(back[name] is tensor for name, tensor in ours.items())


def test_nothing_is_copied_on_the_way_in(small: dict[str, Tensor]) -> None:
    storages = {tensor.untyped_storage().data_ptr() for tensor in small.values()}
    ours = text_keys.from_open_clip(small)
    assert all(tensor.untyped_storage().data_ptr() in storages for tensor in ours.values())


def test_a_description_is_that_of_the_tower() -> None:
    config = ConditioningConfig("text", width=192, layers=2, heads=3, vocabulary=60, pad_token=0, activation="gelu")
    for projection in (False, True):
        expected = replace(config, projection=projection)
        weights = TextTower(expected).state_dict()
        assert text_keys.describe(weights, activation="gelu", pad_token=0) == expected
        given = text_keys.describe(weights, heads=6, activation="gelu", pad_token=0, skip_last=1)
        assert given == replace(expected, heads=6, skip_last=1)


def test_a_description_is_that_of_ldms_encoder() -> None:
    assert text_keys.describe_ldm(LdmTextEncoder(LDM).state_dict()) == LDM


CLIP = TextTower(tiny.TEXT).state_dict()
LDM_WEIGHTS = LdmTextEncoder(LDM).state_dict()
INSIDE = "transformer.text_model.encoder.layers.1."
POSITIONS, TOKENS = (f"transformer.text_model.embeddings.{name}_embedding.weight" for name in ("position", "token"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({f"{INSIDE}mlp.fc1.bias": None}, "file lacks .*layers.1.mlp.fc1.bias"),
        ({TOKENS: None}, "file lacks .*token_embedding"),
        ({POSITIONS: torch.zeros(77)}, r"position_embedding.weight has shape \[77\]; expected a matrix"),
        ({POSITIONS: torch.zeros(64, 32)}, "context_length is 64"),
        ({f"{INSIDE}mlp.fc1.bias": torch.zeros(5)}, r"fc1.bias has shape \[5\].*ask for \[128\]"),
        ({f"{INSIDE}mlp.fc3.bias": torch.zeros(5)}, "holds .*fc3.bias', which is no part"),
        ({INSIDE.replace("1", "9999") + "mlp.fc1.bias": torch.zeros(5)}, "layers of 1 to 128"),
        ({text_keys.PROJECTION: torch.zeros(8, 32)}, r"text_projection.weight has shape \[8, 32\]"),
        ({TOKENS: torch.empty(2**21, 32, device="meta")}, "vocabulary is 2097152"),
    ],
    ids=["lacking", "no-tokens", "vector", "short", "shape", "foreign", "deep", "projection", "vocabulary"],
)
def test_odd_weights_of_clip_are_refused(change: dict[str, Tensor | None], says: str) -> None:
    weights = {name: tensor for name, tensor in {**CLIP, **change}.items() if tensor is not None}
    with pytest.raises(SpectralError, match=says):
        text_keys.describe(weights, "file", heads=2)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"transformer.attn_layers.layers.3.1.net.2.bias": None}, "file lacks .*layers.3.1.net.2.bias"),
        ({"transformer.attn_layers.layers.0.1.to_q.weight": torch.zeros(3, 32)}, "heads of 1 to 1024"),
        ({"transformer.to_logits.weight": torch.zeros(3, 32)}, "to_logits.weight', which is no part"),
        ({"transformer.attn_layers.layers.9999.0.bias": torch.zeros(3)}, "layers of 1 to 128"),
        ({"transformer.pos_emb.emb.weight": None}, "file lacks transformer.pos_emb.emb.weight"),
    ],
    ids=["lacking", "headless", "logits", "deep", "no-positions"],
)
def test_odd_weights_of_ldms_encoder_are_refused(change: dict[str, Tensor | None], says: str) -> None:
    weights = {name: tensor for name, tensor in {**LDM_WEIGHTS, **change}.items() if tensor is not None}
    with pytest.raises(SpectralError, match=says):
        text_keys.describe_ldm(weights, "file")


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("visual.proj", torch.zeros(2, 2)),
        ("transformer.resblocks.0.ls_1.gamma", torch.zeros(2)),
        ("transformer.resblocks.0.attn.in_proj_weight", torch.zeros(4, 2)),
        ("transformer.resblocks.0.attn.in_proj_bias", torch.zeros(())),
        ("text_projection", torch.zeros(2)),
    ],
)
def test_what_open_clips_tower_has_not_is_refused(name: str, tensor: Tensor, small: dict[str, Tensor]) -> None:
    with pytest.raises(SpectralError, match=f"file holds '{name}'.*ViT"):
        text_keys.from_open_clip({**small, name: tensor}, "file")


def test_names_of_nothing_are_refused() -> None:
    foreign = {"vision_model.embeddings.class_embedding": torch.zeros(2)}
    for convert in (text_keys.from_transformers, text_keys.to_transformers, text_keys.to_open_clip):
        with pytest.raises(SpectralError, match="vision_model.embeddings.class_embedding"):
            convert(foreign)
    with pytest.raises(SpectralError, match=r"lacks .*k_proj\.weight"):
        text_keys.to_open_clip({f"{INSIDE}self_attn.q_proj.weight": torch.zeros(2, 2)})
