"""Build a data set of photographs: squares of 273 landscapes, cities and skies that Debian ships with a game.

Package `endless-sky-data`, images/land/*.jpg, 720 × 360 pixels each. Some are in the public domain, others CC-BY-SA:
every sample carries its author and licence, from the package's copyright file.
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from ...spectral.errors import SpectralError
from . import packing
from .packing import Sample

PACKAGE = "endless-sky-data"
#: The photographs' height, the lesser of their sides, in pixels.
HEIGHT = 360
#: Where the squares of a photograph begin, as parts of what is left of its width and height.
PLACES = tuple((x / 4, float(y)) for y in (0, 1) for x in range(5))
#: Files are named for their scenes; these, for who made them.
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
        SpectralError: a program is missing or fails, or the package does not hold what is expected; or as
            `packing.check`.
    """
    if not 1 <= size <= cut <= HEIGHT:
        raise SpectralError(
            f"--size is {size} and --cut {cut}; expected 1 ≤ size ≤ cut ≤ {HEIGHT}, the photographs' height."
        )
    packing.check(out, held_out)
    with tempfile.TemporaryDirectory() as folder:
        photographs, terms = _read(package or _apt_get(Path(folder)))
    rights = {name: rights_of(f"images/land/{name}.jpg", terms) for name in photographs}
    return packing.write(
        out, photographs, lambda name: _samples(name, photographs[name], rights[name], cut, size), held_out
    )


def _apt_get(folder: Path) -> Path:
    """Fetch the package into `folder`."""
    if shutil.which("apt-get") is None:
        raise SpectralError(f"apt-get is needed to fetch {PACKAGE}, a package of Debian; give its .deb with --package.")
    result = subprocess.run(["apt-get", "download", "-qq", PACKAGE], cwd=folder, capture_output=True, text=True)
    found = sorted(folder.glob("*.deb"))
    if result.returncode or not found:
        reason = (result.stderr.strip() or "no message").splitlines()[-1]
        raise SpectralError(
            f"apt-get could not fetch {PACKAGE} ({reason}); check the network, or give its .deb with --package."
        )
    return found[0]


def _read(package: Path) -> tuple[dict[str, bytes], list[Terms]]:
    """The photographs of a .deb by their names, and the terms of all its files.

    Raises:
        SpectralError: dpkg-deb is missing, the file is no .deb, or lacks photographs or copyright file.
    """
    if shutil.which("dpkg-deb") is None:
        raise SpectralError(f"dpkg-deb is needed to open {package.name}; install the package dpkg.")
    result = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(package)], capture_output=True)
    try:
        if result.returncode:
            said = result.stderr.decode(errors="replace").strip() or "no message"
            raise tarfile.TarError(said.splitlines()[-1])
        with tarfile.open(fileobj=io.BytesIO(result.stdout)) as archive:
            files = {PurePosixPath(member.name): member for member in archive if member.isfile()}
            photographs = {
                path.stem: _content(archive, member)
                for path, member in files.items()
                if path.suffix == ".jpg" and path.parts[-3:-1] == ("images", "land")
            }
            copyrights = [_content(archive, files[path]).decode() for path in files if path.name == "copyright"]
    except (UnicodeDecodeError, tarfile.TarError) as error:
        raise SpectralError(f"{package} cannot be read as a Debian package: {error}.") from error
    for found, what in ((photographs, "images/land/*.jpg"), (copyrights, "copyright file")):
        if not found:
            raise SpectralError(f"{package.name} holds no {what}; expected Debian's package {PACKAGE}.")
    return photographs, terms_of(copyrights[0])


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    assert file is not None  # a regular member always opens
    return file.read()


def terms_of(copyright_file: str) -> list[Terms]:
    """The stanzas about files of a Debian copyright file (DEP 5); those that name no licence are left out."""
    found = []
    for stanza in re.split(r"\n[ \t]*\n", copyright_file):
        fields = dict(re.findall(r"^([^\s:]+):(.*(?:\n[ \t].*)*)", stanza, flags=re.MULTILINE))
        licence = fields.get("License", "").partition("\n")[0].strip()
        if "Files" in fields and licence:
            author = " ".join(fields.get("Copyright", "").split())
            found.append(Terms(tuple(fields["Files"].split()), author, licence))
    return found


def rights_of(path: str, terms: Sequence[Terms]) -> Terms:
    """The terms of a file: those of the last stanza that is about it, as DEP 5 has it.

    But names that end in their photographer, NAME-WHO.jpg, are that photographer's: the package's short patterns, such
    as mountain1*, also match mountain17-harro.jpg.

    Raises:
        SpectralError: none is.
    """
    photographer = re.search(r"-(\w+)\.", path)
    own = f"{PurePosixPath(path).parent}/*-{photographer[1]}*" if photographer else ""
    for stanzas in ([stanza for stanza in terms if own in stanza.patterns], terms):
        for stanza in reversed(stanzas):
            if any(matches(path, pattern) for pattern in stanza.patterns):
                return stanza
    raise SpectralError(
        f"The copyright file of {PACKAGE} says nothing of {path}; a picture without a licence is not used."
    )


def matches(path: str, pattern: str) -> bool:
    """Whether a pattern of DEP 5 is about a file: "*" is any text, slashes too, "?" any character, "\\" takes both."""
    pieces = re.findall(r"\\.|.", pattern, flags=re.DOTALL)
    wild: Mapping[str, str] = {"*": ".*", "?": "."}
    expression = "".join(wild.get(piece) or re.escape(piece[-1]) for piece in pieces)
    return re.fullmatch(expression, path, flags=re.DOTALL) is not None


def _samples(name: str, content: bytes, rights: Terms, cut: int, size: int) -> list[Sample]:
    """The squares of a photograph."""
    try:
        picture = Image.open(io.BytesIO(content)).convert("RGB")
    except OSError as error:
        raise SpectralError(f"{name}.jpg in {PACKAGE} cannot be read as an image.") from error
    if min(picture.size) < cut:
        raise SpectralError(
            f"{name}.jpg in {PACKAGE} has {picture.width} × {picture.height} pixels; expected at least --cut = {cut} "
            "in both."
        )
    scene = re.sub(r"\d.*", "", name)
    scene = "landscape" if scene in PHOTOGRAPHERS else scene
    about = {"caption": scene, "group": scene, "author": rights.author, "license": rights.license}
    found = []
    for number, (x, y) in enumerate(PLACES):
        left, top = round(x * (picture.width - cut)), round(y * (picture.height - cut))
        square = picture.crop((left, top, left + cut, top + cut)).resize((size, size), Image.Resampling.LANCZOS)
        found.append(Sample(f"{name}-{number}", packing.webp(square), about))
    return found
