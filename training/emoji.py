"""Build the emoji data set that ships in `datasets/`: pictures of one npm package, names and groups of another.

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

from ..spectral.errors import SpectralError

PICTURES = "@lobehub/fluent-emoji-3d@1.1.0"
NAMES = "openmoji@17.0.0"
LEFT_OUT = {"flags", "symbols"}


def build(out: Path, size: int = 64, pictures: Path | None = None, names: Path | None = None) -> dict[str, Any]:
    """Write the data set as a WebDataset shard: `CODE.webp` (lossless RGB over white) and `CODE.json` for each emoji.

    Args:
        out: the `.tar` to write; replaced whole, and byte-identical for the same input.
        size: side of the square pictures, in pixels.
        pictures: the npm package's .tgz, when it is at hand; fetched with `npm pack` otherwise.
        names: likewise, of the OpenMoji package.

    Returns:
        Counts: images, groups, bytes.

    Raises:
        SpectralError: npm is missing or fails, or a package does not hold what is expected.
    """
    if size < 1:
        raise SpectralError(f"--size is {size}; expected the side of the pictures in pixels, at least 1.")
    with tempfile.TemporaryDirectory() as folder:
        pictures = pictures or _npm_pack(PICTURES, Path(folder))
        names = names or _npm_pack(NAMES, Path(folder))
        records = _records(names)
        images = _images(pictures, size, set(records))
    members = [(code, image, records[code]) for code, image in sorted(images.items())]
    if not members:
        raise SpectralError(
            f"No emoji of {names.name} has a picture in {pictures.name}; expected {NAMES} and {PICTURES}."
        )
    _write_shard(out, members)
    groups = {record["group"] for _, _, record in members}
    return {"images": len(members), "groups": len(groups), "bytes": out.stat().st_size, "path": str(out)}


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
        return {
            _code(entry["hexcode"]): {
                "caption": entry["annotation"],
                "group": entry["group"],
                "subgroup": entry["subgroups"],
                "tags": entry["tags"],
            }
            for entry in json.loads(content)
            if not entry["skintone"] and entry["group"] not in LEFT_OUT
        }
    except (ValueError, KeyError, TypeError) as error:
        raise SpectralError(f"openmoji.json of {package} is not as expected of {NAMES} ({error!r}).") from error


def _images(package: Path, size: int, wanted: set[str]) -> dict[str, bytes]:
    """Code point → lossless WebP of `size`² pixels, composed over white; a taller original is padded to a square."""
    images = {}
    with _open(package) as archive:
        for member in archive:
            path = Path(member.name)
            if path.suffix != ".webp" or path.parent.name != "assets" or _code(path.stem) not in wanted:
                continue
            file = archive.extractfile(member)
            assert file is not None  # a regular member always opens
            try:
                images[_code(path.stem)] = _square(file.read(), size)
            except UnidentifiedImageError as error:
                raise SpectralError(f"{member.name} in {package} cannot be read as an image.") from error
    return images


def _square(content: bytes, size: int) -> bytes:
    """A picture as a square one, lossless WebP."""
    picture = Image.open(io.BytesIO(content)).convert("RGBA")
    side = max(picture.size)
    canvas = Image.new("RGBA", (side, side), "white")
    canvas.alpha_composite(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    buffer = io.BytesIO()
    small = canvas.convert("RGB").resize((size, size), Image.Resampling.LANCZOS)
    small.save(buffer, "WEBP", lossless=True, quality=100, method=6)
    return buffer.getvalue()


def _write_shard(out: Path, members: list[tuple[str, bytes, dict[str, Any]]]) -> None:
    """Write the tar beside its place and move it there when it is whole."""
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(out.name + ".partial")
    with tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as archive:
        for code, image, record in members:
            for suffix, content in ((".json", json.dumps(record).encode()), (".webp", image)):
                info = tarfile.TarInfo(code + suffix)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    partial.replace(out)
