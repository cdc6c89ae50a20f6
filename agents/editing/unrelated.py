"""Questions that no correction is about, and whether an edited model answers them as the unedited one does.

A file of corrections seldom says what must stay. So the editor asks by itself:

* general questions, which ship with it;
* the corrections' own words about other subjects, where the subject is known: an edit that is too broad shows there;
* something else about the corrected subjects;
* the file's own locality prompts, if it has some;
* the general questions in a chat, if corrections were made in one.

An answer has changed if its first :data:`COMPARED` tokens are others *and* the old ones have become unlikely, by a
factor of :data:`UNLIKELY`. A model that was undecided between two wordings says the other one after the least change of
its weights; that is counted by itself, as reworded.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import torch

from editenv.data import Edit
from editenv.data.chat import ChatTemplate
from editenv.data.edits import Message
from editenv.data.text import comparable
from editenv.evaluation.greedy import continuations
from editenv.evaluation.metrics import mean_log_probs
from editenv.language_model.editable_lm import EditableLM
from editenv.language_model.prompts import asked

COMPARED = 5
"""Tokens of an answer that are compared."""

UNLIKELY = 10.0
"""Factor by which the probability of the old answer's compared tokens must have fallen."""

SHOWN = 16
"""Tokens of an answer that are shown."""

MOST = 40
"""Questions of one kind, spread evenly over the corrections."""

Kind = Literal["general", "another subject", "the same subject", "locality", "in a chat"]

GENERAL = (
    "The capital of France is",
    "The capital of Japan is",
    "The largest planet in the solar system is",
    "The Earth goes around the",
    "Water is made of hydrogen and",
    "Water freezes at",
    "The opposite of hot is",
    "The opposite of left is",
    "The first month of the year is",
    "The day after Monday is",
    "A week has seven",
    "An hour has sixty",
    "Two plus two is",
    "Ten minus three is",
    "The color of the sky is",
    "Grass is usually the color",
    "Snow is usually the color",
    "A triangle has three",
    "A baby dog is called a",
    "A baby cat is called a",
    "Bees make",
    "Cows give us",
    "Bread is made from",
    "Fish live in the",
    "Birds use their wings to",
    "We see with our",
    "We hear with our",
    "The heart pumps",
    "Romeo and Juliet was written by William",
    "The author of Hamlet is William",
    "The theory of relativity was developed by Albert",
    "The Mona Lisa was painted by Leonardo",
    "The first president of the United States was George",
    "The Great Wall is in",
    "The Eiffel Tower is in the city of",
    "The Nile is a river in",
    "The Pacific is the largest",
    "People in Spain speak",
    "People in Germany speak",
    "The currency of the United States is the",
)

OTHER_SUBJECTS = ("Albert Einstein", "Paris", "Microsoft", "the Amazon River", "Leonardo da Vinci", "Toyota", "Japan")
"""Subjects that are put in a correction's place: of several kinds, for nobody says which one a correction needs."""

ABOUT_SUBJECT = ("{} is", "{} is known for", "The name {} comes from")


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one question.

    Attributes:
        kind: Why it was asked.
        prompt: The question; without the template where it was asked in a chat.
        before: The unedited model's answer, up to :data:`SHOWN` tokens.
        now: The edited model's.
        reworded: Whether the first :data:`COMPARED` tokens differ.
        less_likely: Factor by which the old ones' probability has fallen; below 1 if it has risen.
    """

    kind: Kind
    prompt: str
    before: str
    now: str
    reworded: bool
    less_likely: float

    @property
    def changed(self) -> bool:
        """Whether the model would hardly say any more what it said."""
        return self.reworded and not self.less_likely < UNLIKELY  # NaN is a change

    def as_row(self) -> dict[str, object]:
        """For a file."""
        return asdict(self) | {"reworded": self.reworded and not self.changed, "changed": self.changed}


def questions(edits: Sequence[Edit]) -> list[tuple[Kind, str]]:
    """What is asked beside these corrections: at most :data:`MOST` questions of each kind, none that is one of them."""
    edits = [edit for edit in edits if edit.question_span is None]  # its plain form asks the same
    corrected = {comparable(text).casefold() for edit in edits for text in (edit.prompt, *edit.rephrases)}
    chosen: list[tuple[Kind, str]] = []
    seen = set(corrected)
    kinds: tuple[tuple[Kind, Iterator[str]], ...] = (
        ("locality", (item.prompt for edit in edits for item in edit.locality)),
        ("another subject", _about_others(edits)),
        ("the same subject", _about_subjects(edits)),
        ("general", iter(GENERAL)),
    )
    for kind, prompts in kinds:
        new = []
        for prompt in prompts:
            key = comparable(prompt).casefold()
            if key not in seen:
                seen.add(key)
                new.append(prompt)
        chosen += [(kind, prompt) for prompt in _evenly(new, MOST)]
    return chosen


def _about_others(edits: Sequence[Edit]) -> Iterator[str]:
    """Each correction's prompt with another subject in the place of its own."""
    corrected = {comparable(edit.subject or "").casefold() for edit in edits}
    others = [subject for subject in OTHER_SUBJECTS if comparable(subject).casefold() not in corrected]
    for number, edit in enumerate(edits):
        if edit.subject and edit.subject in edit.prompt and others:
            yield edit.prompt.replace(edit.subject, others[number % len(others)], 1)


def _about_subjects(edits: Sequence[Edit]) -> Iterator[str]:
    """Something else about each correction's subject."""
    for number, edit in enumerate(edits):
        if edit.subject:
            yield ABOUT_SUBJECT[number % len(ABOUT_SUBJECT)].format(edit.subject)


def _evenly(items: list[str], most: int) -> list[str]:
    """At most so many of them, at equal distances."""
    if len(items) <= most:
        return items
    return [items[i * len(items) // most] for i in range(most)]


@torch.no_grad()
def answers(lm: EditableLM, edits: Sequence[Edit]) -> list[Answer]:
    """Asks the unedited and the edited model.

    Args:
        lm: The edited model.
        edits: The corrections that were made.
    """
    chosen = questions(edits)
    prompts = [prompt for _, prompt in chosen]
    if any(edit.question_span is not None for edit in edits):
        template = ChatTemplate(lm.tokenizer, "the model")
        chosen += [("in a chat", question) for kind, question in chosen if kind == "general"]
        prompts += [template.prompt([Message("user", question)]).text for _, question in chosen[len(prompts) :]]
    with lm.at_initial_weights():
        before = continuations(lm.model, lm.tokenizer, prompts, SHOWN)
    now = continuations(lm.model, lm.tokenizer, prompts, SHOWN)
    heads = lm.tokenizer([asked(prompt) for prompt in prompts])["input_ids"] if prompts else []
    old_answers = lm.encode_tokens(
        [(head, old[:COMPARED]) for head, old in zip(heads, before, strict=True)], reuse=False
    )
    with lm.at_initial_weights():
        were = mean_log_probs(lm, old_answers)
    fall = ((were - mean_log_probs(lm, old_answers)) * old_answers.lengths).exp().tolist()

    def text(tokens: list[int]) -> str:
        return str(lm.tokenizer.decode(tokens, skip_special_tokens=True)).strip()

    return [
        Answer(kind, prompt, text(old), text(new), old[:COMPARED] != new[:COMPARED], less_likely)
        for (kind, prompt), old, new, less_likely in zip(chosen, before, now, fall, strict=True)
    ]
