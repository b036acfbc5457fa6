"""Pictures of data sets: the emoji that ship, folders and shards, and how every kind of picture becomes a square."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from spectral_diffusion.spectral.errors import SpectralError
from spectral_diffusion.training.data.config import DataConfig
from spectral_diffusion.training.data.dataset import EMOJI64, open_images
from spectral_diffusion.training.data.images import Images

from . import tiny

GROUPS = {
    "people-body": 361,
    "objects": 261,
    "travel-places": 218,
    "smileys-emotion": 166,
    "animals-nature": 157,
    "food-drink": 128,
    "activities": 85,
}


def pixels(data: Images) -> Tensor:
    """All images, [N, 3, S, S] uint8."""
    return data.preview_samples(len(data))["image"]  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def emoji() -> Images:
    return open_images(DataConfig())


@pytest.fixture(scope="module")
def records() -> list[dict[str, str]]:
    """What the shard itself says of every emoji, in the order of their names."""
    with tarfile.open(EMOJI64) as archive:
        files = sorted((member for member in archive if member.name.endswith(".json")), key=lambda member: member.name)
        return [json.load(archive.extractfile(member)) for member in files]  # type: ignore[arg-type]


def test_the_shipped_emoji_are_all_there(emoji: Images, records: list[dict[str, str]]) -> None:
    assert len(emoji) == 1376 and pixels(emoji).shape == (1376, 3, 64, 64) and pixels(emoji).dtype == torch.uint8
    assert list(emoji.captions) == list(record["caption"] for record in records)
    assert list(emoji.subgroups) == list(record["subgroup"] for record in records)
    assert len(set(emoji.captions)) == 1376
    assert "grinning face" in emoji.captions and "red apple" in emoji.captions


def test_the_shipped_emoji_are_pictures_on_white(emoji: Images) -> None:
    corners = pixels(emoji)[:, :, [0, 0, -1, -1], [0, -1, 0, -1]].float().mean(dim=(1, 2))
    assert (corners > 250).float().mean() > 0.95
    assert (pixels(emoji).float().std(dim=(1, 2, 3)) > 5).all()


@pytest.mark.parametrize(("group", "count"), GROUPS.items(), ids=GROUPS)
def test_a_group_can_be_chosen(group: str, count: int) -> None:
    assert len(open_images(DataConfig(size=8, subgroups=(group,)))) == count


@pytest.mark.parametrize(
    "patterns", [("face-*",), ("cat-face", "monkey-face"), ("food-fruit", "face-*"), ("*",)], ids=str
)
def test_a_star_matches_any_ending(patterns: tuple[str, ...], records: list[dict[str, str]]) -> None:
    chosen = open_images(DataConfig(size=8, subgroups=patterns))
    stems = tuple(pattern.rstrip("*") for pattern in patterns)
    expected = [r["caption"] for r in records if any(r["subgroup"].startswith(stem) for stem in stems)]
    assert list(chosen.captions) == expected and expected


def test_a_folder_has_captions_beside_its_images_or_in_their_names(tmp_path: Path) -> None:
    tiny.pictures(tmp_path, 2)
    (tmp_path / "red" / "red-1.txt").write_text(" a red patch, naïve 🟥\n", encoding="utf-8")
    Image.new("RGB", (16, 16)).save(tmp_path / "a_dark-square.webp")
    (tmp_path / "notes.md").write_text("not an image")
    data = open_images(DataConfig(str(tmp_path), size=16))
    assert tuple(data.captions) == ("a dark square", "blue 0", "a red patch, naïve 🟥")
    assert tuple(data.subgroups) == (tmp_path.name, "blue", "red")
    assert open_images(DataConfig(str(tmp_path), subgroups=("re*",))).captions == ["a red patch, naïve 🟥"]


def test_a_shard_holds_what_its_folder_does(tmp_path: Path) -> None:
    folder, shard = tiny.pictures(tmp_path / "images", 4), tmp_path / "images.tar"
    with tarfile.open(shard, "w") as archive:
        for file in sorted(folder.rglob("*.png")):
            archive.add(file, file.name)
            about = json.dumps({"caption": file.stem, "group": "colours", "subgroup": file.parent.name}).encode()
            member = tarfile.TarInfo(f"{file.stem}.json")
            member.size = len(about)
            archive.addfile(member, io.BytesIO(about))
    one, other = open_images(DataConfig(str(shard), size=16)), open_images(DataConfig(str(folder), size=16))
    assert torch.equal(pixels(one), pixels(other)) and one.subgroups == other.subgroups
    assert list(one.captions) == ["blue-0", "blue-2", "red-1", "red-3"]
    assert len(open_images(DataConfig(str(shard), subgroups=("colours",)))) == 4


def test_transparent_parts_go_over_white(tmp_path: Path) -> None:
    """RGBA, grey with alpha, and a palette with a transparent colour; each half red-or-dark and half clear."""
    clear = Image.new("RGBA", (16, 16), (10, 20, 30, 0))
    clear.paste((200, 0, 0, 255), (0, 0, 16, 8))
    clear.save(tmp_path / "rgba.png")
    clear.convert("LA").save(tmp_path / "grey.png")
    palette = Image.new("P", (16, 16), 1)
    palette.putpalette([200, 0, 0, 10, 20, 30])
    palette.paste(0, (0, 0, 16, 8))
    palette.save(tmp_path / "palette.png", transparency=1)
    images = pixels(open_images(DataConfig(str(tmp_path), size=16)))
    assert (images[:, :, 8:] == 255).all()
    assert images[1:, :, 0, 0].tolist() == [[200, 0, 0], [200, 0, 0]] and (images[0, :, :8] < 100).all()


def test_sixteen_bits_of_grey_become_eight(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 256).reshape(16, 16).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    image = pixels(open_images(DataConfig(str(tmp_path), size=16)))[0]
    assert torch.equal(image, torch.from_numpy((values / 257).round().astype(np.uint8)).expand(3, 16, 16))


def test_any_picture_becomes_a_square(tmp_path: Path) -> None:
    """Cropped in the middle: of a wide picture in three stripes, the middle one stays."""
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 255
    Image.fromarray(wide).save(tmp_path / "wide.png")
    Image.fromarray(wide.transpose(1, 0, 2).copy()).convert("L").save(tmp_path / "tall.jpg", quality=100)
    images = pixels(open_images(DataConfig(str(tmp_path), size=10)))
    assert images.shape == (2, 3, 10, 10) and (images[:, :, :, 1:-1][:, :, 1:-1] > 240).all()


def test_a_photograph_lies_as_its_exif_says(tmp_path: Path) -> None:
    picture = Image.new("RGB", (16, 16))
    picture.paste((255, 255, 255), (0, 0, 16, 8))
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    picture.save(tmp_path / "turned.png", exif=exif)
    image = pixels(open_images(DataConfig(str(tmp_path), size=16)))[0]
    assert image[:, 0].max() == 0 and image[:, -1].min() == 255


def shard_of_bytes(path: Path) -> Path:
    path.write_bytes(b"no tar at all" * 100)
    return path


def shard_cut_short(path: Path) -> Path:
    path.write_bytes(EMOJI64.read_bytes()[:100_000])
    return path


def shard_whose_description_is_a_list(path: Path) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in (("a.json", b"[1]"), ("a.png", b"")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("make", [shard_of_bytes, shard_cut_short, shard_whose_description_is_a_list])
def test_a_damaged_shard_is_named(make: object, tmp_path: Path) -> None:
    path = make(tmp_path / "broken.tar")  # type: ignore[operator]
    with pytest.raises(SpectralError, match=r"broken\.tar cannot be read as a tar shard"):
        open_images(DataConfig(str(path), size=8))
