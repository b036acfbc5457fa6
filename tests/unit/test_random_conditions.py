"""Random conditioning: how often, what then counts, and that neither processes nor stops change what is drawn."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from spectral_diffusion.spectral.conditioning import build
from spectral_diffusion.spectral.config import ConditioningConfig, ModelConfig
from spectral_diffusion.spectral.errors import SpectralError
from spectral_diffusion.training import distill
from spectral_diffusion.training.data import contexts
from spectral_diffusion.training.data.batches import Batch
from spectral_diffusion.training.data.config import DataConfig
from spectral_diffusion.training.data.contexts import Contexts
from spectral_diffusion.training.distillation.conditions import RandomConditions
from spectral_diffusion.training.distillation.config import DistillConfig, LossConfig, RandomConditionsConfig
from spectral_diffusion.training.loop.randomness import SampleRandom
from spectral_diffusion.training.tokens import tokenize

from . import tiny
from .test_data_contexts import CAPTIONS, Told
from .test_distill import batch_of, configure, task_of

MANY = 20_000
ALWAYS = RandomConditionsConfig(share=1.0, decay=0.0)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It knows texts."""
    unet = replace(tiny.CONDITIONED, model_channels=64, resampler="conv")
    about = ModelConfig("teacher", unet, tiny.FIRST_STAGE, tiny.TEXT, scale_factor=0.5)
    return tiny.write(tmp_path_factory.mktemp("teacher") / "teacher.safetensors", about)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    return DataConfig(str(tiny.pictures(tmp_path_factory.mktemp("data"))), size=16)


def replaced(config: RandomConditionsConfig, t: int, ordinals: Tensor, steps: int = 1000) -> tuple[list[str], Tensor]:
    """The captions that samples with their own, "own", are given at step t, and what is said of them."""
    draw = RandomConditions(config, Contexts(tiny.TEXT, Told()), steps)
    batch = {"caption": ["own"] * len(ordinals), "label": [""] * len(ordinals)}
    found, changed = draw(batch, torch.full((len(ordinals),), t), SampleRandom(0, ordinals))
    assert changed.tolist() == [caption != "own" for caption in found["caption"]]
    assert batch["caption"][0] == "own" and found["label"] is batch["label"]
    return found["caption"], changed


@pytest.mark.parametrize(("share", "decay"), [(1.0, 5.0), (0.5, 2.0), (0.3, 0.0)])
@pytest.mark.parametrize("t", [0, 600, 999])
def test_conditions_are_replaced_as_often_as_the_formula_says(share: float, decay: float, t: int) -> None:
    """share · exp(−decay (1 − t / T)), counted; and all others are drawn alike."""
    captions, changed = replaced(RandomConditionsConfig(share, decay), t, torch.arange(MANY))
    expected = share * math.exp(-decay * (1 - t / 1000))
    assert stats.binomtest(int(changed.sum()), MANY, expected).pvalue > 1e-3
    others = list(dict.fromkeys(CAPTIONS))
    counts = [captions.count(other) for other in others]
    assert sum(counts) == changed.sum() and (sum(counts) < 500 or stats.chisquare(counts).pvalue > 1e-3)


def test_parts_of_a_batch_draw_what_the_whole_does() -> None:
    whole, _ = replaced(RandomConditionsConfig(0.5, 0.0), 500, torch.arange(40))
    parts = [replaced(RandomConditionsConfig(0.5, 0.0), 500, part)[0] for part in torch.arange(40).split(7)]
    assert whole == [caption for part in parts for caption in part] and 10 < whole.count("own") < 30


def test_classes_are_drawn_from_all_that_the_teacher_knows() -> None:
    conditioning = ConditioningConfig("class", width=32, n_classes=5)
    found = Contexts(conditioning, Told([""], ["003"]))
    draw = RandomConditions(ALWAYS, found, 1000)
    batch = {"caption": [""] * 400, "label": ["003"] * 400}
    asked, changed = draw(batch, torch.zeros(400, dtype=torch.int64), SampleRandom(0, torch.arange(400)))
    assert set(asked["label"]) == {"0", "1", "2", "003"}  # and never the null class, 4
    assert changed.tolist() == [label != "003" for label in asked["label"]]
    embedder = build(conditioning)
    assert embedder is not None
    context = found.context(embedder, asked, torch.ones(400))
    expected = embedder(torch.tensor([int(label) for label in asked["label"]]))
    assert context is not None and torch.equal(context, expected)


def random_task(teacher: Path, data: DataConfig, given: RandomConditionsConfig, **settings: Any) -> Any:
    return task_of(configure(teacher, data, random_conditions=given, **settings))


@pytest.mark.parametrize("min_snr", [0.0, 5.0])
def test_where_a_condition_was_replaced_only_the_teacher_counts(
    min_snr: float, teacher: Path, data: DataConfig
) -> None:
    """Against the two networks called by hand, sample by sample, under the captions that were drawn."""
    taps = LossConfig(min_snr=min_snr, frequency=0.0)
    taps = replace(taps, taps=replace(taps.taps, down=False, middle=False, up=False))
    task = random_task(teacher, data, RandomConditionsConfig(0.6, 0.0), loss=taps, dropout=0.25)
    batch = batch_of(configure(teacher, data)) | {"ordinal": torch.tensor([0, 2, 5, 9])}
    x_0, t, noise, x_t, context, paired = task.inputs(batch)
    random = SampleRandom(0, batch["ordinal"])
    random.normal(tuple(x_0.shape[1:])), random.integers(1000), random.normal(tuple(x_0.shape[1:]))
    captions, asked, paired_by_hand = sorted(open_captions(data)), [], []
    for dropped, swapped, place, own in zip(*(random.uniform() for _ in range(3)), batch["caption"], strict=True):
        caption = captions[int(place * len(captions))] if swapped < 0.6 else own
        asked.append("" if dropped < 0.25 else caption)
        paired_by_hand.append(float(dropped < 0.25 or caption == own))
    assert paired.tolist() == paired_by_hand == [0, 1, 1, 0] and asked[2] == "" and asked[1] == batch["caption"][1]
    tower = task._frozen[1]
    torch.testing.assert_close(context, tower(tokenize(asked)))
    found = task(batch)
    with torch.no_grad():
        student, said = task.student(x_t, t, context), task._frozen[0](x_t, t, context)
    each = (student - task.schedule.target(x_0, t, noise)).square().mean((1, 2, 3))
    weights = task.step_weights[t] if min_snr else torch.ones(4)
    torch.testing.assert_close(found["ddpm"], (weights * each * paired).sum() / 4)
    torch.testing.assert_close(found["spatial"], (student - said).square().mean())
    torch.testing.assert_close(found["loss"], found["ddpm"] + 0.1 * found["spatial"])
    assert found["replaced"].item() == 0.5
    told = torch.stack([found[f"ddpm/t{index}"] for index in range(4)]).sum(0)
    torch.testing.assert_close(told, torch.stack([(each * paired).sum(), paired.sum()]))


def open_captions(data: DataConfig) -> list[str]:
    return [path.stem.replace("-", " ") for path in Path(data.path).rglob("*.png")]


def test_the_rest_of_a_sample_stays_as_it_was(teacher: Path, data: DataConfig) -> None:
    """Latent, step and noise are those of a run without the option; and so is all where nothing is replaced."""
    batch = batch_of(configure(teacher, data))
    plain = task_of(configure(teacher, data))
    never = random_task(teacher, data, RandomConditionsConfig(1e-12, 0.0))
    always = random_task(teacher, data, ALWAYS)
    inputs = plain.inputs(batch)
    assert inputs.paired is None
    for task in (never, always):
        assert all(torch.equal(one, other) for one, other in zip(inputs[:4], task.inputs(batch)[:4], strict=True))
    assert torch.equal(never.inputs(batch).context, inputs.context)
    assert not torch.equal(always.inputs(batch).context, inputs.context)
    never.load_state_dict(plain.state_dict())
    for name in ("loss", "ddpm", "spatial", "frequency"):
        torch.testing.assert_close(never(batch)[name], plain(batch)[name])


def test_a_batch_may_be_split(teacher: Path, data: DataConfig) -> None:
    """The mean of the halves' losses and gradients is the whole's, however many of each were replaced."""
    task = random_task(teacher, data, RandomConditionsConfig(0.5, 0.0))
    batch = batch_of(configure(teacher, data))

    def learnt(rows: slice) -> tuple[Tensor, list[Tensor]]:
        task.zero_grad()
        part: Batch = {name: value[rows] for name, value in batch.items()}
        loss = task(part)["loss"]
        loss.backward()
        return loss.detach(), [p.grad.clone() for p in task.parameters()]

    assert task.inputs(batch).paired.unique().numel() == 2
    whole, gradients = learnt(slice(0, 4))
    (first, early), (second, late) = learnt(slice(0, 1)), learnt(slice(1, 4))
    torch.testing.assert_close(whole, (first + 3 * second) / 4)
    for one, a, b in zip(gradients, early, late, strict=True):
        torch.testing.assert_close(one, (a + 3 * b) / 4, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("room", [0, 5, 100])
def test_states_of_the_others_are_kept_as_far_as_they_fit(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them, the data's own alone, or none: contexts are the same."""
    tower = build(tiny.TEXT)
    assert tower is not None
    seen: list[int] = []
    tower.register_forward_hook(lambda module, given, out: seen.append(len(given[0])))
    others = ["a house", "", "a tree", "a dog"]
    found = Contexts(tiny.TEXT, Told(), 0.5, others=others)
    assert found.others == others
    assert found.freeze(tower, limit=room * 77 * 32 * 4) == (room > 0)
    batch = {"caption": ["a tree", "a cat", "a house", "a dog", "a house"], "label": [""] * 5}
    seen.clear()
    context = found.context(tower, batch, torch.tensor([0.9, 0.1, 0.9, 0.9, 0.9]))
    assert seen == {0: [5], 5: [3], 100: []}[room]
    expected = tower(tokenize(["a tree", "", "a house", "a dog", "a house"]))
    assert context is not None and torch.allclose(context, expected, atol=1e-5)
    monkeypatch.setattr(contexts, "ON_DEVICE", 10)
    assert Contexts(tiny.TEXT, Told(None, None), others=others).freeze(tower)


def config_of(teacher: Path, data: DataConfig, out: Path, steps: int, others: Path | None = None) -> DistillConfig:
    config = configure(teacher, data, out, random_conditions=RandomConditionsConfig(1.0, 0.5, others))
    run = replace(config.run, steps=steps, preview_every=0, checkpoint_every=3, decay="constant")
    return replace(config, run=run)


def test_a_run_that_stopped_ends_with_the_same_bits(teacher: Path, data: DataConfig, tmp_path: Path) -> None:
    others = tmp_path / "others.txt"
    others.write_text("a green square\n\n  a horse \r\nblue 0\n", "utf-8")
    whole = Path(distill.train(config_of(teacher, data, tmp_path / "whole", 6, others))["path"])
    distill.train(config_of(teacher, data, tmp_path / "parts", 3, others))
    moved = others.rename(tmp_path / "moved.txt")
    parts = Path(distill.train(config_of(teacher, data, tmp_path / "parts", 6, moved))["path"])
    states = [
        torch.load(path.parent / "checkpoints" / "00000006.pt", weights_only=True)["ema"]["average"]
        for path in (whole, parts)
    ]
    assert all(torch.equal(one, other) for one, other in zip(*states, strict=True))
    assert '"replaced": ' in (tmp_path / "whole" / "statistics.jsonl").read_text()
    plain = Path(distill.train(config_of(teacher, data, tmp_path / "plain", 6))["path"])
    assert plain.read_bytes() != whole.read_bytes()
    moved.write_text("another text")
    with pytest.raises(SpectralError, match=r"parts holds a run whose random_conditions was not what .*moved\.txt"):
        distill.train(config_of(teacher, data, tmp_path / "parts", 9, moved))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"share": 1.5}, r"random_conditions\.share is 1\.5; expected a probability"),
        ({"share": float("nan")}, r"random_conditions\.share is nan"),
        ({"decay": -1.0}, r"random_conditions\.decay is -1\.0"),
    ],
)
def test_settings_that_cannot_be_are_refused(given: dict[str, float], says: str) -> None:
    with pytest.raises(SpectralError, match=says):
        RandomConditionsConfig(**given)  # type: ignore[arg-type]


def test_what_cannot_be_is_a_sentence_and_leaves_no_run(teacher: Path, data: DataConfig, tmp_path: Path) -> None:
    with pytest.raises(SpectralError, match="needs the teacher's answers, but loss.spatial and loss.frequency are 0"):
        configure(teacher, data, random_conditions=ALWAYS, loss=LossConfig(0, 0))
    unet = replace(tiny.UNCONDITIONAL, model_channels=64, resampler="conv")
    plain = tiny.write(tmp_path / "plain.safetensors", ModelConfig("teacher", unet, tiny.FIRST_STAGE))
    with pytest.raises(SpectralError, match="The teacher takes no conditions that could be replaced"):
        distill.train(configure(plain, data, tmp_path / "run", random_conditions=ALWAYS))
    empty = tmp_path / "empty.txt"
    for content, says in ((None, "cannot be read"), (b" \n\n", "is empty"), (b"\xff\xfe\x00", "cannot be read")):
        if content is not None:
            empty.write_bytes(content)
        with pytest.raises(SpectralError, match=rf"empty\.txt {says}.*expected a text file with a caption"):
            distill.train(configure(teacher, data, tmp_path / "run", random_conditions=replace(ALWAYS, path=empty)))
    with pytest.raises(SpectralError, match="stream, whose captions nobody knows.*random_conditions.path"):
        RandomConditions(ALWAYS, Contexts(tiny.TEXT, Told(None, None)), 1000)
    with pytest.raises(SpectralError, match="no class named 'green'; its classes are blue, red"):
        Contexts(tiny.CLASSES, Told(), others=["blue", "green"])
    assert not (tmp_path / "run").exists()
