"""Where the records of a torch.save archive lie in its file: a zip that is only ever mapped, never unpacked."""

from __future__ import annotations

import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

#: Bytes and entries of a zip's table of contents; the largest models have some 0.3 million and 4000.
LARGEST_DIRECTORY, MOST_RECORDS = 4 * 2**20, 20_000

#: The extra field that gives a record a second name.
_UNICODE_PATH = 0x7075

#: Bytes that an entry keeps beside its name; torch.save needs 28, for records of more than 4 GB.
LARGEST_EXTRA = 1024

_ENTRY = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_LOCATOR = struct.Struct("<4sLQL")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_LOCAL = struct.Struct("<4s5H3L2H")


@dataclass(frozen=True)
class Record:
    """One file of the archive: where its bytes start, and how many there are."""

    offset: int
    size: int


class ProgramError(ValueError):
    """The archive is a TorchScript program."""


def read_directory(path: Path) -> dict[str, Record]:
    """The records by name, without the archive's own folder name in front.

    Raises:
        ProgramError: it is a program, not a file of weights.
        ValueError, zipfile.BadZipFile, struct.error: the archive is damaged, packed, or contradicts itself.
    """
    with open(path, "rb") as file:
        _check_end(file)
        with zipfile.ZipFile(file) as archive:
            infos = sorted(archive.infolist(), key=lambda info: info.header_offset)
        if not infos or len({info.filename.partition("/")[0] for info in infos}) > 1:
            raise ValueError("it is not one folder of records, as torch.save writes it")
        # Python takes a name up to its first zero byte, and since 3.12 from this field; torch's reader does neither.
        if any(info.filename != info.orig_filename or _UNICODE_PATH in _fields(info.extra) for info in infos):
            raise ValueError("one of its records has two names")
        if any(info.filename.partition("/")[2] == "constants.pkl" for info in infos):
            raise ProgramError("it is a TorchScript program, not a file of weights")
        limits = [info.header_offset for info in infos[1:]] + [path.stat().st_size]
        records: dict[str, Record] = {}
        for info, limit in zip(infos, limits, strict=True):
            name = info.filename.partition("/")[2]
            if name.lower() in records:
                raise ValueError(f"the record {name[:200]!r} occurs twice")
            records[name.lower()] = _record(file, info, limit)
    return records


def _fields(extra: bytes) -> list[int]:
    """The numbers of the extra fields beside a record's name."""
    found = []
    while len(extra) >= 4:
        number, size = struct.unpack_from("<2H", extra)
        found.append(number)
        extra = extra[4 + size :]
    return found


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


def _check_end(file: BinaryIO) -> None:
    """That the end of the file says in one way only where the table of contents is, and that it is not too large.

    Readers of zip files differ in how they find it when bytes stand before, between or behind; torch.save leaves none.
    """
    end = file.seek(0, 2) - _END.size
    signature, *disks, entries, size, offset, comment = _END.unpack(_at(file, end, _END.size))
    if signature != b"PK\x05\x06" or comment:
        raise ValueError("it has no end, as after an interrupted download")
    locator = end - _LOCATOR.size
    if locator >= 0 and _at(file, locator, 4) == b"PK\x06\x07":
        place = locator - _END_64.size
        _, _, told, _ = _LOCATOR.unpack(_at(file, locator, _LOCATOR.size))
        signature, length, _, *disks, entries, size, offset = _END_64.unpack(_at(file, place, _END_64.size))
        disks = disks[1:]  # after the version that is needed
        if signature != b"PK\x06\x06" or told != place or length != _END_64.size - 12:
            raise ValueError("its end contradicts itself")
        end = place
    if disks != [0, 0, entries] or offset + size != end:
        raise ValueError("its table of contents is not where its end says")
    if size > LARGEST_DIRECTORY or entries > MOST_RECORDS:
        raise ValueError("its table of contents is larger than any model's")
    _check_entries(_at(file, offset, size))


def _check_entries(directory: bytes) -> None:
    """That no entry keeps more beside its name than torch.save does; readers go through that field by field."""
    place = 0
    while place < len(directory):
        signature, *_, name, extra, comment, _, _, _, _ = _ENTRY.unpack_from(directory, place)
        if signature != b"PK\x01\x02" or extra > LARGEST_EXTRA:
            raise ValueError("its table of contents is not as torch.save writes it")
        place += _ENTRY.size + name + extra + comment


def _at(file: BinaryIO, place: int, size: int) -> bytes:
    if place < 0:
        raise ValueError("it has no end, as after an interrupted download")
    file.seek(place)
    return file.read(size)
