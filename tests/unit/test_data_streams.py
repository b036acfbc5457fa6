"""Shards through pipes: every sample once, at an exact position, whoever reads; and what goes wrong with a command."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spectral_diffusion.spectral.errors import SpectralError
from spectral_diffusion.training.data import pipes
from spectral_diffusion.training.data.batches import Batch, batches
from spectral_diffusion.training.data.config import DataConfig
from spectral_diffusion.training.data.dataset import open_data
from spectral_diffusion.training.data.pipes import samples, shard_name
from spectral_diffusion.training.data.streams import Stream

from .test_data_images import encoded, laion, noise, write_tar


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight shards of six samples in LAION's layout."""
    folder = tmp_path_factory.mktemp("shards")
    for number in range(8):
        laion(folder / f"{number:05d}.tar", 6 * number, 6)
    return folder


def opened(folder: Path, command: str = "cat {folder}/{{00000..00007}}.tar", **settings: Any) -> Stream:
    data = open_data(DataConfig("pipe:" + command.format(folder=folder), 16, **settings), multiple=4)
    assert isinstance(data, Stream)
    return data


def taken(data: Stream, count: int, batch: int = 2, **options: Any) -> list[Batch]:
    found = batches(data, batch, **{"seed": 4, "workers": 0, **options})
    try:
        return list(islice(found, count))
    finally:
        found.close()


def captions(found: Sequence[Batch]) -> list[str]:
    return [caption for batch in found for caption in batch["caption"]]


def same(one: Sequence[Batch], other: Sequence[Batch]) -> bool:
    return captions(one) == captions(other) and all(
        torch.equal(a["image"], b["image"]) and torch.equal(a["ordinal"], b["ordinal"])
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize(("world", "workers"), [(1, 0), (1, 4), (2, 2), (4, 1), (8, 0)])
def test_every_sample_comes_once_an_epoch(world: int, workers: int, shards: Path) -> None:
    """Of shards of one size, that is; over all processes and workers, each of which reads shards of its own."""
    parts = [taken(opened(shards), 72 // world, rank=rank, world=world, workers=workers) for rank in range(world)]
    rows = sorted(
        (ordinal, caption)
        for part in parts
        for batch in part
        for ordinal, caption in zip(batch["ordinal"].tolist(), batch["caption"], strict=True)
    )
    assert [ordinal for ordinal, _ in rows] == list(range(144))
    everything = {f"caption {index} é" for index in range(48)}
    epochs = [[caption for _, caption in rows[start : start + 48]] for start in (0, 48, 96)]
    assert all(set(epoch) == everything for epoch in epochs) and epochs[0] != epochs[1]
    assert [caption for _, caption in rows] == captions(taken(opened(shards), 72))  # what one process sees


def test_a_picture_is_the_one_in_the_shard(shards: Path) -> None:
    (batch,) = taken(opened(shards), 1)
    local = open_data(DataConfig(f"{shards}/*.tar", 16))
    assert local.captions is not None
    places = [list(local.captions).index(caption) for caption in batch["caption"]]
    expected = local.preview_samples(48)["image"][places]
    assert torch.equal(batch["image"], expected) and batch["image"].float().std() > 10


@pytest.mark.parametrize(
    "settings", [{}, {"buckets": True}, {"crop": "random", "flip": True, "shuffle": 1, "lanes": 3}]
)
@pytest.mark.parametrize(("start", "workers"), [(5, 0), (29, 2), (61, 4)])
def test_a_resumed_run_sees_what_it_would_have_seen(
    settings: dict[str, Any], start: int, workers: int, shards: Path, tmp_path: Path
) -> None:
    """Whether the shards before it have been counted (and are passed over unread) or not."""
    whole = taken(opened(shards, **settings), 75, folder=tmp_path, workers=2)
    known = [json.loads(line) for line in (tmp_path / "shards.jsonl").read_text().splitlines()]
    assert known and all(entry["samples"] == 6 for entry in known)
    for folder in (tmp_path, tmp_path / "new"):
        rest = taken(opened(shards, **settings), 75 - start, start=start, folder=folder, workers=workers)
        assert same(rest, whole[start:])


def test_what_is_known_of_shards_is_not_read_again(shards: Path, tmp_path: Path) -> None:
    command = f"echo x >> {tmp_path}/log && cat {{folder}}/{{{{00000..00007}}}}.tar"
    taken(opened(shards, command), 48, folder=tmp_path)  # two epochs
    read = len((tmp_path / "log").read_text().split())
    taken(opened(shards, command), 1, start=40, folder=tmp_path)
    assert len((tmp_path / "log").read_text().split()) <= read + 2


def test_shards_of_different_sizes_are_seen_equally_often(tmp_path: Path) -> None:
    """In the long run; none of them is ever given twice before another that is read beside it was given once."""
    total = 0
    for number, count in enumerate((1, 5, 2, 7, 3)):
        laion(tmp_path / f"{number:05d}.tar", total, count)
        total += count
    data = opened(tmp_path, "cat {folder}/{{00000..00004}}.tar", lanes=2)
    seen = Counter(captions(taken(data, 600, batch=3)))
    assert len(seen) == 18 and min(seen.values()) >= 85 and max(seen.values()) <= 115


@pytest.mark.parametrize(
    ("count", "lanes", "expected"),
    [(100, 8, [8, 8, 8, 8]), (7, 8, [4, 4, 4, 6]), (5, 4, [4, 4, 4, 3]), (4, 64, [4] * 4)],
)
def test_the_lanes_are_the_same_for_different_numbers_of_processes(count: int, lanes: int, expected: list[int]) -> None:
    data = Stream(DataConfig("pipe:x", 16, lanes=lanes), ["x"] * count, "x")
    found = [data.lanes(world) for world in (1, 2, 4, 3)]
    assert found[:3] == expected[:3] and found[3] % 3 == 0


def corrupted(folder: Path, bad: Sequence[int], count: int = 24) -> Path:
    files = {}
    for index in range(count):
        picture = encoded(noise((20, 20), index))
        files[f"{index:03d}.png"] = picture[:40] if index in bad else picture
        files[f"{index:03d}.txt"] = str(index).encode()
    return write_tar(folder / "00000.tar", files)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_image_is_named_once_and_replaced_by_the_next(workers: int, tmp_path: Path) -> None:
    """Even the very first; the order of the others stays, and a share of a stream is not judged by its beginning."""
    sound = captions(taken(opened(corrupted(tmp_path, ()).parent, "cat {folder}/00000.tar"), 36))
    bad = int(sound[0])
    data = opened(corrupted(tmp_path, (bad,)).parent, "cat {folder}/00000.tar")
    found = taken(data, 36, workers=workers, folder=tmp_path / "run")
    assert captions(found) == [
        sound[place + 1] if caption == sound[0] else caption for place, caption in enumerate(sound)
    ]
    (line,) = (tmp_path / "run" / "corrupt.log").read_text().splitlines()
    assert json.loads(line)["file"] == f"{bad:03d}.png of pipe:cat {tmp_path}/00000.tar"
    later = taken(data, 20, start=16, workers=workers, folder=tmp_path / "run")
    assert same(later, found[16:])


@pytest.mark.parametrize(
    ("limit", "says"), [(2, "3 of the images"), (0, "2 of the images"), (0.002, "3 of the images")]
)
def test_too_many_corrupt_images_stop_the_run(limit: float, says: str, tmp_path: Path) -> None:
    corrupted(tmp_path, range(0, 24, 4))
    data = opened(tmp_path, "cat {folder}/00000.tar", max_corrupt=limit)
    with pytest.raises(SpectralError, match=rf"{says} of pipe:cat .* cannot be read, more than data\.max_corrupt"):
        taken(data, 24, folder=tmp_path)
    assert len((tmp_path / "corrupt.log").read_text().splitlines()) == (3 if limit else 2)


def test_where_no_image_can_be_read_the_run_stops(tmp_path: Path) -> None:
    corrupted(tmp_path, range(24))
    with pytest.raises(SpectralError, match=r"No image of pipe:cat .* can be read|cannot be read, more than"):
        taken(opened(tmp_path, "cat {folder}/00000.tar", max_corrupt=0.9), 4)
    with pytest.raises(SpectralError, match="No image of the first shard"):
        opened(tmp_path, "cat {folder}/00000.tar").preview_samples(2)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("cat {folder}/missing.tar", r"failed with exit code 1: cat: .*missing\.tar: No such file.*check the command"),
        ("no-such-program x", r"failed with exit code 127: .*no-such-program"),
        ("false | cat {folder}/00000.tar", "failed with exit code 1; check the command of data.path"),
        ("echo hello", r"cannot be read as a tar shard of images \(it is cut short\)"),
        ("head -c 3000 {folder}/00000.tar", r"cannot be read as a tar shard of images \(it is cut short\)"),
        ("yes", "no tar archive"),
        ("true", r"cannot be read as a tar shard of images \(it is cut short\)"),
        ("head -c 3000 {folder}/00000.tar; exit 3", "failed with exit code 3"),
    ],
)
def test_a_command_that_fails_is_named(command: str, says: str, workers: int, shards: Path) -> None:
    with pytest.raises(SpectralError, match=f"pipe:.*{says}"):
        taken(opened(shards, command), 40, workers=workers)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_that_vanishes_in_mid_run_is_a_sentence(workers: int, tmp_path: Path) -> None:
    for number in range(2):
        laion(tmp_path / f"{number:05d}.tar", 6 * number, 6)
    found = batches(opened(tmp_path, "cat {folder}/{{00000..00001}}.tar"), 2, seed=0, workers=workers)
    next(found)
    (tmp_path / "00001.tar").unlink()
    with pytest.raises(SpectralError, match=r"00001\.tar failed with exit code 1: cat: .*check the command"):
        list(islice(found, 40))
    found.close()


def test_groups_that_no_shard_has_are_a_sentence(shards: Path) -> None:
    with pytest.raises(SpectralError, match="A part of pipe:.* holds no images in the groups birds; check the shards"):
        taken(opened(shards, subgroups=("birds",)), 1)


def test_more_processes_than_shards_are_a_sentence(shards: Path) -> None:
    with pytest.raises(SpectralError, match="has 8 shards for 9 processes; .*start fewer processes"):
        taken(opened(shards), 1, rank=0, world=9)


def test_a_command_ends_when_nobody_listens(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that would go on for ever; a writer behind the archive's end is heard out."""
    endless = f"cat {shards}/00000.tar; echo $$ > {tmp_path}/id; sleep 1000"
    reading = samples(endless, (), 0)
    next(reading)
    reading.close()  # type: ignore[attr-defined]
    time.sleep(0.2)
    identity = tmp_path / "id"
    assert not identity.exists() or not Path(f"/proc/{identity.read_text().strip()}").exists()
    monkeypatch.setattr(pipes, "PATIENCE", 0.3)
    for more in ("yes", "sleep 1000"):
        assert len(list(samples(f"cat {shards}/00000.tar; {more}", (), 0))) == 6
    padded = f"cat {shards}/00000.tar; head -c 3000000 /dev/zero"
    assert len(list(samples(padded, (), 0))) == 6


def test_samples_may_be_larger_than_a_pipe_holds(tmp_path: Path) -> None:
    picture = encoded(noise((700, 700)), "BMP")
    write_tar(tmp_path / "a.tar", {f"{index}.bmp": picture for index in range(3)})
    found = list(samples(f"cat {tmp_path}/a.tar", (), 0))
    assert len(picture) > 1_000_000 and all(raw.content == picture for raw in found) and len(found) == 3


def test_a_shard_is_known_by_its_name_wherever_it_lies() -> None:
    assert shard_name("cat /data/00001.tar") == shard_name("aws s3 cp 's3://bucket/00001.tar' -") == "00001.tar"
    one, other = (Stream(DataConfig("pipe:x", 16), [f"cat {at}/1.tar"], "x") for at in ("here", "there"))
    assert one.sha256 == other.sha256 and one.count is None


def test_buckets_of_a_stream_are_of_one_size_each(tmp_path: Path) -> None:
    """And hold what is shaped like them: no picture is cut by more than its neighbours in aspect are apart."""
    rng = np.random.default_rng(0)
    files = {}
    for index in range(64):
        tall = bool(rng.integers(2))
        files[f"{index:03d}.png"] = encoded(noise((20, 36) if tall else (36, 20), index))
        files[f"{index:03d}.txt"] = b"tall" if tall else b"wide"
    write_tar(tmp_path / "00000.tar", files)
    found = taken(opened(tmp_path, "cat {folder}/00000.tar", buckets=True), 16, batch=4)
    shapes = [tuple(batch["image"].shape[2:]) for batch in found]
    assert len(set(shapes)) > 1 and all(height % 4 == width % 4 == 0 for height, width in shapes)
    pure = [(shape, set(batch["caption"])) for shape, batch in zip(shapes, found, strict=True)]
    assert all((height > width) == (said == {"tall"}) for (height, width), said in pure if len(said) == 1)
    assert sum(len(said) == 1 for _, said in pure) >= 14
