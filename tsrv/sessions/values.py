"""
Values as they are stored.
"""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any, Final

from .store import SessionError

__all__ = ["copied", "textOf", "tokenOf"]

_ENCODER: Final = json.JSONEncoder(sort_keys=True, allow_nan=False)

_PLAIN: Final = frozenset({str, int, float, bool, type(None)})


def tokenOf(identifier: str) -> str:
    """
    @return: What follows from an identifier, and from which it does not follow.
    """
    return sha256(f"token of {identifier}".encode()).hexdigest()


def textOf(value: Any) -> str:
    """
    @return: What would be stored.
    """
    try:
        return _ENCODER.encode(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise SessionError(
            f"what is in the session cannot be JSON ({type(error).__name__})"
        ) from None


def copied(value: Any) -> Any:
    """
    @return: The same, in which nobody else can change anything.
    """
    return value if type(value) in _PLAIN else json.loads(json.dumps(value))
