"""The text tower and the tokens against open_clip's own CLIP text transformer and tokenizer."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from spectral_diffusion.spectral.conditioning import build
from spectral_diffusion.spectral.config import ConditioningConfig
from spectral_diffusion.spectral.errors import SpectralError
from spectral_diffusion.spectral.text import END, START, VOCABULARY, TextTower
from spectral_diffusion.training.conditions import declare_torchvision_operators, tokenize

from . import tiny

TEXTS = [
    "",
    "a grinning face with big eyes",
    "Cat FACE, with   tears of joy!",
    "naïve café — 東京 🦊",
    "it's 3 o'clock &amp; <i>raining</i>",
    "word " * 200,
]
TEXT_IDS = ["empty", "plain", "upper-case", "unicode", "entities", "too-long"]


def tower(config: ConditioningConfig = tiny.TEXT) -> TextTower:
    return tiny.randomized(TextTower(config), 4).eval().requires_grad_(False)


def in_open_clips_names(ours: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """The tower's weights under the names of open_clip's TextTransformer, whose q, k and v lie in one matrix."""
    prefix = "transformer.text_model."
    theirs = {
        "token_embedding.weight": ours[f"{prefix}embeddings.token_embedding.weight"],
        "positional_embedding": ours[f"{prefix}embeddings.position_embedding.weight"],
    }
    for kind in ("weight", "bias"):
        theirs[f"ln_final.{kind}"] = ours[f"{prefix}final_layer_norm.{kind}"]
        for index in range(layers):
            own, other = f"{prefix}encoder.layers.{index}.", f"transformer.resblocks.{index}."
            qkv = [ours[f"{own}self_attn.{name}_proj.{kind}"] for name in "qkv"]
            theirs[f"{other}attn.in_proj_{kind}"] = torch.cat(qkv)
            theirs[f"{other}attn.out_proj.{kind}"] = ours[f"{own}self_attn.out_proj.{kind}"]
            theirs[f"{other}ln_1.{kind}"] = ours[f"{own}layer_norm1.{kind}"]
            theirs[f"{other}ln_2.{kind}"] = ours[f"{own}layer_norm2.{kind}"]
            theirs[f"{other}mlp.c_fc.{kind}"] = ours[f"{own}mlp.fc1.{kind}"]
            theirs[f"{other}mlp.c_proj.{kind}"] = ours[f"{own}mlp.fc2.{kind}"]
    return theirs


@pytest.fixture(scope="module")
def open_clip() -> Any:
    declare_torchvision_operators()
    return importlib.import_module("open_clip")


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("heads", [1, 4])
def test_states_equal_open_clips(layers: int, heads: int, open_clip: Any) -> None:
    ours = tower(replace(tiny.TEXT, layers=layers, heads=heads))
    theirs = open_clip.transformer.TextTransformer(
        vocab_size=VOCABULARY,
        width=tiny.TEXT.width,
        heads=heads,
        layers=layers,
        output_dim=None,
        act_layer=open_clip.transformer.QuickGELU,
        output_tokens=True,
    ).eval()
    missing = theirs.load_state_dict(in_open_clips_names(ours.state_dict(), layers), strict=False)
    assert missing.unexpected_keys == [] and set(missing.missing_keys) <= {"attn_mask"}
    tokens = tokenize(TEXTS)
    with torch.no_grad():
        _, states = theirs(tokens)
    torch.testing.assert_close(ours(tokens), states, atol=1e-4, rtol=1e-4)
    assert states.std() > 0.1


def test_a_state_depends_on_the_tokens_before_it_alone() -> None:
    model, tokens = tower(), tokenize(["a red apple and a green pear"])
    changed = tokens.clone()
    changed[:, 5] += 1
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(after[:, :5], before[:, :5])
    assert all(not torch.allclose(after[:, place], before[:, place]) for place in range(5, 9))


def test_shorter_token_lists_are_taken() -> None:
    model, tokens = tower(), tokenize(["a red apple"])
    torch.testing.assert_close(model(tokens[:, :6]), model(tokens)[:, :6])


@pytest.mark.parametrize("text", TEXTS, ids=TEXT_IDS)
def test_tokens_equal_open_clips_with_end_as_padding(text: str, open_clip: Any) -> None:
    """open_clip fills up with 0 behind END; Stable Diffusion's CLIP, and ComfyUI, with END itself."""
    (theirs,) = open_clip.tokenizer.SimpleTokenizer()([text]).tolist()
    end = theirs.index(END)
    assert tokenize([text]).tolist() == [theirs[: end + 1] + [END] * (76 - end)]


def test_tokens_have_their_frame_at_any_length() -> None:
    for length in (2, 8, 77):
        tokens = tokenize(TEXTS, length)
        assert tokens.shape == (len(TEXTS), length) and tokens.dtype == torch.int64
        assert (tokens[:, 0] == START).all() and (tokens[:, -1] == END).all()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"width": 0}, "width is 0"),
        ({"heads": 0}, "heads of 1 to 1024"),
        ({"layers": 0}, "layers of 1 to 128"),
        ({"heads": 5}, "5 heads"),
    ],
    ids=["width", "no-heads", "no-layers", "heads"],
)
def test_a_tower_that_cannot_be_is_refused(settings: dict[str, int], says: str) -> None:
    with pytest.raises(SpectralError, match=says):
        build(replace(tiny.TEXT, **settings))  # type: ignore[arg-type]


def test_a_class_embedder_looks_up_one_state_a_label() -> None:
    embedder = build(tiny.CLASSES)
    assert embedder is not None
    contexts = embedder(torch.tensor([2, 0]))
    assert contexts.shape == (2, 1, 32)
    assert torch.equal(contexts[:, 0], next(embedder.parameters())[[2, 0]])
