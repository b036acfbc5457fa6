"""Walks through a pickle without running it: what it would name, call and read is known before anything loads it.

torch.load(weights_only=True) is the second wall; this one is lower and tells a person what stands in the way. It also
keeps out what that function takes, and pays for: allocations of any size, and keys whose hash never ends.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

#: Bytes and operations of a checkpoint's pickle. Stable Diffusion with its averages has 0.5 and 0.1 million.
LARGEST_PICKLE, MOST_OPERATIONS = 4 * 2**20, 250_000
#: How often names of Lightning's and numpy's may stand in a pickle; a file has them a few times.
MOST_INERT = 200

#: Bytes of one element of each storage.
STORAGES = {
    "torch.DoubleStorage": 8,
    "torch.FloatStorage": 4,
    "torch.HalfStorage": 2,
    "torch.BFloat16Storage": 2,
    "torch.LongStorage": 8,
    "torch.IntStorage": 4,
    "torch.ShortStorage": 2,
    "torch.CharStorage": 1,
    "torch.ByteStorage": 1,
    "torch.BoolStorage": 1,
}
#: What may be called.
CALLS = {
    "collections.OrderedDict",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
    "torch.Size",
    "_codecs.encode",
}
#: Packages whose callback classes are named in the files that Lightning wrote; they are replaced by empty classes.
LIGHTNING = ("pytorch_lightning.callbacks", "lightning.pytorch.callbacks")
#: numpy's numbers, which Lightning's callbacks keep as their best scores; they become empty objects too.
NUMPY = {
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "numpy.dtypes.Float32DType",
    "numpy.dtypes.Float64DType",
}
#: How those numbers write their bytes as text; the function itself runs, on short texts in this one encoding.
ENCODE, ENCODING, LONGEST_TEXT = "_codecs.encode", "latin1", 1024


@dataclass(frozen=True)
class Global:
    """Something that the pickle names: module and qualified name, joined by a dot."""

    name: str


@dataclass(frozen=True)
class Storage:
    """Numbers beside the pickle: the record that holds them, and the bytes that they claim."""

    record: str
    size: int


class RefusedPickleError(ValueError):
    """The pickle names, calls or claims what no checkpoint needs; the message says what, for the user."""


def is_inert(name: str) -> bool:
    """Whether a global is a Lightning callback or a number of numpy, for which an empty class can stand."""
    if name in NUMPY:
        return True
    module, _, last = name.rpartition(".")
    return last.isidentifier() and any(module == root or module.startswith(root + ".") for root in LIGHTNING)


def check(pickle: bytes) -> tuple[list[Storage], set[str]]:
    """The storages that a pickle reads, and what it names that empty classes are to stand for.

    Raises:
        RefusedPickleError: it does anything else.
        ValueError, IndexError, KeyError, TypeError: it is damaged.
    """
    return _Walk().over(pickletools.genops(pickle))


#: Modules that the second pickle protocol, which torch.save writes, still calls by their names in Python 2.
_PYTHON_2 = {"__builtin__": "builtins", "commands": "subprocess"}

#: Stands for every object that is neither a literal, a tuple, a global nor a storage.
_OBJECT = object()

_FRAMES = {"PROTO", "FRAME"}
_LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "SHORT_BINSTRING"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_EMPTY = {"EMPTY_DICT", "EMPTY_LIST", "EMPTY_SET"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
#: Of protocol 4: followed as far as they lead to a name, which is the better reason for a refusal.
_UNSUPPORTED = {"SHORT_BINUNICODE", "MEMOIZE", "STACK_GLOBAL", "FRAME"}


class _Walk:
    """The stack machine of pickle, with stand-ins for all objects."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.storages: list[Storage] = []
        self.inert: set[str] = set()
        self.inert_uses = 0

    def over(self, operations: Iterable[Any]) -> tuple[list[Storage], set[str]]:
        newer = None
        for count, (operation, argument, _) in enumerate(operations):
            if count > MOST_OPERATIONS:
                raise RefusedPickleError("it has more operations than any checkpoint needs")
            if operation.name in _UNSUPPORTED:
                newer = newer or operation.name
            self._follow(operation.name, argument)
        if newer:
            raise RefusedPickleError(f"it uses {newer} of a newer pickle protocol than torch.save writes")
        return self.storages, self.inert

    def _follow(self, name: str, argument: Any) -> None:
        push = self.stack.append
        if name in _LITERALS:
            push(argument)
        elif name in _CONSTANTS:
            push(_CONSTANTS[name])
        elif name in _EMPTY:
            push(_OBJECT)
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            push(self.memo[argument])
        elif name == "MARK":
            self.marks.append(len(self.stack))
        elif name == "TUPLE":
            push(tuple(self._above_mark()))
        elif name in _TUPLES:
            push(tuple(self._pop(_TUPLES[name])))
        elif name not in _FRAMES:
            self._act(name, argument)

    def _act(self, name: str, argument: Any) -> None:
        """The operations that fill containers, or name and call something."""
        push = self.stack.append
        if name == "APPEND":
            self._pop(1)
        elif name == "APPENDS":
            self._above_mark()
        elif name == "SETITEM":
            self._check_keys(self._pop(2))
        elif name == "SETITEMS":
            self._check_keys(self._above_mark())
        elif name in ("GLOBAL", "INST"):
            push(self._named(str(argument).replace(" ", ".", 1)))
        elif name == "STACK_GLOBAL":
            names = self._pop(2)
            if not all(isinstance(name, str) for name in names):
                raise RefusedPickleError("it names something in a way that torch.save never does")
            push(self._named(".".join(names)))
        elif name == "REDUCE":
            push(self._called(*self._pop(2)))
        elif name == "NEWOBJ":
            push(self._made(*self._pop(2)))
        elif name == "BUILD":
            self._pop(1)
        elif name == "BINPERSID":
            push(self._stored(*self._pop(1)))
        elif name == "STOP":
            self._pop(1)
        else:
            raise RefusedPickleError(f"it uses the operation {name}, which torch.save never writes")

    def _pop(self, count: int) -> list[Any]:
        if len(self.stack) - (self.marks[-1] if self.marks else 0) < count:
            raise ValueError("its stack is out of order")
        taken = self.stack[-count:]
        del self.stack[-count:]
        return taken

    def _above_mark(self) -> list[Any]:
        start = self.marks.pop()
        taken = self.stack[start:]
        del self.stack[start:]
        return taken

    def _named(self, name: str) -> Global:
        if is_inert(name):
            self.inert.add(name)
            self._count_inert()
        elif name not in CALLS and name not in STORAGES:
            module, _, rest = name.partition(".")
            said = f"{_PYTHON_2.get(module, module)}.{rest}"[:200]
            raise RefusedPickleError(f"it names {said}, which is not needed to hold weights and could run code")
        return Global(name)

    def _count_inert(self) -> None:
        self.inert_uses += 1
        if self.inert_uses > MOST_INERT:
            raise RefusedPickleError("it names or makes more of Lightning's callbacks than any checkpoint")

    def _called(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, Global) or not (function.name in CALLS or is_inert(function.name)):
            said = function.name[:200] if isinstance(function, Global) else "what is no function"
            raise RefusedPickleError(f"it calls {said}, which is not needed to hold weights")
        if function.name == "collections.OrderedDict" and arguments != ():
            raise RefusedPickleError("it fills an OrderedDict in a way that torch.save never does")
        if function.name == ENCODE and not _is_short_text(arguments):
            raise RefusedPickleError("it encodes a text in a way that torch.save never does")
        if is_inert(function.name):
            self._count_inert()
        return _OBJECT

    def _made(self, kind: Any, _arguments: Any) -> Any:
        if not isinstance(kind, Global) or not is_inert(kind.name):
            raise RefusedPickleError("it makes an object that is not needed to hold weights")
        self._count_inert()
        return _OBJECT

    def _check_keys(self, items: list[Any]) -> None:
        for key in items[::2]:
            # Of numbers only those are taken whose hashes differ; who chooses them could make all alike.
            number = isinstance(key, int) and 0 <= key < 2**31
            if not (number or isinstance(key, (str, bytes, Global, type(None)))):
                raise RefusedPickleError("a dictionary in it has keys that are no names")

    def _stored(self, key: Any) -> Any:
        if not isinstance(key, tuple) or len(key) != 5 or key[0] != "storage":
            raise RefusedPickleError("it refers to something outside that is no tensor")
        kind, record, count = key[1], key[2], key[4]
        if not isinstance(kind, Global) or kind.name not in STORAGES or not isinstance(count, int):
            raise RefusedPickleError("one of its tensors has no known type of numbers")
        if not isinstance(record, str) or not re.fullmatch(r"\w{1,40}", record) or not isinstance(key[3], str):
            raise RefusedPickleError("one of its tensors has no known place")
        self.storages.append(Storage(f"data/{record}", count * STORAGES[kind.name]))
        return _OBJECT


def _is_short_text(arguments: Any) -> bool:
    """Whether these are a short text and the one encoding that numpy's numbers are written in."""
    if not isinstance(arguments, tuple) or len(arguments) != 2:
        return False
    text, encoding = arguments
    return isinstance(text, str) and len(text) <= LONGEST_TEXT and encoding == ENCODING
