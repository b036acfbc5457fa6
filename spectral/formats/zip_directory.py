"""Where the records of a torch.save archive lie in its file: a zip that is only ever mapped, never unpacked."""

from __future__ import annotations

import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

#: Bytes of a zip's table of contents; the largest models have some 0.3 million.
LARGEST_DIRECTORY = 8 * 2**20

_END = struct.Struct("<4s4H2LH")
_LOCATOR = struct.Struct("<4sLQL")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_LOCAL = struct.Struct("<4s5H3L2H")


@dataclass(frozen=True)
class Record:
    """One file of the archive: where its bytes start, and how many there are."""

    offset: int
    size: int


def read_directory(path: Path) -> dict[str, Record]:
    """The records by name, without the archive's own folder name in front.

    Raises:
        ValueError, zipfile.BadZipFile, struct.error: the archive is damaged, packed, or contradicts itself.
    """
    with open(path, "rb") as file:
        if _directory_size(file) > LARGEST_DIRECTORY:
            raise ValueError("its table of contents is larger than any model's")
        with zipfile.ZipFile(file) as archive:
            infos = sorted(archive.infolist(), key=lambda info: info.header_offset)
        end = path.stat().st_size
        limits = [info.header_offset for info in infos[1:]] + [end]
        records: dict[str, Record] = {}
        for info, limit in zip(infos, limits, strict=True):
            name = info.filename.partition("/")[2]
            if name in records:
                raise ValueError(f"the record {name[:200]!r} occurs twice")
            records[name] = _record(file, info, limit)
    return records


def _record(file: BinaryIO, info: zipfile.ZipInfo, limit: int) -> Record:
    """Where a record's bytes are, by its own header, which must agree with the table of contents."""
    name = info.filename[:200]
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 1:
        raise ValueError(f"the record {name!r} is compressed or encrypted, which torch.save never does")
    file.seek(info.header_offset)
    signature, _, flags, method, *_, name_length, extra_length = _LOCAL.unpack(file.read(_LOCAL.size))
    stored = file.read(name_length)
    if method != zipfile.ZIP_STORED or flags & 1:
        raise ValueError(f"the record {name!r} is compressed or encrypted where its bytes are")
    if signature != b"PK\x03\x04" or stored != info.orig_filename.encode("utf-8", "surrogateescape"):
        raise ValueError(f"the record {name!r} has another name where its bytes are")
    offset = info.header_offset + _LOCAL.size + name_length + extra_length
    if offset + info.file_size > limit:
        raise ValueError(f"the record {name!r} runs into the next one, or over the end")
    return Record(offset, info.file_size)


def _directory_size(file: BinaryIO) -> int:
    """Bytes of the table of contents as the end of the file states them."""
    length = file.seek(0, 2)
    start = max(0, length - _END.size - 2**16)
    file.seek(start)
    tail = file.read()
    place = tail.rfind(b"PK\x05\x06")
    if place < 0 or len(tail) < place + _END.size:
        raise ValueError("it has no end, as after an interrupted download")
    size = int(_END.unpack_from(tail, place)[5])
    locator = start + place - _LOCATOR.size
    if locator < 0:
        return size
    file.seek(locator)
    signature, _, offset, _ = _LOCATOR.unpack(file.read(_LOCATOR.size))
    if signature != b"PK\x06\x07" or offset + _END_64.size > length:
        return size
    file.seek(offset)
    return int(_END_64.unpack(file.read(_END_64.size))[8])
