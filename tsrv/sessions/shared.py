"""
The state that the sessions of one site share.
"""

from __future__ import annotations

from dataclasses import dataclass

from twisted.internet.interfaces import IReactorTime

from .cookies import Cookies
from .quota import Quota
from .store import ISessionStore, Limits

__all__ = ["Shared"]


@dataclass(frozen=True)
class Shared:
    """
    The parts of a site that each of its sessions uses.
    """

    clock: IReactorTime
    store: ISessionStore
    cookies: Cookies
    limits: Limits
    quota: Quota | None
