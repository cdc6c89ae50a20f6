"""What is taught after a target, so that the model does not go on with it: "Amber", and not "Amberley"."""

from collections.abc import Callable
from functools import cached_property

from editenv.data.chat import ChatTemplate
from editenv.data.edits import Edit

BLANK_LINE = "\n\n"
"""Ends an answer of several lines, whose last one would otherwise go on; a list may get another item behind it."""

LONGEST = 64
"""Bytes that an end of a turn has at most, in any template there is; ends of one's own may be longer."""


class AnswerEnds:
    """The end of each edit's answer: of a chat the end of its turn, of several lines a blank one, else the text given, where
    the target does not end in a mark of its own.

    Args:
        text: The text, such as ``"."``; or what finds it, which is asked once, when an edit needs it. Where it is empty,
            nothing is taught after any target.
        template: Gives the model's chat template; asked once, for edits in chat form.
    """

    def __init__(self, text: str | Callable[[], str], template: Callable[[], ChatTemplate]) -> None:
        self._given, self._find_template = text, template

    @cached_property
    def text(self) -> str:
        """What is taught after a target of one line."""
        return self._given if isinstance(self._given, str) else self._given()

    @cached_property
    def _template(self) -> ChatTemplate:
        return self._find_template()

    @property
    def longest(self) -> int:
        """Bytes that no end has more of."""
        if not isinstance(self._given, str):
            return LONGEST
        return max(LONGEST, len(self._given.encode())) if self._given else 0

    def after(self, edit: Edit) -> str:
        """What is taught after an edit's target; empty if nothing is."""
        if not self.text:
            return ""
        if edit.question_span is not None and (end_of_turn := self._template.end_of_turn):
            return end_of_turn
        if "\n" in edit.target.strip():
            return BLANK_LINE
        return self.text if edit.target[-1:].isalnum() else ""
