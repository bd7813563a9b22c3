"""
The delay between two attempts.
"""

from __future__ import annotations

from collections.abc import Callable
from random import random as _random

__all__ = ["jitteredBackoff"]


def jitteredBackoff(
    initialDelay: float = 0.25,
    maxDelay: float = 30.0,
    factor: float = 2.0,
    jitter: float = 0.5,
    random: Callable[[], float] = _random,
) -> Callable[[int], float]:
    """
    Make a retry policy with exponential delays, of which a share is random. By default
    the delay is 0.25 s after a loss, doubled by each failure, at most 30 s, and then
    reduced by up to half at random.

    L{twisted.application.internet.backoffPolicy} adds at most one second, however long
    the delay is. So all clients of a server that was down for a while reconnect within
    the same second. Here the spread grows with the delay: this is "equal jitter" in
    Marc Brooker, I{Exponential Backoff And Jitter}.

    @param initialDelay: The delay after a loss, before any attempt has failed, in
        seconds.
    @param maxDelay: The longest delay, in seconds.
    @param factor: The ratio of each delay to the one before.
    @param jitter: The random share of each delay, from 0 to 1.
    @param random: Returns random numbers from 0 to 1.
    @return: A callable that takes the number of attempts so far and returns the
        seconds until the next.
    @raise ValueError: A number is outside of its range.
    """
    if not 0 < initialDelay <= maxDelay:
        raise ValueError("initialDelay must be more than 0, and at most maxDelay")
    if not factor >= 1:
        raise ValueError("factor must be at least 1")
    if not 0 <= jitter <= 1:
        raise ValueError("jitter must be from 0 to 1")

    def policy(attempts: int) -> float:
        try:
            delay = min(initialDelay * factor**attempts, maxDelay)
        except OverflowError:
            delay = maxDelay
        return delay * (1 - jitter * random())

    return policy
