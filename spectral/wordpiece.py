"""BERT's vocabulary, whose WordPiece tokens LDM's own text encoder reads: found on this machine, never fetched.

The tokenizer itself is of the package `tokenizers`, which ComfyUI and the training kit bring; it is imported there.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from .errors import SpectralError

#: Names vocab.txt, or the folder that holds it.
VARIABLE = "SPECTRAL_DIFFUSION_BERT_VOCAB"
#: Under which another program that used BERT may have kept its vocabulary.
CACHED = ("google-bert/bert-base-uncased", "bert-base-uncased")
#: Where it is published.
URL = "https://huggingface.co/google-bert/bert-base-uncased/resolve/main/vocab.txt"
#: Fills up, stands for what is no word, begins a text, ends it.
PAD, UNK, CLS, SEP = SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


#: Bytes of a vocabulary; BERT's has 232 thousand.
LARGEST = 2**24


class VocabularyError(SpectralError):
    """BERT's vocabulary is not on this machine, or is not the one that an encoder needs."""


def find_vocabulary(advice: str, given: Path | None = None, places: Iterable[Path] = ()) -> Path:
    """vocab.txt: `given`, else where the environment says, else in one of `places`, else in Hugging Face's cache.

    Args:
        advice: what to do where there is none, for the end of a sentence.
        given: the file, or the folder that holds it.
        places: files that may be there.

    Raises:
        VocabularyError: it is in none of these places, or not where it was said to be.
    """
    named = given or (Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None)
    if named is not None:
        found = named / "vocab.txt" if named.is_dir() else named
        if not found.is_file():
            said = "" if given else f", which {VARIABLE} names"
            raise VocabularyError(f"No vocabulary at {found}{said}; correct it, or {advice}.")
        return found
    kept = next((place for place in places if place.is_file()), None) or _cached()
    if kept is None:
        raise VocabularyError(
            f"LDM's text encoder reads BERT's tokens, whose vocabulary is not on this machine; {advice}."
        )
    return kept


def read_vocabulary(path: Path, size: int, advice: str) -> dict[str, int]:
    """Token → id, from a file of one token a line.

    Args:
        size: how many tokens the text encoder knows.
        advice: what to do where it is another one, for the end of a sentence.

    Raises:
        VocabularyError: it cannot be read, is no BERT vocabulary, or has another number of tokens.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise VocabularyError(f"{path} has {path.stat().st_size} bytes, more than any vocabulary; {advice}.")
        words = path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise VocabularyError(f"{path} is no vocabulary that can be read ({error}); {advice}.") from error
    missing = next((word for word in SPECIAL if word not in words), None)
    if missing is not None:
        raise VocabularyError(f"{path} has no token {missing}, so it is no BERT vocabulary; {advice}.")
    if len(set(words)) < len(words):
        raise VocabularyError(f"{path} has the same token on several lines, so it is no BERT vocabulary; {advice}.")
    if len(words) != size:
        raise VocabularyError(f"{path} holds {len(words)} tokens, the model's text encoder knows {size}; {advice}.")
    return {word: index for index, word in enumerate(words)}


def _cached() -> Path | None:
    """vocab.txt of a repository that was downloaded before; looks at the disk alone."""
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    found = (try_to_load_from_cache(repository, "vocab.txt") for repository in CACHED)
    return next((Path(path) for path in found if isinstance(path, str)), None)
