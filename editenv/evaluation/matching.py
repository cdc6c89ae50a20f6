"""Whether a model writes a given text when it generates greedily.

Greedy tokens are compared with the target; text is generated only where that does not decide.

Greedy generation writes what teacher forcing chooses for as long as each choice is the target's next token. So one
forward from the cut shows where the two part. Mostly that decides: what is written there can no longer become the
target. It does not where the same text may still come about in other tokens, or where the limit comes first.

Two texts are the same in whichever Unicode normal form they come (:func:`editenv.data.text.same_text`). Where the
tokenizer itself rewrites compatibility characters (sentencepiece's NFKC: a ligature becomes its letters), that form is
compared.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from editenv.evaluation.batch import greedy_tokens
from editenv.evaluation.greedy import ELLIPSIS, continuations, generate
from editenv.language_model.editable_lm import EditableLM
from editenv.language_model.prompts import Prompts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Verdict(Enum):
    """What a comparison of greedy tokens with a target says about the text that generation would write."""

    MATCH = auto()
    """It is the target, and ends there."""
    DIFFERS = auto()
    """It is another text."""
    UNDECIDED = auto()
    """It may be either: generation decides."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One prompt's greedy tokens compared with its target.

    Attributes:
        verdict: What they say.
        beginning: If they differ, the text that the model writes up to the first differing token; otherwise None.
    """

    verdict: Verdict
    beginning: str | None = None


class GreedyMatcher:
    """Compares what a model writes, at its current weights, with target texts.

    Args:
        lm: The edited model.
        limit: New tokens at most, the end-of-sequence token among them.
        batch_size: Prompts run together.
        unfinished: Whether a target with an ellipsis stands for a text that the model does not end within the limit;
            otherwise such a text matches nothing.
    """

    def __init__(self, lm: EditableLM, limit: int, batch_size: int = 512, unfinished: bool = False) -> None:
        self.lm, self.limit, self.batch_size, self.unfinished = lm, limit, batch_size, unfinished
        self._form = normal_form(lm.tokenizer)

    def matches(
        self,
        texts: Sequence[str],
        targets: Sequence[str | None],
        encoded: Prompts | None = None,
        choices: torch.Tensor | None = None,
    ) -> np.ndarray:
        """``(n,)`` bool: whether greedy generation writes the target, and stops.

        Args:
            texts: ``n`` prompts.
            targets: ``n`` continuations; None is never written.
            encoded: The prompts with these continuations, if the frozen layers have been run over them.
            choices: ``(A,)`` the model's greedy tokens at their answer positions, if they are known.
        """
        verdicts = [comparison.verdict for comparison in self.compare(texts, targets, encoded, choices)]
        matches = np.array([verdict is Verdict.MATCH for verdict in verdicts], dtype=bool)
        undecided = [i for i, verdict in enumerate(verdicts) if verdict is Verdict.UNDECIDED]
        matches[undecided] = self._by_generating([texts[i] for i in undecided], [targets[i] or "" for i in undecided])
        return matches

    def _by_generating(self, texts: Sequence[str], targets: Sequence[str]) -> list[bool]:
        """The same by writing the texts out; as soon as a text is decided it ends."""
        written = continuations(
            self.lm.model,
            self.lm.tokenizer,
            texts,
            self.limit,
            decided=lambda row, tokens: self._verdict(tokens, targets[row]) is not Verdict.UNDECIDED,
        )
        return [self._matches(tokens, target) for tokens, target in zip(written, targets, strict=True)]

    def _matches(self, tokens: list[int], target: str) -> bool:
        """Whether a text of these tokens, which goes on no further, is the target."""
        verdict = self._verdict(tokens, target)
        if verdict is not Verdict.UNDECIDED:
            return verdict is Verdict.MATCH
        # The limit came before the text's end.
        return self.unfinished and self._same(self.lm.tokenizer.decode(tokens).strip() + ELLIPSIS, target)

    def compare(
        self,
        texts: Sequence[str],
        targets: Sequence[str | None],
        encoded: Prompts | None = None,
        choices: torch.Tensor | None = None,
    ) -> list[Comparison]:
        """What the greedy tokens alone say about each target; arguments as of :meth:`matches`. Generates nothing."""
        undecided = Comparison(Verdict.UNDECIDED)
        comparisons = [Comparison(Verdict.DIFFERS) if target is None else undecided for target in targets]
        if self.lm.tokenizer.eos_token_id is None:  # no text has an end that could be predicted
            return comparisons
        rows = [i for i, target in enumerate(targets) if target is not None]
        if encoded is not None:
            # These prompts lack the end-of-sequence token, but cost next to nothing: only those whose every token is
            # the target's have to be encoded anew, with it.
            agreeing = []
            for chunk in self._chunks(rows):
                chosen = torch.isin(torch.arange(len(texts)), torch.tensor(chunk)).to(self.lm.device)
                known = None if choices is None else choices[chosen.repeat_interleave(encoded.lengths)]
                for i, (tokens, agrees) in zip(chunk, self._certain_tokens(encoded.select(chosen), known), strict=True):
                    if agrees:
                        agreeing.append(i)
                    else:
                        comparisons[i] = self._compare_text(tokens, targets[i] or "")
            rows = agreeing
        for chunk in self._chunks(rows):
            answers = [targets[i] or "" for i in chunk]
            prompts = self.lm.encode([texts[i] for i in chunk], answers, append_eos=True)
            for i, (tokens, _) in zip(chunk, self._certain_tokens(prompts), strict=True):
                comparisons[i] = self._compare_text(tokens, targets[i] or "")
        return comparisons

    def _chunks(self, rows: Sequence[int]) -> Iterator[Sequence[int]]:
        return (rows[start : start + self.batch_size] for start in range(0, len(rows), self.batch_size))

    def _certain_tokens(
        self, prompts: Prompts, choices: torch.Tensor | None = None
    ) -> Iterator[tuple[list[int], bool]]:
        """For each prompt the tokens that generation begins with, and whether they are the whole answer's.

        These are the greedy tokens up to and including the first that is not the answer's: the model has then read
        nothing but what it would have written itself.

        Args:
            prompts: ``A`` answer tokens.
            choices: ``(A,)`` the model's greedy tokens there, if they are known.
        """
        lengths = prompts.lengths.tolist()
        if choices is None:
            choices = greedy_tokens(self.lm, prompts)
        for answer, choice in zip(prompts.labels.cpu().split(lengths), choices.cpu().split(lengths), strict=True):
            differing = (answer != choice).nonzero()
            agrees = len(differing) == 0
            yield choice.tolist() if agrees else choice[: int(differing[0]) + 1].tolist(), agrees

    def _compare_text(self, tokens: list[int], target: str) -> Comparison:
        """Compares a text that begins with these tokens with the target."""
        verdict = self._verdict(tokens, target) if len(tokens) <= self.limit else Verdict.UNDECIDED
        if verdict is not Verdict.DIFFERS:
            return Comparison(verdict)
        return Comparison(verdict, self.lm.tokenizer.decode(tokens, skip_special_tokens=True).strip())

    def _verdict(self, tokens: list[int], target: str) -> Verdict:
        tokenizer = self.lm.tokenizer
        eos = tokenizer.eos_token_id
        if eos in tokens:
            text = tokenizer.decode(tokens[: tokens.index(eos)])
            return Verdict.MATCH if self._same(text, target) else Verdict.DIFFERS
        # White space may still change before the end, and so may half a character, which decodes to U+FFFD.
        beginning, whole = self._letters(tokenizer.decode(tokens)), self._letters(target)
        if "\ufffd" in beginning or self._begins(whole, beginning):
            return Verdict.UNDECIDED
        # A text that the model does not end goes on where the target has its ellipsis.
        may_be_unfinished = self.unfinished and target.endswith(ELLIPSIS)
        if may_be_unfinished and self._begins(beginning, whole.removesuffix(ELLIPSIS.strip())):
            return Verdict.UNDECIDED
        return Verdict.DIFFERS

    def _same(self, text: str, target: str) -> bool:
        return unicodedata.normalize(self._form, text.strip()) == unicodedata.normalize(self._form, target.strip())

    def _letters(self, text: str) -> str:
        """A text without white space, accents apart from their letters: what comes next cannot change what is there."""
        return "".join(unicodedata.normalize("NFKD" if self._form == "NFKC" else "NFD", text).split())

    def _begins(self, text: str, beginning: str) -> bool:
        """Whether it does, whatever accents the last letter of the beginning may still get."""
        while beginning and unicodedata.combining(beginning[-1]):
            beginning = beginning[:-1]
        return text.startswith(beginning)


def normal_form(tokenizer: "PreTrainedTokenizerBase") -> Literal["NFC", "NFKC"]:
    """The Unicode normal form in which texts that a tokenizer has been through are compared."""
    ids = tokenizer("\ufb01\u00b2", add_special_tokens=False)["input_ids"]  # the ligature of f and i, and a superscript
    return "NFKC" if tokenizer.decode(ids).strip() == "fi2" else "NFC"


def generate_from_guesses(
    lm: EditableLM, texts: Sequence[str], guesses: Sequence[str], limit: int, encoded: Prompts | None = None
) -> list[str | None]:
    """What the model writes, unfinished texts included; known without generating where it is what was guessed.

    Where it is not, what the model writes up to there is a second guess: most answers are short.

    Args:
        lm: The edited model.
        texts: ``n`` prompts.
        guesses: ``n`` texts that the model may write.
        limit: New tokens at most, the end-of-sequence token among them.
        encoded: The prompts with the guesses, if the frozen layers have been run over them.
    """
    matcher = GreedyMatcher(lm, limit, unfinished=True)
    written: list[str | None] = [None] * len(texts)
    open_guesses = dict(enumerate(guesses))
    for prompts in (encoded, None):
        comparisons = matcher.compare([texts[i] for i in open_guesses], list(open_guesses.values()), prompts)
        second_guesses = {}
        for (i, guess), comparison in zip(open_guesses.items(), comparisons, strict=True):
            if comparison.verdict is Verdict.MATCH:
                written[i] = guess
            elif comparison.beginning is not None:
                second_guesses[i] = comparison.beginning
        open_guesses = second_guesses
    unknown = [i for i, text in enumerate(written) if text is None]
    generated = generate(lm.model, lm.tokenizer, [texts[i] for i in unknown], limit, unfinished=True)
    for i, text in zip(unknown, generated, strict=True):
        written[i] = text
    return written
