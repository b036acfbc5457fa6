"""The one error that is meant for the person at the keyboard."""

from __future__ import annotations

#: Characters of a sentence; of a longer one the middle is left out.
LONGEST = 600


class SpectralError(ValueError):
    """One sentence that names the thing at fault, what was expected, and what to do about it.

    The command line prints it and exits with code 2; a ComfyUI node shows it as the node's error. Nothing that
    raises it leaves a half-written file or a half-loaded model behind. Names that come out of files may hold
    anything; what cannot be printed on a line is shown as its
    escape, and the middle of what nobody would read is left out.
    """

    def __init__(self, sentence: str) -> None:
        if len(sentence) > LONGEST:
            sentence = f"{sentence[: LONGEST * 3 // 4]} … {sentence[-LONGEST // 4 :]}"
        super().__init__(printable(sentence))


def printable(text: str) -> str:
    """The text on one line: what a terminal would not show, or would obey, as its escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
