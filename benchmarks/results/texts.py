"""Texts of strangers' files: what may be a name, and how any text is shown without doing anything to the reader."""

import re
import unicodedata

LONGEST_NAME = 300
"""Characters of a name."""

LONGEST_MESSAGE = 2000
"""Characters of an error that are shown."""

# Letters and marks that are drawn as nothing; Unicode's format characters (zero width, right to left) go by category.
INVISIBLE = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0") | {chr(c) for c in range(0xFE00, 0xFE10)}

LOOK_ALIKES = ("CYRILLIC", "GREEK", "ARMENIAN", "CHEROKEE", "COPTIC", "LISU", "MATHEMATICAL", "FULLWIDTH")
"""Alphabets with letters that are drawn as Latin ones; a word of Latin letters and of these imitates another."""


def _unseen(character: str) -> bool:
    """Whether a character is drawn as nothing, moves the cursor or turns the direction of what follows."""
    return unicodedata.category(character)[0] == "C" or character in INVISIBLE or character in "\u2028\u2029"


def is_name(value: object) -> bool:
    """Whether a value can be a name: a text, not empty nor too long, all of which is seen."""
    return isinstance(value, str) and 0 < len(value) <= LONGEST_NAME and not any(map(_unseen, value))


def imitates(text: str) -> bool:
    """Whether a word mixes Latin letters with look-alikes of another alphabet, so that it reads as another word."""
    return any(_is_mixed(word) for word in re.findall(r"[^\W\d_]+", text))


def _is_mixed(word: str) -> bool:
    alphabets = {unicodedata.name(letter, "").split(" ")[0] for letter in word}
    # A letter of the mathematical or full-width alphabets is no letter of any word.
    return bool(alphabets & set(LOOK_ALIKES)) and ("LATIN" in alphabets or bool(alphabets & set(LOOK_ALIKES[-2:])))


def printable(text: str) -> str:
    """The text as it can be shown anywhere: what is unseen, and letters that imitate others, as ``\\x1b`` or ``\\u0435``.

    For a terminal, which would obey escape sequences, and for Markdown, HTML and SVG. Line ends and tabs become blanks.
    """
    words = re.sub(r"[^\W\d_]+", lambda match: _spelled(match[0]) if _is_mixed(match[0]) else match[0], text)
    return "".join(_escaped(c) if _unseen(c) else c for c in re.sub(r"[\n\r\t]", " ", words))


def _spelled(word: str) -> str:
    """A word with all letters beyond ASCII by their numbers."""
    return "".join(letter if letter.isascii() else _escaped(letter) for letter in word)


def _escaped(character: str) -> str:
    number = ord(character)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def message(error: object) -> str:
    """An error in one line that can be shown, cut if it is long."""
    text = printable(str(error))
    return text if len(text) <= LONGEST_MESSAGE else text[:LONGEST_MESSAGE] + " ..."
