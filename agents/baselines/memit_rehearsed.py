"""MEMIT-seq for corrections that must all hold: one value for all facts of a subject, and a second look."""

from collections.abc import Sequence

import torch

from agents.baselines.lookup import Lookup, read_values
from agents.baselines.memit import MEMIT
from agents.baselines.values import LayerValueConfig, ValueConfig, optimise_values
from agents.baselines.weight_training import as_tensor, of_tensor
from editenv.arguments import NonNegativeFloat, PositiveFloat, PositiveInt
from editenv.data import Edit
from editenv.data.text import comparable
from editenv.deltas import LowRank, low_rank_sum
from editenv.env import LifelongEditEnv


class RehearsedMEMIT(MEMIT):
    """MEMIT with the keys of earlier batches in C, and three changes, which are this project's.

    * **One value a subject.** At the last token of the same subject, two facts have nearly the same key, so that least
      squares would write the mean of their two values, and neither holds. Edits of one subject share one change, which
      is searched for all of their targets together.
    * **Rehearsal.** Earlier edits of a batch's subjects are made again with it: otherwise a second fact of a subject
      would take the first one's place.
      Both only where facts are looked up at the subject's last token.
    * **Passes.** The ridge keeps an update short of its values. After an update is applied, the edits whose target is
      not the model's first choice are searched again from there, and the rest is held where it is.

    Defaults were chosen by hand on twelve made-up corrections of SmolLM2-135M, in layers 4, 6 and 8 of 30
    (docs/results/real-model.md).

    Args:
        value: As MEMIT has it; by default 10 steps of 1.0 within 2.25 times the value's length, without prefixes.
        weight, samples, epsilon: As MEMIT has them.
        passes: Searches at most; those after the first are of what does not hold yet.
    """

    def __init__(
        self,
        value: LayerValueConfig | ValueConfig | None = None,
        weight: PositiveFloat = 1000.0,
        samples: PositiveInt = 400,
        epsilon: NonNegativeFloat = 1e-4,
        passes: PositiveInt = 5,
    ) -> None:
        value = value or LayerValueConfig(steps=10, learning_rate=1.0, clamp=2.25, prefixes=0)
        super().__init__(value, weight, samples, epsilon, cache_keys=True)
        self.passes = passes

    def begin(self, env: LifelongEditEnv) -> None:
        super().begin(env)
        self._earlier: dict[str, Edit] = {}  # by prompt; of one that was edited again, the last edit
        self._last_batch: list[Edit] = []

    @torch.no_grad()
    def _write(self, edits: Sequence[Edit]) -> dict[str, LowRank]:
        self._remember(self._finished, self._last_batch)  # of the batch before, which has stayed
        self._finished, self._last_batch = {}, []
        lm = self._env.language_model
        rehearsed = [*edits, *self._earlier_of_subjects(edits)]
        lookup = self._look_up(rehearsed)
        updates: dict[str, list[LowRank]] = {name: [] for name in lm.modules}
        with lm.unchanged():
            for _ in range(self.passes):
                not_said = self._not_said(rehearsed, lookup)
                if not not_said:
                    break
                target_output = self._target_of(rehearsed, lookup, not_said)
                for i, name in enumerate(lm.modules):
                    update = self._towards(name, target_output, lookup, len(lm.modules) - i)
                    lm.apply({name: update})
                    updates[name].append(update)
            self._finished, self._last_batch = self._keys(lookup), list(edits)
        return {name: low_rank_sum(parts, lm.shape(name), lm.device) for name, parts in updates.items()}

    def _not_said(self, edits: Sequence[Edit], lookup: Lookup) -> list[int]:
        """Numbers of the edits of whose subject's targets one is not the model's first choice, token by token."""
        prompts = lookup.by_form()[0].prompts
        wrong = self._env.language_model.cut_model.logits(prompts).argmax(-1) != prompts.labels
        missed = set(prompts.prompt_index[wrong].tolist())
        subjects = {self._subject(edits[i]) for i in missed} - {""}
        return [i for i, edit in enumerate(edits) if i in missed or self._subject(edit) in subjects]

    def _target_of(self, edits: Sequence[Edit], lookup: Lookup, searched: list[int]) -> torch.Tensor:
        """``(n, d_out)`` values at the lookup tokens: new ones of the edits that are searched, else what is there."""
        lm, module = self._env.language_model, self._where_values_are
        values = read_values(lm, module, lookup)
        subjects = [self._subject(edits[i]) for i in searched]
        numbers = {subject: number for number, subject in enumerate(subjects)}
        sharing = [numbers[subject] if subject else -i for i, subject in enumerate(subjects, start=1)]
        chosen = [edits[i] for i in searched]
        values[searched] += optimise_values(lm, module, chosen, lookup.edits(searched), self.value, sharing=sharing)
        return values

    def _earlier_of_subjects(self, edits: Sequence[Edit]) -> list[Edit]:
        """Earlier edits about the same subjects; none of a prompt that is edited again."""
        prompts, subjects = {edit.prompt for edit in edits}, {self._subject(edit) for edit in edits} - {""}
        return [e for prompt, e in self._earlier.items() if prompt not in prompts and self._subject(e) in subjects]

    def _subject(self, edit: Edit) -> str:
        """By which edits belong together, as "The Larkfield Museum" and "the Larkfield Museum" do.

        Empty at the prompt's last token, where two facts of a subject have keys of their own.
        """
        return comparable(edit.subject or "").casefold() if self.value.token == "subject_last" else ""

    # -- what is remembered -----------------------------------------------------------------------------------------

    def _remember(self, keys: dict[str, torch.Tensor], edits: Sequence[Edit]) -> None:
        self._absorb(keys)
        self._earlier |= {edit.prompt: edit for edit in edits}

    def revert_batch(self) -> None:
        super().revert_batch()
        self._last_batch = []

    def batch_state(self) -> dict[str, torch.Tensor]:
        subjects = {edit.prompt: edit.subject for edit in self._last_batch if edit.subject}
        targets = {edit.prompt: edit.target for edit in self._last_batch if edit.subject}
        relations = {edit.prompt: edit.relation for edit in self._last_batch if edit.subject and edit.relation}
        spans = {e.prompt: "{} {}".format(*e.question_span) for e in self._last_batch if e.subject and e.question_span}
        texts = {SUBJECTS: subjects, TARGETS: targets, RELATIONS: relations} | ({SPANS: spans} if spans else {})
        return super().batch_state() | {name: as_tensor(of_edits) for name, of_edits in texts.items()}

    def load_batch_state(self, state: dict[str, torch.Tensor]) -> None:
        if not state:
            return
        texts = {name: of_tensor(state[name]) for name in TEXTS if name in state}
        relations, spans = texts.get(RELATIONS, {}), texts.get(SPANS, {})  # states of earlier versions have none
        edits = [
            Edit(
                prompt,
                prompt,
                texts[TARGETS][prompt],
                subject=subject,
                relation=relations.get(prompt),
                question_span=_span_of(spans.get(prompt)),
            )
            for prompt, subject in texts[SUBJECTS].items()
        ]
        self._remember({name: tensor for name, tensor in state.items() if name not in TEXTS}, edits)


def _span_of(text: str | None) -> tuple[int, int] | None:
    """Of a prompt in chat form, whose state has ``start end``, where its question stands."""
    if text is None:
        return None
    start, end = map(int, text.split())
    return start, end


SUBJECTS, TARGETS, RELATIONS, SPANS = TEXTS = ("subjects", "targets", "relations", "spans")
"""Names in a batch's state, beside those of the modules."""
