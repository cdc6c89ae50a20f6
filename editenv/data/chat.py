"""Corrections in the form in which a chat model is asked: its own template around the question.

What a template makes of a conversation is text (:meth:`ChatTemplate.in_chat_form`), and is edited like any other:

* the prompt is all that stands before the answer: headers, earlier turns, the question, the generation prompt;
* white space that the template puts between the generation prompt and an answer begins the target, for the model is to
  write it; anything else there (an empty block of reasoning, a channel's name) ends the prompt;
* a BOS that both the template and the tokenizer put at the beginning stands there once.

Templates that reason are asked not to (``enable_thinking=False``).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from editenv.data.edits import Edit, Locality, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MARK = "\ue000"
"""Stands in the place of a text to see what the template puts around it: a character of private use."""

IN_CHAT = " (chat)"
"""Ends the id of a correction in chat form; before it stands that of its plain form."""

NO_BOS_IN_TEMPLATE = (
    "the tokenizer puts a BOS before every text and the chat template writes none: what is edited and asked here in chat "
    "form begins with one, and other programs may ask without it"
)


class ChatTemplateError(ValueError):
    """A template does not take a conversation, or there is no template."""


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A conversation as the model reads it, up to the answer.

    Attributes:
        text: All of it.
        question_span: Where the last user turn's content stands in it, in characters.
        before_answer: White space that the template puts between this and the answer.
    """

    text: str
    question_span: tuple[int, int]
    before_answer: str


class ChatTemplate:
    """The chat template of a tokenizer.

    Args:
        tokenizer: The model's.
        model: Its name, for messages.

    Attributes:
        adds_bos: Whether the tokenizer puts a BOS before texts in chat form that the template does not write.

    Raises:
        ChatTemplateError: If the tokenizer has none.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", model: str) -> None:
        if not tokenizer.chat_template:
            raise ChatTemplateError(
                f"{model} has no chat template (chat_template.jinja, or chat_template in tokenizer_config.json): give its "
                "corrections as prompt and target, without --chat, or name a model that was trained to chat"
            )
        self._tokenizer, self._model = tokenizer, model
        bos = tokenizer.bos_token
        puts_bos = bos is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
        written = self._render([Message("user", "a")], generation=True)
        self._doubled = bos if bos is not None and puts_bos and written.startswith(bos) else ""
        self.adds_bos = puts_bos and not self._doubled

    def prompt(self, messages: Sequence[Message]) -> ChatPrompt:
        """A conversation that ends in a user turn, with the generation prompt behind it.

        Raises:
            ChatTemplateError: If the template refuses it, does not write the question as it is, or begins answers with
                something else than what comes between the generation prompt and an answer.
        """
        text = self._render(messages, generation=True)
        before, found, after = self._render([*messages[:-1], Message("user", MARK)], generation=True).partition(MARK)
        if not found or not (text.startswith(before) and text.endswith(after) and len(text) > len(before + after)):
            raise ChatTemplateError(f"the chat template of {self._model} does not write a question as it is")
        between = self._between(messages, text)
        text, space = (text, between) if not between.strip() else (text + between, "")
        start, end = len(before), len(text) - len(after) - (len(between) if between.strip() else 0)
        doubled = len(self._doubled)
        return ChatPrompt(text[doubled:], (start - doubled, end - doubled), space)

    def in_chat_form(self, edit: Edit) -> Edit:
        """A correction as it is asked in a chat; its rephrases and locality prompts are asked in the same place.

        Raises:
            ChatTemplateError: As :meth:`prompt` does.
        """
        messages = edit.messages or (Message("user", edit.prompt),)
        prompt = self.prompt(messages)

        def asked(text: str) -> ChatPrompt:
            return self.prompt((*messages[:-1], Message("user", text)))

        locality = [(self.prompt((Message("user", item.prompt),)), item.answer) for item in edit.locality]
        return replace(
            edit,
            id=edit.id + IN_CHAT,
            prompt=prompt.text,
            target=prompt.before_answer + edit.target,
            rephrases=tuple(asked(text).text for text in edit.rephrases),
            locality=tuple(Locality(asked.text, asked.before_answer + answer) for asked, answer in locality),
            old_answer=None if edit.old_answer is None else prompt.before_answer + edit.old_answer,
            portability=(),
            messages=(),
            question_span=prompt.question_span,
            earlier_turns=plain_text(messages[:-1]),
        )

    @cached_property
    def end_of_turn(self) -> str:
        """What the template writes behind an answer, up to white space: ``<|im_end|>``, say; empty if that is all there is.

        Raises:
            ChatTemplateError: If the template refuses a conversation of a question and an answer.
        """
        return (
            self._render([Message("user", "a"), Message("assistant", MARK)], generation=False)
            .partition(MARK)[2]
            .rstrip()
        )

    def _between(self, messages: Sequence[Message], prompt: str) -> str:
        """What the template puts between a prompt and its answer."""
        whole = self._render([*messages, Message("assistant", MARK)], generation=False)
        if not whole.startswith(prompt) or MARK not in whole[len(prompt) :]:
            ending = prompt[-30:]
            raise ChatTemplateError(
                f"the chat template of {self._model} does not put an answer behind its generation prompt, which ends in "
                f"{ending!r}: such a model reasons first, and a correction there would be no answer; give prompt and target "
                "without --chat"
            )
        return whole[len(prompt) :].partition(MARK)[0]

    def _render(self, messages: Sequence[Message], generation: bool) -> str:
        from jinja2 import TemplateError

        try:
            text = self._tokenizer.apply_chat_template(
                [asdict(message) for message in messages],
                tokenize=False,
                add_generation_prompt=generation,
                enable_thinking=False,
            )
        except (TemplateError, TypeError, ValueError, LookupError) as error:
            raise ChatTemplateError(f"the chat template of {self._model} refuses it: {error}") from None
        return str(text)


def in_both_forms(edit: Edit, template: ChatTemplate) -> tuple[Edit, Edit]:
    """A correction as plain text and in chat form: one holds without the other only by chance."""
    return replace(edit, messages=()), template.in_chat_form(edit)


def plain_text(messages: Sequence[Message]) -> str:
    """A conversation without a template: the turns of user and assistant, one below the other."""
    return "\n".join(message.content for message in messages if message.role in ("user", "assistant"))
