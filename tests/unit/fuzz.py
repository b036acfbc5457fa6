"""Files of models, broken in hundreds of ways."""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from spectral_diffusion.spectral import checkpoint

from . import ldm_files


@dataclass(frozen=True)
class Mutant:
    """A broken file: what was done to it, its bytes, and whether nothing but a refusal will do."""

    name: str
    content: bytes
    must_fail: bool = True


#: As small as such models are: thousands of them are opened.
UNET = replace(ldm_files.CONDITIONED, channel_mult=(1,), attention_resolutions=(1,))
STAGE = replace(ldm_files.KL, ch_mult=(1, 1))

#: What a family's broken file is called, and what is opened: the file, or the folder that it lies in.
FAMILIES: dict[str, tuple[str, str]] = {
    "spectral": ("model.safetensors", "model.safetensors"),
    "ldm-safetensors": ("model.safetensors", "model.safetensors"),
    "ldm-ckpt": ("model.ckpt", "model.ckpt"),
    "diffusers-weights": ("model/unet/diffusion_pytorch_model.safetensors", "model"),
    "diffusers-settings": ("model/unet/config.json", "model"),
}
#: Of the buffers of LDM's files, these need not be read.
BUFFERS = {"alphas_cumprod", "sqrt_alphas_cumprod", "posterior_variance", "logvar"}


def make(family: str, folder: Path) -> tuple[Path, Path]:
    """A sound model: its file that is going to be broken, and what is to be opened."""
    broken, opened = (folder / name for name in FAMILIES[family])
    parts = ldm_files.Parts.make(UNET, STAGE, ldm_files.CLASSES)
    state = parts.state() | ldm_files.buffers(scale=0.5)
    if family == "ldm-ckpt":
        ldm_files.write(opened, state | ldm_files.averages(parts.unet))
        return broken, opened
    source = ldm_files.write(folder / "source.safetensors", state)
    if family == "ldm-safetensors":
        source.rename(opened)
    else:
        checkpoint.convert(checkpoint.read(source), opened, "spectral" if family == "spectral" else "diffusers")
    return broken, opened


def header_and_data(content: bytes) -> tuple[dict[str, Any], bytes]:
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def joined(header: Any, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def safetensors(content: bytes, tensors: int) -> Iterator[Mutant]:
    """Mutants of a .safetensors file, with lies about so many of its tensors."""
    header, data = header_and_data(content)
    start = len(content) - len(data)
    names = [name for name in header if name not in {"__metadata__", *BUFFERS}]
    ends = sorted({start + end for name in names for end in header[name]["data_offsets"]})
    step = max(1, len(ends) // (20 * tensors))
    for place in [
        0,
        1,
        7,
        8,
        9,
        start - 1,
        start,
        *ends[:-1:step],
        *(end - 1 for end in ends[::step]),
        len(content) - 1,
    ]:
        yield Mutant(f"cut at {place}", content[:place])
    yield Mutant("one byte more", content + b"\0")
    for length in (0, 1, start - 9, start - 7, len(content), len(content) - 8, 2**31, 2**32, 2**62, 2**63, 2**64 - 1):
        yield Mutant(f"header of {length} bytes", struct.pack("<Q", length) + content[8:])
    for name in names[:: max(1, len(names) // tensors)]:
        yield from one_tensor(header, data, name)
    yield from whole_headers(header, data)


def one_tensor(header: dict[str, Any], data: bytes, name: str) -> Iterator[Mutant]:
    """Lies about one tensor."""

    def changed(**entries: Any) -> bytes:
        return joined({**header, name: {**header[name], **entries}}, data)

    begin, end = header[name]["data_offsets"]
    shape = header[name]["shape"]
    lies: dict[str, Any] = {
        "overlapping": [0, end],
        "backwards": [end, begin],
        "negative": [-4, end],
        "huge": [begin, 2**60],
        "beyond": [len(data), len(data) + end - begin],
        "empty": [begin, begin],
        "fractional": [0.5, end],
        "words": ["a", "b"],
        "none": None,
    }
    for how, offsets in lies.items():
        if offsets != [begin, end]:
            yield Mutant(f"{name}: {how} offsets", changed(data_offsets=offsets))
    for wrong in ([], [*shape, 2], [2**31, 2**31], [2**62], [-1], [1.5], ["x"], None, [0]):
        yield Mutant(f"{name}: shape {wrong}", changed(shape=wrong))
    for dtype in ("F64", "I64", "U8", "BOOL", "F8_E4M3", "F4", "float32", "", None, 7):
        yield Mutant(f"{name}: dtype {dtype}", changed(dtype=dtype))
    for number in (np.nan, np.inf, -np.inf):
        broken = np.frombuffer(data[begin:end], np.float32).copy()
        broken[len(broken) // 2] = number
        yield Mutant(f"{name}: {number}", joined(header, data[:begin] + broken.tobytes() + data[end:]))
    if len(shape) > 1 and shape[0] != shape[1]:
        yield Mutant(f"{name}: transposed", changed(shape=[shape[1], shape[0], *shape[2:]]))
    text = json.dumps(header)
    twin = f"{text[:-1]}, {json.dumps(name)}: {json.dumps(header[name])}}}"
    yield Mutant(f"{name} twice", joined(twin.encode(), data))
    yield Mutant(f"{name} renamed", joined({(k + "x" if k == name else k): v for k, v in header.items()}, data))
    yield Mutant(f"{name} with an extra field", changed(extra=1), must_fail=False)


def whole_headers(header: dict[str, Any], data: bytes) -> Iterator[Mutant]:
    """Headers that are no headers, and descriptions that are none."""
    for text in (
        b"",
        b"{",
        b"[]",
        b"{}",
        b"null",
        b"{" * 50_000,
        b'{"a":' * 50_000,
        b"\xff\xfe{}",
        b"{" + b" " * 10**6,
    ):
        yield Mutant(f"header {text[:8]!r}…", joined(text, data))
    many = b"{" + b",".join(b'"%d":0' % index for index in range(400_000)) + b"}"
    yield Mutant("header of many names", joined(many, data))
    own = "spectral_diffusion" in header.get("__metadata__", {})
    metadata = header.get("__metadata__", {})
    for wrong in ([], "x", {"a": 1}, {"spectral_diffusion": {"version": 1}}):
        yield Mutant(f"metadata {wrong!r}", joined({**header, "__metadata__": wrong}, data))
    large = joined({**header, "__metadata__": {**metadata, "thumbnail": "x" * 100_000_000}}, data)
    yield Mutant("metadata of 100 MB", large)
    description = json.loads(metadata["spectral_diffusion"]) if own else {"version": 1, "kind": "teacher"}
    nested: Any = {}
    for _ in range(100):
        nested = {"a": nested}
    variants: list[Any] = [
        *({**description, "version": version} for version in (2, 99, 2**40, 0, -1, "1", None, 1.5, [1])),
        *(
            {**description, key: wrong}
            for key in description
            for wrong in (nested, [], {}, -1, 2**70, "x" * 1000, 1e308)
        ),
        {**description, "training": nested},
        nested,
    ]
    for index, variant in enumerate(variants):
        described = {**header, "__metadata__": {**metadata, "spectral_diffusion": json.dumps(variant)}}
        yield Mutant(f"description {index}: {str(variant)[-60:]}", joined(described, data), must_fail=False)
    for text in ("", "{", "[" * 10**5, "nul", "\ud800", '{"a":' * 1000, "0" * 10**6, "[" + "0," * 10**5 + "0]"):
        safe = text.encode("utf-8", "replace").decode()
        described = {**header, "__metadata__": {**metadata, "spectral_diffusion": safe}}
        # Where they describe nothing, as beside diffusers' weights, they are not read.
        yield Mutant(f"description {safe[:10]!r}…", joined(described, data), must_fail=own)


def archive(content: bytes, records: int) -> Iterator[Mutant]:
    """Mutants of a .ckpt archive, with lies about so many of its records."""
    with zipfile.ZipFile(io.BytesIO(content)) as opened:
        infos = opened.infolist()
        directory = opened.start_dir
    places = {info.header_offset for info in infos} | {directory, directory + 10, len(content) - 22, len(content) - 1}
    places |= {info.header_offset + 30 for info in infos} | {0, 1, 4, 30, len(content) // 2}
    for place in sorted(places):
        yield Mutant(f"cut at {place}", content[:place])
    for info in infos[:: max(1, len(infos) // records)]:
        for offset, width in ((0, 4), (8, 2), (26, 2), (30, 4)):
            place = info.header_offset + offset
            broken = content[:place] + b"\xff" * width + content[place + width :]
            yield Mutant(f"{info.filename}: local header + {offset}", broken)
    position = directory
    for info in infos[:records]:
        for offset, width in ((10, 2), (20, 4), (24, 4), (42, 4), (46, 3)):
            place = position + offset
            broken = content[:place] + b"\xff" * width + content[place + width :]
            yield Mutant(f"{info.filename}: contents + {offset}", broken)
        position += 46 + len(info.filename) + len(info.extra) + len(info.comment)
    pickled = next(info for info in infos if info.filename.endswith("data.pkl"))
    begin = pickled.header_offset + 30 + len(pickled.filename)
    generator = random.Random(5)
    for _ in range(8 * records):
        place = generator.randrange(begin, begin + pickled.file_size)
        changed = bytes([generator.randrange(256)])
        yield Mutant(f"pickle byte {place}", content[:place] + changed + content[place + 1 :], must_fail=False)


def flips(content: bytes, count: int) -> Iterator[Mutant]:
    """Single bytes and short runs overwritten anywhere; what is still a model may open."""
    generator = random.Random(3)
    for _ in range(count):
        place, width = generator.randrange(len(content)), generator.choice((1, 1, 2, 8, 64))
        noise = generator.randbytes(width)
        yield Mutant(f"noise at {place}", content[:place] + noise + content[place + width :], must_fail=False)


def settings(content: bytes) -> Iterator[Mutant]:
    """Mutants of a config.json."""
    sound = json.loads(content)
    nested: Any = {}
    for _ in range(100):
        nested = {"a": nested}
    wrongs = (nested, [], {}, "x" * 1000, "", -1, 0, 2**70, 1e308, 0.5, True, None, [1] * 1000, [-1], ["DownBlock2D"])
    for key in sound:
        for wrong in wrongs:
            yield Mutant(f"{key}: {str(wrong)[:20]}", json.dumps({**sound, key: wrong}).encode(), must_fail=False)
        yield Mutant(
            f"without {key}", json.dumps({k: v for k, v in sound.items() if k != key}).encode(), must_fail=False
        )
    for text in (b"", b"{", b"[]", b"null", b"[" * 10**5, b'{"a":' * 10**5, b"\xff\xfe", content[: len(content) // 2]):
        yield Mutant(f"text {text[:8]!r}…", text)
    yield Mutant("100 MB", content[:-2] + b" " * 100_000_000 + b"}")


def mutants(family: str, content: bytes, density: int) -> Iterator[Mutant]:
    """All broken files of a family; `density` is about how many tensors are lied about."""
    if family == "ldm-ckpt":
        yield from archive(content, 2 * density)
    elif family == "diffusers-settings":
        yield from settings(content)
    else:
        yield from safetensors(content, density)
    yield from flips(content, 10 * density)
