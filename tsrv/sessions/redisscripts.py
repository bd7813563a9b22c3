"""
What Redis does with sessions, each in one step.

A session is a hash: C{d} is its JSON, C{c} and C{x} are when it was made and when
it ends, in seconds of the epoch, and C{v} is its version.
"""

from __future__ import annotations

from hashlib import sha1
from typing import Final

__all__ = [
    "COUNT",
    "DELETE",
    "DELETE_VERSION",
    "DISCARD",
    "INSERT",
    "MOVE",
    "PROLONG",
    "UPDATE",
    "Script",
]


class Script:
    """
    What Redis does as one step.
    """

    def __init__(self, text: str) -> None:
        self.text = text.encode()
        self.name = sha1(self.text).hexdigest().encode()  # noqa: S324


_IS_HASH: Final = "redis.call('TYPE', KEYS[1]).ok == 'hash'"

INSERT: Final = Script(
    """
    if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
    redis.call('HSET', KEYS[1], 'd', ARGV[1], 'c', ARGV[2], 'x', ARGV[3], 'v', 1)
    redis.call('PEXPIRE', KEYS[1], ARGV[4])
    return 1
    """
)

UPDATE: Final = Script(
    f"""
    if not ({_IS_HASH}) then return 0 end
    local found = redis.call('HMGET', KEYS[1], 'v', 'x')
    if found[1] ~= ARGV[1] then return 0 end
    if not ((tonumber(found[2] or '') or 0) > tonumber(ARGV[2])) then return 0 end
    redis.call('HSET', KEYS[1], 'd', ARGV[3], 'x', ARGV[4])
    redis.call('HINCRBY', KEYS[1], 'v', 1)
    redis.call('PEXPIRE', KEYS[1], ARGV[5])
    return 1
    """
)

MOVE: Final = Script(
    f"""
    if not ({_IS_HASH}) then return 0 end
    local found = redis.call('HMGET', KEYS[1], 'v', 'x')
    if found[1] ~= ARGV[1] then return 0 end
    if not ((tonumber(found[2] or '') or 0) > tonumber(ARGV[2])) then return 0 end
    redis.call('RENAME', KEYS[1], KEYS[2])
    redis.call('HSET', KEYS[2], 'd', ARGV[3], 'x', ARGV[4], 'c', ARGV[2])
    redis.call('HINCRBY', KEYS[2], 'v', 1)
    redis.call('PEXPIRE', KEYS[2], ARGV[5])
    return 1
    """
)

PROLONG: Final = Script(
    f"""
    if not ({_IS_HASH}) then return 0 end
    local ends = tonumber(redis.call('HGET', KEYS[1], 'x') or '') or 0
    if not (ends > tonumber(ARGV[1])) then return 0 end
    if ends < tonumber(ARGV[2]) then
      redis.call('HSET', KEYS[1], 'x', ARGV[2])
      redis.call('PEXPIRE', KEYS[1], ARGV[3])
    end
    return 1
    """
)

DELETE: Final = Script(
    f"""
    local ends = 0
    if {_IS_HASH} then ends = tonumber(redis.call('HGET', KEYS[1], 'x') or '') or 0 end
    redis.call('DEL', KEYS[1])
    if ends > tonumber(ARGV[1]) then return 1 end
    return 0
    """
)

DELETE_VERSION: Final = Script(
    f"""
    if not ({_IS_HASH}) then return 0 end
    if redis.call('HGET', KEYS[1], 'v') ~= ARGV[1] then return 0 end
    return redis.call('DEL', KEYS[1])
    """
)

DISCARD: Final = Script(
    f"""
    if {_IS_HASH} then
      local found = redis.call('HMGET', KEYS[1], 'c', 'x', 'v')
      for place = 1, 3 do
        if (found[place] or '') ~= ARGV[place] then return 0 end
      end
    elseif #ARGV > 0 then return 0 end
    return redis.call('DEL', KEYS[1])
    """
)
"""
Remove what is damaged, if it still is as it was found: the times and the version
are given, or nothing, if it was no hash.
"""

COUNT: Final = Script(
    """
    local count = 0
    for _, key in ipairs(KEYS) do
      if redis.call('TYPE', key).ok == 'hash' then
        local ends = tonumber(redis.call('HGET', key, 'x') or '') or 0
        if ends > tonumber(ARGV[1]) then count = count + 1 end
      end
    end
    return count
    """
)
