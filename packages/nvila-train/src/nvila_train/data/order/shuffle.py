"""A random order without a list.

A list of ten million shuffled numbers takes 80 MB in every worker process and time at every start. A Feistel network
gives any one entry of such an order alone: the number is cut into two halves, and each half is mixed with a hash of the
other, a few times over. That is a bijection whatever the hash, on a power of four; a result beyond the end is put in
again until it falls inside ("cycle walking"), at most four times on average.

Source: Luby and Rackoff, 1988; Black and Rogaway, "Ciphers with arbitrary finite domains", 2002.
"""

import hashlib

_ROUNDS = 6
_WORD = 2**64 - 1


def shuffled(place: int, length: int, *, key: int) -> int:
    """What stands at ``place`` of the numbers below ``length`` in the random order of ``key`` (64 bits)."""
    half = max(1, ((length - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = place >> half, place & mask
        for turn in range(_ROUNDS):
            left, right = right, left ^ (_mixed(key + turn * 0x9E3779B97F4A7C15 + right) & mask)
        place = left << half | right
        if place < length:
            return place


def key_of(*parts: object) -> int:
    """A key of 64 bits from what it depends on, the same in every process and on every machine."""
    said = "/".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(said.encode(), digest_size=8).digest(), "little")


def _mixed(word: int) -> int:
    """The finalizer of SplitMix64."""
    word &= _WORD
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 & _WORD
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB & _WORD
    return word ^ (word >> 31)
