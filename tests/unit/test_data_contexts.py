"""Captions and classes of batches as contexts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from spectral_diffusion.spectral.conditioning import build
from spectral_diffusion.spectral.config import ConditioningConfig
from spectral_diffusion.spectral.errors import SpectralError
from spectral_diffusion.training.data import contexts
from spectral_diffusion.training.data.batches import Batch, Data
from spectral_diffusion.training.data.config import DataConfig
from spectral_diffusion.training.data.contexts import Contexts
from spectral_diffusion.training.tokens import tokenize

from . import tiny

CAPTIONS = ("a cat", "a dog", "a red apple", "a cat", "ein Käse 🧀")
SUBGROUPS = ("red", "blue", "red", "blue", "blue")


class Told(Data):
    """Data of which only captions and subgroups matter."""

    def __init__(self, captions: Sequence[str] | None = CAPTIONS, subgroups: Sequence[str] | None = SUBGROUPS) -> None:
        super().__init__(DataConfig(), "told", captions, subgroups)

    sha256 = ""
    preview_samples = loader = None  # type: ignore[assignment]


Told.__abstractmethods__ = frozenset()


def kept(given: Batch) -> Tensor:
    """What is drawn for samples that are to keep their conditions."""
    return torch.ones(len(given["label"]))


def batch(*indices: int) -> Batch:
    return {
        "index": torch.tensor(indices),
        "caption": [CAPTIONS[index] for index in indices],
        "label": [SUBGROUPS[index] for index in indices],
    }


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("config", [tiny.TEXT, tiny.CLASSES], ids=["text", "class"])
def test_samples_become_the_contexts_of_their_captions_or_classes(config: ConditioningConfig, frozen: bool) -> None:
    """Or, where the number that was drawn for one is below the dropout, that of nothing in particular."""
    conditioner, found = tiny.randomized(build(config)), Contexts(config, Told(), dropout=0.5)  # type: ignore[type-var]
    assert found.freeze(conditioner) == (config.kind == "text") if frozen else True
    ids = tokenize([CAPTIONS[4], "", CAPTIONS[2], ""]) if config.kind == "text" else class_ids(4, None, 2, None)
    context = found.context(conditioner, batch(4, 0, 2, 3), torch.tensor([0.5, 0.1, 0.9, 0.49]))
    assert context is not None
    torch.testing.assert_close(context, conditioner(ids), atol=1e-5, rtol=1e-4)
    null = found.unconditional(conditioner)
    assert null is not None and torch.equal(null, conditioner(ids[1:2]))


def class_ids(*indices: int | None) -> Tensor:
    names = [*tiny.CLASSES.class_names, None]
    return torch.tensor([names.index(None if index is None else SUBGROUPS[index]) for index in indices])


def test_prompts_ask_for_what_a_batch_shows() -> None:
    assert Contexts(tiny.TEXT, Told()).prompts(batch(2, 1)) == [CAPTIONS[2], CAPTIONS[1]]
    assert Contexts(tiny.CLASSES, Told()).prompts(batch(0, 1)) == [SUBGROUPS[0], SUBGROUPS[1]]
    synsets = Contexts(replace(tiny.CLASSES, class_names=()), Told(["", ""], ["n01440764", "n01443537"]))
    assert synsets.prompts({"label": ["n01443537", "n01440764"]}) == ["1", "0"]
    assert Contexts(ConditioningConfig(), Told()).prompts(batch(0, 1)) == ["", ""]


def test_states_are_computed_once_for_every_caption(monkeypatch: pytest.MonkeyPatch) -> None:
    tower = build(tiny.TEXT)
    assert tower is not None
    seen: list[int] = []
    tower.register_forward_hook(lambda module, given, out: seen.append(len(given[0])))
    found = Contexts(tiny.TEXT, Told())
    assert found.freeze(tower, batch=3) and seen == [3, 2]  # four captions that differ, and the empty one
    context = found.context(tower, batch(1, 2), kept(batch(1, 2)))
    assert context is not None and seen == [3, 2] and not context.requires_grad
    assert torch.allclose(context, tower(tokenize(["a dog", "a red apple"])), atol=1e-5)
    monkeypatch.setattr(contexts, "ON_DEVICE", 10)
    assert Contexts(tiny.TEXT, Told()).freeze(tower)


@pytest.mark.parametrize("known", [True, False], ids=["too-large", "stream"])
def test_what_does_not_fit_is_computed_on_the_fly(known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contexts, "KEPT_TOKENS", 2)
    tower = build(tiny.TEXT)
    assert tower is not None
    found = Contexts(tiny.TEXT, Told() if known else Told(None, None))
    assert not found.freeze(tower, limit=4 * 77 * 32 * 4)
    for indices in ((0, 1, 2), (4,), (0, 3, 1)):
        context = found.context(tower, batch(*indices), kept(batch(*indices)))
        assert context is not None and torch.equal(context, tower(tokenize([CAPTIONS[i] for i in indices])))
        assert context.requires_grad


def test_classes_of_a_stream_are_known_by_name_or_number() -> None:
    embedder = build(tiny.CLASSES)
    assert embedder is not None
    found = Contexts(tiny.CLASSES, Told(None, None))
    context = found.context(embedder, batch(0, 1), kept(batch(0, 1)))
    assert context is not None and torch.equal(context, embedder(torch.tensor([1, 0])))
    with pytest.raises(SpectralError, match="no class named 'green'; its classes are blue, red"):
        found.context(embedder, {"label": ["green"]}, kept({"label": ["green"]}))
    numbered = Contexts(replace(tiny.CLASSES, class_names=()), Told(None, None))
    context = numbered.context(embedder, {"label": ["1", "0"]}, kept({"label": ["1", "0"]}))
    assert context is not None and torch.equal(context, embedder(torch.tensor([1, 0])))


@pytest.mark.parametrize("groups", [("1", "0", "01"), ("n01440764", "n01443537")], ids=["numbers", "synsets"])
def test_classes_without_names(groups: tuple[str, ...]) -> None:
    numbers = contexts.class_numbers(replace(tiny.CLASSES, class_names=()), groups)
    assert [numbers[group] for group in groups] == ([1, 0, 1] if groups[0] == "1" else [0, 1])


def test_what_cannot_be_conditioned_on_is_a_sentence() -> None:
    with pytest.raises(SpectralError, match="no class named 'green'"):
        Contexts(tiny.CLASSES, Told(["x"], ["green"]))
    with pytest.raises(SpectralError, match="2 classes have no names, and the data has 1 subgroups"):
        Contexts(replace(tiny.CLASSES, class_names=()), Told(["x"], ["green"]))
    with pytest.raises(SpectralError, match=r"dropout is 0\.1, but none of the model's 3 classes stands for no class"):
        Contexts(replace(tiny.CLASSES, null_class=False), Told(), dropout=0.1)
    with pytest.raises(SpectralError, match="width 640, but its encoder is not in the checkpoint"):
        Contexts(ConditioningConfig("external", width=640), Told())
    with pytest.raises(SpectralError, match="vocab"):
        Contexts(replace(tiny.TEXT, tower="ldm"), Told(), vocabulary=Path("missing.txt"))


def test_an_unconditional_model_has_no_contexts() -> None:
    found = Contexts(ConditioningConfig(), Told())
    assert (
        found.context(None, batch(0), kept(batch(0))) is None
        and found.unconditional(None) is None
        and not found.freeze(None)
    )
