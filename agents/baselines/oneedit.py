"""OneEdit (Zhang et al. 2024): a graph of facts says what a new one contradicts, and that is rolled back first."""

import copy
import json
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import torch

from agents.base import Observation
from agents.baselines.rag import RAG, with_entries
from editenv.arguments import PositiveInt, between
from editenv.data import Edit
from editenv.data.text import comparable
from editenv.env import Action, LifelongEditEnv

Slot = tuple[str, str]
"""What an edge of the graph is found by: a subject and a relation."""

STATE = "resolved"
"""Name of a batch's state: its facts as the bytes of JSON."""


def slot_of(edit: Edit) -> Slot:
    """The subject of an edit and its relation; where that is not known, the question with ``{}`` for the subject.

    An edit without a subject has the whole question for its relation.
    """
    subject = comparable(edit.subject or "")
    template = comparable(edit.question)
    if subject:
        template = template.replace(subject, "{}", 1)
    return subject, edit.relation or template


class Graph:
    """Edges ``(subject, relation) -> object``, each with the prompts that it was edited by.

    Attributes:
        objects: By slot, the object of each prompt; of a slot all are the same.
    """

    def __init__(self) -> None:
        self.objects: dict[Slot, dict[str, str]] = {}

    def resolve(self, slot: Slot, prompt: str, target: str) -> list[str]:
        """Takes a fact in, and gives the prompts whose edits are to be rolled back, as they say something else."""
        prompts = self.objects.setdefault(slot, {})
        contradicting = [other for other, said in prompts.items() if comparable(said) != comparable(target)]
        for other in contradicting:
            del prompts[other]
        prompts[prompt] = target
        return [other for other in contradicting if other != prompt]


class OneEdit(RAG):
    """Resolves each edit against the earlier ones, rolls back those that it contradicts, and hands it to an editor.

    The knowledge is a graph, ``(subject, relation) -> object``. An edit whose subject and relation are there with
    another object is a conflict: the earlier edits of that edge are rolled back, in whatever words they were made, and
    the new one is made. The editor is RAG, in which an edit is an entry of its own, so that a roll-back is exact. (Over
    a method that changes weights, :func:`agents.editing.resolution.edit_resolved` does the same by the journal.)

    Precomputes the background alone; needs the edits' prompts and targets, and finds more with their subjects and
    relations.

    Args:
        retriever, nearest, threshold, background: As RAG takes them.
    """

    independent_batches = False

    def __init__(
        self,
        retriever: str = "words",
        nearest: PositiveInt = 1,
        threshold: Annotated[float, between(-1, 1)] = 0.5,
        background: bool | Literal["package"] | None = None,
    ) -> None:
        super().__init__(retriever, nearest, threshold, background=background)

    def begin(self, env: LifelongEditEnv) -> None:
        super().begin(env)
        self._graph = self._graph_before = Graph()
        self._facts: list[tuple[Slot, str, str]] = []

    def act(self, observation: Observation, info: dict[str, Any]) -> Action:
        self._graph_before, self._graph = self._graph, copy.deepcopy(self._graph)
        edits = self._env.batch
        self._facts = [(slot_of(edit), edit.prompt, edit.target) for edit in edits]
        rolled_back = self._resolve(self._facts)
        made = {edit.prompt: self.text_of(edit) for edit in edits if edit.prompt not in rolled_back}
        return with_entries(observation, self.context(dict.fromkeys(rolled_back, "") | made))

    def _resolve(self, facts: Iterable[tuple[Slot, str, str]]) -> list[str]:
        """The prompts whose edits are gone once these facts are in the graph; within a batch, the later one holds."""
        rolled_back: dict[str, None] = {}
        for slot, prompt, target in facts:
            rolled_back.pop(prompt, None)
            rolled_back |= dict.fromkeys(self._graph.resolve(slot, prompt, target))
        return list(rolled_back)

    def revert_batch(self) -> None:
        self._graph, self._facts = self._graph_before, []

    def batch_state(self) -> dict[str, torch.Tensor]:
        if not self._facts:
            return {}
        return {STATE: torch.frombuffer(bytearray(json.dumps(self._facts).encode()), dtype=torch.uint8)}

    def load_batch_state(self, state: dict[str, torch.Tensor]) -> None:
        if STATE in state:
            facts = json.loads(state[STATE].cpu().numpy().tobytes())
            self._resolve(((slot[0], slot[1]), prompt, target) for slot, prompt, target in facts)
