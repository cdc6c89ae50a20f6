"""One agent through one stream: what happened, how good it is, what it cost."""

import math
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch

from agents.base import Agent, Observation, ProgressCallback, nan_action, zero_action
from agents.covariance import read_texts, sample_text, training_edits
from agents.progress import silent
from agents.view import Actor
from benchmarks.results.records import MetricValues, Record, versions
from benchmarks.running.recording import Recording
from benchmarks.running.timing import clock, peak_memory_bytes, time_floor, time_observation_and_update
from benchmarks.suites import Suite, name_of
from editenv.env import Action, LifelongEditEnv, RefusedActionError
from editenv.evaluation import metrics
from editenv.evaluation.batch import EvaluationBatch, encode_evaluation, greedy_tokens
from editenv.evaluation.portability import evenly_spread, portability
from editenv.evaluation.prefix import generation_prefix
from editenv.evaluation.probes import probe
from editenv.evaluation.wild import wild
from editenv.language_model.activation_cache import ActivationCache
from editenv.language_model.editable_lm import EditableLM

Transition = tuple[Any, float, bool, bool, dict[str, Any]]
"""What ``env.step`` returns; its observation, in numpy, is not read."""

TIMED_BATCHES = 8
"""Batches of a stream at which the edit step and its floor are timed."""

DRIFT_SENTENCES = 300
"""Sentences of the training split on which drift is measured; methods with a covariance have it from these and
others.
"""

DRIFT_TEXTS = 100
"""Texts on which drift is measured, of a suite that names text for it; they are longer."""

PROBED_EDITS = 1000
"""The first so many edits of a stream are asked the probes; see editenv/evaluation/probes.py."""

PORTABILITY_EDITS = 200
"""So many edits of a stream, evenly spread over it, are asked their portability questions. With HalluEditBench's eleven
questions each these are as many prompts as 700 edits have for the other protocols.
"""

ACTIVATION_CACHE_BYTES = 4 * 2**30
"""Room for what the frozen layers make of prompts. A run comes back to each of its prompts at the end, under every
protocol, and holds most of that anyway: with room for all of it the frozen layers run over a prompt once, not five
times.
"""


def run(
    suite: Suite,
    name: str,
    agent: Agent,
    seed: int,
    progress: ProgressCallback = silent,
    probes: bool = True,
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
        probes: Ask the probes of editenv/evaluation/probes.py and portability questions too, if the suite does; they
            take longer than all other judging.
        recording: Is given every action.
        activation_cache: What the frozen layers made of the suite's prompts in an earlier run, and takes in what this
            one adds: runs on one stream meet the same prompts. What an agent asks on its own is not among them, for
            it is part of what the agent costs. Last bits depend on which run met a prompt first.

    Raises:
        ValueError: If the agent wants to see a batch more often than the suite allows.
    """
    check_budget(suite, name, agent)
    progress("preparing", 0, suite.batches)
    setup_seconds, drift_sentences = prepare(suite, agent, seed, progress)

    env = editing_environment(suite, agent)
    cache = ActivationCache() if activation_cache is None else activation_cache
    trace = edit_stream(env, agent, suite, seed, progress, recording, cache)

    progress("judging", suite.batches, suite.batches)
    lm, edits = env.language_model, list(env.edits_done)
    evaluation = encode_evaluation(lm, edits)
    choices = greedy_tokens(lm, evaluation.prompts)
    teacher_forced, generation = required_protocols(lm, evaluation, choices)
    peak_memory = peak_memory_bytes(lm.device)  # before the optional protocols, which not every suite asks for
    optional = optional_protocols(lm, evaluation, choices, suite, drift_sentences, probes)

    step_seconds = trace.step_seconds(agent.actions_per_batch)
    return Record(
        suite=suite.label,
        agent=name,
        seed=seed,
        model=name_of(str(suite.model)),
        dataset=f"{suite.dataset}/{suite.split}",
        edits=len(edits),
        teacher_forced=teacher_forced,
        generation=generation,
        immediate={metric: mean([scores[metric] for scores in trace.immediate]) for metric in metrics.METRICS},
        retention=trace.retention,
        setup_seconds=setup_seconds,
        edit_seconds=step_seconds / suite.edits_per_step,
        floor_ratio=step_seconds / float(np.median(trace.floor_seconds)),
        peak_memory_bytes=peak_memory,
        versions=versions(),
        failures=trace.failures,
        generation_prefix=optional.get("generation_prefix"),
        wild=optional.get("wild"),
        probability=optional.get("probability"),
        drift=optional.get("drift"),
        portability=optional.get("portability"),
        probes=optional.get("probes"),
        mean_reward=mean_reward(trace.rewards),
        actions_per_batch=agent.actions_per_batch,
        modules={module: list(lm.shape(module)) for module in lm.modules},
    )


# -- before the stream --------------------------------------------------------------------------------------------


def check_budget(suite: Suite, name: str, agent: Agent) -> None:
    """Whether the suite allows the agent its actions.

    Raises:
        ValueError: If it does not; names the agent and the suite.
    """
    budget = suite.max_actions_per_batch
    if budget is not None and agent.actions_per_batch > budget:
        raise ValueError(f"{name} takes {agent.actions_per_batch} actions per batch; suite {suite.id} allows {budget}")


def prepare(suite: Suite, agent: Agent, seed: int, progress: ProgressCallback) -> tuple[float, list[str]]:
    """Prepares the agent on the training split.

    Returns:
        Seconds it took, with those of what the agent kept from an earlier run; and what drift is measured on: the
        suite's text for that, or sentences of the training split, which no edit of the stream is about.
    """
    env = LifelongEditEnv(**suite.environment(agent.environment, training=True), edits_per_step=suite.edits_per_step)
    if agent.reads_text and agent.text is None:
        agent.text = suite.in_data(suite.text)
    env.language_model.activation_cache.limit = ACTIVATION_CACHE_BYTES
    started = time.perf_counter()
    agent.prepare(env, seed, progress)
    seconds = time.perf_counter() - started + agent.kept_seconds
    drift_text = suite.in_data(suite.drift_text)
    if drift_text is not None:
        return seconds, list(islice(read_texts(drift_text), DRIFT_TEXTS))
    return seconds, sample_text(training_edits(env), DRIFT_SENTENCES)


def editing_environment(suite: Suite, agent: Agent) -> LifelongEditEnv:
    """The environment with the suite's stream, which ends at its horizon."""
    return LifelongEditEnv(
        **suite.environment(agent.environment),
        edits_per_step=suite.edits_per_step,
        actions_per_batch=agent.actions_per_batch,
        horizon=suite.batches,
        memory_batches=0,  # nothing here reads the reward's memory term
    )


# -- along the stream ---------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Trace:
    """What is noted while a stream is edited.

    Attributes:
        immediate: Teacher-forced percentages of each batch right after its last action.
        retention: ``edits``, and teacher-forced percentages over all edits so far, at the checkpoints.
        rewards: Of each action.
        failures: Edits of batches with an action that was refused, or whose reward is not finite.
        act_seconds: Of all actions together.
        update_seconds: Of observation and update, at the timed batches.
        floor_seconds: Of the floor, at the timed batches.
    """

    immediate: list[MetricValues] = field(default_factory=list)
    retention: list[MetricValues] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    failures: int = 0
    act_seconds: float = 0.0
    update_seconds: list[float] = field(default_factory=list)
    floor_seconds: list[float] = field(default_factory=list)

    def step_seconds(self, actions_per_batch: int) -> float:
        """Seconds of a batch's edit step: its actions, each with an observation and an update of its own."""
        return self.act_seconds / len(self.immediate) + actions_per_batch * float(np.median(self.update_seconds))


def edit_stream(
    env: LifelongEditEnv,
    agent: Agent,
    suite: Suite,
    seed: int,
    progress: ProgressCallback,
    recording: Recording | None,
    cache: ActivationCache,
    checkpoints: Collection[int] | None = None,
) -> Trace:
    """Edits the stream to its end, timing some of the steps and looking back at the checkpoints.

    Args:
        env: Of :func:`editing_environment`; afterwards its model is edited.
        agent: After its preparation.
        suite: What is edited.
        seed: Of the stream's order.
        progress: Called with each batch that is done.
        recording: Is given every action.
        cache: What the frozen layers made of the stream's prompts; takes in what is added.
        checkpoints: Batches after which to look back; those of :func:`retention_checkpoints` by default.
    """
    _, info = env.reset(seed=seed, options={"shuffle": suite.order == "shuffled"})
    lm = env.language_model
    share_cache(lm, cache)  # after the reset, which empties the model's cache
    actor = Actor(env, agent, ACTIVATION_CACHE_BYTES)
    actor.begin()
    if recording is not None:
        recording.start(lm)

    trace = Trace()
    timed = timed_batches(suite.batches)
    if checkpoints is None:
        checkpoints = retention_checkpoints(suite.batches, agent.looks_ahead)
    batches: list[EvaluationBatch] = []
    batch_failed = done = False
    while not done:
        first_attempt = info["attempt"] == 0
        if first_attempt:
            batches.append(env.evaluation_batch)
        shown = actor.look()
        started = clock(lm.device)
        action = propose(actor, *shown, lm)
        trace.act_seconds += clock(lm.device) - started
        if recording is not None:
            recording.add(action)
        if first_attempt and info["batch"] in timed:
            trace.update_seconds.append(time_observation_and_update(env, action))
            trace.floor_seconds.append(time_floor(env))
        (_, reward, terminated, truncated, info), refused = take(env, agent, action)
        done = terminated or truncated
        trace.rewards.append(reward)
        if refused or not all(map(math.isfinite, info["reward_terms"].values())):
            batch_failed = True
        if info["attempt"] == 0:  # that was the batch's last action
            trace.failures += suite.edits_per_step * batch_failed
            batch_failed = False
            trace.immediate.append({metric: info[metric] for metric in metrics.METRICS})
            if info["batch"] in checkpoints:
                trace.retention.append({"edits": info["edits"]} | look_back(lm, batches))
            progress("editing", info["batch"], suite.batches)
    return trace


def timed_batches(batches: int) -> set[int]:
    """Which batches of a stream are timed, counted from 0: :data:`TIMED_BATCHES` at equal distances."""
    return set(np.linspace(0, batches - 1, TIMED_BATCHES).astype(int).tolist())


def retention_checkpoints(batches: int, looks_ahead: bool) -> set[int]:
    """After how many batches a run looks back: the powers of two, and the end of the stream.

    For an agent that looks ahead it is the end alone: before, it is not what it is for a stream that ends there.
    """
    return {batches} if looks_ahead else {1 << i for i in range(batches.bit_length())} | {batches}


def look_back(lm: EditableLM, batches: Sequence[EvaluationBatch]) -> MetricValues:
    """Teacher-forced percentages over all edits of the batches, at the weights as they are."""
    return metrics.Scores.join([metrics.teacher_forced(lm, batch) for batch in batches]).percentages()


def share_cache(lm: EditableLM, cache: ActivationCache) -> None:
    """Lets the model find, and keep, what its frozen layers make of prompts in a cache that outlives it."""
    cache.limit, cache.whole_answers = ACTIVATION_CACHE_BYTES, True
    cache.to(lm.device)
    lm.activation_cache = cache


# -- one step -----------------------------------------------------------------------------------------------------


def propose(agent: Agent | Actor, observation: Observation, info: dict[str, Any], lm: EditableLM) -> Action:
    """The agent's action; NaN, which will be refused (and in a replay, too), where its algebra ends in an error.

    Args:
        agent: The agent, or the actor that sees to what it sees.
        observation: Of :meth:`agents.view.Actor.look`.
        info: Likewise.
        lm: The model that is edited.
    """
    try:
        return agent.act(observation, info)
    except torch.linalg.LinAlgError:  # what NaN and infinity end in
        return nan_action(lm)


def take(env: LifelongEditEnv, agent: Agent, action: Action) -> tuple[Transition, bool]:
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


class Step(NamedTuple):
    """What came of one action.

    Attributes:
        reward: Of the environment.
        info: Of the environment, with the next batch's number and the figures of the one just edited.
        refused: Whether the action was not finite, and nothing was done in its place.
    """

    reward: float
    info: dict[str, Any]
    refused: bool


def play(env: LifelongEditEnv, agent: Agent) -> Iterator[Step]:
    """Lets a prepared agent edit to the end of the stream; yields after each action.

    Args:
        env: After its reset.
        agent: After its preparation; begins here.
    """
    actor = Actor(env, agent)
    actor.begin()
    done = False
    while not done:
        action = propose(actor, *actor.look(), env.language_model)
        (_, reward, terminated, truncated, info), refused = take(env, agent, action)
        done = terminated or truncated
        yield Step(reward, info, refused)


# -- after the stream ---------------------------------------------------------------------------------------------


def required_protocols(
    lm: EditableLM, evaluation: EvaluationBatch, choices: torch.Tensor
) -> tuple[MetricValues, MetricValues]:
    """The protocols that every suite is judged by, over all edits: teacher-forced, and generation.

    Args:
        lm: The edited model.
        evaluation: What is asked; ``A`` answer tokens.
        choices: ``(A,)`` the edited model's greedy tokens there.
    """
    teacher_forced = metrics.teacher_forced(lm, evaluation, choices=choices).percentages()
    return teacher_forced, metrics.generation(lm, evaluation, choices=choices).percentages()


def optional_protocols(
    lm: EditableLM,
    evaluation: EvaluationBatch,
    choices: torch.Tensor,
    suite: Suite,
    drift_sentences: Sequence[str],
    probes: bool,
) -> dict[str, Any]:
    """All other protocols: those of them that the suite asks for and its data allows.

    Args:
        lm: The edited model.
        evaluation: What is asked about all edits that were made, in order; ``A`` answer tokens.
        choices: ``(A,)`` the edited model's greedy tokens there.
        suite: What was edited.
        drift_sentences: Text that no edit is about.
        probes: Whether the probes and portability questions may be asked.
    """
    edits = evaluation.edits
    figures: dict[str, Any] = {}
    if "generation_prefix" in suite.protocols:
        figures["generation_prefix"] = generation_prefix(lm, evaluation, choices=choices).percentages()
    if "wild" in suite.protocols:
        figures["wild"] = wild(lm, evaluation, choices=choices).percentages()
    if "probability" in suite.protocols and any(edit.old_answer for edit in edits):
        figures["probability"] = metrics.probability(lm, edits).percentages()
    if "drift" in suite.protocols:
        figures["drift"] = finite(metrics.drift(lm, drift_sentences))
    if "portability" in suite.protocols and probes and any(edit.portability for edit in edits):
        figures["portability"] = portability(lm, evenly_spread(edits, PORTABILITY_EDITS))
    if "probes" in suite.protocols and probes and suite.dataset == "atlas":
        figures["probes"] = probe(lm, edits[:PROBED_EDITS])
    return figures


def mean(values: Sequence[float | None]) -> float | None:
    """Of those that are there, to four digits behind the point; None if there are none."""
    present = [value for value in values if value is not None]
    return round(float(np.mean(present)), 4) if present else None


def mean_reward(rewards: Sequence[float]) -> float | None:
    """None if a reward is not finite: a model broke."""
    return sum(rewards) / len(rewards) if all(map(math.isfinite, rewards)) else None


def finite(values: Mapping[str, float]) -> MetricValues:
    """What a record can hold: a model that was destroyed has no perplexity."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}
