"""Data sets: the emoji that ship, folders, shards, what is wrong with them, and their captions as conditions."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from spectral_diffusion.spectral.conditioning import build
from spectral_diffusion.spectral.config import ConditioningConfig
from spectral_diffusion.spectral.errors import SpectralError
from spectral_diffusion.training.images import EMOJI64, DataConfig, ImageSet, load
from spectral_diffusion.training.tokens import Conditions, tokenize

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


@pytest.fixture(scope="module")
def emoji() -> ImageSet:
    return load(DataConfig())


@pytest.fixture(scope="module")
def records() -> list[dict[str, str]]:
    """What the shard itself says of every emoji, in the order of their names."""
    with tarfile.open(EMOJI64) as archive:
        files = sorted((member for member in archive if member.name.endswith(".json")), key=lambda member: member.name)
        return [json.load(archive.extractfile(member)) for member in files]  # type: ignore[arg-type]


def test_the_shipped_emoji_are_all_there(emoji: ImageSet, records: list[dict[str, str]]) -> None:
    assert len(emoji) == 1376 and emoji.images.shape == (1376, 3, 64, 64) and emoji.images.dtype == torch.uint8
    assert emoji.captions == tuple(record["caption"] for record in records)
    assert emoji.subgroups == tuple(record["subgroup"] for record in records)
    assert len(set(emoji.captions)) == 1376
    assert "grinning face" in emoji.captions and "red apple" in emoji.captions


def test_the_shipped_emoji_are_pictures_on_white(emoji: ImageSet) -> None:
    corners = emoji.images[:, :, [0, 0, -1, -1], [0, -1, 0, -1]].float().mean(dim=(1, 2))
    assert (corners > 250).float().mean() > 0.95
    assert (emoji.images.float().std(dim=(1, 2, 3)) > 5).all()


@pytest.mark.parametrize(("group", "count"), GROUPS.items(), ids=GROUPS)
def test_a_group_can_be_chosen(group: str, count: int) -> None:
    assert len(load(DataConfig(size=8, subgroups=(group,)))) == count


@pytest.mark.parametrize(
    "patterns", [("face-*",), ("cat-face", "monkey-face"), ("food-fruit", "face-*"), ("*",)], ids=str
)
def test_a_star_matches_any_ending(patterns: tuple[str, ...], records: list[dict[str, str]]) -> None:
    chosen = load(DataConfig(size=8, subgroups=patterns))
    stems = tuple(pattern.rstrip("*") for pattern in patterns)
    expected = [r["caption"] for r in records if any(r["subgroup"].startswith(stem) for stem in stems)]
    assert list(chosen.captions) == expected and expected


def test_floats_span_minus_one_to_one() -> None:
    data = ImageSet(
        torch.tensor([0, 255, 51], dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 3, 2, 2), ("",) * 3, ("",) * 3
    )
    assert data.floats()[:, 0, 0, 0].tolist() == pytest.approx([-1.0, 1.0, -0.6])
    assert data.floats(torch.tensor([1, 0]))[:, 0, 0, 0].tolist() == [1.0, -1.0]
    assert [data[index] for index in range(len(data))] == [0, 1, 2]


def test_a_folder_has_captions_beside_its_images_or_in_their_names(tmp_path: Path) -> None:
    tiny.pictures(tmp_path, 2)
    (tmp_path / "red" / "red-1.txt").write_text(" a red patch, naïve 🟥\n", encoding="utf-8")
    Image.new("RGB", (16, 16)).save(tmp_path / "a_dark-square.webp")
    (tmp_path / "notes.md").write_text("not an image")
    data = load(DataConfig(str(tmp_path), size=16))
    assert data.captions == ("a dark square", "blue 0", "a red patch, naïve 🟥")
    assert data.subgroups == (tmp_path.name, "blue", "red")
    assert load(DataConfig(str(tmp_path), subgroups=("re*",))).captions == ("a red patch, naïve 🟥",)


def test_a_shard_holds_what_its_folder_does(tmp_path: Path) -> None:
    folder, shard = tiny.pictures(tmp_path / "images", 4), tmp_path / "images.tar"
    with tarfile.open(shard, "w") as archive:
        for file in sorted(folder.rglob("*.png")):
            archive.add(file, file.name)
            about = json.dumps({"caption": file.stem, "group": "colours", "subgroup": file.parent.name}).encode()
            member = tarfile.TarInfo(f"{file.stem}.json")
            member.size = len(about)
            archive.addfile(member, io.BytesIO(about))
    one, other = load(DataConfig(str(shard), size=16)), load(DataConfig(str(folder), size=16))
    assert torch.equal(one.images, other.images) and one.subgroups == other.subgroups
    assert one.captions == ("blue-0", "blue-2", "red-1", "red-3")
    assert len(load(DataConfig(str(shard), subgroups=("colours",)))) == 4


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
    images = load(DataConfig(str(tmp_path), size=16)).images
    assert (images[:, :, 8:] == 255).all()
    assert images[1:, :, 0, 0].tolist() == [[200, 0, 0], [200, 0, 0]] and (images[0, :, :8] < 100).all()


def test_sixteen_bits_of_grey_become_eight(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 256).reshape(16, 16).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    image = load(DataConfig(str(tmp_path), size=16)).images[0]
    assert torch.equal(image, torch.from_numpy((values / 257).round().astype(np.uint8)).expand(3, 16, 16))


def test_any_picture_becomes_a_square(tmp_path: Path) -> None:
    """Cropped in the middle: of a wide picture in three stripes, the middle one stays."""
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 255
    Image.fromarray(wide).save(tmp_path / "wide.png")
    Image.fromarray(wide.transpose(1, 0, 2).copy()).convert("L").save(tmp_path / "tall.jpg", quality=100)
    images = load(DataConfig(str(tmp_path), size=10)).images
    assert images.shape == (2, 3, 10, 10) and (images[:, :, :, 1:-1][:, :, 1:-1] > 240).all()


def test_a_photograph_lies_as_its_exif_says(tmp_path: Path) -> None:
    picture = Image.new("RGB", (16, 16))
    picture.paste((255, 255, 255), (0, 0, 16, 8))
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    picture.save(tmp_path / "turned.png", exif=exif)
    image = load(DataConfig(str(tmp_path), size=16)).images[0]
    assert image[:, 0].max() == 0 and image[:, -1].min() == 255


@pytest.mark.parametrize(
    "content", [b"", b"<html>not a picture</html>", b"\x89PNG\r\n\x1a\n" + bytes(40)], ids=["empty", "text", "png"]
)
def test_a_corrupt_image_in_a_folder_is_named(content: bytes, tmp_path: Path) -> None:
    tiny.pictures(tmp_path, 2)
    (tmp_path / "red" / "broken.png").write_bytes(content)
    with pytest.raises(SpectralError, match=r"red.broken\.png cannot be read as an image.*remove it"):
        load(DataConfig(str(tmp_path)))


def test_an_image_cut_short_is_named(tmp_path: Path) -> None:
    path = tiny.pictures(tmp_path, 1) / "blue" / "blue-0.png"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(SpectralError, match=r"blue-0\.png cannot be read as an image"):
        load(DataConfig(str(tmp_path)))


def test_a_corrupt_image_in_a_shard_is_named(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "shard.tar", "w") as archive:
        member = tarfile.TarInfo("some-emoji.webp")
        member.size = 9
        archive.addfile(member, io.BytesIO(b"no image!"))
    with pytest.raises(SpectralError, match=r"some-emoji\.webp in .*shard\.tar cannot be read as an image"):
        load(DataConfig(str(tmp_path / "shard.tar")))


def test_a_caption_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tiny.pictures(tmp_path, 1) / "blue" / "blue-0.txt").write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(SpectralError, match=r"blue-0\.txt.*UTF-8"):
        load(DataConfig(str(tmp_path)))


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
        load(DataConfig(str(path), size=8))


def test_nothing_to_train_on_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(SpectralError, match=r"No data at .*missing.*emoji64"):
        load(DataConfig(str(tmp_path / "missing")))
    with pytest.raises(SpectralError, match="holds no images"):
        load(DataConfig(str(tmp_path)))
    with pytest.raises(SpectralError, match="no images in the groups facse-smiling"):
        load(DataConfig(str(tiny.pictures(tmp_path)), subgroups=("facse-smiling",)))
    with pytest.raises(SpectralError, match=r"data\.size is 0"):
        load(DataConfig(str(tmp_path), size=0))


def test_texts_become_the_contexts_of_their_tokens() -> None:
    data = ImageSet(torch.zeros(3, 3, 2, 2, dtype=torch.uint8), ("a cat", "a dog", "a red apple"), ("",) * 3)
    conditions, tower = Conditions(tiny.TEXT, data), build(tiny.TEXT)
    assert tower is not None
    found = conditions.context(tower, torch.tensor([2, 0]))
    assert found is not None and torch.equal(found, tower(tokenize(["a red apple", "a cat"])))
    null = conditions.unconditional(tower)
    assert null is not None and torch.equal(null, tower(tokenize([""])))
    dropped = Conditions(tiny.TEXT, data, dropout=1.0).context(tower, torch.tensor([0, 1]))
    assert dropped is not None and torch.equal(dropped, null.expand(2, -1, -1))


def test_subgroups_become_the_contexts_of_their_classes() -> None:
    data = ImageSet(torch.zeros(2, 3, 2, 2, dtype=torch.uint8), ("", ""), ("red", "blue"))
    conditions, embedder = Conditions(tiny.CLASSES, data), build(tiny.CLASSES)
    assert embedder is not None
    found = conditions.context(embedder, torch.tensor([0, 1]))
    assert found is not None and torch.equal(found, embedder(torch.tensor([1, 0])))
    null = conditions.unconditional(embedder)
    assert null is not None and torch.equal(null, embedder(torch.tensor([2])))
    torch.manual_seed(0)
    many = Conditions(tiny.CLASSES, data, dropout=0.3).context(embedder, torch.zeros(2000, dtype=torch.long))
    assert many is not None
    assert (many == null).all(-1).float().mean().item() == pytest.approx(0.3, abs=0.04)


def test_without_a_null_class_there_is_nothing_to_drop_to() -> None:
    data = ImageSet(torch.zeros(2, 3, 2, 2, dtype=torch.uint8), ("", ""), ("red", "blue"))
    config = replace(tiny.CLASSES, n_classes=2, null_class=False)
    conditions, embedder = Conditions(config, data), build(config)
    assert embedder is not None and conditions.unconditional(embedder) is None
    found = conditions.context(embedder, torch.tensor([0, 1]))
    assert found is not None and torch.equal(found, embedder(torch.tensor([1, 0])))
    with pytest.raises(SpectralError, match=r"dropout is 0\.1, but none of the model's 2 classes.*set dropout to 0"):
        Conditions(config, data, dropout=0.1)


def test_an_encoder_that_is_not_in_the_checkpoint_is_a_sentence() -> None:
    data = ImageSet(torch.zeros(1, 3, 2, 2, dtype=torch.uint8), ("a cat",), ("",))
    with pytest.raises(SpectralError, match="width 640, but its encoder is not in the checkpoint"):
        Conditions(ConditioningConfig("external", width=640), data)


@pytest.mark.parametrize(
    "groups", [("1", "0", "1"), ("n01440764", "n01443537", "n01440764")], ids=["numbers", "synsets"]
)
def test_folders_of_classes_without_names(groups: tuple[str, ...]) -> None:
    """By number; or, where there are as many folders as classes, in their order, as ImageNet's are."""
    data = ImageSet(torch.zeros(3, 3, 2, 2, dtype=torch.uint8), ("",) * 3, groups)
    found = Conditions(replace(tiny.CLASSES, class_names=()), data).ids
    assert found is not None and found.tolist() == ([1, 0, 1] if groups[0] == "1" else [0, 1, 0])


def test_a_subgroup_without_a_class_is_a_sentence() -> None:
    data = ImageSet(torch.zeros(1, 3, 2, 2, dtype=torch.uint8), ("",), ("green",))
    with pytest.raises(SpectralError, match="no class named 'green'.*blue, red"):
        Conditions(tiny.CLASSES, data)
    with pytest.raises(
        SpectralError, match="2 classes have no names.*name the folders by their class's number, 0 to 1"
    ):
        Conditions(replace(tiny.CLASSES, class_names=()), data)


def test_an_unconditional_model_has_no_contexts() -> None:
    data = ImageSet(torch.zeros(1, 3, 2, 2, dtype=torch.uint8), ("a cat",), ("",))
    conditions = Conditions(ConditioningConfig(), data)
    assert conditions.context(None, torch.tensor([0])) is None and conditions.unconditional(None) is None
