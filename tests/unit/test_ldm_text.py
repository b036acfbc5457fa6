"""LDM's own text encoder against the original's output, and BERT's tokens against transformers' tokenizer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from spectral_diffusion.spectral import wordpiece
from spectral_diffusion.spectral.conditioning import build
from spectral_diffusion.spectral.config import ConditioningConfig
from spectral_diffusion.spectral.errors import SpectralError
from spectral_diffusion.spectral.ldm_text import LdmTextEncoder
from spectral_diffusion.training.data.config import DataConfig
from spectral_diffusion.training.data.contexts import Contexts
from spectral_diffusion.training.data.dataset import open_data
from spectral_diffusion.training.tokens import tokens_of
from spectral_diffusion.training.wordpiece import ADVICE

from . import tiny
from .test_ldm_parity import assert_close, golden, with_weights_by_rule

PUBLISHED = ConditioningConfig(
    "text", width=1280, layers=32, heads=8, tower="ldm", vocabulary=30522, pad_token=0
)  # txt2img_1p4B
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "app", "##le", "##les", ",", "cafe", "東", "!", "[MASK]")
SMALL = replace(PUBLISHED, width=16, layers=1, heads=2, vocabulary=len(WORDS), context_length=9)


def written(folder: Path, words: tuple[str, ...] = WORDS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "vocab.txt"
    path.write_text("\n".join(words) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No vocabulary in the environment, and an empty Hugging Face cache; returns the cache's folder."""
    import huggingface_hub.constants

    monkeypatch.delenv(wordpiece.VARIABLE, raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def small_encoder() -> nn.Module:
    encoder = build(SMALL)
    assert isinstance(encoder, LdmTextEncoder)
    return tiny.randomized(encoder, 3).eval().requires_grad_(False)


def test_states_equal_the_originals() -> None:
    data = golden("ldm_text_encoder")
    with torch.device("meta"):
        encoder = LdmTextEncoder(replace(PUBLISHED, width=128, layers=2))
    assert_close(with_weights_by_rule(encoder)(data["tokens"]), data["states"])


def test_names_and_sizes_are_those_of_txt2img_1p4b() -> None:
    """542,895,360 weights in the original's own module, its logits left out."""
    with torch.device("meta"):
        tensors = LdmTextEncoder(PUBLISHED).state_dict()
    assert sum(tensor.numel() for tensor in tensors.values()) == 542_895_360
    assert tensors["transformer.token_emb.weight"].shape == (30522, 1280)
    assert tensors["transformer.pos_emb.emb.weight"].shape == (77, 1280)
    assert tensors["transformer.attn_layers.layers.62.1.to_q.weight"].shape == (512, 1280)
    assert tensors["transformer.attn_layers.layers.62.1.to_out.bias"].shape == (1280,)
    assert tensors["transformer.attn_layers.layers.63.1.net.0.0.weight"].shape == (5120, 1280)
    assert tensors["transformer.attn_layers.layers.63.1.net.2.weight"].shape == (1280, 5120)
    assert len(tensors) == 2 + 32 * (2 + 5 + 2 + 4) + 2


def test_every_token_is_seen_by_every_other_and_padding_counts() -> None:
    encoder = small_encoder()
    tokens = torch.tensor([[2, 4, 5, 3, 0, 0, 0, 0, 0]])
    before = encoder(tokens)
    for place in (1, 8):
        changed = tokens.clone()
        changed[0, place] = 6
        assert not torch.isclose(encoder(changed), before).all(-1).any()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"context_length": 1025}, "context_length is 1025; expected 1 to 1024"),
        ({"skip_last": 1}, "skip_last and projection belong to a CLIP tower"),
        ({"projection": True}, "skip_last and projection belong to a CLIP tower"),
        ({"pad_token": 30522}, "pad_token is 30522; expected .* 0 to 30521"),
        ({"vocabulary": 0}, "vocabulary is 0"),
        ({"width": 2**14 + 1}, "width is 16385; expected at most 16384"),
    ],
    ids=["long", "skipping", "projecting", "padding", "vocabulary", "wide"],
)
def test_an_encoder_that_cannot_be_is_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(SpectralError, match=says):
        build(replace(PUBLISHED, **settings))


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("", [2, 3, 0, 0, 0, 0, 0, 0, 0]),
        ("A Red APPLE", [2, 4, 5, 6, 7, 3, 0, 0, 0]),
        ("apples, café!", [2, 6, 8, 9, 10, 12, 3, 0, 0]),
        ("red東pear", [2, 5, 11, 1, 3, 0, 0, 0, 0]),
        ("a a a a red red red red red", [2, 4, 4, 4, 4, 5, 5, 5, 3]),
        ("a [SEP] red", [2, 4, 3, 5, 3, 0, 0, 0, 0]),
    ],
    ids=["empty", "pieces", "accents", "chinese", "too-long", "special"],
)
def test_tokens_are_berts(text: str, ids: list[int], tmp_path: Path) -> None:
    """Written by hand from the algorithm's description; and as transformers' tokenizer, which the original calls."""
    from transformers import BertTokenizer

    path = written(tmp_path)
    tokens = tokens_of(SMALL, [text], path)
    assert tokens.dtype == torch.int64 and tokens.tolist() == [ids]
    theirs = BertTokenizer.from_pretrained(str(tmp_path))
    assert theirs([text], truncation=True, max_length=9, padding="max_length")["input_ids"] == [ids]


def find_vocabulary(given: Path | None = None) -> Path:
    return wordpiece.find_vocabulary(ADVICE, given)


def test_the_vocabulary_is_looked_for_in_three_places(
    nowhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SpectralError, match=r"not on this machine; download .*vocab\.txt.*SPECTRAL_DIFFUSION_BERT"):
        find_vocabulary()
    commit = nowhere / "models--google-bert--bert-base-uncased"
    cached = written(commit / "snapshots" / "0123")
    (commit / "refs").mkdir()
    (commit / "refs" / "main").write_text("0123")
    assert find_vocabulary() == cached
    monkeypatch.setenv(wordpiece.VARIABLE, str(written(tmp_path / "environment").parent))
    assert find_vocabulary() == tmp_path / "environment" / "vocab.txt"
    named = written(tmp_path / "named")
    assert find_vocabulary(named) == find_vocabulary(named.parent) == named
    with pytest.raises(SpectralError, match=r"No vocabulary at .*missing"):
        find_vocabulary(tmp_path / "missing")


def test_tokens_never_ask_the_network(nowhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert tokens_of(SMALL, ["a"], written(tmp_path))[0, 1] == 4
    with pytest.raises(SpectralError, match="not on this machine"):
        tokens_of(SMALL, ["a"])


@pytest.mark.parametrize(
    ("words", "settings", "says"),
    [
        (WORDS[:-1], {}, "holds 13 tokens, the model's text encoder knows 14"),
        ((*WORDS, "a"), {}, "the same token on several lines"),
        (("a", "b"), {}, r"has no token \[PAD\]"),
        (WORDS, {"pad_token": 4}, r"pad_token is 4, but .* has \[PAD\] at 0"),
    ],
    ids=["size", "twice", "no-bert", "padding"],
)
def test_another_vocabulary_is_refused(
    words: tuple[str, ...], settings: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(SpectralError, match=says):
        tokens_of(replace(SMALL, **settings), ["a"], written(tmp_path, words))


def test_a_vocabulary_without_end_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "vocab.txt", "wb") as file:
        file.truncate(6 * 2**30)
    with pytest.raises(SpectralError, match="has 6442450944 bytes, more than any vocabulary; download"):
        tokens_of(SMALL, ["a"], tmp_path)


def test_a_byte_order_mark_is_no_token(tmp_path: Path) -> None:
    path = written(tmp_path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert tokens_of(SMALL, ["a"], path)[0, 1] == 4


def test_a_vocabulary_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpectralError, match=r"vocab\.txt is no vocabulary that can be read .*download"):
        tokens_of(SMALL, ["a"], tmp_path)


def test_captions_become_contexts(tmp_path: Path) -> None:
    data = open_data(DataConfig(str(tiny.pictures(tmp_path / "pictures", 1))))
    contexts, encoder = Contexts(SMALL, data, vocabulary=written(tmp_path)), small_encoder()
    found = contexts.context(encoder, {"caption": ["apples!"]}, torch.ones(1))
    null = contexts.unconditional(encoder)
    assert found is not None and null is not None
    torch.testing.assert_close(found, encoder(torch.tensor([[2, 6, 8, 12, 3, 0, 0, 0, 0]])))
    torch.testing.assert_close(null, encoder(torch.tensor([[2, 3, 0, 0, 0, 0, 0, 0, 0]])))
