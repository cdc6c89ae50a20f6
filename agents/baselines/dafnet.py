"""DAFNet (Zhang et al. 2024, "Dynamic Auxiliary Fusion for Sequential Model Editing"): a network over whole
sequences of edits.

Where MEND looks at one token at a time, DAFNet's layers let the tokens of an edit speak to each other
(intra-editing attention), and each edit to all earlier ones (inter-editing attention). How much an edit attends to
itself decides what it counts for, and by
how much everything before it is scaled down: the total delta is a weighted mean of all edits' updates. What the
abstract of the paper leaves open is as in its public code (qizhou000/DAFNet), but for two things. There the weights
carry no gradient, so that the attention behind them never learns; here they do. And there every layer starts at
random; here its branches start at zero, so that a fresh network passes normalised gradients on, as MEND's does, and
needs less training.
"""

import json
import math
import random
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from agents.base import Agent, Observation, ProgressCallback
from agents.baselines.fine_tune import edit_prompts
from agents.covariance import training_edits
from agents.hypernetwork.networks import Normalizer, save_policy
from editenv.data import edits_digest
from editenv.delta_files import fingerprint, frozen_fingerprint
from editenv.deltas import LowRank, inner
from editenv.env import Action, LifelongEditEnv
from editenv.evaluation.batch import LOCALITY, PROMPT, REPHRASE, EvaluationBatch, encode_evaluation
from editenv.language_model.editable_lm import EditableLM, Gradient
from editenv.language_model.prompts import Prompts


@dataclass(frozen=True)
class DAFNetConfig:
    """Network and training. The public configuration is for LLaMA-7B, and its values are given where ours differ."""

    layers: int = 2
    """Fusion layers."""
    token_width: int = 64
    """Hidden width of the intra-editing attention (1024)."""
    attention_width: int = 64
    """Width of an inter-editing head (1024)."""
    score_width: int = 32
    """Width of a head of the attention that weighs edits (256)."""
    heads: int = 2
    """Heads of both."""
    feed_forward: int = 96
    """Hidden width of the feed-forward part (1536)."""
    step_size: float = 10.0
    """Start of lr_m: the change asked of a module's output for a typical gradient, relative to a typical output. An
    edit of n has a share of about 1/n of it.
    """
    learning_rate: float = 1e-3
    """Adam's (1e-6)."""
    scalar_learning_rate: float = 0.03
    """Adam's for the logarithm of the step size (1e-4 for the step size itself)."""
    steps: int = 300
    """Optimiser steps, each on one sequence of edits."""
    reliability: float = 0.1
    """Weight of -log p on the edits' own prompts."""
    generality: float = 0.1
    """Weight of -log p on their rephrases."""
    locality: float = 0.2
    """Weight of the KL divergence from theta_0 on their locality prompts."""
    judged: int = 16
    """Edits of a sequence that the loss is taken on, drawn anew each time (48)."""
    shortest: int = 1
    """Edits in a sequence at least, where the curriculum begins (1). An edit of n counts for about 1/n of the step
    size, so that
    no one step size serves both few and many: what is trained from 1 on does little once there are many."""
    longest: int = 200
    """Where the curriculum ends: edits in a sequence (1000)."""
    patience: int = 30
    """Steps without a better running loss, divided by log10 of the length, after which sequences get longer (3000)."""
    growth: float = 0.25
    """By which share of their length they do, but by 10 at least."""
    loss_decay: float = 0.03
    """Of the running loss (0.01)."""
    gradient_clip: float = 100.0
    """Largest norm of the gradient."""
    warm_up_edits: int = 500
    """Edits that the normaliser and the units come from. The public code lets the normaliser go on while it trains."""

    def __post_init__(self) -> None:
        if not 1 <= self.shortest <= self.longest:
            raise ValueError(f"shortest must be from 1 to longest, not {self.shortest} with longest {self.longest}")


class FusionLayer(nn.Module):
    """One layer over the tokens of n edits; m earlier ones are known by what this layer made of them."""

    def __init__(self, size: int, modules: int, config: DAFNetConfig) -> None:
        super().__init__()
        heads, width, score = config.heads, config.attention_width, config.score_width
        self.heads = heads
        self.value = nn.Sequential(nn.Linear(size, config.token_width), nn.ReLU(), nn.Linear(config.token_width, size))
        self.weight = nn.Sequential(nn.Linear(size, config.token_width), nn.ReLU(), nn.Linear(config.token_width, 1))
        self.query, self.key, self.fact_value = (nn.Linear(size, heads * width) for _ in range(3))
        self.output = nn.Linear(heads * width, size)
        self.score_query, self.score_key = (nn.Linear(size, heads * score) for _ in range(2))
        self.feed_forward = nn.Sequential(
            nn.Linear(size, config.feed_forward), nn.ReLU(), nn.Linear(config.feed_forward, size)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(size) for _ in range(3))
        for branch in (self.value[-1], self.output, self.feed_forward[-1]):
            assert isinstance(branch, nn.Linear)
            nn.init.zeros_(branch.weight)
            nn.init.zeros_(branch.bias)
        self.scale = nn.Parameter(torch.ones(modules, size))
        self.shift = nn.Parameter(torch.zeros(modules, size))

    def forward(
        self, x: torch.Tensor, owner: torch.Tensor, past: torch.Tensor, module: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """One layer.

        Args:
            x: ``(r, size)`` tokens.
            owner: ``(r,)`` the edit, 0 to n - 1, that each belongs to.
            past: ``(m, size)`` earlier edits' representations at this layer.
            module: Whose scale and shift.

        Returns:
            The tokens again, the representations ``(n, size)`` of the edits, and how much each attends to itself,
            ``(n,)``.
        """
        n = int(owner[-1]) + 1
        # Intra-editing: a softmax over each edit's own tokens.
        values = self.value(x)
        mine = owner == torch.arange(n, device=x.device)[:, None]
        attention = self.weight(values).T.expand(n, -1).masked_fill(~mine, -math.inf).softmax(1)
        facts = attention @ values
        x = self.norms[0](x + attention.sum(0)[:, None] * values)
        # Inter-editing: each edit over the earlier ones and itself.
        known = torch.cat([past, facts])
        seen = _attention(self.query(facts), self.key(known), self.heads)
        mixed = seen @ self.fact_value(known).view(len(known), self.heads, -1).transpose(0, 1)
        x = self.norms[1](x + self.output(mixed.transpose(0, 1).flatten(1))[owner])
        scores = _attention(self.score_query(facts), self.score_key(known), self.heads).mean(0).diagonal(len(past))
        x = self.norms[2](x + self.feed_forward(x))
        return x + (self.scale[module] * x + self.shift[module]).clamp(min=0), facts, scores


def _attention(queries: torch.Tensor, keys: torch.Tensor, heads: int) -> torch.Tensor:
    """``(heads, n, m + n)``: softmax of n edits over the m earlier ones and themselves, none over a later one."""
    n, known = len(queries), len(keys)
    q = queries.view(n, heads, -1).transpose(0, 1)
    k = keys.view(known, heads, -1).transpose(0, 1)
    later = torch.ones(n, known, dtype=torch.bool, device=queries.device).triu(known - n + 1)
    return (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).masked_fill(later, -math.inf).softmax(-1)


def shares(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What each edit's update counts for, ``s_i prod_{j>i} (1 - s_j)``, and everything before them, ``prod_j (1 -
    s_j)``.

    Args:
        scores: s, ``(n,)``: how much each edit attends to itself.
    """
    kept = (1 - scores).flip(0).cumprod(0).flip(0)
    return scores * torch.cat([kept[1:], torch.ones_like(kept[:1])]), kept[0]


class DAFNetwork(nn.Module):
    """Gradients of a sequence of edits to one delta; a network per weight shape.

    Args:
        shapes: ``(d_in, d_out)`` of each edited module.
        config: Widths and starting point.
    """

    units: torch.Tensor

    def __init__(self, shapes: Mapping[str, tuple[int, int]], config: DAFNetConfig) -> None:
        super().__init__()
        self.shapes, self.config = dict(shapes), config
        groups: dict[tuple[int, int], list[str]] = {}
        for name, shape in self.shapes.items():
            groups.setdefault(shape, []).append(name)
        self._place = {name: (f"{s[0]}x{s[1]}", g.index(name)) for s, g in groups.items() for name in g}
        self.normalizers = nn.ModuleDict({f"{s[0]}x{s[1]}": Normalizer(sum(s)) for s in groups})
        self.layers = nn.ModuleDict(
            {
                f"{s[0]}x{s[1]}": nn.ModuleList(FusionLayer(sum(s), len(g), config) for _ in range(config.layers))
                for s, g in groups.items()
            }
        )
        self.log_step_size = nn.Parameter(torch.full((len(self.shapes),), math.log(config.step_size)))
        self.register_buffer("units", torch.ones(len(self.shapes)))

    @torch.no_grad()
    def observe(self, gradients: Mapping[str, Gradient], lm: EditableLM) -> None:
        """Takes normaliser statistics, and units, from a set of edits' gradients."""
        for i, (name, gradient) in enumerate(gradients.items()):
            normalizer = self.normalizers[self._place[name][0]]
            assert isinstance(normalizer, Normalizer)
            normalizer.observe(torch.cat([gradient.keys, gradient.value_grads], 1))
            outputs = gradient.keys @ lm.weight(name)
            self.units[i] = (outputs.square().mean() / gradient.keys.square().sum(1).mean() / lm.shape(name)[0]).sqrt()

    def nothing_past(self) -> dict[str, list[torch.Tensor]]:
        """The representations of no edits: for each module and layer ``(0, d_in + d_out)``."""
        empty = {name: self.units.new_zeros(0, sum(shape)) for name, shape in self.shapes.items()}
        return {name: [value] * self.config.layers for name, value in empty.items()}

    def forward(
        self, gradients: Mapping[str, Gradient], lengths: torch.Tensor, past: Mapping[str, list[torch.Tensor]]
    ) -> tuple[dict[str, LowRank], dict[str, torch.Tensor], dict[str, list[torch.Tensor]]]:
        """A delta for n edits that come after others.

        Args:
            gradients: ``keys`` (r, d_in) and ``value_grads`` (r, d_out) at theta_0 of the n edits' r tokens, in order.
            lengths: ``(n,)`` tokens of each edit.
            past: The earlier edits' representations.

        Returns:
            For each module the update ``-lr sum_i share_i / length_i sum over its tokens of u~^T d~``; what the
            total of all earlier updates is to be multiplied by; and the n edits' representations.
        """
        owner = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
        deltas, keeps = {}, {}
        facts: dict[str, list[torch.Tensor]] = {}
        for i, (name, gradient) in enumerate(gradients.items()):
            key, module = self._place[name]
            x = self.normalizers[key](torch.cat([gradient.keys, gradient.value_grads], 1))
            weights, kept, facts[name] = [], [], []
            layers = self.layers[key]
            assert isinstance(layers, nn.ModuleList)
            for layer, before in zip(layers, past[name], strict=True):
                x, fact, scores = layer(x, owner, before, module)
                own, earlier = shares(scores)
                weights.append(own)
                kept.append(earlier)
                facts[name].append(fact)
            share = torch.stack(weights).mean(0) / lengths
            pseudo_keys, pseudo_grads = x.split(self.shapes[name], 1)
            step = self.log_step_size[i].exp() * self.units[i]
            deltas[name] = LowRank(pseudo_keys.T, -step * share[owner, None] * pseudo_grads)
            keeps[name] = torch.stack(kept).mean(0)
        return deltas, keeps, facts


def gradients_of(lm: EditableLM, prompts: Prompts) -> dict[str, Gradient]:
    """The fine-tuning gradient of edits' prompts at theta_0, at their answer tokens."""
    with lm.at_initial_weights():
        _, gradients = lm.gradients(
            prompts, lambda logits: F.cross_entropy(logits, prompts.labels, reduction="sum"), answer_positions=True
        )
    return gradients


class DAFNet(Agent):
    """Edits with gradients of the *unedited* model, by a network that knows all earlier edits of the stream.

    For a batch ``total <- keep * total + update``, so that the delta is ``(keep - 1) (theta - theta_0) + update``.
    Precomputes: the network (:func:`train`). Needs: training edits with rephrases and locality prompts; no subject,
    no text. Gradients are taken at answer positions, which for the last layer's MLP are all there are; the public
    code takes every token of the prompt.

    Args:
        config: Network and training.
    """

    learns = True
    looks_at_model = True

    def __init__(self, config: DAFNetConfig | None = None) -> None:
        self.config = config or DAFNetConfig()

    def prepare(self, env: LifelongEditEnv, seed: int, progress: ProgressCallback) -> None:
        lm = env.language_model
        lm.restore()
        with torch.random.fork_rng(devices=[]):  # the network is made on the CPU; the caller's generator is not touched
            torch.random.default_generator.manual_seed(seed)
            self.network = DAFNetwork({name: lm.shape(name) for name in lm.modules}, self.config).to(lm.device)
        if not self._load_kept(env, seed):
            started = time.perf_counter()
            train(self.network, env, seed, progress)
            if self.workspace is not None:
                seconds = time.perf_counter() - started
                save_policy(self.network, self.workspace, self._identity(env, seed) | {"seconds": seconds})
        self.network.eval()

    def _identity(self, env: LifelongEditEnv, seed: int) -> dict[str, object]:
        """What a kept network must agree on to be taken."""
        lm = env.language_model
        made_of = {
            "dafnet": asdict(self.config),
            "seed": seed,
            "model": env.model_arguments,
            "weights": fingerprint(lm),
        }
        made_of |= {"frozen": frozen_fingerprint(lm), "edits": edits_digest(training_edits(env))}
        found: dict[str, object] = json.loads(json.dumps(made_of))
        return found

    def _load_kept(self, env: LifelongEditEnv, seed: int) -> bool:
        if self.workspace is None or not (self.workspace / "policy.json").exists():
            return False
        identity = self._identity(env, seed)
        record = json.loads((self.workspace / "policy.json").read_text(encoding="utf-8"))
        if any(record.get(key) != value for key, value in identity.items()):
            return False
        self.network.load_state_dict(load_file(self.workspace / "policy.safetensors"))
        self.kept_seconds = float(record["seconds"])
        return True

    def begin(self, env: LifelongEditEnv) -> None:
        self._env = env
        self._past = self.network.nothing_past()
        self._seen: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def act(self, observation: Observation, info: dict[str, Any]) -> Action:
        lm = self._env.language_model
        if info["attempt"] == 0:
            self._before = dict(self._past)
        prompts = edit_prompts(self._env.training_targets)
        updates, keeps, facts = self.network(gradients_of(lm, prompts), prompts.lengths, self._past)
        self._seen = {f"{name}/{i}": fact for name, layers in facts.items() for i, fact in enumerate(layers)}
        self._remember_facts(self._seen)
        return {
            name: update.dense() + (keeps[name] - 1) * (lm.weight(name) - lm.initial_weight(name))
            for name, update in updates.items()
        }

    def _remember_facts(self, seen: Mapping[str, torch.Tensor]) -> None:
        for name, layers in self._past.items():
            self._past[name] = [torch.cat([past, seen[f"{name}/{i}"]]) for i, past in enumerate(layers)]

    def revert_batch(self) -> None:
        self._past, self._seen = self._before, {}

    def batch_state(self) -> dict[str, torch.Tensor]:
        return self._seen

    def load_batch_state(self, state: dict[str, torch.Tensor]) -> None:
        if state:
            self._remember_facts({name: value.to(self._env.language_model.device) for name, value in state.items()})


def train(network: DAFNetwork, env: LifelongEditEnv, seed: int, progress: ProgressCallback) -> None:
    """Sequences of training edits, each made at once from theta_0 and judged as a whole; they get longer along the way.

    Args:
        network: Trained in place.
        env: Its data set's training split is what is drawn from.
        seed: For everything that is drawn.
        progress: Told after each step.
    """
    config, lm = network.config, env.language_model
    rng = random.Random(seed)
    env.reset(seed=seed)
    edits = env.stream
    first = [edits[i] for i in range(min(config.warm_up_edits, len(edits)))]
    network.observe(
        gradients_of(lm, lm.encode([e.prompt for e in first], [e.target for e in first], append_eos=env.train_eos)), lm
    )
    weights = [p for name, p in network.named_parameters() if name != "log_step_size"]
    optimizer = torch.optim.Adam(
        [
            {"params": weights, "lr": config.learning_rate},
            {"params": [network.log_step_size], "lr": config.scalar_learning_rate},
        ]
    )
    length, running, best, since = config.shortest, 1.0, math.inf, 0
    for step in range(config.steps):
        sequence = [
            edits[i] for i in rng.sample(range(len(edits)), min(rng.randint(config.shortest, length), len(edits)))
        ]
        prompts = lm.encode([e.prompt for e in sequence], [e.target for e in sequence], append_eos=env.train_eos)
        deltas, _, _ = network(gradients_of(lm, prompts), prompts.lengths, network.nothing_past())
        questions = encode_evaluation(
            lm, rng.sample(sequence, min(config.judged, len(sequence))), append_eos=env.train_eos
        )
        loss, gradients = judge(lm, questions, deltas, config)
        optimizer.zero_grad()
        torch.stack([inner(gradient.dense(), deltas[name]) for name, gradient in gradients.items()]).sum().backward()
        nn.utils.clip_grad_norm_(weights, config.gradient_clip, error_if_nonfinite=True)
        optimizer.step()
        running += config.loss_decay * (loss - running)
        best, since = (running, 0) if running < best else (best, since + 1)
        if since > config.patience / max(1.0, math.log10(length)) and length < config.longest:
            length = min(config.longest, length + max(int(config.growth * length), 10))
            # Longer sequences are harder: the running loss has to settle anew before it can count as stuck.
            running, best, since = running + 0.3, math.inf, 0
        progress(f"loss {loss:.3f}, sequences of up to {length}", step + 1, config.steps)


def judge(
    lm: EditableLM, questions: EvaluationBatch, deltas: Mapping[str, LowRank], config: DAFNetConfig
) -> tuple[float, dict[str, Gradient]]:
    """Loss of a delta from theta_0, and its gradient with respect to the weights; the model is left at theta_0."""
    prompts = questions.prompts
    kind = questions.kind[prompts.prompt_index]
    local = kind == LOCALITY
    with torch.no_grad(), lm.at_initial_weights():
        reference = lm.logits(prompts)[local].log_softmax(-1)

    def loss(logits: torch.Tensor) -> torch.Tensor:
        nll = F.cross_entropy(logits, prompts.labels, reduction="none")
        kl = (reference.exp() * (reference - logits[local].log_softmax(-1))).sum(-1)
        terms = (
            (config.reliability, nll[kind == PROMPT]),
            (config.generality, nll[kind == REPHRASE]),
            (config.locality, kl),
        )
        return torch.stack([weight * values.sum() / max(len(values), 1) for weight, values in terms]).sum()

    lm.restore()
    lm.apply({name: LowRank(delta.left.detach(), delta.right.detach()) for name, delta in deltas.items()})
    value, gradients = lm.gradients(prompts, loss)
    lm.restore()
    return float(value), gradients
