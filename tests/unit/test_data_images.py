"""Images in folders and shards: what is found, what is said of them, how they are framed, what cannot be read."""

from __future__ import annotations

import gzip
import io
import json
import multiprocessing
import os
import pickle
import random
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from spectral_diffusion.spectral.errors import SpectralError
from spectral_diffusion.training.data import shards, tar
from spectral_diffusion.training.data.batches import Batch, batches
from spectral_diffusion.training.data.config import DataConfig
from spectral_diffusion.training.data.dataset import open_data
from spectral_diffusion.training.data.images import Images
from spectral_diffusion.training.data.notes import most_corrupt
from spectral_diffusion.training.data.order import Plan

from . import tiny


def opened(path: Path | str, size: int = 16, **settings: Any) -> Images:
    data = open_data(DataConfig(str(path), size, **settings))
    assert isinstance(data, Images)
    return data


def noise(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """A smooth random picture of (width, height)."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write_tar(path: Path, files: dict[str, bytes], **options: Any) -> Path:
    with tarfile.open(path, "w", **options) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def first(data: Images, count: int, **options: Any) -> list[Batch]:
    found = batches(data, 4, seed=1, **options)
    try:
        return [next(found) for _ in range(count)]
    finally:
        found.close()


@pytest.mark.parametrize("size", [64, 24])
def test_images_are_the_same_in_memory_and_read_again(size: int) -> None:
    kept, read = (opened("emoji64", size, subgroups=("heart", "food-*"), cache=cache) for cache in ("memory", "off"))
    assert kept.in_memory and not read.in_memory and len(kept) == len(read) == 153
    plan = Plan([(0, index) for index in range(len(kept))])
    one, other = kept.load(plan, 0).batch, read.load(plan, 0).batch
    assert one is not None and other is not None and torch.equal(one["image"], other["image"])
    assert one["index"].tolist() == list(range(len(kept))) and one["caption"] == list(kept.captions)


def test_captions_beside_images_in_tables_and_in_names(tmp_path: Path) -> None:
    tiny.pictures(tmp_path, 6)
    (tmp_path / "red" / "red-1.txt").write_text(" a red patch, naïve 🟥\n", encoding="utf-8")
    rows = [
        {"file_name": "blue-0.png", "text": "one \u2028 line 蓝", "label": 3},
        {"file_name": "./blue-2.png", "caption": "second", "group": "cold", "subgroup": "sea"},
    ]
    (tmp_path / "blue" / "metadata.jsonl").write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
    (tmp_path / "metadata.csv").write_text('\ufefffile_name,text\nred/red-3.png,"red, the ""third"""\n', "utf-8")
    data = opened(tmp_path)
    assert list(data.captions) == [
        "one \u2028 line 蓝",
        "second",
        "blue 4",
        "a red patch, naïve 🟥",
        'red, the "third"',
        "red 5",
    ]
    assert list(data.subgroups) == ["3", "sea", "blue", "red", "red", "red"]
    assert list(opened(tmp_path, subgroups=("cold", "re*")).subgroups) == ["sea", "red", "red", "red"]


def test_a_table_in_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    tiny.pictures(tmp_path, 4)
    names = ["blue/blue-0.png", "blue/blue-2.png", "red/red-1.png", "red/red-3.png"]
    table = pyarrow.table({"file_name": names, "text": ["α", "b", "c", "d"], "other": [[1], [2], [3], [4]]})
    parquet.write_table(table, tmp_path / "metadata.parquet")
    assert list(opened(tmp_path).captions) == ["α", "b", "c", "d"]
    (tmp_path / "metadata.parquet").write_bytes(b"PAR1 no table at all PAR1")
    with pytest.raises(SpectralError, match=r"metadata\.parquet cannot be read as a table"):
        opened(tmp_path)


def test_parquet_without_its_library_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tiny.pictures(tmp_path, 1) / "metadata.parquet").write_bytes(b"")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(SpectralError, match=r"metadata\.parquet needs pyarrow.*pip install pyarrow"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("metadata.jsonl", b'{"file_name": "gone.png", "text": "x"}', r"gone\.png is described in the metadata of"),
        ("metadata.jsonl", b'{"text": "x"}', r"Row 1 of .*metadata\.jsonl has no file_name"),
        ("metadata.jsonl", b'{"file_name": ', r"metadata\.jsonl cannot be read as a table"),
        ("metadata.jsonl", b"[1]", r"metadata\.jsonl cannot be read as a table.*line 1 is no object"),
        ("metadata.csv", b"\xff\xfe\x00", r"metadata\.csv cannot be read as a table"),
        ("blue/blue-0.txt", b"\xff\xfe\x00\xd8", r"blue-0\.txt is no caption: expected text in UTF-8"),
    ],
)
def test_descriptions_that_are_none(name: str, content: bytes, says: str, tmp_path: Path) -> None:
    (tiny.pictures(tmp_path, 1) / name).write_bytes(content)
    with pytest.raises(SpectralError, match=says):
        opened(tmp_path)


def test_nothing_to_train_on_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SpectralError, match="empty holds no images: expected .bmp, "):
        opened(tmp_path / "empty")
    write_tar(tmp_path / "empty" / "a.tar", {})
    with pytest.raises(SpectralError, match=r"holds no images: for the shards in it set data\.path to .*empty/\*\.tar"):
        opened(tmp_path / "empty")
    with pytest.raises(SpectralError, match=r"No data at .*missing: expected a folder.*emoji64"):
        opened(tmp_path / "missing")
    with pytest.raises(SpectralError, match="holds no images in the groups green; its groups are blue, red"):
        opened(tiny.pictures(tmp_path / "some"), subgroups=("green",))


@pytest.mark.parametrize(
    "settings",
    [
        {"size": 0},
        {"path": "pipe: "},
        {"path": ""},
        {"crop": "middle"},
        {"cache": "disk"},
        {"workers": -1},
        {"max_corrupt": float("nan")},
        {"shuffle": 0},
        {"lanes": 0},
        {"cache": "memory", "buckets": True},
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(SpectralError, match=rf"data\.{next(iter(settings))}"):
        DataConfig(**settings)


def laion(path: Path, start: int, count: int = 3, **options: Any) -> Path:
    """A shard as img2dataset writes it."""
    files = {}
    for index in range(start, start + count):
        files[f"{index:09d}.jpg"] = encoded(noise((24, 20), index), "JPEG", quality=95)
        files[f"{index:09d}.json"] = json.dumps({"caption": f"json {index}", "key": str(index), "NSFW": None}).encode()
        files[f"{index:09d}.txt"] = f"caption {index} é".encode()
    return write_tar(path, files, **options)


@pytest.mark.parametrize("layout", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_shards_of_laion_are_read_at_random(layout: int, tmp_path: Path) -> None:
    for shard in range(3):
        laion(tmp_path / f"{shard:05d}.tar", 3 * shard, format=layout)
    data = opened(tmp_path / "{00000..00002}.tar", cache="off")
    assert list(data.captions) == [f"caption {index} é" for index in range(9)]
    loaded = data.load(Plan([(0, 7), (0, 0)]), 0).batch
    assert loaded is not None
    for place, index in enumerate((7, 0)):
        jpeg = Image.open(io.BytesIO(encoded(noise((24, 20), index), "JPEG", quality=95)))
        expected = np.asarray(ImageOps.fit(jpeg, (16, 16), Image.Resampling.LANCZOS)).transpose(2, 0, 1)
        assert np.array_equal(loaded["image"][place].numpy(), expected)
    assert len(opened(tmp_path / "*.tar")) == 9 and len(opened(tmp_path / "{00002,00000}.tar")) == 6


def test_labels_in_shards(tmp_path: Path) -> None:
    picture = encoded(noise((16, 16)))
    files = {"n01/a.png": picture, "b.png": picture, "b.cls": b"207\n", "c.PNG": picture, "c.json": b'{"label": 5}'}
    files |= {
        "d.x.png": picture,
        "d.x.json": b'{"group": "animals", "subgroup": "cat", "text": "a cat"}',
        "e.npy": b"1",
    }
    data = opened(write_tar(tmp_path / "s.tar", files))
    assert dict(zip(data.captions, data.subgroups, strict=True)) == {"a": "n01", "b": "207", "c": "5", "a cat": "cat"}


@pytest.mark.parametrize("layout", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_the_headers_of_archives_are_pythons(layout: int, tmp_path: Path) -> None:
    """Long and foreign names, folders, links, empty files: the members that tarfile finds, where it finds them."""
    path = tmp_path / "odd.tar"
    files = {"a" * 150 + ".png": b"1" * 700, "ordner/ü" * 30 + "x.txt": b"", "plain.txt": b"2" * 512, "é.json": b"{}"}
    with tarfile.open(path, "w", format=layout, pax_headers={"comment": "global"} if layout == 2 else None) as archive:
        for kind, name in ((tarfile.DIRTYPE, "ordner"), (tarfile.SYMTYPE, "link" * 40)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "elsewhere" * 20
            archive.addfile(info)
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    with tarfile.open(path) as archive:
        expected = [(m.name, m.offset_data, m.size) for m in archive if m.isfile()]
    with path.open("rb") as file:
        assert [tuple(member) for member in tar.Archive(file, seekable=True)] == expected and len(expected) == 4
    with path.open("rb") as file:
        archive = tar.Archive(file, seekable=False)
        assert [archive.read(member.size) for member in archive] == list(files.values())


@pytest.mark.parametrize("size", [100, 512, 5000, 10240, 11 * 1024])
def test_a_shard_cut_anywhere_is_named(size: int, tmp_path: Path) -> None:
    content = laion(tmp_path / "whole.tar", 0).read_bytes().rstrip(b"\0")
    (tmp_path / "cut.tar").write_bytes(content[: min(size, len(content) // 512 * 512)])
    with pytest.raises(SpectralError, match=r"cut\.tar cannot be read as a tar shard of images \(it is cut short\)"):
        opened(tmp_path / "cut.tar")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"no tar at all" * 100, "a header is damaged, or it is no tar archive"),
        (gzip.compress(random.Random(0).randbytes(2000)), "it is compressed; unpack it, or let data.path be a pipe:"),
    ],
    ids=["text", "gzip"],
)
def test_what_is_no_shard_is_named(content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "broken.tar").write_bytes(content)
    with pytest.raises(
        SpectralError, match=rf"broken\.tar cannot be read as a tar shard of images \({says}.*restore it"
    ):
        opened(tmp_path / "broken.tar")


def test_braces_stand_for_shards(tmp_path: Path) -> None:
    assert shards.expand("s-{008..011}.tar") == ["s-008.tar", "s-009.tar", "s-010.tar", "s-011.tar"]
    assert shards.expand("{8..10}-{a,b}") == ["8-a", "8-b", "9-a", "9-b", "10-a", "10-b"]
    assert shards.expand("awk '{print $1,$2}' {0..1}", lists=False) == [
        "awk '{print $1,$2}' 0",
        "awk '{print $1,$2}' 1",
    ]
    with pytest.raises(SpectralError, match=r"\{9\.\.3\} of x\{9\.\.3\} is no range"):
        shards.expand("x{9..3}")
    laion(tmp_path / "0.tar", 0)
    with pytest.raises(SpectralError, match=r"No shard at .*1\.tar, of .*restore it, or leave it out"):
        opened(tmp_path / "{0..1}.tar")


@pytest.mark.parametrize("cache", ["memory", "off"])
def test_random_crops_and_mirroring_are_cuts_of_the_resized_picture(cache: str, tmp_path: Path) -> None:
    """Every sample is one of Pillow's crops, mirrored or not; over epochs all places and both sides come up."""
    picture = noise((60, 40))
    picture.save(tmp_path / "wide.png")
    data = opened(tmp_path, size=20, crop="random", flip=True, cache=cache)
    resized = picture.resize((30, 20), Image.Resampling.LANCZOS)
    cuts: dict[bytes, tuple[int, bool]] = {}
    for left in range(11):
        cut = np.asarray(resized.crop((left, 0, left + 20, 20))).transpose(2, 0, 1)
        cuts |= {cut.tobytes(): (left, False), cut[..., ::-1].tobytes(): (left, True)}
    batch = data.load(Plan([(epoch, 0) for epoch in range(300)]), 5).batch
    assert batch is not None
    seen = [cuts[image.numpy().tobytes()] for image in batch["image"]]
    assert {left for left, _ in seen} == set(range(11)) and 110 < sum(mirrored for _, mirrored in seen) < 190
    again = data.load(Plan([(epoch, 0) for epoch in range(300)]), 5).batch
    other = data.load(Plan([(epoch, 0) for epoch in range(300)]), 6).batch
    assert again is not None and torch.equal(again["image"], batch["image"])
    assert other is not None and not torch.equal(other["image"], batch["image"])


def broken(folder: Path, kind: str) -> Path:
    """Twelve pictures, of which the second one cannot be read."""
    tiny.pictures(folder, 12)
    path = folder / "blue" / "blue-10.png"
    whole = encoded(noise((64, 64)), "JPEG")
    contents = {
        "cut": whole[: len(whole) // 2],
        "empty": b"",
        "text": b"<html>not a picture</html>",
        "png": path.read_bytes()[:40] + b"\0" * 40,
    }
    path.unlink()
    if kind == "link":
        path.symlink_to(folder / "nowhere.png")
    else:
        path.write_bytes(contents[kind])
    return folder


@pytest.mark.parametrize("cache", ["memory", "off"])
@pytest.mark.parametrize("kind", ["cut", "empty", "text", "png", "link"])
def test_a_corrupt_image_is_named_once_and_replaced_by_the_next(kind: str, cache: str, tmp_path: Path) -> None:
    folder, log = broken(tmp_path / "data", kind), tmp_path / "run" / "corrupt.log"
    data = opened(folder, cache=cache, max_corrupt=1)
    found = first(data, 9, folder=log.parent)
    assert all(len(batch["index"]) == 4 for batch in found)
    order = torch.cat([batch["index"] for batch in found]).tolist()
    whole = opened(tiny.pictures(tmp_path / "whole", 12))
    sound = torch.cat([batch["index"] for batch in first(whole, 9)]).tolist()
    assert order == [2 if index == 1 else index for index in sound] and 1 in sound
    (line,) = log.read_text().splitlines()
    assert json.loads(line)["file"] == str(folder / "blue" / "blue-10.png")
    assert "cannot be read" in json.loads(line)["reason"]
    later = first(opened(folder, cache=cache, max_corrupt=1), 4, start=5, folder=log.parent, workers=1)
    assert torch.cat([batch["index"] for batch in later]).tolist() == order[20:]
    assert len(log.read_text().splitlines()) == 1


@pytest.mark.parametrize(("cache", "workers"), [("memory", 0), ("off", 0), ("off", 1)])
@pytest.mark.parametrize("limit", [0, 0.0005])
def test_too_many_corrupt_images_stop_the_run(limit: float, cache: str, workers: int, tmp_path: Path) -> None:
    data = opened(broken(tmp_path / "data", "cut"), cache=cache, max_corrupt=limit)
    says = rf"1 of the images of .*data cannot be read, more than data.max_corrupt {limit:g} allows; all are named in "
    with pytest.raises(SpectralError, match=says + r".*corrupt\.log; the last one: .*blue-10\.png cannot be read as"):
        first(data, 9, workers=workers, folder=tmp_path)


@pytest.mark.parametrize(
    ("limit", "count", "most"),
    [(0, 100, 0), (0.01, 5000, 50), (0.01, 500, 10), (0.01, 20, 5), (0.01, 3, 0), (0.5, 10, 5), (3, 10, 3)],
)
def test_a_share_of_few_images_is_one_of_a_thousand_up_to_a_quarter(limit: float, count: int, most: int) -> None:
    assert int(most_corrupt(limit, count)) == most


def test_a_log_is_shared_and_survives_a_cut_line(tmp_path: Path) -> None:
    """What another process named counts; half a line, from a killed run, does not."""
    log = tmp_path / "corrupt.log"
    log.write_text(json.dumps({"file": "other.png", "reason": "x"}) + '\n{"file": "ha')
    data = opened(broken(tmp_path / "data", "text"), cache="off", max_corrupt=2)
    first(data, 9, folder=log.parent)
    assert [json.loads(line)["file"] for line in log.read_text().splitlines()[::2]] == [
        "other.png",
        str(tmp_path / "data" / "blue" / "blue-10.png"),
    ]
    with pytest.raises(SpectralError, match="2 of the images"):
        first(opened(tmp_path / "data", cache="off", max_corrupt=1), 9, folder=log.parent)


def test_where_no_image_can_be_read_the_run_stops(tmp_path: Path) -> None:
    for path in tiny.pictures(tmp_path, 4).rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(SpectralError, match=r"No image of .* can be read; check the data"):
        first(opened(tmp_path, cache="off", max_corrupt=100), 1)
    with pytest.raises(SpectralError, match=r"images of .* cannot be read; check the first and the last"):
        opened(tmp_path, cache="off").preview_samples(2)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_vanishes_or_shrinks_is_a_sentence(workers: int, tmp_path: Path) -> None:
    data = opened(laion(tmp_path / "a.tar", 0, 8), cache="off")
    (tmp_path / "a.tar").rename(tmp_path / "b.tar")
    with pytest.raises(SpectralError, match=r"a\.tar cannot be read any more \(No such file.*\); restore the shard"):
        first(data, 1, workers=workers)
    (tmp_path / "a.tar").write_bytes((tmp_path / "b.tar").read_bytes()[:600])
    with pytest.raises(SpectralError, match=r"a\.tar is shorter than when the run began; restore the shard"):
        first(data, 1, workers=workers)


def test_a_folder_that_vanishes_is_a_sentence(tmp_path: Path) -> None:
    data = opened(tiny.pictures(tmp_path / "data", 4), cache="off")
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    with pytest.raises(SpectralError, match="(blue|red) is gone; restore the folder of images"):
        first(data, 1)


def test_a_shard_is_open_in_every_process_apart(tmp_path: Path) -> None:
    """A copy of a process shares the position in its open files; reading in both at once must not mix them up."""
    data = opened(laion(tmp_path / "a.tar", 0, 40), cache="off")
    expected = [data.reader.read(record) for record in data.records]

    def read_all() -> None:
        wrong = any([data.reader.read(r) for r in data.records] != expected for _ in range(20))
        os._exit(int(wrong))

    child = multiprocessing.get_context("fork").Process(target=read_all)
    child.start()
    assert all([data.reader.read(r) for r in data.records] == expected for _ in range(20))
    child.join()
    assert child.exitcode == 0
    assert pickle.loads(pickle.dumps(data.reader)).read(data.records[3]) == expected[3]


def changed_caption(folder: Path) -> None:
    (folder / "blue" / "blue-0.txt").write_text("other")


def changed_pixel(folder: Path) -> None:
    path = folder / "blue" / "blue-0.png"
    path.write_bytes(path.read_bytes()[:-1] + b"\x81")


def changed_class(folder: Path) -> None:
    (folder / "blue").rename(folder / "green")


@pytest.mark.parametrize("change", [changed_caption, changed_pixel, changed_class])
def test_the_digest_is_of_the_content_wherever_it_lies(change: Callable[[Path], None], tmp_path: Path) -> None:
    digests = {opened(tiny.pictures(tmp_path / name, 4), cache=cache).sha256 for name, cache in
               (("a", "memory"), ("b", "off"), ("c/a", "off"))}  # fmt: skip
    assert len(digests) == 1
    change(tmp_path / "b")
    assert opened(tmp_path / "b").sha256 not in digests
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spectral_diffusion.training.data.images.DIGESTED", 10)
        large = {opened(tmp_path / name).sha256 for name in ("a", "c/a")}
        assert len(large) == 1 and not large & digests


def test_previews_come_from_all_over_the_data(tmp_path: Path) -> None:
    data = opened(broken(tmp_path, "text"), cache="off", crop="random", flip=True, max_corrupt=3)
    shown = data.preview_samples(12)
    assert shown["index"].tolist() == [0, *range(2, 12)] and shown["image"].shape == (11, 3, 16, 16)
    assert torch.equal(shown["image"], data.preview_samples(12)["image"])
    assert data.preview_samples(2)["label"] == ["blue", "red"]


@pytest.fixture
def no_leftovers() -> Iterator[None]:
    yield
    assert not multiprocessing.active_children()
