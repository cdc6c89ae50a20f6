"""LTE (Jiang et al. 2024): a model that was trained once to go by a correction that stands before a question."""

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from agents.base import Observation, ProgressCallback
from agents.baselines.kept_network import train_once
from agents.baselines.rag import FORM, RAG
from agents.baselines.target_loss import negative_log_likelihood
from agents.covariance import training_edits
from editenv.arguments import NonNegativeFloat, PositiveFloat, PositiveInt, between
from editenv.contexts import Context, set_context
from editenv.data import Edit
from editenv.env import Action, LifelongEditEnv
from editenv.language_model.editable_lm import EditableLM, Gradient
from editenv.language_model.prompts import Prompts
from editenv.memories import Memory


@dataclass(frozen=True)
class ReadingConfig:
    """How a model is trained to read corrections.

    Attributes:
        epochs: Over the training edits.
        mini_batch: Training edits in a step.
        learning_rate: Adam's at the first step; it falls to nothing along a line.
        locality: Weight of what must stay.
    """

    epochs: PositiveInt = 1
    mini_batch: PositiveInt = 16
    learning_rate: PositiveFloat = 1e-4
    locality: NonNegativeFloat = 3.0


class LTE(RAG):
    """RAG, and with its first action the model is changed so that it goes by what is put before a question.

    That change is trained on training edits, as if all of them had been made and stood in the context. With ``c(x)`` the
    question ``x`` and what the retriever puts before it, a step of Adam on a mini-batch goes down

        mean over prompts and rephrases x of     -log p(target | c(x))
        + locality * mean over locality prompts x of  KL(p_theta0(. | x) || p_theta(. | c(x)))
        + locality * mean over prompts x of           KL(p_theta0(. | x) || p_theta(. | x))

    with token means of the answers. The second line teaches to pass over a correction that a question is not about; the
    third leaves what is asked without one as it was. No edit of the stream is seen: every later action is RAG's.

    Differences to the paper, which trains on data made for it: the training edits are the data set's; the weights of
    the edited modules are trained, not all of them or adapters of all layers; the retriever is RAG's.

    Precomputes the change; needs training edits with rephrases and locality prompts, the edits' prompts and targets,
    and looks at the model to see whether the change is there.

    Args:
        retriever, nearest, threshold, form, background: As :class:`agents.baselines.rag.RAG` has them; the background is
            that of the training edits, which are there.
        reading: The training.
    """

    changes = ("weights", "context")
    learns = True
    looks_at_model = True
    independent_batches = False  # the first one has what the others are read with
    default_background = True
    gated = False  # whether the change holds only where a correction stands before the question
    default_reading = ReadingConfig()

    def __init__(
        self,
        retriever: str = "words",
        nearest: PositiveInt = 1,
        threshold: Annotated[float, between(-1, 1)] = 0.5,
        form: str = FORM,
        background: bool | Literal["package"] | None = None,
        reading: ReadingConfig | None = None,
    ) -> None:
        super().__init__(retriever, nearest, threshold, form, background)
        self.reading = reading or self.default_reading

    def prepare(self, env: LifelongEditEnv, seed: int, progress: ProgressCallback) -> None:
        """Trains the change.

        Raises:
            ValueError: If no training edit has a rephrase, or none a locality prompt.
        """
        super().prepare(env, seed, progress)
        edits = list({edit.prompt: edit for edit in training_edits(env)}.values())  # of a prompt, the latest
        if not any(edit.rephrases for edit in edits) or not any(edit.locality for edit in edits):
            raise ValueError("lte: the model is trained on edits with rephrases and with locality prompts")
        lm = env.language_model
        self._change = Change(self.reading, {name: lm.shape(name) for name in lm.modules})
        context = self.context({edit.prompt: self.text_of(edit) for edit in edits})
        context = replace(context, background={}, background_texts=0)  # the keys are that background themselves
        config: dict[str, Any] = {
            "lte": asdict(self.reading),
            "retriever": [self.retriever, self.nearest, self.threshold, self.form],
        }
        if self.gated:
            config["gated"] = True
        train_once(
            self,
            self._change,
            env,
            seed,
            config,
            lambda: train(self._change, lm, edits, context, seed, progress, self.gated),
        )

    def act(self, observation: Observation, info: dict[str, Any]) -> Action:
        action: dict[str, Any] = {**super().act(observation, info)}
        lm = self._env.language_model
        return action if self._changed(lm) else action | self._as_action(lm)

    def _changed(self, lm: EditableLM) -> bool:
        """Whether the change is there."""
        return any(not torch.equal(lm.weight(name), lm.initial_weight(name).float()) for name in lm.modules)

    def _as_action(self, lm: EditableLM) -> dict[str, Any]:
        """The change, by module."""
        return {name: delta.detach().to(lm.device) for name, delta in self._change.deltas().items()}


class GatedLTE(LTE):
    """LTE whose change holds only where a correction stands before the question.

    Every other question is answered by theta_0, bit for bit: what has a correction before it is read by a second model,
    SERAC's counterfactual model (Mitchell et al. 2022), which shares all but the edited modules' weights with the first.
    So the training has nothing to keep that is asked without one: the last line of LTE's loss is not there, and of the
    second only the prompts that the retriever puts a correction before. The mean over them is over all locality prompts,
    as in LTE.

    The change is a side memory of each edited module, with the gate ``context``; a module has one memory at most.
    """

    changes = ("side memory", "context")
    gated = True
    default_reading = ReadingConfig(epochs=2, learning_rate=2e-4)

    def prepare(self, env: LifelongEditEnv, seed: int, progress: ProgressCallback) -> None:
        """Trains the change.

        Raises:
            ValueError: As :meth:`LTE.prepare` does, or if an edited module has a memory already, which would be lost.
        """
        with env.language_model.at_initial_weights():
            for name in env.language_model.memories:
                raise ValueError(f"lte-gated: {name} has a memory already, in whose place this one would be put")
        super().prepare(env, seed, progress)

    def _changed(self, lm: EditableLM) -> bool:
        matrices = super()._as_action(lm)
        return all(
            name in lm.memories
            and lm.memories[name].gate == "context"
            and torch.equal(lm.memories[name].sum_of_values.to(matrix), matrix)
            for name, matrix in matrices.items()
        )

    def _as_action(self, lm: EditableLM) -> dict[str, Any]:
        matrices = super()._as_action(lm)
        return {name: Memory("context", m.new_zeros(1, 0), m[None], m.new_zeros(1)) for name, m in matrices.items()}


class Change(nn.Module):
    """What is added to the weights of the edited modules; nothing at first.

    Args:
        config: Of its training.
        shapes: ``(d_in, d_out)`` of each module.
    """

    def __init__(self, config: ReadingConfig, shapes: Mapping[str, tuple[int, int]]) -> None:
        super().__init__()
        self.config, self.shapes = config, dict(shapes)
        self.parts = nn.ParameterList(torch.zeros(shape) for shape in shapes.values())

    def deltas(self) -> dict[str, torch.Tensor]:
        """``(d_in, d_out)`` for each module."""
        return dict(zip(self.shapes, self.parts, strict=True))


def train(
    change: Change,
    lm: EditableLM,
    edits: Sequence[Edit],
    context: Context,
    seed: int,
    progress: ProgressCallback,
    gated: bool = False,
) -> None:
    """Trains the change; the model is as it was afterwards.

    Args:
        change: As it begins.
        lm: The model.
        edits: To learn from; no two of one prompt.
        context: With all of them.
        seed: Of the order in which they come.
        progress: Called after each step.
        gated: As :func:`reading_gradients` has it.
    """
    config, draws, edits = change.config, random.Random(seed), list(edits)
    optimizer = torch.optim.Adam(change.parameters())
    steps = config.epochs * -(-len(edits) // config.mini_batch)
    done = 0
    start = {name: lm.weight(name).clone() for name in lm.modules}
    with lm.unchanged():
        for _ in range(config.epochs):
            draws.shuffle(edits)
            for first in range(0, len(edits), config.mini_batch):
                some = edits[first : first + config.mini_batch]
                loss, gradients = reading_gradients(lm, some, context, config, gated)
                optimizer.param_groups[0]["lr"] = config.learning_rate * (1 - done / steps)
                for name, delta in change.deltas().items():
                    delta.grad = gradients[name].dense().to(delta.device)
                optimizer.step()
                lm.assign({name: start[name] + delta.detach().to(lm.device) for name, delta in change.deltas().items()})
                done += 1
                progress(f"learning to read corrections (loss {float(loss):.2f})", done, steps)


def reading_gradients(
    lm: EditableLM, edits: Sequence[Edit], context: Context, config: ReadingConfig, gated: bool = False
) -> tuple[torch.Tensor, dict[str, Gradient]]:
    """The loss of some training edits, at the weights as they are, and its gradient in factors.

    Args:
        lm: The model.
        edits: A mini-batch.
        context: In which they and others stand.
        config: The weight of what must stay.
        gated: Whether what is asked without a text before it is answered at theta_0, and so is not part of the loss.
    """
    told = _encode(lm, [(text, edit.target) for edit in edits for text in (edit.prompt, *edit.rephrases)])
    others = _encode(lm, [(item.prompt, item.answer) for edit in edits for item in edit.locality])
    plain = _encode(lm, [(edit.prompt, edit.target) for edit in edits])
    count, kept = len(told), Prompts.join([others, plain])
    shares = torch.cat([_shares(others), _shares(plain)])
    with _context_of(lm, context):
        told, still_asked = lm.in_context(told), Prompts.join([lm.in_context(others), plain])
    if gated:
        told, still_told = told.select(_with_text(told)), _with_text(still_asked)
        shares = shares[still_told[kept.prompt_index]]
        kept, still_asked = kept.select(still_told), still_asked.select(still_told)
    with lm.at_initial_weights():
        before = lm.logits(kept).log_softmax(-1)
    asked = Prompts.join([told, still_asked])
    answer_tokens = len(told.labels)
    said = negative_log_likelihood(told, count)

    def loss(logits: torch.Tensor) -> torch.Tensor:
        divergence = F.kl_div(logits[answer_tokens:].log_softmax(-1), before, reduction="none", log_target=True).sum(-1)
        return said(logits[:answer_tokens]) + config.locality * (shares * divergence).sum()

    with _context_of(lm, None):
        return lm.gradients(asked, loss, "all")


def _encode(lm: EditableLM, pairs: Sequence[tuple[str, str]]) -> Prompts:
    return lm.encode([prompt for prompt, _ in pairs], [answer for _, answer in pairs])


def _with_text(prompts: Prompts) -> torch.Tensor:
    """``(B,)`` bool: which have a text of the context before them."""
    none = torch.zeros_like(prompts.lengths, dtype=torch.bool)
    return none if prompts.with_text is None else prompts.with_text.to(none.device)


def _shares(prompts: Prompts) -> torch.Tensor:
    """``(A,)`` of each answer token in the mean over prompts of the mean over tokens."""
    return 1 / (max(1, len(prompts)) * prompts.lengths[prompts.prompt_index])


@contextmanager
def _context_of(lm: EditableLM, context: Context | None) -> Iterator[None]:
    """Within it that is the model's context."""
    before = lm.context
    set_context(lm.model, context)
    try:
        yield
    finally:
        set_context(lm.model, before)
