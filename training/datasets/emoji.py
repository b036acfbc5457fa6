"""Build sets of emoji, such as the one that ships beside this file: pictures of one npm package, names of another.

Pictures: Fluent emoji 3D (npm `@lobehub/fluent-emoji-3d`, MIT). Names, tags and groups: OpenMoji (npm `openmoji`,
CC-BY-SA-4.0), matched by code point. Skin-tone variants, flags and symbols are left out: captions stay unique.
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from ...spectral.errors import SpectralError
from . import packing
from .captions import colour_of, several
from .packing import Sample

PICTURES = "@lobehub/fluent-emoji-3d@1.1.0"
NAMES = "openmoji@17.0.0"
LEFT_OUT = {"flags", "symbols"}


def build(
    out: Path,
    size: int = 64,
    pictures: Path | None = None,
    names: Path | None = None,
    held_out: float = 0.0,
    captions: bool = False,
) -> dict[str, Any]:
    """Write the data set as a WebDataset shard: `CODE.webp` (lossless RGB over white) and `CODE.json` for each emoji.

    Args:
        out: the `.tar` to write; replaced whole, and byte-identical for the same input.
        size: side of the square pictures, in pixels.
        pictures: the npm package's .tgz, when it is at hand; fetched with `npm pack` otherwise.
        names: likewise, of the OpenMoji package.
        held_out: share of the emoji that go to NAME-held-out.tar instead.
        captions: several captions of each, from its name, tags and colour; see `captions.several`.

    Returns:
        As `packing.write`.

    Raises:
        SpectralError: npm is missing or fails, or a package does not hold what is expected; or as `packing.check`.
    """
    if size < 1:
        raise SpectralError(f"--size is {size}; expected the side of the pictures in pixels, at least 1.")
    packing.check(out, held_out)
    with tempfile.TemporaryDirectory() as folder:
        pictures = pictures or _npm_pack(PICTURES, Path(folder))
        names = names or _npm_pack(NAMES, Path(folder))
        records = _records(names)
        originals = _originals(pictures, set(records))
    if not originals:
        raise SpectralError(
            f"No emoji of {names.name} has a picture in {pictures.name}; expected {NAMES} and {PICTURES}."
        )
    return packing.write(
        out, originals, lambda code: [_sample(code, originals[code], records[code], size, captions)], held_out
    )


def _npm_pack(package: str, folder: Path) -> Path:
    """Fetch an npm package's .tgz into `folder`."""
    if shutil.which("npm") is None:
        raise SpectralError(f"npm is needed to fetch {package}: install Node.js, or give the package's .tgz by path.")
    result = subprocess.run(["npm", "pack", "--silent", package], cwd=folder, capture_output=True, text=True)
    if result.returncode:
        reason = (result.stderr.strip() or "no message").splitlines()[-1]
        raise SpectralError(f"npm could not fetch {package} ({reason}); check the network, or give its .tgz by path.")
    return folder / result.stdout.strip().splitlines()[-1]


@contextmanager
def _open(package: Path) -> Iterator[tarfile.TarFile]:
    """The package as a tar archive; whatever is wrong with it while it is read is one sentence."""
    try:
        with tarfile.open(package) as archive:
            yield archive
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        reason = str(error).splitlines()[0].rstrip(":")
        raise SpectralError(f"{package} cannot be read as an npm package (.tgz): {reason}.") from error


def _code(name: str) -> str:
    """A code-point name without the variation selector, which the two packages place differently."""
    return name.lower().replace("-fe0f", "")


def _records(package: Path) -> dict[str, dict[str, Any]]:
    """Code point → caption, group, subgroup and tags of every emoji that is used."""
    with _open(package) as archive:
        try:
            member = archive.extractfile("package/data/openmoji.json")
        except KeyError:
            member = None
        if member is None:
            raise SpectralError(f"{package} holds no package/data/openmoji.json; expected npm's {NAMES}.")
        content = member.read()
    try:
        records = {
            _code(entry["hexcode"]): {
                "caption": entry["annotation"],
                "group": entry["group"],
                "subgroup": entry["subgroups"],
                "tags": entry["tags"],
            }
            for entry in json.loads(content)
            if not entry["skintone"] and entry["group"] not in LEFT_OUT
        }
        if not all(isinstance(value, str) for record in records.values() for value in record.values()):
            raise TypeError("annotation, group, subgroups and tags should be text")
        return records
    except (ValueError, KeyError, TypeError) as error:
        raise SpectralError(f"openmoji.json of {package} is not as expected of {NAMES} ({error!r}).") from error


def _originals(package: Path, wanted: set[str]) -> dict[str, Image.Image]:
    """Code point → picture, RGBA."""
    pictures = {}
    with _open(package) as archive:
        for member in archive:
            path = Path(member.name)
            if path.suffix != ".webp" or path.parent.name != "assets" or _code(path.stem) not in wanted:
                continue
            file = archive.extractfile(member)
            assert file is not None  # a regular member always opens
            try:
                pictures[_code(path.stem)] = Image.open(io.BytesIO(file.read())).convert("RGBA")
            except UnidentifiedImageError as error:
                raise SpectralError(f"{member.name} in {package} cannot be read as an image.") from error
    return pictures


def _sample(code: str, picture: Image.Image, record: dict[str, Any], size: int, captions: bool) -> Sample:
    """An emoji over white, at its size."""
    if captions:
        tags = [tag.strip() for tag in record["tags"].split(",") if tag.strip()]
        record = record | {"captions": several(record["caption"], tags, colour_of(picture))}
    effort = 6 if size <= 64 else 4  # the set that ships is as small as can be; of larger pictures it would take hours
    return Sample(code, packing.webp(_square(picture, size), effort), record)


def _square(picture: Image.Image, size: int) -> Image.Image:
    """RGBA composed over white, `size`² pixels; one that is no square is padded to one."""
    side = max(picture.size)
    canvas = Image.new("RGBA", (side, side), "white")
    canvas.alpha_composite(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return canvas.convert("RGB").resize((size, size), Image.Resampling.LANCZOS)
