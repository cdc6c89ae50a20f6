"""Knowledge Neurons (Dai et al. 2022): the neurons that an old answer comes from are found by integrated gradients, and
what they write is turned from it to the new one.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from agents.base import Agent, Observation
from agents.baselines.memit import refuse_modules_inside
from agents.baselines.values import refuse_train_eos
from editenv.arguments import NonNegativeFloat, PositiveInt, PositiveShare
from editenv.data import Edit
from editenv.deltas import LowRank
from editenv.env import Action, LifelongEditEnv
from editenv.language_model.editable_lm import EditableLM
from editenv.language_model.hooks import hooked
from editenv.language_model.prompts import Prompts


class Neurons(NamedTuple):
    """What an edited module's neurons did for the old answers of ``n`` edits.

    Attributes:
        attributions: ``(n, d_in)``, in units of probability.
        activations: ``(n, d_in)``.
    """

    attributions: torch.Tensor
    activations: torch.Tensor


def attribute(lm: EditableLM, edits: Sequence[Edit], steps: int) -> dict[str, Neurons]:
    """How much of each old answer's probability comes from each neuron (eq. 2).

    The neurons are an edited module's inputs w at the token before an answer token y, and

        Attr(w_i) = w_i / m  sum_{k=1..m}  d P(y | k w / m) / d w_i

    with all inputs of that one module scaled together. Of an answer of several tokens both are means over them, each
    token after those before it.

    Args:
        lm: The model, at its current weights.
        edits: ``n`` edits with their old answers.
        steps: m.

    Returns:
        By edited module what its neurons did.

    Raises:
        ValueError: If an edit has no old answer; names it.
    """
    pairs = lm.tokenize([edit.prompt for edit in edits], [old_answer(edit) for edit in edits])
    before = [prompt + answer[:k] for prompt, answer in pairs for k in range(len(answer))]
    labels = [token for _, answer in pairs for token in answer]
    lengths = torch.tensor([len(answer) for _, answer in pairs])
    shapes = {name: (len(edits), lm.shape(name)[0]) for name in lm.modules}
    sums = {n: Neurons(*(torch.zeros(shape, device=lm.device) for _ in range(2))) for n, shape in shapes.items()}
    edit_of_token = torch.arange(len(edits)).repeat_interleave(lengths)
    for length in sorted({len(tokens) for tokens in before}):  # of one length, the last token is the last column
        chosen = [i for i, tokens in enumerate(before) if len(tokens) == length]
        prompts = lm.encode_tokens([(before[i], [labels[i]]) for i in chosen])
        for name, summed in sums.items():
            index = edit_of_token[chosen].to(lm.device)
            for total, values in zip(summed, _attribute_module(lm, prompts, name, steps), strict=True):
                total.index_add_(0, index, values)
    counts = lengths.to(lm.device)[:, None]
    return {name: Neurons(*(total / counts for total in summed)) for name, summed in sums.items()}


def _attribute_module(lm: EditableLM, prompts: Prompts, name: str, steps: int) -> Neurons:
    """Of one module for ``B`` prompts of equal length, each with an answer of one token."""
    slopes = torch.zeros(len(prompts), lm.shape(name)[0], device=lm.device)
    weight = lm.weight(name)
    for k in range(1, steps + 1):

        def scale(_: nn.Module, arguments: tuple[torch.Tensor, ...], share: float = k / steps) -> tuple[torch.Tensor]:
            (inputs,) = arguments
            scaled = prompts.as_hidden(inputs.clone())
            scaled[:, -1] *= share
            return (scaled.reshape(inputs.shape),)

        with hooked(lm.modules[name].register_forward_pre_hook(scale)):
            _, gradients = lm.gradients(prompts, lambda logits: _probabilities(logits, prompts.labels).sum(), "answers")
        slopes += gradients[name].value_grads @ weight.T
    activations = gradients[name].keys  # of the last step, at which they are not scaled
    return Neurons(activations * slopes / steps, activations)


def _probabilities(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return logits.softmax(-1).gather(1, labels[:, None])


def old_answer(edit: Edit) -> str:
    """What the model answers before the edit.

    Raises:
        ValueError: If the edit does not say; names it.
    """
    if not edit.old_answer:
        raise ValueError(
            f"{edit.id} has no old_answer, which this method looks at; give it one, or choose another method"
        )
    return edit.old_answer


class KN(Agent):
    """Knowledge neurons: a few rows of the output projections turned from the old answer to the new one.

    Of an edit the neurons whose attribution (:func:`attribute`) is above ``threshold`` times the largest of all edited
    modules are its knowledge neurons. The row v of the projection W, (d_in, d_out), that such a neuron writes becomes

        v - old |v_0| t / |t| + new |v_0| t' / |t'|        in the units of the public code

    where v_0 is the row in the unedited model (in the paper, where each fact is edited alone, that is v; along a stream
    rows would grow by a factor with each edit), and t and t' are the embeddings of the old and the new answer; of
    several tokens, the sum over them (as in EasyEdit). The embeddings are those that an output is compared with, the
    rows of the output layer, which in BERT and in many other models are the input's, too.

    The paper keeps neurons that several prompts of a fact share, and drops those that other facts of the relation have
    as well. A request has one prompt, so that neither is done. All edits of a batch are made from the weights before it,
    and add up.

    The paper's neurons, BERT's, are hardly ever negative. In a gated MLP (Llama's) as many are negative as positive, and
    a negative one writes the opposite of its row: with ``signed`` such a row is turned the other way round.

    Precomputes nothing; needs the old answer of every edit.

    Args:
        steps: m of the attribution.
        threshold: Share of the largest attribution.
        old: lambda_1.
        new: lambda_2.
        signed: Turn the row of a neuron by the sign of its activation; not in the paper.
    """

    looks_at_model = True

    def __init__(
        self,
        steps: PositiveInt = 20,
        threshold: PositiveShare = 0.2,
        old: NonNegativeFloat = 1.0,
        new: NonNegativeFloat = 8.0,
        signed: bool = False,
    ) -> None:
        self.steps, self.threshold = steps, threshold
        self.old, self.new, self.signed = old, new, signed

    @property
    def needs(self) -> tuple[str, ...]:
        return (*super().needs, "old_answers")

    def begin(self, env: LifelongEditEnv) -> None:
        refuse_train_eos(env)
        refuse_modules_inside(env.language_model)
        self._env = env

    @torch.no_grad()
    def act(self, observation: Observation, info: dict[str, Any]) -> Action:
        lm, edits = self._env.language_model, self._env.batch
        neurons = attribute(lm, edits, self.steps)
        largest = torch.stack([module.attributions.amax(1) for module in neurons.values()]).amax(0)
        turns = self._turns(lm, edits)
        deltas = {}
        for name, (scores, activations) in neurons.items():
            chosen = (scores > self.threshold * largest[:, None]).float()
            if self.signed:
                chosen *= activations.sign()
            deltas[name] = LowRank((chosen * lm.initial_weight(name).float().norm(dim=1)).T, turns)
        return deltas

    def _turns(self, lm: EditableLM, edits: Sequence[Edit]) -> torch.Tensor:
        """``(n, d_out)`` what is added to a row of length 1 for each edit."""
        embeddings = lm.model.get_output_embeddings().weight
        prompts = [edit.prompt for edit in edits]

        def directions(answers: list[str]) -> torch.Tensor:
            rows = []
            for _, tokens in lm.tokenize(prompts, answers):
                vectors = embeddings[torch.tensor(tokens, device=embeddings.device)].float()
                rows.append(nn.functional.normalize(vectors, dim=1).sum(0))
            return torch.stack(rows).to(lm.device)

        old = directions([old_answer(edit) for edit in edits])
        return self.new * directions([edit.target for edit in edits]) - self.old * old
