"""
What we have signed is known again, and nothing else is.
"""

from __future__ import annotations

import hmac
import os
from base64 import urlsafe_b64encode
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsrv.sessions.signing import (
    KeysRefused,
    SigningKeys,
)

from .websupport import errorsIn, logged, textsOf

FIRST = "a-key-that-is-long-enough-to-be-one"
SECOND = "another-key-of-the-same-good-length"
THIRD = "the-third-of-the-keys-in-that-house"

BAD = "not-a-key"


def written(directory: Path, content: str | bytes, mode: int = 0o600) -> str:
    """
    @return: The path of a file.
    """
    path = directory / "keys"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(mode)
    return str(path)


def test_what_was_signed_is_known_again() -> None:
    """
    Without that, nobody would stay logged in.
    """
    keys = SigningKeys([FIRST])
    signature = keys.sign("session=abc")
    assert keys.verify("session=abc", signature)


def test_signatures_are_hmac_of_sha_256() -> None:
    """
    Another server with the same keys, of whatever make, has to find the same.
    """
    expected = urlsafe_b64encode(hmac.digest(FIRST.encode(), b"text", "sha256"))
    signature = SigningKeys([FIRST]).sign("text")
    assert signature == expected.decode().rstrip("=")
    assert len(signature) == 43


def test_the_first_key_signs_and_all_verify() -> None:
    """
    A key is replaced by putting a new one before it: who has a cookie of the old
    one must not be logged out by that.
    """
    old, new = SigningKeys([SECOND]), SigningKeys([FIRST, SECOND, THIRD])
    assert new.verify("text", old.sign("text"))
    assert new.verify("text", SigningKeys([THIRD]).sign("text"))
    assert new.sign("text") == SigningKeys([FIRST]).sign("text")
    assert not old.verify("text", new.sign("text"))
    assert len(new) == 3


@pytest.mark.parametrize(
    "signature",
    ["", "x", "x" * 43, "=" * 44, "\xe9" * 43, "\udcff" * 43, "\0", "x" * 100_000],
    ids=ascii,
)
def test_other_signatures_are_refused_without_an_error(signature: str) -> None:
    """
    What clients send as a signature may be anything.
    """
    assert not SigningKeys([FIRST, SECOND]).verify("text", signature)


def test_each_bit_of_a_signature_counts() -> None:
    """
    The last character stands for more bits than a signature has: a second way to
    write it would be a second cookie for the same session.
    """
    keys = SigningKeys([FIRST])
    signature = keys.sign("text")
    digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    others = [signature[:-1] + digit for digit in digits if digit != signature[-1]]
    assert len(others) == 63
    assert not any(keys.verify("text", other) for other in others)
    assert not keys.verify("text", signature + "=")
    assert not keys.verify("text", signature + "\xe9")


@given(st.text(), st.text())
def test_a_signature_is_of_one_text_alone(one: str, other: str) -> None:
    """
    A signature that fits something else too would let people forge it.
    """
    keys = SigningKeys([FIRST])
    assert keys.verify(one, keys.sign(one))
    assert keys.verify(other, keys.sign(one)) == (one == other)


def test_what_cannot_be_encoded_has_a_signature_too() -> None:
    """
    Half of a character may come from a client, and must not raise.
    """
    keys = SigningKeys([FIRST])
    assert keys.verify("\ud800", keys.sign("\ud800"))
    assert not keys.verify("\ud800", keys.sign("?"))


def test_keys_come_from_a_file(tmp_path: Path) -> None:
    """
    That is how keys are kept: not where other users see them, with notes, and
    edited on whatever system.
    """
    path = written(
        tmp_path,
        f"\ufeff# new\r\n\n  {FIRST}  \r\n # old, until Monday\n{SECOND}",
    )
    with logged() as events:
        keys = SigningKeys.fromFile(path)
    assert len(keys) == 2
    assert keys.sign("text") == SigningKeys([FIRST]).sign("text")
    assert keys.verify("text", SigningKeys([SECOND]).sign("text"))
    assert errorsIn(events) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", ": there is no key in it"),
        ("# none\n\n", ": there is no key in it"),
        (BAD, ", line 1: a key has at least 32 characters"),
        (f"#\n{FIRST}\n{FIRST[:31]}", ", line 3: a key has at least 32 characters"),
        (
            f"{FIRST} # the new one",
            ", line 1: a key has neither spaces nor control characters (a comment "
            "has a line of its own)",
        ),
        (
            f"{FIRST}\n{SECOND}\x07",
            ", line 2: a key has neither spaces nor control characters (a comment "
            "has a line of its own)",
        ),
        (f"{FIRST}\n\n{FIRST}", ", line 3: this is the same as {path}, line 1"),
        (b"\xff" * 40, ", line 1: this is no text in UTF-8"),
        (
            "".join(f"{FIRST}-{number}\n" for number in range(101)),
            ", line 101: there are more than 100 keys",
        ),
        ("#" * 65_537, ": it has more than 65536 bytes"),
    ],
    ids=[
        "empty",
        "comments",
        "short",
        "later short one",
        "comment behind",
        "control character",
        "twice",
        "binary",
        "many",
        "large",
    ],
)
def test_what_is_wrong_in_a_file_is_said_by_its_line(
    tmp_path: Path, content: str | bytes, message: str
) -> None:
    """
    Who reads the message has to find the place; the message ends in logs, where a
    key must not be, not even a bad one.
    """
    path = written(tmp_path, content)
    with pytest.raises(KeysRefused) as refused:
        SigningKeys.fromFile(path)
    text = str(refused.value)
    assert text == path + message.replace("{path}", path)
    assert BAD not in text
    assert FIRST[:31] not in text
    # Nor does what it came from say it.
    assert refused.value.__context__ is None


def test_the_limits_themselves_are_allowed(tmp_path: Path) -> None:
    """
    A limit is the most that is allowed, not the least that is refused.
    """
    path = written(tmp_path, "".join(f"{FIRST}-{n}\n" for n in range(100)))
    keys = SigningKeys.fromFile(path)
    assert len(keys) == 100
    assert keys.verify("text", SigningKeys([f"{FIRST}-99"]).sign("text"))
    assert len(SigningKeys.fromFile(written(tmp_path, FIRST[:32]))) == 1


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    """
    A wrong path is told at the start; a pipe into which nobody writes must not
    keep the server from starting.
    """
    missing = str(tmp_path / "missing")
    with pytest.raises(KeysRefused) as refused:
        SigningKeys.fromFile(missing)
    assert str(refused.value) == f"{missing}: No such file or directory"
    with pytest.raises(KeysRefused) as refused:
        SigningKeys.fromFile(str(tmp_path))
    assert str(refused.value) == f"{tmp_path}: this is not a file"
    pipe = str(tmp_path / "pipe")
    os.mkfifo(pipe)
    with pytest.raises(KeysRefused) as refused:
        SigningKeys.fromFile(pipe)
    assert str(refused.value) == f"{pipe}: this is not a file"


def test_no_file_stays_open(tmp_path: Path) -> None:
    """
    One that was refused is looked at again and again by who tries to mend it.
    """
    before = os.listdir("/dev/fd")
    for content in ("", FIRST, "#" * 65_537):
        path = written(tmp_path, content)
        with suppress(KeysRefused):
            SigningKeys.fromFile(path)
        with pytest.raises(KeysRefused):
            SigningKeys.fromFile(str(tmp_path))
    assert os.listdir("/dev/fd") == before


@pytest.mark.parametrize(
    ("mode", "isTold"),
    [(0o600, False), (0o640, False), (0o644, True), (0o602, True)],
    ids=oct,
)
def test_keys_that_are_open_to_everybody_are_told_of(
    tmp_path: Path, mode: int, isTold: bool
) -> None:
    """
    With them any user of the machine can sign. To be read by a group is how a
    service is given a file that is not its own.
    """
    path = written(tmp_path, FIRST, mode)
    with logged() as events:
        assert len(SigningKeys.fromFile(path)) == 1
    told = f"The keys in {path} are open to every user of this machine: "
    assert textsOf(errorsIn(events)) == [f"{told}chmod it to 600"] * isTold


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ([], "there is no key"),
        ([FIRST, BAD], "key 2: a key has at least 32 characters"),
        ([FIRST, FIRST], "key 2: this is the same as key 1"),
    ],
)
def test_keys_from_elsewhere_are_looked_at_too(keys: list[str], message: str) -> None:
    """
    They may come from a safe for secrets in place of a file.
    """
    with pytest.raises(KeysRefused) as refused:
        SigningKeys(keys)
    assert str(refused.value) == message


def test_keys_do_not_show() -> None:
    """
    What is written of objects ends in logs and tracebacks.
    """
    assert FIRST not in repr(SigningKeys([FIRST]))
