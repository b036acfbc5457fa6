"""Build a data set of photographs: squares of 273 landscapes, cities and skies that Debian ships with a game.

Package `endless-sky-data`, images/land/*.jpg, 720 × 360 pixels each. Some are in the public domain, others CC-BY-SA:
every sample carries its author and licence, from the package's copyright file.
"""

from __future__ import annotations

import fnmatch
import io
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image, UnidentifiedImageError

from ...spectral.errors import SpectralError
from . import packing
from .packing import Sample

PACKAGE = "endless-sky-data"
#: Where the squares of a photograph begin, as parts of what is left of its width and height.
PLACES = tuple((x / 4, float(y)) for y in (0, 1) for x in range(5))
#: Those whose names their files have in place of the scene's.
PHOTOGRAPHERS = ("bwerner", "dmottl", "mfield", "myrabella")


@dataclass(frozen=True)
class Terms:
    """A stanza of a Debian copyright file: which files it is about, whose they are, and under which licence."""

    patterns: tuple[str, ...]
    author: str
    license: str


def build(
    out: Path, size: int = 128, cut: int = 256, held_out: float = 0.0, package: Path | None = None
) -> dict[str, Any]:
    """Write the data set as a WebDataset shard: `NAME-NUMBER.webp` (lossless RGB) and `.json` of every square.

    Args:
        out: the `.tar` to write; replaced whole, and byte-identical for the same input.
        size: side of the squares, in pixels.
        cut: side of what is cut from the photographs, in their pixels, before it is resized: ten squares of each, in
            two rows of five, which overlap.
        held_out: share of the photographs that go to NAME-held-out.tar instead, with all their squares.
        package: the .deb, when it is at hand; fetched with apt-get otherwise.

    Returns:
        As `packing.write`.

    Raises:
        SpectralError: a program is missing or fails, or the package does not hold what is expected.
    """
    if not 1 <= size <= cut <= 360:
        raise SpectralError(
            f"--size is {size} and --cut {cut}; expected 1 ≤ size ≤ cut ≤ 360, the photographs' height."
        )
    with tempfile.TemporaryDirectory() as folder:
        package = package or _apt_get(Path(folder))
        photographs, terms = _read(package)
    if not photographs:
        raise SpectralError(f"{package} holds no images/land/*.jpg; expected Debian's package {PACKAGE}.")
    parts = packing.each(lambda name: list(_samples(name, photographs[name], terms, cut, size)), sorted(photographs))
    return packing.write(out, (sample for part in parts for sample in part), held_out)


def _apt_get(folder: Path) -> Path:
    """Fetch the package into `folder`."""
    if shutil.which("apt-get") is None:
        raise SpectralError(f"apt-get is needed to fetch {PACKAGE}, a package of Debian; give its .deb with --package.")
    result = subprocess.run(["apt-get", "download", "-qq", PACKAGE], cwd=folder, capture_output=True, text=True)
    found = sorted(folder.glob("*.deb"))
    if result.returncode or not found:
        reason = (result.stderr.strip() or "no message").splitlines()[-1]
        raise SpectralError(f"apt-get could not fetch {PACKAGE} ({reason}); check the network, or give its .deb.")
    return found[0]


def _read(package: Path) -> tuple[dict[str, bytes], list[Terms]]:
    """The photographs of a .deb by their names, and the terms of all its files."""
    if shutil.which("dpkg-deb") is None:
        raise SpectralError(f"dpkg-deb is needed to open {package}; install the package dpkg.")
    try:
        result = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(package)], capture_output=True)
        if result.returncode:
            raise tarfile.TarError((result.stderr.decode(errors="replace").strip() or "no message").splitlines()[-1])
        with tarfile.open(fileobj=io.BytesIO(result.stdout)) as archive:
            files = {PurePosixPath(member.name): member for member in archive if member.isfile()}
            photographs = {
                path.stem: _content(archive, member)
                for path, member in files.items()
                if path.suffix == ".jpg" and path.parts[-3:-1] == ("images", "land")
            }
            rights = [member for path, member in files.items() if path.name == "copyright"]
            return photographs, terms_of(_content(archive, rights[0]).decode()) if rights else []
    except (OSError, UnicodeDecodeError, tarfile.TarError) as error:
        raise SpectralError(f"{package} cannot be read as a Debian package: {error}.") from error


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    assert file is not None  # a regular member always opens
    return file.read()


def terms_of(copyright_file: str) -> list[Terms]:
    """The stanzas about files of a Debian copyright file (DEP 5)."""
    found = []
    for stanza in re.split(r"\n\s*\n", copyright_file):
        fields = dict(re.findall(r"^(\S+):(.*(?:\n[ \t].*)*)", stanza, flags=re.MULTILINE))
        if "Files" in fields and "License" in fields:
            author = " ".join(fields.get("Copyright", "").split())
            license_name = fields["License"].strip().splitlines()[0]
            found.append(Terms(tuple(fields["Files"].split()), author, license_name))
    return found


def rights(path: str, terms: list[Terms]) -> Terms:
    """The terms of a file: those of the last stanza that is about it.

    Raises:
        SpectralError: none is.
    """
    for entry in reversed(terms):
        if any(fnmatch.fnmatchcase(path, pattern) for pattern in entry.patterns):
            return entry
    raise SpectralError(
        f"The copyright file of {PACKAGE} says nothing of {path}; a picture without a licence is not used."
    )


def _samples(name: str, content: bytes, terms: list[Terms], cut: int, size: int) -> Iterator[Sample]:
    """The squares of a photograph."""
    own = rights(f"images/land/{name}.jpg", terms)
    scene = re.sub(r"\d.*", "", name)
    scene = "landscape" if scene in PHOTOGRAPHERS else scene
    about = {"caption": scene, "group": scene, "author": own.author, "license": own.license}
    try:
        picture = Image.open(io.BytesIO(content)).convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise SpectralError(f"{name}.jpg in {PACKAGE} cannot be read as an image.") from error
    for number, (x, y) in enumerate(PLACES):
        left, top = round(x * (picture.width - cut)), round(y * (picture.height - cut))
        square = picture.crop((left, top, left + cut, top + cut)).resize((size, size), Image.Resampling.LANCZOS)
        yield Sample(f"{name}-{number}", packing.webp(square), about, name)
