"""What a file tells of the machine that made it: the names of files, and no folders."""

from __future__ import annotations

import pytest

from spectral_diffusion.training.portable import portable, portable_command


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ("/home/jo/models/teacher.ckpt", "teacher.ckpt"),
        ("/home/Jo Smith/my data", "my data"),
        (r"C:\Users\jo\models\teacher.ckpt", "teacher.ckpt"),
        ("D:/models/teacher.ckpt", "teacher.ckpt"),
        ("/data/{cats,dogs}-{000..012}.tar", "{cats,dogs}-{000..012}.tar"),
        ("pipe:cat /home/jo/cats.tar | tail", "pipe:cat cats.tar | tail"),
        ("pipe:curl -s https://example.org/sets/cats.tar", "pipe:curl -s https://example.org/sets/cats.tar"),
        ("data/emoji128.tar", "data/emoji128.tar"),
        ("../data", "../data"),
        ("~/data/cats", "~/data/cats"),
        ("teacher / student, 1/2 of it", "teacher / student, 1/2 of it"),
        ("", ""),
    ],
)
def test_absolute_paths_become_names(given: str, left: str) -> None:
    assert portable({"path": [given]}) == {"path": [left]}


def test_commands_keep_their_words() -> None:
    words = ["distill", "--config", "/home/jo/x.yaml", "--teacher=/home/jo s/t.ckpt", "--title", "a b", "--out", "a/b"]
    line = portable_command(words)
    assert line == "distill --config x.yaml --teacher=t.ckpt --title 'a b' --out a/b"
    assert portable({"teacher": {"command": line, "steps": 3}}) == {"teacher": {"command": line, "steps": 3}}


def test_a_foreign_command_is_text() -> None:
    assert portable({"command": "train 'it /home/jo/x.yaml"}) == {"command": "train 'it x.yaml"}
