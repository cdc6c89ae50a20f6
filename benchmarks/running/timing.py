"""What editing costs: seconds of an edit step, seconds of the floor that it is measured against, and memory."""

import resource
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

import torch
from torch.nn import functional as F

from agents.base import Agent
from agents.view import Actor
from editenv.env import Action, LifelongEditEnv

WARM_UP_STEPS = 3
"""Edit steps before :func:`time_steps` counts: the first ones also pay for what a device or a library sets up once."""


def clock(device: torch.device) -> float:
    """Seconds, once the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def time_observation_and_update(env: LifelongEditEnv, action: Action) -> float:
    """Seconds to encode the batch's prompts, take their gradient and apply a delta; the model is as it was after.

    The action itself is not timed: an edit step is this and the agent's ``act``.

    Args:
        env: Showing the batch that the action is for.
        action: As for ``env.step``; one that the environment refuses is timed up to its refusal.
    """
    lm = env.language_model
    weights = lm.snapshot()
    started = clock(lm.device)
    prompts = lm.encode([edit.prompt for edit in env.batch], [edit.target for edit in env.batch], reuse=False)
    lm.gradients(
        prompts, lambda logits: F.cross_entropy(logits, prompts.labels, reduction="sum"), observed_tokens="answers"
    )
    with suppress(ValueError):  # a refused action is counted when the step itself refuses it
        lm.apply(env.checked(action))
    elapsed = clock(lm.device) - started
    lm.restore(weights)
    return elapsed


def time_floor(env: LifelongEditEnv) -> float:
    """Seconds for what no gradient-based editor can avoid: a forward over the prompts and a backward to the modules.

    Written with the plain model: the decoder over all tokens, the head at the answer positions, gradients with respect
    to the edited modules' outputs, and nothing below them.
    """
    lm = env.language_model
    pairs = lm.tokenize([edit.prompt for edit in env.batch], [edit.target for edit in env.batch])
    width = max(len(prompt) + len(answer) for prompt, answer in pairs) - 1
    ids = torch.tensor([(prompt + answer[:-1] + [0] * width)[:width] for prompt, answer in pairs], device=lm.device)
    # The position before each answer token predicts it.
    rows = torch.tensor([i for i, (_, answer) in enumerate(pairs) for _ in answer], device=lm.device)
    columns = torch.tensor(
        [len(prompt) - 1 + j for prompt, answer in pairs for j in range(len(answer))], device=lm.device
    )
    labels = torch.tensor([token for _, answer in pairs for token in answer], device=lm.device)
    outputs: list[torch.Tensor] = []

    def tap(_: torch.nn.Module, __: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        # No parameter asks for a gradient: the graph begins at the first edited module's output.
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


def time_steps(agent: Agent, env: LifelongEditEnv, steps: int, seed: int = 0) -> list[dict[str, float]]:
    """Seconds of edit steps along a stream.

    Args:
        agent: After its preparation.
        env: The stream, of at least ``steps + WARM_UP_STEPS`` actions.
        steps: How many are measured.
        seed: Of the stream's order.

    Returns:
        For each step the seconds of acting (``act``), of the whole edit step (``step``), of its floor (``floor``),
        and of acting with the environment's step, which judges (``environment``).
    """
    device = env.language_model.device
    env.reset(seed=seed)
    actor = Actor(env, agent)
    actor.begin()
    rows = []
    for i in range(steps + WARM_UP_STEPS):
        shown = actor.look()
        started = clock(device)
        action = actor.act(*shown)
        act = clock(device) - started
        # The floor is timed before the step and after it in turn, so that a slow moment of the machine hits both.
        floor_first = time_floor(env) if i % 2 else None
        step = act + time_observation_and_update(env, action)
        floor = time_floor(env) if floor_first is None else floor_first
        started = clock(device)
        env.step(action)
        rows.append({"act": act, "step": step, "floor": floor, "environment": act + clock(device) - started})
    return rows[WARM_UP_STEPS:]


def medians(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """The median of each time of :func:`time_steps`, and of the steps' ``ratio`` to their floors."""
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]} | {
        "ratio": statistics.median(row["step"] / row["floor"] for row in rows)
    }


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory that was held: by tensors on a GPU since its last reset, or by this process in its life."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # macOS counts bytes, Linux KiB
