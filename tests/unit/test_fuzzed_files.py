"""Thousands of broken files: each is one clear sentence, in under two seconds, without taking memory."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from . import fuzz, opener

#: A file may take so long, and all of them together so much more memory (MiB) than opening the sound one.
SECONDS, MEMORY = 2.0, 300


class Opener:
    """The program that opens files, and its answers."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, opener.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.answers: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.answers.put(line)
        self.answers.put("")

    def open(self, path: Path) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{path}\n")
        self.process.stdin.flush()
        answer = self.answers.get(timeout=60)
        assert answer, f"the process died with {self.process.wait()}"
        return json.loads(answer)  # type: ignore[no-any-return]


@pytest.fixture
def opens() -> Iterator[Opener]:
    program = Opener()
    yield program
    program.process.kill()
    program.process.wait()


def one_sentence(said: str) -> bool:
    """Whether it is one line without control characters, of bearable length, that ends."""
    return said.isprintable() and said.endswith(".") and len(said) < 700


DENSITIES = [3, pytest.param(25, marks=pytest.mark.long)]


@pytest.mark.parametrize("density", DENSITIES, ids=["some", "many"])
@pytest.mark.parametrize("family", fuzz.FAMILIES)
def test_broken_files(family: str, density: int, opens: Opener, tmp_path: Path, figures: list[str]) -> None:
    broken, path = fuzz.make(family, tmp_path)
    content = broken.read_bytes()
    sound = opens.open(path)
    assert sound["said"] is None and sound["raised"] is None
    failures, refused, count, slowest, peak = [], 0, 0, 0.0, 0.0
    for mutant in fuzz.mutants(family, content, density):
        broken.write_bytes(mutant.content)
        answer = opens.open(path)
        said = answer["said"]
        clear = said is None or ((path.name in said or broken.name in said) and one_sentence(said))
        if answer["raised"] or not clear or (said is None and mutant.must_fail) or answer["seconds"] > SECONDS:
            failures.append((mutant.name, answer))
        count, refused = count + 1, refused + (said is not None)
        slowest, peak = max(slowest, answer["seconds"]), answer["peak"]
    figures.append(
        f"broken {family} files: {count}, of them {refused} refused with a sentence and {count - refused} still whole; "
        f"slowest {slowest:.2f} s, memory {peak - sound['peak']:.0f} MiB above opening the sound one"
    )
    assert not failures, failures[:5]
    assert count >= 50 * density and peak - sound["peak"] < MEMORY
