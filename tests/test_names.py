"""
Names and addresses: visible characters of all scripts are accepted, others are refused.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from unicodedata import category

import msgspec
import pytest

from tsrv.demo.names import Email, LoginName, Name

TYPES = {"name": Name, "login": LoginName, "email": Email}

IGNORABLE = (
    "AD 34F 61C 115F-1160 17B4-17B5 180B-180F 200B-200F 202A-202E 2060-206F 3164 "
    "FE00-FE0F FEFF FFA0 FFF0-FFF8 1BCA0-1BCA3 1D173-1D17A E0000-E0FFF"
)
"""
C{Default_Ignorable_Code_Point} of Unicode 17.0.
"""

NONCHARACTERS = ["FDD0-FDEF", *(f"{plane:X}FFFE-{plane:X}FFFF" for plane in range(17))]

JOINERS = "180B-180F 200C-200D FE00-FE0F E0020-E007F E0100-E01EF"

BLANKS = "2800 13441-13442 16FE4 1D159"

ORDINARY = [
    *("Ada", "O'Brien #1*", "Jos\u00e9", "Jose\u0301", "\u0410\u0434\u0430"),
    # Persian and Sinhala, with joiners.
    *("\u0639\u0644\u06cc\u200c\u0631\u0636\u0627", "\u0dc1\u0dca\u200d\u0dbb\u0dd3"),
    # Thai; Mongolian, with a vowel separator.
    *("\u0e01\u0e33\u0e41\u0e1e\u0e07", "\u1830\u1820\u1837\u180e\u1820"),
    # Japanese, with a variant; Korean, composed and not; Braille.
    *("\u845b\U000e0100\u57ce", "\uae40", "\u1100\u1175\u11b7", "\u2801\u2819\u2801"),
    # A family, a heart, a keycap, the flag of England.
    *("\U0001f468\u200d\U0001f469\u200d\U0001f467", "\u2764\ufe0f", "1\ufe0f\u20e3"),
    "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
]


def charactersIn(ranges: str) -> Iterator[str]:
    """
    Expand ranges of code points.
    """
    for each in ranges.split():
        first, _, last = each.partition("-")
        yield from map(chr, range(int(first, 16), int(last or first, 16) + 1))


INVISIBLE = {
    *charactersIn(f"{IGNORABLE} {BLANKS} {' '.join(NONCHARACTERS)}"),
    *(
        each
        for each in map(chr, range(sys.maxunicode + 1))
        if category(each) in ("Cc", "Cf")
    ),
    *(chr(code) for code in (0x2028, 0x2029, 0xE000, 0xF8FF, 0xF0000, 0x10FFFD)),
}


def isAccepted(text: str, kind: str) -> bool:
    """
    Return whether a text is accepted as a name, and as the first part of an address.
    """
    try:
        msgspec.convert(f"{text}@b" if kind == "email" else text, TYPES[kind])
    except msgspec.ValidationError:
        return False
    return True


@pytest.mark.parametrize("kind", TYPES)
def test_invisible_characters_are_refused(kind: str) -> None:
    """
    Invisible characters are refused, alone and inside of a name, by their category and
    by a list. Joiners are refused alone and behind an ASCII letter.
    """
    joiners = set(charactersIn(JOINERS))
    for each in INVISIBLE:
        for text in (each, f"Ada{each}", f"{each}Ada"):
            assert not isAccepted(text, kind), ascii(text)
        assert isAccepted(f"\u0639{each}\u0639", kind) == (each in joiners), ascii(each)


@pytest.mark.parametrize("kind", TYPES)
def test_visible_characters_of_all_scripts_are_accepted(kind: str) -> None:
    """
    Letters, marks, digits, punctuation and symbols are accepted, even if they are newer
    than the Unicode version of this server.
    """
    exceptions = INVISIBLE | ({"@"} if kind == "email" else set())
    for each in map(chr, range(0x40000)):
        if category(each)[0] not in "CZ" and each not in exceptions:
            assert isAccepted(each, kind), ascii(each)
    assert isAccepted("\U0001faff", kind)


@pytest.mark.parametrize("name", ORDINARY, ids=ascii)
@pytest.mark.parametrize("kind", TYPES)
def test_ordinary_names_are_accepted(kind: str, name: str) -> None:
    """
    Joiners, variants and marks that belong to the spelling of a name are accepted.
    """
    assert isAccepted(name.replace(" ", "") if kind == "email" else name, kind)


@pytest.mark.parametrize(
    "space",
    [each for each in map(chr, range(0x3001)) if category(each) == "Zs"],
    ids=ascii,
)
def test_spaces_are_for_names(space: str) -> None:
    """
    A name may contain spaces of every kind, but not consist of them; an address
    contains none.
    """
    for kind in ("name", "login"):
        assert isAccepted(f"\u5c71\u7530{space}\u592a\u90ce", kind)
        assert not isAccepted(space, kind)
    for text in (f"a{space}", f"{space}a", f"a{space}b"):
        assert not isAccepted(text, "email")
