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
from spectral_diffusion.training.tokens import declare_torchvision_operators, tokenize, tokens_of

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
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_states_equal_open_clips(layers: int, heads: int, activation: Any, open_clip: Any) -> None:
    ours = tower(replace(tiny.TEXT, layers=layers, heads=heads, activation=activation))
    theirs = open_clip.transformer.TextTransformer(
        vocab_size=VOCABULARY,
        width=tiny.TEXT.width,
        heads=heads,
        layers=layers,
        output_dim=None,
        act_layer=open_clip.transformer.QuickGELU if activation == "quick_gelu" else torch.nn.GELU,
        output_tokens=True,
    ).eval()
    missing = theirs.load_state_dict(in_open_clips_names(ours.state_dict(), layers), strict=False)
    assert missing.unexpected_keys == [] and set(missing.missing_keys) <= {"attn_mask"}
    tokens = tokenize(TEXTS)
    with torch.no_grad():
        _, states = theirs(tokens)
    torch.testing.assert_close(ours(tokens), states, atol=1e-4, rtol=1e-4)
    assert states.std() > 0.1


def test_skipped_layers_are_kept_but_not_run() -> None:
    """Oracle: a tower that has only the first layer, with the same final normalisation."""
    whole, tokens = tower(replace(tiny.TEXT, layers=3)), tokenize(TEXTS)
    skipping, short = TextTower(replace(tiny.TEXT, layers=3, skip_last=2)), TextTower(replace(tiny.TEXT, layers=1))
    skipping.load_state_dict(whole.state_dict())
    short.load_state_dict({name: tensor for name, tensor in whole.state_dict().items() if name in short.state_dict()})
    assert torch.equal(skipping(tokens), short(tokens)) and not torch.allclose(skipping(tokens), whole(tokens))


def test_a_projection_is_kept_beside_the_states() -> None:
    whole, tokens = tower(replace(tiny.TEXT, projection=True)), tokenize(TEXTS)
    weights = whole.state_dict()
    assert weights.pop("transformer.text_projection.weight").shape == (32, 32)
    plain = TextTower(tiny.TEXT)
    plain.load_state_dict(weights)
    assert torch.equal(plain(tokens), whole(tokens))


def test_a_smaller_vocabulary_takes_its_tokens() -> None:
    config = replace(tiny.TEXT, vocabulary=10, pad_token=9)
    assert tower(config)(torch.tensor([[0, 9]])).shape == (1, 2, 32)
    with pytest.raises(SpectralError, match=r"vocabulary is 10; texts become CLIP's tokens, which need 49408"):
        tokens_of(config, ["a"])


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


@pytest.mark.parametrize("text", TEXTS, ids=TEXT_IDS)
def test_tokens_padded_with_0_are_open_clips(text: str, open_clip: Any) -> None:
    assert torch.equal(tokens_of(replace(tiny.TEXT, pad_token=0), [text]), open_clip.tokenize([text]))


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
        ({"heads": 1025}, "heads of 1 to 1024"),
        ({"layers": 129}, "layers of 1 to 128"),
        ({"width": 2**14 + 2}, "width is 16386; expected at most 16384"),
        ({"context_length": 64}, "context_length is 64; CLIP's 77"),
        ({"skip_last": 2}, "skip_last is 2; of 2 layers, 0 to 1"),
        ({"skip_last": -1}, "skip_last is -1"),
        ({"vocabulary": 2**20 + 1}, "vocabulary is 1048577"),
        ({"vocabulary": 0}, "vocabulary is 0"),
        ({"pad_token": 49408}, "pad_token is 49408; .* 0 to 49407"),
        ({"pad_token": -1}, "pad_token is -1"),
    ],
)
def test_a_tower_that_cannot_be_is_refused(settings: dict[str, int], says: str) -> None:
    with pytest.raises(SpectralError, match=says):
        build(replace(tiny.TEXT, **settings))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"n_classes": 0}, "n_classes is 0"),
        ({"n_classes": 2**20 + 1}, "n_classes is 1048577; expected at most 1048576"),
        ({"n_classes": 2}, "n_classes is 2 for 2 class_names; set it to 3: the last class is the null class"),
        ({"n_classes": 1, "null_class": False}, r"n_classes is 1 for 2 class_names; set it to 2\.$"),
    ],
    ids=["none", "many", "no-room-for-null", "no-room"],
)
def test_a_class_embedder_that_cannot_be_is_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(SpectralError, match=says):
        build(replace(tiny.CLASSES, **settings))


def test_every_class_may_have_a_name_where_none_is_the_null_class() -> None:
    assert build(replace(tiny.CLASSES, n_classes=2, null_class=False)) is not None


def test_a_class_embedder_looks_up_one_state_a_label() -> None:
    embedder = build(tiny.CLASSES)
    assert embedder is not None
    contexts = embedder(torch.tensor([2, 0]))
    assert contexts.shape == (2, 1, 32)
    assert torch.equal(contexts[:, 0], next(embedder.parameters())[[2, 0]])
