"""One agent through one stream: what happened, how good it is, what it cost."""

import math
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from agents.base import Agent, nan_action, zero_action
from agents.covariance import sample_text, training_edits
from benchmarks.results.records import Record, versions
from benchmarks.running.recording import Recording
from benchmarks.suites import Suite, name_of
from editenv.env import Action, LifelongEditEnv, Observation, RefusedActionError
from editenv.evaluation import metrics
from editenv.evaluation.batch import EvaluationBatch, encode_evaluation
from editenv.evaluation.probes import probe as ask_beyond
from editenv.language_model.activation_cache import ActivationCache
from editenv.language_model.editable_lm import EditableLM, Gradient

PROBES = 8
"""Steps at which the edit step and its floor are timed."""

PROBE_TEXTS = 300
"""Sentences of the training split on which drift is measured; methods with a covariance have it from these and
others.
"""

ROOM = 4 * 2**30
"""Bytes for what the frozen layers make of prompts. A run comes back to each of its prompts at the end, under every
protocol, and
holds most of that anyway: with room for all of it the frozen layers run over a prompt once, not five times."""

PROBED_EDITS = 1000
"""The first so many edits of the stream are asked about beyond themselves."""


def run(
    suite: Suite,
    name: str,
    agent: Agent,
    seed: int,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
    beyond: bool = True,
    recording: Recording | None = None,
    activation_cache: ActivationCache | None = None,
) -> Record:
    """Prepares an agent, edits the suite's stream with it, and judges the result.

    Args:
        suite: What to edit.
        name: The agent's name in the record.
        agent: The agent.
        seed: Seeds the agent's training and the stream's order.
        progress: Called with what is going on, and how far it is.
        beyond: Ask the probes of editenv/evaluation/probes.py too, if the suite does; they take longer than all
            other judging.
        recording: Is given every action.
        activation_cache: What the frozen layers made of the suite's prompts in an earlier run, and takes in what this
            one adds: runs on one stream meet the same prompts. What an agent asks on its own is not among them, for
            it is part of what the agent costs. Last bits depend on which run met a prompt first.

    Raises:
        ValueError: If the agent wants to see a batch more often than the suite allows.
    """
    budget = suite.max_actions_per_batch
    if budget is not None and agent.actions_per_batch > budget:
        raise ValueError(f"{name} takes {agent.actions_per_batch} actions per batch; suite {suite.id} allows {budget}")
    training = LifelongEditEnv(**suite.environment(training=True), edits_per_step=suite.edits_per_step)
    training.language_model.activation_cache.limit = ROOM
    progress("preparing", 0, suite.batches)
    started = time.perf_counter()
    agent.prepare(training, seed, progress)
    setup_seconds = time.perf_counter() - started + agent.kept_seconds
    bystanders = sample_text(training_edits(training), PROBE_TEXTS)
    del training

    env = LifelongEditEnv(
        **suite.environment(),
        edits_per_step=suite.edits_per_step,
        actions_per_batch=agent.actions_per_batch,
        horizon=suite.batches,
        memory_batches=0,  # nothing here reads the reward's memory term
    )
    lm = env.language_model
    _, info = env.reset(seed=seed, options={"shuffle": suite.order == "shuffled"})
    shared = ActivationCache() if activation_cache is None else activation_cache
    shared.limit = ROOM
    shared.to(lm.device)
    agents_own = ActivationCache(ROOM, below=shared)
    lm.activation_cache = shared  # after the reset, which forgets what was kept
    agent.begin(env)
    if recording is not None:
        recording.start(lm)
    checkpoints = {1 << i for i in range(suite.batches.bit_length())} | {suite.batches}
    if agent.looks_ahead:  # before the end it is not yet, or more than, what it is for so many edits
        checkpoints = {suite.batches}
    probed = set(np.linspace(0, suite.batches - 1, PROBES).astype(int).tolist())
    act_seconds, observe_seconds, floor_seconds = 0.0, [], []
    immediate: list[dict[str, float | None]] = []
    retention: list[dict[str, float | None]] = []
    asked: list[EvaluationBatch] = []
    rewards: list[float] = []
    failures = 0
    failed = False
    done = False
    while not done:
        first_attempt = info["attempt"] == 0
        probe = first_attempt and info["batch"] in probed
        if first_attempt:
            asked.append(env.evaluation_batch)
        lm.activation_cache = agents_own
        started = clock(lm.device)
        action = propose(agent, env.gradients, info, lm)
        act_seconds += clock(lm.device) - started
        lm.activation_cache = shared
        if recording is not None:
            recording.add(action)
        if probe:
            observe_seconds.append(time_observation_and_update(env, action))
            floor_seconds.append(time_floor(env))
        (_, reward, terminated, truncated, info), refused = take(env, agent, action)
        failed = failed or refused
        rewards.append(reward)
        done = terminated or truncated
        failed = failed or not all(map(math.isfinite, info["reward_terms"].values()))
        if info["attempt"] == 0:
            failures += suite.edits_per_step * failed
            failed = False
            immediate.append({metric: info[metric] for metric in metrics.METRICS})
            if info["batch"] in checkpoints:
                retention.append({"edits": info["edits"]} | look_back(lm, asked))
            progress("editing", info["batch"], suite.batches)

    progress("judging", suite.batches, suite.batches)
    edits = list(env.edits_done)
    everything = encode_evaluation(lm, edits)
    # K actions, each with its own observation and update.
    per_step = act_seconds / len(immediate) + agent.actions_per_batch * float(np.median(observe_seconds))
    measured = set(suite.protocols)
    return Record(
        suite=suite.label,
        agent=name,
        seed=seed,
        model=name_of(str(suite.model)),
        dataset=f"{suite.dataset}/{suite.split}",
        edits=len(edits),
        teacher_forced=metrics.teacher_forced(lm, everything).percentages(),
        generation=metrics.generation(lm, everything).percentages(),
        immediate={metric: mean([row[metric] for row in immediate]) for metric in metrics.METRICS},
        retention=retention,
        setup_seconds=setup_seconds,
        edit_seconds=per_step / suite.edits_per_step,
        floor_ratio=per_step / float(np.median(floor_seconds)),
        peak_memory_bytes=peak_memory_bytes(lm.device),
        versions=versions(),
        failures=failures,
        probability=(
            metrics.probability(lm, edits).percentages()
            if "probability" in measured and any(e.old_answer for e in edits)
            else None
        ),
        drift=finite(metrics.drift(lm, bystanders)) if "drift" in measured else None,
        probes=(
            ask_beyond(lm, edits[:PROBED_EDITS])
            if beyond and "probes" in measured and suite.dataset == "atlas"
            else None
        ),
        mean_reward=mean_reward(rewards),
        actions_per_batch=agent.actions_per_batch,
        modules={module: list(lm.shape(module)) for module in lm.modules},
    )


def propose(agent: Agent, observation: Mapping[str, Gradient], info: dict[str, Any], lm: EditableLM) -> Action:
    """The agent's action; NaN, which will be refused (and in a replay, too), where its algebra ends in an error."""
    try:
        return agent.act(observation, info)
    except torch.linalg.LinAlgError:  # what NaN and infinity end in
        return nan_action(lm)


def take(
    env: LifelongEditEnv, agent: Agent, action: Action
) -> tuple[tuple[Observation, float, bool, bool, dict[str, Any]], bool]:
    """A step of the environment, with no change in place of an action that is not finite; and whether it was
    refused.
    """
    try:
        return env.step(action), False
    except RefusedActionError:
        pass
    if agent.actions_per_batch == 1:  # else a part of the batch stays
        agent.revert_batch()
    return env.step(zero_action(env.language_model)), True


def mean(values: Sequence[float | None]) -> float | None:
    """Of those that are there."""
    found = [value for value in values if value is not None]
    return round(float(np.mean(found)), 4) if found else None


def mean_reward(rewards: Sequence[float]) -> float | None:
    """None if a reward is not finite: a model broke."""
    return sum(rewards) / len(rewards) if all(map(math.isfinite, rewards)) else None


def finite(values: Mapping[str, float]) -> dict[str, float | None]:
    """What a record can hold: a model that was destroyed has no perplexity."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def clock(device: torch.device) -> float:
    """Seconds, once the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def look_back(lm: EditableLM, asked: list[EvaluationBatch]) -> dict[str, float | None]:
    """Teacher-forced figures over all edits so far."""
    return metrics.Scores.join([metrics.teacher_forced(lm, questions) for questions in asked]).percentages()


def time_observation_and_update(env: LifelongEditEnv, action: Action) -> float:
    """Seconds to encode the batch's prompts, take their gradient and apply a delta; the model is as it was after."""
    lm = env.language_model
    before = lm.snapshot()
    started = clock(lm.device)
    prompts = lm.encode([e.prompt for e in env.batch], [e.target for e in env.batch], reuse=False)
    lm.gradients(
        prompts, lambda logits: F.cross_entropy(logits, prompts.labels, reduction="sum"), answer_positions=True
    )
    with suppress(ValueError):  # a refused action is counted when the step itself refuses it
        lm.apply(env.checked(action))
    elapsed = clock(lm.device) - started
    lm.restore(before)
    return elapsed


def time_steps(agent: Agent, env: LifelongEditEnv, steps: int, seed: int = 0) -> list[dict[str, float]]:
    """Seconds of ``steps`` edit steps, the first ones of a stream left out: acting (``act``), the whole step
    (``step``), its floor (``floor``), and acting with the environment's step, which judges (``environment``).
    """
    device = env.language_model.device
    _, info = env.reset(seed=seed)
    agent.begin(env)
    rows = []
    for i in range(steps + 3):
        began = clock(device)
        action = agent.act(env.gradients, info)
        act = clock(device) - began
        # Turn about, so that a slow moment of the machine hits both.
        floor = time_floor(env) if i % 2 else 0.0
        step = act + time_observation_and_update(env, action)
        floor = floor or time_floor(env)
        began = clock(device)
        *_, info = env.step(action)
        rows.append({"act": act, "step": step, "floor": floor, "environment": act + clock(device) - began})
    return rows[3:]


def time_floor(env: LifelongEditEnv) -> float:
    """Seconds for what no gradient-based editor can avoid: a forward over the prompts and a backward to the modules.

    Written with the plain model: the decoder over all tokens, the head at the answer positions, gradients with respect
    to the edited modules' outputs, and nothing below them.
    """
    lm = env.language_model
    pairs = lm.tokenize([e.prompt for e in env.batch], [e.target for e in env.batch])
    width = max(len(head) + len(tail) for head, tail in pairs) - 1
    ids = torch.tensor([(head + tail[:-1] + [0] * width)[:width] for head, tail in pairs], device=lm.device)
    rows = torch.tensor([i for i, (_, tail) in enumerate(pairs) for _ in tail], device=lm.device)
    columns = torch.tensor([len(head) - 1 + j for head, tail in pairs for j in range(len(tail))], device=lm.device)
    labels = torch.tensor([token for _, tail in pairs for token in tail], device=lm.device)
    outputs: list[torch.Tensor] = []

    def tap(_: torch.nn.Module, __: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        outputs.append(output if output.requires_grad else output.detach().requires_grad_())
        return outputs[-1]

    handles = [module.register_forward_hook(tap) for module in lm.modules.values()]
    try:
        started = clock(lm.device)
        hidden = lm.model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
        logits = lm.model.get_output_embeddings()(hidden[rows, columns])
        torch.autograd.grad(F.cross_entropy(logits.float(), labels, reduction="sum"), outputs)
        return clock(lm.device) - started
    finally:
        for handle in handles:
            handle.remove()


def peak_memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
