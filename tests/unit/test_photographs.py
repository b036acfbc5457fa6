"""Photographs of a Debian package: the data set that is built of them, and their spectra near 1/f²."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from spectral_diffusion.spectral import spectrum
from spectral_diffusion.spectral.errors import SpectralError
from spectral_diffusion.training import cli
from spectral_diffusion.training.data.config import DataConfig
from spectral_diffusion.training.data.dataset import open_images
from spectral_diffusion.training.datasets import photographs as data_set
from spectral_diffusion.training.datasets.packing import is_held_out
from spectral_diffusion.training.datasets.photographs import PACKAGE, Terms, matches, rights_of, terms_of
from spectral_diffusion.training.spectrum import spectrum_of

COPYRIGHT = """\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: endless-sky
Source: https://github.com/endless-sky/endless-sky

Files: *
Copyright: Somebody Else <else@example.org>
License: GPL-3+

Files: images/land/*
Copyright: Various
License: public-domain
 Donated to everybody.
 .
 (Exceptions noted below.)

Files: images/land/mfield*
Copyright: Matthew Field
License: CC-BY-SA-3.0
Comment: Cropped and edited.

Files: images/land/*-harro*
Copyright: @harro (harro@example.org)
License: CC-BY-SA-4.0
\x20
Files:
 images/land/beach*
 images/land/mountain1*
Copyright:
 First Photographer,
 Second: Photographer
License: public-domain

License: GPL-3+
 A text about no files.
"""


def photograph(seed: int, size: tuple[int, int] = (720, 360)) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (6, 12, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def write_package(folder: Path, names: dict[str, bytes | Image.Image], copyright_file: str | None = COPYRIGHT) -> Path:
    """A .deb with files in images/land/ and a copyright file."""
    if shutil.which("dpkg-deb") is None:
        pytest.skip("dpkg-deb makes the package, and this is no Debian")
    tree = folder / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    (tree / "DEBIAN").mkdir(parents=True)
    about = {"Package": PACKAGE, "Version": "1", "Architecture": "all", "Maintainer": "m", "Description": "d"}
    (tree / "DEBIAN" / "control").write_text("".join(f"{key}: {value}\n" for key, value in about.items()))
    land = tree / "usr" / "share" / "games" / "endless-sky" / "images" / "land"
    land.mkdir(parents=True)
    for name, content in names.items():
        (land / name).write_bytes(content) if isinstance(content, bytes) else content.save(land / name, quality=90)
    if copyright_file is not None:
        (tree / "usr" / "share" / "doc" / PACKAGE).mkdir(parents=True)
        (tree / "usr" / "share" / "doc" / PACKAGE / "copyright").write_text(copyright_file, "utf-8")
    path = folder / "tiny.deb"
    command = ["dpkg-deb", "--root-owner-group", "-Zgzip", "-b", str(tree), str(path)]
    subprocess.run(command, check=True, capture_output=True)
    shutil.rmtree(tree)
    return path


NAMES = ("beach3.jpg", "mfield0.jpg", "mountain17-harro.jpg")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    content: dict[str, bytes | Image.Image] = {name: photograph(seed) for seed, name in enumerate(NAMES)}
    return write_package(tmp_path_factory.mktemp("package"), {**content, "readme.txt": b"no photograph"})


def read(path: Path) -> tuple[dict[str, dict[str, Any]], dict[str, Image.Image]]:
    """What a shard says of every sample, and its pictures."""
    said, pictures = {}, {}
    with tarfile.open(path) as archive:
        for member in archive:
            file = archive.extractfile(member)
            assert file is not None
            if member.name.endswith(".json"):
                said[Path(member.name).stem] = json.load(file)
            else:
                pictures[Path(member.name).stem] = Image.open(io.BytesIO(file.read())).convert("RGB")
    return said, pictures


def test_ten_squares_of_each_with_author_and_licence(package: Path, tmp_path: Path) -> None:
    out = tmp_path / "photographs.tar"
    counts = data_set.build(out, 32, 360, package=package)
    assert counts == {"images": 30, "groups": 3, "bytes": out.stat().st_size, "path": str(out)}
    said, pictures = read(out)
    assert list(said) == sorted(f"{Path(name).stem}-{number}" for name in NAMES for number in range(10))
    various = {"author": "First Photographer, Second: Photographer", "license": "public-domain"}
    field = {"author": "Matthew Field", "license": "CC-BY-SA-3.0"}
    harro = {"author": "@harro (harro@example.org)", "license": "CC-BY-SA-4.0"}
    assert said["beach3-0"] == {"caption": "beach", "group": "beach", **various}
    assert said["mfield0-9"] == {"caption": "landscape", "group": "landscape", **field}
    assert said["mountain17-harro-4"] == {"caption": "mountain", "group": "mountain", **harro}
    assert {picture.size for picture in pictures.values()} == {(32, 32)}
    data = open_images(DataConfig(str(out), 32))
    assert len(data) == 30 and set(data.subgroups) == {"beach", "landscape", "mountain"}


def test_squares_lie_in_two_rows_of_five(tmp_path: Path) -> None:
    """Of a picture whose red is its x and green its y: their corners are those of the cut, without loss."""
    x, y = np.meshgrid(np.arange(720) // 4, np.arange(360) // 2)
    grid = Image.fromarray(np.stack([x, y, 0 * x], axis=-1).astype(np.uint8))
    buffer = io.BytesIO()
    grid.save(buffer, "PNG")  # under a name that says otherwise, for the sake of exact numbers
    package = write_package(tmp_path, {"beach1.jpg": buffer.getvalue()})
    data_set.build(tmp_path / "x.tar", 160, 160, package=package)
    _, pictures = read(tmp_path / "x.tar")
    corners = [pictures[f"beach1-{number}"].getpixel((0, 0)) for number in range(10)]
    assert corners == [(left // 4, top // 2, 0) for top in (0, 200) for left in (0, 140, 280, 420, 560)]
    assert pictures["beach1-9"].getpixel((159, 159)) == (719 // 4, 359 // 2, 0)


def test_all_squares_of_a_photograph_are_on_one_side(tmp_path: Path) -> None:
    stems = [f"sea{number}" for number in range(12)]
    package = write_package(tmp_path, {f"{stem}.jpg": photograph(0, (360, 360)) for stem in stems})
    counts = data_set.build(tmp_path / "x.tar", 8, 256, 0.3, package)
    kept, held = ({key.rpartition("-")[0] for key in read(tmp_path / f"x{part}.tar")[0]} for part in ("", "-held-out"))
    assert held == {stem for stem in stems if is_held_out(stem, 0.3)} and kept == set(stems) - held and held and kept
    assert counts["images"] == 10 * len(kept) and counts["held_out"]["images"] == 10 * len(held)


def test_the_same_package_gives_the_same_bytes(package: Path, tmp_path: Path) -> None:
    for name in ("one.tar", "two.tar"):
        data_set.build(tmp_path / name, 16, package=package)
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()


# The copyright file


def test_stanzas_of_a_copyright_file() -> None:
    found = terms_of(COPYRIGHT)
    assert [stanza.license for stanza in found] == [
        "GPL-3+",
        "public-domain",
        "CC-BY-SA-3.0",
        "CC-BY-SA-4.0",
        "public-domain",
    ]
    assert found[0] == Terms(("*",), "Somebody Else <else@example.org>", "GPL-3+")
    assert found[-1].patterns == ("images/land/beach*", "images/land/mountain1*")
    assert found[-1].author == "First Photographer, Second: Photographer"
    assert terms_of("Files: *\nCopyright: A\nLicense:\n a text without a name\n") == []
    assert terms_of("") == terms_of("no fields at all") == terms_of("Files: *\nCopyright: A") == []


@pytest.mark.parametrize(
    ("path", "author"),
    [
        ("images/land/city0.jpg", "Various"),  # before it stands *, behind it nothing that is about it
        ("images/land/mountain12.jpg", "First Photographer, Second: Photographer"),  # the last one counts
        ("images/land/mountain12-harro.jpg", "@harro (harro@example.org)"),  # but who made it is in its name
        ("images/land/mountain12-other.jpg", "First Photographer, Second: Photographer"),
        ("images/land/deep/below.jpg", "Various"),  # a star is slashes, too
        ("sounds/bang.wav", "Somebody Else <else@example.org>"),
    ],
)
def test_the_last_stanza_about_a_file_counts(path: str, author: str) -> None:
    assert rights_of(path, terms_of(COPYRIGHT)).author == author


def test_a_photograph_without_a_licence_is_not_used(tmp_path: Path) -> None:
    package = write_package(tmp_path, {"sea1.jpg": photograph(0)}, COPYRIGHT.partition("Files: *")[0])
    with pytest.raises(SpectralError, match=r"says nothing of images/land/sea1\.jpg; a picture without a licence"):
        data_set.build(tmp_path / "x.tar", package=package)


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("a/*", ["a/b", "a/b/c", "a/"], ["a", "b/a/c"]),
        ("a?c", ["abc", "a/c", "a?c"], ["ac", "abbc"]),
        ("a[bc]*", ["a[bc]", "a[bc]d"], ["ab", "ac"]),  # DEP 5 knows no sets
        ("a.b", ["a.b"], ["axb"]),
        (r"a\*", ["a*"], ["ab", r"a\*"]),
        (r"a\?\\b", [r"a?\b"], [r"ax\b"]),
    ],
)
def test_patterns_as_dep_5_has_them(pattern: str, yes: list[str], no: list[str]) -> None:
    assert all(matches(path, pattern) for path in yes) and not any(matches(path, pattern) for path in no)


# What can go wrong


@pytest.mark.parametrize("damage", ["missing", "empty", "text", "cut"])
def test_a_damaged_package_is_named(damage: str, package: Path, tmp_path: Path) -> None:
    content, path = package.read_bytes(), tmp_path / "bad.deb"
    if damage != "missing":
        path.write_bytes({"empty": b"", "text": b"not found", "cut": content[: len(content) // 2]}[damage])
    with pytest.raises(SpectralError, match=r"bad\.deb cannot be read as a Debian package: [^\n]*\.$"):
        data_set.build(tmp_path / "x.tar", package=path)
    assert not list(tmp_path.glob("x*"))


def test_another_package_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpectralError, match=r"tiny\.deb holds no images/land/\*\.jpg; expected .*endless-sky-data"):
        data_set.build(tmp_path / "x.tar", package=write_package(tmp_path, {"a.txt": b""}))
    with pytest.raises(SpectralError, match=r"tiny\.deb holds no copyright file; expected .*endless-sky-data"):
        data_set.build(tmp_path / "x.tar", package=write_package(tmp_path, {"a.jpg": photograph(0)}, None))


def test_damaged_and_small_photographs_are_named(tmp_path: Path) -> None:
    package = write_package(tmp_path, {"sea1.jpg": b"no picture", "sea2.jpg": photograph(0)})
    with pytest.raises(SpectralError, match=r"sea1\.jpg in endless-sky-data cannot be read as an image"):
        data_set.build(tmp_path / "x.tar", package=package)
    package = write_package(tmp_path, {"sea1.jpg": photograph(0, (720, 200))})
    with pytest.raises(SpectralError, match=r"sea1\.jpg .* 720 × 200 pixels; expected at least --cut = 256"):
        data_set.build(tmp_path / "x.tar", package=package)
    assert {path.name for path in tmp_path.iterdir()} == {"tiny.deb"}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--size", "0"], "--size is 0 and --cut 256; expected 1 ≤ size ≤ cut ≤ 360"),
        (["--size", "300"], "--size is 300 and --cut 256"),
        (["--cut", "361"], "--size is 128 and --cut 361"),
        (["--held-out", "1"], "--held-out is 1; expected a share"),
        ([], "apt-get is needed to fetch endless-sky-data, a package of Debian; give its .deb with --package"),
        (["--package", "x.deb"], "dpkg-deb is needed to open x.deb; install the package dpkg"),
    ],
)
def test_what_cannot_be_is_a_sentence_before_anything_is_fetched(
    given: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # neither apt-get nor dpkg-deb
    assert cli.main(["data", "photographs", "--out", str(tmp_path / "x.tar"), *given]) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1 and not list(tmp_path.iterdir())


def test_an_apt_get_that_fails_is_a_sentence_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "apt-get"
    program.write_text(f"#!/bin/sh\necho 'E: Unable to locate package {PACKAGE}' >&2\nexit 100\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SpectralError, match=r"apt-get could not fetch .*Unable to locate.*give its \.deb with --pack"):
        data_set.build(tmp_path / "x.tar")


def test_the_command_fetches_the_package(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An apt-get that "downloads" what lies at hand."""
    program = tmp_path / "apt-get"
    program.write_text(f'#!/bin/sh\ntest "$1 $2 $3" = "download -qq {PACKAGE}" && /bin/cp {package} .\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    out = tmp_path / "new" / "x.tar"
    assert cli.main(["data", "photographs", "--out", str(out), "--size", "8", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 30 and list(out.parent.iterdir()) == [out]


# The real package


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        pytest.skip("the photographs lie in a Debian package, and this is no Debian")
    folder = tmp_path_factory.mktemp("photographs")
    subprocess.run(["apt-get", "download", "-qq", PACKAGE], cwd=folder, check=True, timeout=300)
    (package,) = folder.glob("*.deb")
    return package


@pytest.fixture(scope="module")
def photographs(whole: Path) -> list[Path]:
    subprocess.run(["dpkg-deb", "-x", whole, whole.parent], check=True, timeout=300)
    return sorted(whole.parent.glob("**/images/land/*.jpg"))


@pytest.mark.long
def test_the_data_set_of_the_real_package(whole: Path, tmp_path: Path) -> None:
    counts = data_set.build(tmp_path / "x.tar", 8, 256, 0.1, whole)
    assert counts["images"] + counts["held_out"]["images"] == 2730
    said = read(tmp_path / "x.tar")[0] | read(tmp_path / "x-held-out.tar")[0]
    # Whose name is in that of the file made it.
    for name, author in {"sfiera": "Chris Pickel", "harro": "harro.eu", "spfld": "Eric Denni"}.items():
        authors = {about["author"] for key, about in said.items() if f"-{name}" in key}
        assert len(authors) == 1 and author in authors.pop()
    licences = Counter(about["license"] for key, about in said.items() if key.endswith("-0"))
    assert set(licences) == {"public-domain", "CC-BY-SA-3.0", "CC-BY-SA-4.0"} and sum(licences.values()) == 273


def squares(files: list[Path], side: int) -> Iterator[Tensor]:
    """The middle 256×256 pixels of each, resized."""
    for file in files:
        image = Image.open(file).convert("RGB")
        left, top = (image.width - 256) // 2, (image.height - 256) // 2
        cut = image.crop((left, top, left + 256, top + 256)).resize((side, side), Image.Resampling.LANCZOS)
        yield torch.from_numpy(np.array(cut)).movedim(-1, 0)[None].float() / 255


@pytest.mark.long
def test_photographs_are_near_two_and_emoji_are_steeper(photographs: list[Path]) -> None:
    assert len(photographs) > 200
    law = spectrum.fit_power_law(spectrum.radial_spectrum(squares(photographs, 256)))
    assert law.alpha == pytest.approx(2.15, abs=0.15)
    assert law.alpha_error < 0.1
    small = spectrum.fit_power_law(spectrum.radial_spectrum(squares(photographs, 64)))
    emoji = spectrum.fit_power_law(spectrum_of(["emoji64"]))
    assert emoji.alpha > small.alpha + 0.3
