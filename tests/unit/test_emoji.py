"""Building the emoji data set, from a tiny pair of packages laid out as npm's are."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from spectral_diffusion.spectral.errors import SpectralError
from spectral_diffusion.training import cli
from spectral_diffusion.training.data.config import DataConfig
from spectral_diffusion.training.data.dataset import open_images
from spectral_diffusion.training.datasets import emoji
from spectral_diffusion.training.datasets.packing import is_held_out


def entry(code: str, caption: str, group: str = "food-drink", skintone: str = "", tags: str = "") -> dict[str, Any]:
    return {
        "hexcode": code,
        "annotation": caption,
        "group": group,
        "subgroups": "food-fruit",
        "tags": tags,
        "skintone": skintone,
        "emoji": "",
    }


ENTRIES = [
    entry("1F34E", "red apple", tags="apple, fruit , red,, tree"),
    entry("1F34B-FE0F", "lemon"),
    entry("1F44B-1F3FB", "waving hand: light skin tone", skintone="1"),
    entry("1F1E9-1F1EA", "flag: Germany", group="flags"),
    entry("2660", "spade suit", group="symbols"),
    entry("1F347", "grapes"),  # without a picture
]


def picture(colour: tuple[int, int, int, int], size: tuple[int, int] = (32, 32)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGBA", size, colour).save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


FIRST = "package/assets/1f34e.webp"
PICTURES = {
    FIRST: picture((200, 0, 0, 255)),
    "package/assets/1f34b.webp": picture((250, 250, 0, 0), (32, 64)),
    "package/assets/1f44b-1f3fb.webp": picture((0, 0, 0, 255)),
    "package/assets/1f1e9-1f1ea.webp": picture((0, 0, 0, 255)),
    "package/assets/2660.webp": picture((0, 0, 0, 255)),
    "package/assets/1f999.webp": picture((0, 0, 0, 255)),  # without a name
    "package/es/1f34e.webp": b"elsewhere",
    "package/package.json": b"{}",
}


def package(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def packages(folder: Path, entries: Sequence[dict[str, Any]] = ENTRIES) -> tuple[Path, Path]:
    """The pictures' and the names' package."""
    names = {"package/data/openmoji.json": json.dumps(list(entries)).encode()}
    return package(folder / "pictures.tgz", PICTURES), package(folder / "names.tgz", names)


def test_pictures_meet_their_names_and_the_rest_is_left_out(tmp_path: Path) -> None:
    pictures, names = packages(tmp_path)
    out = tmp_path / "new" / "emoji.tar"
    counts = emoji.build(out, 16, pictures, names)
    assert counts == {"images": 2, "groups": 1, "bytes": out.stat().st_size, "path": str(out)}
    data = open_images(DataConfig(str(out), size=16))
    assert list(data.captions) == ["lemon", "red apple"] and list(data.subgroups) == ["food-fruit", "food-fruit"]
    images = data.preview_samples(2)["image"]
    assert images[1, :, 8, 8].tolist() == [200, 0, 0]
    assert (images[0] == 255).all()  # clear over white
    assert [file.name for file in out.parent.iterdir()] == ["emoji.tar"]


def test_the_same_packages_give_the_same_bytes(tmp_path: Path) -> None:
    pictures, names = packages(tmp_path)
    emoji.build(tmp_path / "one.tar", 16, pictures, names)
    emoji.build(tmp_path / "two.tar", 16, pictures, names)
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()


def described(path: Path) -> dict[str, dict[str, Any]]:
    """Code point → what is said of it in a shard."""
    with tarfile.open(path) as archive:
        files = {member.name: archive.extractfile(member) for member in archive if member.name.endswith(".json")}
        return {name.removesuffix(".json"): json.load(file) for name, file in files.items() if file is not None}


def test_several_captions_of_each(tmp_path: Path) -> None:
    pictures, names = packages(tmp_path)
    emoji.build(tmp_path / "one.tar", 16, pictures, names)
    emoji.build(tmp_path / "several.tar", 16, pictures, names, captions=True)
    plain, found = described(tmp_path / "one.tar"), described(tmp_path / "several.tar")
    captions = {code: about.pop("captions") for code, about in found.items()}
    assert found == plain and plain["1f34e"]["tags"] == "apple, fruit , red,, tree"
    assert captions["1f34e"] == ["red apple", "red apple, fruit, tree", "red fruit", "red tree"]
    assert captions["1f34b"] == ["lemon"]  # nothing of it is opaque
    data = open_images(DataConfig(str(tmp_path / "several.tar"), size=16))
    assert list(data.captions) == ["lemon", "red apple"] and data.also == {1: tuple(captions["1f34e"][1:])}


def test_emoji_held_out(tmp_path: Path) -> None:
    """By their code points, whatever is made of them."""
    codes = [f"1F{number:03X}" for number in range(0x300, 0x328)]
    pictures = package(tmp_path / "p.tgz", {f"package/assets/{c.lower()}.webp": PICTURES[FIRST] for c in codes})
    entries = [entry(code, f"thing {code}") for code in codes]
    names = package(tmp_path / "n.tgz", {"package/data/openmoji.json": json.dumps(entries).encode()})
    held = []
    for size, captions in ((8, False), (16, True)):
        out = tmp_path / f"{size}.tar"
        counts = emoji.build(out, size, pictures, names, 0.25, captions)
        apart = described(tmp_path / f"{size}-held-out.tar")
        assert counts["held_out"]["images"] == len(apart) and counts["images"] + len(apart) == 40
        assert described(out).keys() | apart.keys() == {code.lower() for code in codes}
        held.append(set(apart))
    assert held[0] == held[1] == {code.lower() for code in codes if is_held_out(code.lower(), 0.25)} != set()


def test_the_command_says_what_it_built(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures, names = packages(tmp_path)
    given = ["--out", str(tmp_path / "emoji.tar"), "--pictures", str(pictures), "--names", str(names), "--size", "8"]
    assert cli.main(["data", "emoji", *given, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 2
    assert cli.main(["data", "emoji", *given, "--held-out", "0.000001"]) == 2
    assert "--held-out is 1e-06, which leaves nothing for emoji-held-out.tar" in capsys.readouterr().err
    assert cli.main(["data", "emoji", *given, "--captions"]) == 0 and len(described(tmp_path / "emoji.tar")) == 2
    assert "captions" in described(tmp_path / "emoji.tar")["1f34e"]


@pytest.mark.parametrize("share", ["-1", "1", "nan"])
def test_a_share_that_is_none_is_refused_before_anything_is_fetched(
    share: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cli.main(["data", "emoji", f"--held-out={share}", "--out", str(tmp_path / "e.tar")]) == 2
    assert f"--held-out is {share}" in capsys.readouterr().err


def test_pictures_of_no_size_are_refused_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no npm: it would be named first
    assert cli.main(["data", "emoji", "--size", "0", "--out", str(tmp_path / "e.tar")]) == 2
    assert "--size is 0" in capsys.readouterr().err and not (tmp_path / "e.tar").exists()


def test_packages_that_do_not_belong_together_are_a_sentence(tmp_path: Path) -> None:
    pictures, names = packages(tmp_path, [entry("1F600", "grinning face")])
    with pytest.raises(SpectralError, match=r"No emoji of names\.tgz has a picture in pictures\.tgz"):
        emoji.build(tmp_path / "emoji.tar", 16, pictures, names)
    with pytest.raises(SpectralError, match=r"pictures\.tgz holds no package/data/openmoji\.json"):
        emoji.build(tmp_path / "emoji.tar", 16, pictures, pictures)
    assert not (tmp_path / "emoji.tar").exists()


@pytest.mark.parametrize("damaged", ["pictures", "names"])
@pytest.mark.parametrize("damage", ["missing", "empty", "text", "cut"])
def test_a_damaged_package_is_named(damaged: str, damage: str, tmp_path: Path) -> None:
    paths = dict(zip(("pictures", "names"), packages(tmp_path), strict=True))
    content = paths[damaged].read_bytes()
    paths[damaged].unlink()
    if damage != "missing":
        paths[damaged].write_bytes({"empty": b"", "text": b"not found", "cut": content[: len(content) // 2]}[damage])
    with pytest.raises(SpectralError, match=rf"{damaged}\.tgz cannot be read as an npm package"):
        emoji.build(tmp_path / "emoji.tar", 16, paths["pictures"], paths["names"])
    assert not list(tmp_path.glob("emoji*"))


def test_a_damaged_picture_is_named(tmp_path: Path) -> None:
    _, names = packages(tmp_path)
    pictures = package(tmp_path / "pictures.tgz", PICTURES | {"package/assets/1f34e.webp": b"no picture"})
    with pytest.raises(SpectralError, match=r"1f34e\.webp in .*pictures\.tgz"):
        emoji.build(tmp_path / "emoji.tar", 16, pictures, names)


def test_names_that_are_not_as_expected_are_a_sentence(tmp_path: Path) -> None:
    pictures, _ = packages(tmp_path)
    listed = json.dumps([entry("1F34E", "red apple") | {"tags": ["apple"]}]).encode()
    for content in (b"{not json", b'[{"hexcode": "1F34E"}]', b'["1F34E"]', listed):
        names = package(tmp_path / "names.tgz", {"package/data/openmoji.json": content})
        with pytest.raises(SpectralError, match=r"openmoji\.json of .*names\.tgz is not as expected"):
            emoji.build(tmp_path / "emoji.tar", 16, pictures, names)


def test_without_npm_the_sentence_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SpectralError, match=r"npm is needed to fetch .*fluent-emoji.*Node\.js"):
        emoji.build(tmp_path / "emoji.tar")


def test_an_npm_that_fails_is_a_sentence_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho 'npm error code ENOTFOUND' >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SpectralError, match=r"could not fetch .*fluent-emoji.*ENOTFOUND.*network"):
        emoji.build(tmp_path / "emoji.tar")


def test_npm_is_asked_for_both_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An npm that "packs" what lies at hand."""
    pictures, names = packages(tmp_path)
    npm = tmp_path / "npm"
    npm.write_text(
        "#!/bin/sh\n"
        f'case "$3" in @lobehub/fluent-emoji-3d@*) /bin/cp {pictures} p.tgz; echo p.tgz;;'
        f" openmoji@*) /bin/cp {names} n.tgz; echo n.tgz;; esac\n"
    )
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert emoji.build(tmp_path / "emoji.tar", 8)["images"] == 2
