"""Several captions of a sample: where they are found, and which of them is shown when."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats

from spectral_diffusion.spectral.conditioning import build
from spectral_diffusion.spectral.config import ConditioningConfig, ModelConfig
from spectral_diffusion.spectral.errors import SpectralError
from spectral_diffusion.training import cli
from spectral_diffusion.training.data import pipes, records, shards
from spectral_diffusion.training.data.batches import Batch, Data, MapData, batches
from spectral_diffusion.training.data.config import DataConfig
from spectral_diffusion.training.data.contexts import Contexts
from spectral_diffusion.training.data.dataset import open_data, open_images
from spectral_diffusion.training.data.imagining import wishes_of
from spectral_diffusion.training.data.latents import HeldLatents
from spectral_diffusion.training.data.order import Plan
from spectral_diffusion.training.distillation.conditions import RandomConditions
from spectral_diffusion.training.distillation.config import RandomConditionsConfig
from spectral_diffusion.training.evaluation.reference import look_through, open_reference
from spectral_diffusion.training.loop.randomness import SampleRandom
from spectral_diffusion.training.tokens import tokenize

from . import tiny
from .test_data_images import encoded, noise, write_tar
from .test_data_latents import cached, command, opened_stage, refusal

#: Captions of six pictures, the first of which tells whose they are.
SAID = {
    "a": ["an apple", "a fruit", "a red thing"],
    "b": ["a boat", "a ship"],
    "c": ["a cat"],
    "d": ["a dog", "a pet", "a dog, pet, animal", "a brown dog", "a brown pet"],
    "e": ["an ear", "a part of a face"],
    "f": ["a flag", "a cloth", "a sign"],
}
SEVERAL = [name for name, captions in SAID.items() if len(captions) > 1]
KINDS = ("folder", "shard", "held", "cached", "stream")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pictures as a folder, as a shard, and as cached latents; and the first stage that made these."""
    place, files, rows = tmp_path_factory.mktemp("captions"), {}, []
    (place / "folder").mkdir()
    for number, (name, captions) in enumerate(SAID.items()):
        picture = encoded(noise((16, 16), number))
        (place / "folder" / f"{name}.png").write_bytes(picture)
        about = {"caption": captions[0], "captions": captions, "subgroup": "vowel" if name in "ae" else "consonant"}
        files |= {f"{name}.json": json.dumps(about).encode(), f"{name}.png": picture}
        rows.append(json.dumps({"file_name": f"{name}.png", **about}) + "\n")
    (place / "folder" / "metadata.jsonl").write_text("".join(rows))
    write_tar(place / "shard.tar", files)
    stage = tiny.write(place / "stage.safetensors", ModelConfig("autoencoder", first_stage=tiny.FIRST_STAGE))
    cached(place / "folder", stage, place / "cached")
    return place


def opened(kind: str, place: Path, **settings: Any) -> Data:
    paths = {"shard": f"{place}/shard.tar", "stream": f"pipe:cat {place}/shard.tar", "cached": f"{place}/cached"}
    config = DataConfig(paths.get(kind, f"{place}/folder"), **{"size": 16, "workers": 0, **settings})
    data = open_images(config) if kind == "held" else open_data(config)
    return HeldLatents(open_images(config), opened_stage(place / "stage.safetensors")) if kind == "held" else data


def taken(data: Data, count: int, **options: Any) -> list[list[str]]:
    """The captions of so many batches of three."""
    found = batches(data, 3, **{"seed": 4, **options})
    try:
        return [batch["caption"] for batch in islice(found, count)]
    finally:
        found.close()


def by_picture(shown: Sequence[Sequence[str]]) -> dict[str, list[str]]:
    """The captions that every picture had, in the order of its epochs."""
    owners = {caption: name for name, captions in SAID.items() for caption in captions}
    found: dict[str, list[str]] = defaultdict(list)
    for caption in (caption for batch in shown for caption in batch):
        found[owners[caption]].append(caption)
    return dict(found)


# Where they are found

BESIDE: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "one before the list": ({"caption": "a", "captions": ["b", "a", "c"]}, ("a", "b", "c")),
    "the list alone": ({"captions": ["b", "c", "b"]}, ("b", "c")),
    "what is no text": ({"captions": ["b", 3, None, ["c"], " ", ""]}, ("b",)),
    "a text in the list's place": ({"caption": "a", "captions": "b c"}, ("a", "b c")),
    "a blank one before the list": ({"caption": " ", "captions": ["b"]}, ("b",)),
    "a blank one alone": ({"caption": "", "captions": [""]}, ("",)),
    "no list": ({"captions": {"en": "b"}}, ("x",)),
    "an empty list": ({"captions": []}, ("x",)),
    "another name": ({"text": "t", "captions": ["b"]}, ("t", "b")),
    "a text beside": ({".txt": " t\n"}, ("t",)),
    "a text beside, before the list": ({".txt": "t", "captions": ["b", "c"]}, ("t", "b", "c")),
    "a text beside, in the caption's place": ({".txt": "t", "caption": "a", "captions": ["b"]}, ("t", "b")),
}


@pytest.mark.parametrize("case", BESIDE)
def test_captions_beside_an_image_in_a_shard(case: str, tmp_path: Path) -> None:
    about, expected = BESIDE[case]
    about = dict(about)
    files = {"x.png": b""} | ({"x.txt": about.pop(".txt").encode()} if ".txt" in about else {})
    path = write_tar(tmp_path / "x.tar", {**files, "x.json": json.dumps(about).encode()})
    (record,) = shards.in_shards([path])
    assert (record.caption, *record.also) == expected
    (raw,) = pipes.samples(f"cat {path}", (), 0)
    assert raw.captions == expected


def in_jsonl(path: Path) -> None:
    rows = [{"file_name": "a.png", "caption": "one", "captions": ["two", "one"]}, {"file_name": "b.png"}]
    path.with_suffix(".jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def in_csv(path: Path) -> None:
    """Which has no lists: a text there is one caption, not its letters."""
    path.with_suffix(".csv").write_text("file_name,caption,captions\na.png,one,two\nb.png,,\n")


def in_parquet(path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    table = {"file_name": ["a.png", "b.png"], "caption": ["one", None], "captions": [["one", "two"], None]}
    parquet.write_table(pyarrow.table(table), path.with_suffix(".parquet"))


@pytest.mark.parametrize("write", [in_jsonl, in_csv, in_parquet])
def test_captions_in_tables(write: Callable[[Path], None], tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.png").write_bytes(b"")
        (tmp_path / f"{name}.txt").write_text("beside")
    write(tmp_path / "metadata")
    first, second = records.in_folder(tmp_path)
    assert (first.caption, first.also) == ("one", ("two",))
    assert (second.caption, second.also) == ("" if write is in_csv else "beside", ())


# Which of them is shown


@pytest.mark.parametrize("kind", KINDS)
def test_every_caption_is_shown_equally_often(kind: str, place: Path) -> None:
    """Over 120 epochs, by a χ² test of every picture; and its draws are not those of the others."""
    found = by_picture(taken(opened(kind, place), 240))
    assert {name: len(shown) for name, shown in found.items()} == dict.fromkeys(SAID, 120)
    for name, captions in SAID.items():
        counts = Counter(found[name])
        assert set(counts) == set(captions)
        assert len(captions) == 1 or stats.chisquare([counts[caption] for caption in captions]).pvalue > 1e-3
    draws = {name: tuple(SAID[name].index(caption) for caption in found[name]) for name in ("b", "e")}
    assert draws["b"] != draws["e"]


@pytest.mark.parametrize("kind", KINDS)
def test_half_of_the_time_the_first_caption_is_shown(kind: str, place: Path) -> None:
    """And the others equally often."""
    for name, shown in by_picture(taken(opened(kind, place, captions="half"), 240)).items():
        first, *others = SAID[name]
        counts = Counter(shown)
        assert set(counts) == set(SAID[name])
        if others:
            expected = [60.0] + [60 / len(others)] * len(others)
            assert stats.chisquare([counts[caption] for caption in (first, *others)], expected).pvalue > 1e-3


def test_what_is_shown_depends_on_seed_epoch_and_name_alone(place: Path) -> None:
    """Not on the order, on what else there is, on the batch, or on whether the pictures are latents."""

    def shown(kind: str, seed: int = 0, backwards: bool = False, **settings: Any) -> dict[tuple[int, str], str]:
        data = opened(kind, place, **settings)
        assert isinstance(data, MapData)
        items = [(epoch, index) for epoch in range(8) for index in range(len(data))][:: -1 if backwards else 1]
        batch = data.load(Plan(items), seed).batch
        assert batch is not None
        named = [(epoch, data.key(index)) for epoch, index in items]
        return dict(zip(named, batch["caption"], strict=True))

    whole = shown("folder")
    assert shown("folder", backwards=True) == shown("held") == shown("cached") == whole
    assert shown("folder", flip=True, cache="off") == whole
    part = shown("folder", subgroups=("vowel",))
    assert part == {place: caption for place, caption in whole.items() if place in part} and len(part) == 16
    assert len({whole[epoch, "d.png"] for epoch in range(8)}) > 1
    other = shown("folder", seed=1)
    assert other != whole and other.keys() == whole.keys()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("start", [1, 5])
def test_a_resumed_run_sees_the_captions_that_it_would_have_seen(kind: str, start: int, place: Path) -> None:
    whole = taken(opened(kind, place), 9)
    assert taken(opened(kind, place), 9 - start, start=start) == whole[start:]


def test_processes_and_workers_change_nothing(place: Path) -> None:
    whole = taken(opened("shard", place), 4)
    assert taken(opened("shard", place, cache="off"), 4, workers=2) == whole
    data = opened("shard", place)
    halves = [[b["caption"] for b in islice(batches(data, 1, seed=4, rank=r, world=3), 4)] for r in range(3)]
    assert [[caption for part in parts for caption in part] for parts in zip(*halves, strict=True)] == whole


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_caption_alone(kind: str, place: Path) -> None:
    data = opened(kind, place, captions="first")
    firsts = {name: captions[0] for name, captions in SAID.items()}
    found = by_picture(taken(data, 20))
    assert {name: set(shown) for name, shown in found.items()} == {name: {first} for name, first in firsts.items()}
    assert not data.also


@pytest.mark.parametrize("kind", KINDS)
def test_previews_show_the_first_captions(kind: str, place: Path) -> None:
    previewed = opened(kind, place).preview_samples(6)["caption"]
    assert previewed == [captions[0] for captions in SAID.values()]


def test_what_takes_the_place_of_a_corrupt_image_brings_its_own_captions(place: Path, tmp_path: Path) -> None:
    (copied(place / "folder", tmp_path) / "c.png").write_bytes(b"none")
    data = open_images(DataConfig(str(tmp_path), 16, max_corrupt=1))
    epochs = [(epoch, index) for epoch in range(9) for index in (2, 3)]
    batch = data.load(Plan(epochs), 0).batch
    assert batch is not None and batch["index"].tolist() == [3] * 18
    assert batch["caption"][::2] == batch["caption"][1::2] and set(batch["caption"]) <= set(SAID["d"])


def test_a_way_of_showing_that_there_is_not_is_refused() -> None:
    with pytest.raises(SpectralError, match=r"data\.captions is 'last'; expected all, half or first"):
        DataConfig(captions="last")  # type: ignore[arg-type]


# What else hangs on them


def copied(folder: Path, out: Path, old: str = "", new: str = "") -> Path:
    """The pictures, and what is said of them, with a change there."""
    for path in folder.glob("*.png"):
        (out / path.name).write_bytes(path.read_bytes())
    said = (folder / "metadata.jsonl").read_text()
    assert old in said
    (out / "metadata.jsonl").write_text(said.replace(old, new) if old else said)
    return out


def test_the_digest_is_of_all_captions(place: Path, tmp_path: Path) -> None:
    digests = {kind: opened(kind, place).sha256 for kind in ("folder", "shard", "cached")}
    assert opened("folder", place, captions="first").sha256 == digests["folder"]  # a setting of the run, not the data
    for old, new in (("a ship", "a sail"), (', "a ship"', "")):
        changed = copied(place / "folder", tmp_path, old, new)
        assert open_images(DataConfig(str(changed), 16)).sha256 not in digests.values()
    assert open_images(DataConfig(str(copied(place / "folder", tmp_path)), 16)).sha256 == digests["folder"]


def test_the_digest_of_data_with_single_captions_is_what_it_was(tmp_path: Path) -> None:
    """As the kit computed it before samples could have several, so that runs of then go on."""
    about = json.dumps({"caption": "red apple", "group": "food", "subgroup": "fruit"}).encode()
    write_tar(tmp_path / "a.tar", {"x.png": b"one", "x.json": about, "y.png": b"two", "y.txt": b"lemon"})
    data = open_images(DataConfig(str(tmp_path / "a.tar"), 16, cache="off"))
    assert data.sha256 == "7970884677f08334397d9dbda3a3d93376ebc27ac8d13bd251dd6bbd4a89411d"


def test_cached_latents_hold_all_captions(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [json.loads(line) for path in sorted((place / "cached").glob("*.jsonl")) for line in path.open()]
    assert {line["key"]: line.get("captions") for line in lines} == {
        f"{name}.png": captions if name in SEVERAL else None for name, captions in SAID.items()
    }
    assert [line["caption"] for line in lines] == [captions[0] for captions in SAID.values()]
    changed = copied(place / "folder", tmp_path, "a ship", "a sail")
    again = command(changed, place / "stage.safetensors", place / "cached")
    assert "was begun with other images" in refusal(again, capsys)


@pytest.mark.parametrize("wanted", ["all", "first"])
def test_the_states_of_all_captions_are_kept(wanted: str, place: Path) -> None:
    tower = build(tiny.TEXT)
    assert tower is not None
    seen: list[int] = []
    tower.register_forward_hook(lambda module, given, out: seen.append(len(given[0])))
    data = opened("shard", place, captions=wanted)
    contexts = Contexts(tiny.TEXT, data)
    assert contexts.freeze(tower)
    assert sum(seen) == 1 + (16 if wanted == "all" else 6)  # and that of no caption
    seen.clear()
    shown: list[Batch] = list(islice(batches(data, 6, seed=0), 10))
    for batch in shown:
        context = contexts.context(tower, batch, torch.ones(6))
        with torch.no_grad():
            expected = tower(tokenize(batch["caption"]))
        assert seen.pop() == 6 and not seen  # of what was expected, and of nothing else
        assert context is not None and torch.allclose(context, expected, atol=1e-5)


def test_random_conditioning_draws_from_all_captions(place: Path) -> None:
    everything = [caption for captions in SAID.values() for caption in captions]
    for wanted, expected in (("all", everything), ("first", [captions[0] for captions in SAID.values()])):
        contexts = Contexts(tiny.TEXT, opened("shard", place, captions=wanted))
        draw = RandomConditions(RandomConditionsConfig(share=1.0, decay=0.0), contexts, 1000)
        batch = {"caption": ["own"] * 4000, "label": [""] * 4000}
        asked, _ = draw(batch, torch.zeros(4000, dtype=torch.int64), SampleRandom(0, torch.arange(4000)))
        counts = Counter(asked["caption"])
        assert set(counts) == set(expected) and stats.chisquare(list(counts.values())).pvalue > 1e-3


def test_a_reference_is_asked_for_by_its_first_captions(place: Path, tmp_path: Path) -> None:
    """Those that are the prompts of the samples that it is compared with."""
    data = open_reference(DataConfig(f"{place}/shard.tar", workers=0), 16)
    told = [caption for _, captions in look_through(data, 4, tmp_path / "log") for caption in captions]
    assert told == list(data.captions) == [captions[0] for captions in SAID.values()]


def test_a_teacher_imagines_every_caption(place: Path) -> None:
    everything = [caption for captions in SAID.values() for caption in captions]
    for path in (place / "folder", place / "shard.tar", place / "cached"):
        wishes, _ = wishes_of(tiny.TEXT, None, str(path))
        assert [wish.prompt for wish in wishes] == [wish.caption for wish in wishes] == everything
    classes = ConditioningConfig("class", width=32, n_classes=3, class_names=("consonant", "vowel"))
    wishes, _ = wishes_of(classes, None, str(place / "shard.tar"))
    assert [wish.caption for wish in wishes] == [captions[0] for captions in SAID.values()]


def test_a_run_does_not_go_on_with_other_captions(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = ["--data.path", str(place / "folder"), "--data.size", "16", "--first_stage.resolution", "16"]
    run = ["--run.out", str(place / "run"), "--run.batch_size", "2", "--run.steps", "1", "--run.preview_every", "0"]
    small = ["--first_stage.ch_mult", "[1, 1]"]
    assert cli.main(["train-autoencoder", *config, *run, *small]) == 0
    capsys.readouterr()
    said = refusal(["train-autoencoder", *config, *run, *small, "--data.captions", "first"], capsys)
    assert "holds a run with data.captions = 'all', not 'first'" in said
