"""
Signatures by which what a browser sends back is known to be ours.
"""

from __future__ import annotations

import os
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from hmac import compare_digest, digest
from stat import S_IROTH, S_ISREG, S_IWOTH
from typing import Final

from twisted.logger import Logger

__all__ = ["KeysRefused", "SigningKeys"]

_SHORTEST: Final = 32
_MOST: Final = 100
_LARGEST: Final = 64 * 1024
"""
How many characters a key has at least, how many keys there may be, and how many
bytes a file of them may have.
"""


class KeysRefused(ValueError):
    """
    What is given as keys cannot be used as such. The message names the place, and
    has nothing of a key in it.
    """


class SigningKeys:
    """
    Keys of HMAC-SHA-256. The first one signs, and what any of them has signed is
    valid: so a new one is put before the others, and an old one removed when
    nothing is left that it has signed.
    """

    _log = Logger()

    __slots__ = ("_keys",)

    def __init__(self, keys: Sequence[str], places: Sequence[str] = ()) -> None:
        """
        @param keys: The keys, each of at least 32 characters; at most 100.
        @param places: What each of them is called in an error, if not by its
            number.
        @raise KeysRefused: They cannot be keys.
        """
        if not keys:
            raise KeysRefused("there is no key")
        places = places or [f"key {number}" for number in range(1, len(keys) + 1)]
        known: dict[bytes, str] = {}
        for text, where in zip(keys, places, strict=True):
            if len(known) == _MOST:
                raise KeysRefused(f"{where}: there are more than {_MOST} keys")
            _check(text, where)
            key = text.encode()
            if key in known:
                raise KeysRefused(f"{where}: this is the same as {known[key]}")
            known[key] = where
        self._keys = list(known)

    @classmethod
    def fromFile(cls, path: str) -> SigningKeys:
        """
        Read keys from a file. It is logged if other users may read or change it.

        @param path: The path of the file: a key in each line. Empty lines, and
            those that begin with C{#}, are none.
        @return: The keys.
        @raise KeysRefused: There is no such file, or what is in it are no keys.
        """
        keys, places = [], []
        for number, line in enumerate(_read(path).split(b"\n"), 1):
            where = f"{path}, line {number}"
            text = _decoded(line)
            if text is None:
                raise KeysRefused(f"{where}: this is no text in UTF-8")
            if text and not text.startswith("#"):
                keys.append(text)
                places.append(where)
        if not keys:
            raise KeysRefused(f"{path}: there is no key in it")
        return cls(keys, places)

    def __len__(self) -> int:
        return len(self._keys)

    def sign(self, text: str) -> str:
        """
        @param text: What is to be signed, with what it is meant for.
        @return: Its signature: 43 characters of base64url.
        """
        return _signature(self._keys[0], text).decode("ascii")

    def verify(self, text: str, signature: str) -> bool:
        """
        @param text: What is said to have been signed.
        @param signature: The signature.
        @return: Whether it was signed with one of the keys.
        """
        # What cannot be ASCII becomes something that no signature is.
        given = signature.encode("ascii", "backslashreplace")
        return any(compare_digest(_signature(key, text), given) for key in self._keys)


def _signature(key: bytes, text: str) -> bytes:
    signed = digest(key, text.encode("utf-8", "surrogatepass"), "sha256")
    return urlsafe_b64encode(signed).rstrip(b"=")


def _check(text: str, where: str) -> None:
    """
    @raise KeysRefused: A text is no key.
    """
    if len(text) < _SHORTEST:
        raise KeysRefused(f"{where}: a key has at least {_SHORTEST} characters")
    if not text.isprintable() or " " in text:
        raise KeysRefused(
            f"{where}: a key has neither spaces nor control characters (a comment "
            f"has a line of its own)"
        )


def _decoded(line: bytes) -> str | None:
    """
    @return: A line, without what is around it; L{None} if it is no text.
    """
    try:
        # Some editors begin a file with a mark.
        return line.decode("utf-8").removeprefix("\ufeff").strip()
    except UnicodeDecodeError:
        # The error has the line in it.
        return None


def _read(path: str) -> bytes:
    """
    @return: What is in a file.
    """
    try:
        # Without waiting for who might write to it, if it is a pipe.
        opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(opened)
            if not S_ISREG(status.st_mode):
                raise KeysRefused(f"{path}: this is not a file")
            with open(opened, "rb", closefd=False) as file:
                content = file.read(_LARGEST + 1)
        finally:
            os.close(opened)
    except OSError as error:
        raise KeysRefused(f"{path}: {error.strerror}") from None
    if len(content) > _LARGEST:
        raise KeysRefused(f"{path}: it has more than {_LARGEST} bytes")
    if status.st_mode & (S_IROTH | S_IWOTH):
        SigningKeys._log.warn(
            "The keys in {path} are open to every user of this machine: chmod it to "
            "600",
            path=path,
        )
    return content
