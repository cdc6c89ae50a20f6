"""How texts are put together, compared and shown.

**What stands between a prompt and its answer** (:func:`separator`): white space that the prompt ends in or the answer
begins with is what stands there, and nothing is added. Where neither brings any, a space stands there if both sides are
written with spaces between words, and nothing after an opening quote, an opening bracket, a currency sign, the token
that ends a chat template's turn header (``<|assistant|>``), or in writing without spaces (Chinese, Japanese, Thai, Lao,
Khmer, Burmese, Tibetan).

**Two texts are the same** (:func:`same_text`) if they differ in nothing but white space at their ends and in the
Unicode normal form: an accent may be one character with its letter (NFC, as most tokenizers have it) or one of its own
(NFD, as macOS writes it); see the Unicode Standard's annex 15. Nobody's text is changed for it.
"""

import re
import unicodedata

INVISIBLE = re.compile("[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]")
"""Characters that show nothing: soft hyphen, zero-width space, marks of direction, word joiner, byte order mark. The
joiners U+200C and U+200D are not among them: Persian, Indic scripts and emoji are written with them.
"""

_WITHOUT_SPACES = re.compile(
    "[\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff"  # Thai and Lao, Tibetan, Burmese, Khmer
    "\u2e80-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\ufe30-\ufe4f\uff00-\uff9f\U00020000-\U0003ffff]"
)

_TURN_HEADER = re.compile(r"(<\|[^|<>\s]+\|>|<\uff5c[^\uff5c<>]+\uff5c>|\[\|\w+\|\]|(?<=\S)\[/INST\])\Z")
"""What ends the header of an answer in chat templates, with nothing behind it: as in Granite and Phi, DeepSeek, EXAONE,
and Mistral since its third tokenizer. ``[/INST]`` behind a space is Llama 2's, which writes a space after it.
"""

_OPENING_PARTNER = {"\u00bb": "\u00ab", "\u203a": "\u2039", "\u201d": "\u201c", "\u2019": "\u2018"}
"""Of the closing quotes: guillemets, single guillemets, double and single curly quotes."""

_QUOTES = frozenset("\"'") | set(_OPENING_PARTNER) | set(_OPENING_PARTNER.values())


def separator(prompt: str, answer: str) -> str:
    """What is put between a prompt and its answer: a space, or nothing."""
    if not prompt or prompt[-1].isspace() or answer[:1].isspace():
        return ""
    if _TURN_HEADER.search(prompt, max(0, len(prompt) - 64)):
        return ""
    letters = prompt.rstrip("".join({c for c in prompt[-8:] if unicodedata.category(c) in ("Mn", "Mc", "Cf")}))
    last = letters[-1:]
    if _WITHOUT_SPACES.match(last):
        return ""
    if _WITHOUT_SPACES.match(answer) and _WITHOUT_SPACES.search(prompt.split()[-1]):
        return ""  # a number in a Chinese sentence
    if unicodedata.category(last or " ") == "Ps" or _opens(letters):
        return ""
    return " "


def _opens(text: str) -> bool:
    """Whether it ends in a quote or a currency sign that what follows belongs to."""
    before, last = text[:-1], text[-1:]
    if last and unicodedata.category(last) == "Sc":
        return not before.rstrip()[-1:].isdigit()
    if last not in _QUOTES:
        return False
    if before and not (before[-1].isspace() or before[-1] in _QUOTES or unicodedata.category(before[-1]) == "Ps"):
        return False
    if last in "\"'":
        return before.count(last) % 2 == 0 or last == "'"
    partner = _OPENING_PARTNER.get(last)
    return partner is None or before.count(partner) <= before.count(last)


def border(prompt: str, answer: str) -> str:
    """All that stands between a prompt and its answer: white space of their own, or what :func:`separator` puts."""
    own = prompt[len(prompt.rstrip()) :] + answer[: len(answer) - len(answer.lstrip())]
    return own + separator(prompt, answer)


def joined(prompt: str, answer: str) -> str:
    """A prompt and its answer as one text."""
    return prompt + separator(prompt, answer) + answer


def same_text(one: str, other: str) -> bool:
    """Whether two texts read the same; see above."""
    return comparable(one) == comparable(other)


def comparable(text: str) -> str:
    """What is compared of a text: no white space at its ends, normal form C."""
    return unicodedata.normalize("NFC", text.strip())


def end_of(part: str, text: str) -> int | None:
    """Where the first occurrence of a part ends in a text, in characters; None if it does not occur in any form."""
    start = text.find(part)
    if start >= 0:
        return start + len(part)
    form = unicodedata.normalize("NFC", part)
    ends = [end for end in range(1, len(text) + 1) if unicodedata.normalize("NFC", text[:end]).endswith(form)]
    # The first with all of its marks, where there is one.
    whole = (end for end in ends if end == len(text) or not unicodedata.combining(text[end]))
    return next(whole, min(ends, default=None))


def without_invisible(text: str) -> str:
    """A text without :data:`INVISIBLE` characters, and without joiners at its ends, where they join nothing."""
    return INVISIBLE.sub("", text).strip("\u200c\u200d")


def printable(text: str) -> str:
    """A text as a terminal may be given it: what would control it (escape sequences, NUL, changes of direction) or
    show nothing is spelled out, as in ``\\x1b``. Line ends and tabs stay.
    """
    return "".join(
        c
        if c.isprintable() or c in "\n\t\u200c\u200d" or unicodedata.category(c) == "Zs"
        else c.encode("unicode_escape").decode("ascii")
        for c in text
    )


def one_line(text: str) -> str:
    """A text in a line of a report, where its own line ends and tabs would read as the report's: spelled out."""
    return text.translate({ord("\n"): "\\n", ord("\r"): "\\r", ord("\t"): "\\t"})
