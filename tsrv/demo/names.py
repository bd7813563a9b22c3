"""
Validates the names of users and visitors, and e-mail addresses.

The profile follows the FreeformClass of PRECIS (RFC 8264, section 4.3): letters,
marks, digits, punctuation, symbols and spaces of all scripts. It differs in two
ways. It accepts characters that Unicode has not assigned yet, because a phone may
know more emoji than this server. And it accepts the invisible characters that ordinary
names need, where they can have an effect: the joiners of Persian, Sinhala and emoji
(UAX #31, section 2.3; UTS #51), and the variation selectors of Mongolian, Japanese
names and emoji. It refuses all other invisible characters, because names with them may
look empty, or like another name.

Equivalent texts are converted to one form, NFC (RFC 8265, section 3.3; RFC 6532,
section 3.1), so that no two users have the same address.
"""

from __future__ import annotations

import unicodedata
from functools import partial
from typing import Annotated, Final, TypeVar

from msgspec import UNSET, Meta, Struct
from msgspec.structs import asdict

from ..web.content import validate

__all__ = ["Email", "LoginName", "Name", "normalize"]

_Fields = TypeVar("_Fields", bound=Struct)

_REFUSED: Final = """
    0-1F 7F-9F AD 34F 600-605 61C 6DD 70F 890-891 8E2 115F-1160 17B4-17B5 200B
    200E-200F 2028-202E 2060-206F 2800 3164 E000-F8FF FDD0-FDEF FEFF FFA0 FFF0-FFFB
    FFFE-FFFF 110BD 110CD 13430-1343F 13441-13442 16FE4 1BCA0-1BCA3 1D159 1D173-1D17A
    1FFFE-1FFFF 2FFFE-2FFFF 3FFFE-E001F E0080-E00FF E01F0-10FFFF
"""
"""
The characters that names and addresses must not have: the categories Cc, Cf, Co, Zl and
Zp, Default_Ignorable_Code_Point (DerivedCoreProperties.txt of Unicode 17.0) and
Noncharacter_Code_Point, except the joiners; five blanks without these properties:
U+2800, U+13441, U+13442, U+16FE4 and U+1D159; and the planes 4 to 13, which are empty.
"""

_JOINERS: Final = "180B-180F 200C-200D FE00-FE0F E0020-E007F E0100-E01EF"
"""
Invisible characters that change the character before them. Among the characters of
ASCII, they change only the digits, # and *, which are keycap emoji then.
"""

_SPACES: Final = "20 A0 1680 2000-200A 202F 205F 3000"
"""
The category Zs.
"""


def _members(ranges: str) -> str:
    # JSON Schema and Python share no escape for characters above U+FFFF.
    return "".join(
        "-".join(
            rf"\u{code:04x}" if code <= 0xFFFF else chr(code)
            for code in (int(end, 16) for end in each.split("-"))
        )
        for each in ranges.split()
    )


_SPACE: Final = _members(_SPACES)

_JOINER: Final = _members(_JOINERS)

_NEVER: Final = _members(_REFUSED)

# The characters of ASCII that are not in keycap emoji.
_ALONE: Final = '!"$-)+-/:-~'

# Lookaheads, because tools that generate texts from patterns expand all other sets.
_NAME: Final = (
    f"^(?!.*(?:[{_NEVER}]|[{_SPACE}{_ALONE}][{_JOINER}]))"
    f"[{_SPACE}]*[^{_SPACE}{_JOINER}]"
)

_EMAIL: Final = (
    f"^(?!.*(?:[{_NEVER}{_SPACE}]|[{_ALONE}][{_JOINER}]))"
    f"[^@{_JOINER}][^@]*@[^@{_JOINER}][^@]*$"
)

_nameOf: Final = partial(
    Meta,
    min_length=1,
    pattern=_NAME,
    description="at least one visible character, and no invisible ones",
    examples=["Ada"],
)

Name = Annotated[str, _nameOf(max_length=200)]

LoginName = Annotated[str, _nameOf(max_length=100)]

Email = Annotated[
    str,
    Meta(
        min_length=3,
        max_length=254,
        pattern=_EMAIL,
        description="two parts with an @ between them, without spaces or invisible "
        "characters",
        examples=["ada@example.org"],
    ),
]


def normalize(fields: _Fields, title: str) -> _Fields:
    """
    Convert all texts to NFC.

    @param title: The title of the error.
    @raise tsrv.web.content.Invalid: A text is too long in NFC.
    """
    given = {name: text for name, text in asdict(fields).items() if text is not UNSET}
    normal = {name: unicodedata.normalize("NFC", text) for name, text in given.items()}
    return fields if normal == given else validate(normal, type(fields), title)
