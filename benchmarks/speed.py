"""Where the time goes: the edit step against its floor; a training trajectory and the judging of free generation
against the same computed naively.

    python -m benchmarks.speed

The naive trajectory is what a first implementation does: reference logits recomputed, gradients of whole weights,
logits at every token, memory batches one by one, a d x d solve. Both run here, in processes of their own, on the
same stream with the same policy, and must find the same losses. Naive judging generates for every prompt, and must
find the same figures.
"""

import copy
import json
import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from agents.hypernetwork.config import TrainConfig
from agents.hypernetwork.training import training_environment
from agents.rledit.agent import RLEdit
from agents.rledit.trainer import RLEditTrainer
from benchmarks.running.processes import end_with_parent
from benchmarks.running.timing import medians, peak_memory_bytes, time_steps
from editenv.atomic_files import atomic_write_text
from editenv.data import Edit
from editenv.env import LifelongEditEnv
from editenv.evaluation import metrics
from editenv.evaluation.batch import LOCALITY, EvaluationBatch, encode_evaluation
from editenv.language_model.editable_lm import EditableLM, Gradient


@dataclass
class Args:
    """Arguments of the command.

    Attributes:
        batches: Length of the trajectory; the memory of k = 10 is full from the eleventh batch on.
        repeats: Edit steps timed.
        judged: Edits that are judged by free generation.
        out: Write the figures to this JSON file, too.
    """

    batches: int = 12
    repeats: int = 15
    judged: int = 200
    out: Path | None = None


CPU = torch.device("cpu")

TOLERANCE = 1e-4
"""Largest relative difference of the two trajectories' losses; their sums are in another order."""


def _trainer(batches: int) -> RLEditTrainer:
    config = TrainConfig(horizon=batches, warm_up_batches=2)
    return RLEditTrainer(training_environment(LifelongEditEnv(), config), config, 0, None)


def edit_step(repeats: int) -> dict[str, float]:
    """Median seconds of observation, policy and update, of the floor, and the median of their ratios."""
    env = LifelongEditEnv(split="validation", memory_batches=0)
    times = medians(time_steps(RLEdit.of(_trainer(2)), env, repeats))
    return {"seconds": times["step"], "floor_seconds": times["floor"], "ratio": times["ratio"]}


def judging(edits: int) -> dict[str, float]:
    """Seconds to judge freely generated answers after as many edits, and to generate for every prompt instead.

    Raises:
        RuntimeError: If the figures differ.
    """
    env = LifelongEditEnv(split="validation", memory_batches=0, horizon=-(-edits // 20))
    policy = _trainer(2).policy
    env.reset(seed=0)
    truncated = False
    while not truncated:
        with torch.no_grad():
            truncated = env.step(policy(env.gradients))[3]
    lm = env.language_model
    evaluation = encode_evaluation(lm, env.edits_done)
    started = time.perf_counter()
    scores = metrics.generation(lm, evaluation)
    seconds = time.perf_counter() - started
    started = time.perf_counter()
    correct = _naively_correct(lm, evaluation)
    naive_seconds = time.perf_counter() - started
    owners, kinds = evaluation.edit_index.numpy(), evaluation.kind.numpy()
    for kind, metric in enumerate(metrics.METRICS):
        of_kind = kinds == kind
        expected = np.bincount(owners[of_kind], correct[of_kind]) / np.bincount(owners[of_kind])
        if not np.allclose(getattr(scores, metric), expected, equal_nan=True):
            raise RuntimeError(f"{metric} is not what is generated")
    return {"seconds": seconds, "naive_seconds": naive_seconds, "questions": len(evaluation.texts)}


def _naively_correct(lm: EditableLM, evaluation: EvaluationBatch) -> np.ndarray:
    """``(B,)`` whether the text generated for each prompt is the answer, or theta_0's text for locality prompts."""
    prompts = [prompt for prompt, _ in evaluation.texts]
    answers: list[str | None] = [answer for _, answer in evaluation.texts]
    locality = [i for i, kind in enumerate(evaluation.kind.tolist()) if kind == LOCALITY]
    limit = metrics.generation_limit(evaluation)
    with lm.at_initial_weights():
        initial = metrics.generate(lm, [prompts[i] for i in locality], limit, unfinished=True)
    for i, text in zip(locality, initial, strict=True):
        answers[i] = text
    generated = metrics.generate(lm, prompts, limit, unfinished=True)
    return np.array([text == answer for text, answer in zip(generated, answers, strict=True)])


def fast_trajectory(batches: int) -> dict[str, Any]:
    """One training trajectory as agents/rledit/trainer.py computes it.

    Returns:
        Its seconds, the loss of each step, and the peak memory of the process before it and after it.
    """
    trainer = _trainer(batches)
    peak_before = peak_memory_bytes(CPU)
    started = time.perf_counter()
    steps = list(trainer.credited_roll_out())
    trainer.backward(steps)
    seconds = time.perf_counter() - started
    losses = [-step.terms.reward for step in steps]
    return {
        "seconds": seconds,
        "losses": losses,
        "peak_bytes": peak_memory_bytes(CPU),
        "peak_before_bytes": peak_before,
    }


def naive_trajectory(batches: int) -> dict[str, Any]:
    """The same, the obvious way: whole weights, every logit, memory batches one by one, and a d x d solve."""
    trainer = _trainer(batches)
    env, policy, config = trainer.env, trainer.policy, trainer.config
    env.reset(seed=0)
    stream = [env.stream[i * config.edits_per_step : (i + 1) * config.edits_per_step] for i in range(batches)]
    lm = env.language_model
    lm.restore()
    (name,) = lm.modules
    peak_before = peak_memory_bytes(CPU)
    started = time.perf_counter()
    reference = copy.deepcopy(lm.model)
    weight = lm.modules[name].get_parameter("weight").requires_grad_(True)
    losses: list[float] = []
    observed: list[tuple[Gradient, torch.Tensor]] = []  # and the gradient of the step's loss, (d_in, d_out)
    for t, batch in enumerate(stream):
        gradient = _plain_gradient(lm, name, batch)
        with torch.no_grad():
            delta = _dense_delta(policy, name, gradient)
            weight += delta.T
        weight.grad = None
        total = 0.0
        for lag in range(min(t, config.memory_batches) + 1):
            edit, locality = _plain_losses(lm, reference, stream[t - lag])
            loss = config.memory_decay**lag * (edit + config.locality * locality)
            loss.backward()
            total += float(loss.detach())
        losses.append(total + config.regularization * float(delta.square().sum()))
        assert weight.grad is not None
        observed.append((gradient, weight.grad.T.clone()))
    later_losses = torch.zeros_like(observed[0][1])  # S_i: a delta answers for its own loss and all later ones
    for gradient, weight_gradient in reversed(observed):
        later_losses = later_losses + weight_gradient
        delta = _dense_delta(policy, name, gradient)
        loss = (later_losses * delta).sum() + config.regularization * delta.square().sum()
        (loss / len(observed)).backward()
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "losses": losses,
        "peak_bytes": peak_memory_bytes(CPU),
        "peak_before_bytes": peak_before,
    }


def _dense_delta(policy: Any, name: str, gradient: Gradient) -> torch.Tensor:
    """``(U^T U + ridge I)^-1 U^T V``, ``(d_in, d_out)``: the ridge regression of the policy, by a d x d solve."""
    keys, values = gradient.keys, policy.values(name, gradient)
    ridge = policy.ridge(name, preconditioned=False)
    return torch.linalg.solve(keys.T @ keys + ridge * torch.eye(keys.shape[1]), keys.T @ values)


def _padded(lm: EditableLM, pairs: Sequence[tuple[str, str]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels, ``(B, width)`` each; labels are -100 outside the answers."""
    rows = lm.tokenize([prompt for prompt, _ in pairs], [answer for _, answer in pairs])
    width = max(len(head) + len(tail) for head, tail in rows)
    ids = torch.tensor([(head + tail + [0] * width)[:width] for head, tail in rows])
    labels = torch.tensor([([-100] * len(head) + tail + [-100] * width)[:width] for head, tail in rows])
    return ids[:, :-1], labels[:, 1:]


def _plain_gradient(lm: EditableLM, name: str, batch: Sequence[Edit]) -> Gradient:
    """The fine-tuning gradient's factors at the answer tokens, by a backward through the whole model."""
    ids, labels = _padded(lm, [(edit.prompt, edit.target) for edit in batch])
    tapped: list[torch.Tensor] = []

    def tap(_: torch.nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        output.retain_grad()
        tapped.extend((args[0], output))

    handle = lm.modules[name].register_forward_hook(tap)
    logits = lm.model(input_ids=ids, use_cache=False).logits
    F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum").backward()
    handle.remove()
    is_answer = labels != -100
    keys, output = tapped
    assert output.grad is not None
    return Gradient(keys[is_answer].detach(), output.grad[is_answer])


def _plain_losses(
    lm: EditableLM, reference: torch.nn.Module, batch: Sequence[Edit]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The edit loss and the locality loss of eq. 7, with every logit of both models."""
    ids, labels = _padded(lm, [(text, edit.target) for edit in batch for text in edit.rephrases])
    nll = F.cross_entropy(
        lm.model(input_ids=ids, use_cache=False).logits.transpose(1, 2), labels, ignore_index=-100, reduction="none"
    )
    edit_loss = (nll.sum(1) / (labels != -100).sum(1)).mean()
    ids, labels = _padded(lm, [(item.prompt, item.answer) for edit in batch for item in edit.locality])
    with torch.no_grad():
        initial = reference(input_ids=ids, use_cache=False).logits.log_softmax(-1)
    log_probs = lm.model(input_ids=ids, use_cache=False).logits.log_softmax(-1)
    kl = (initial.exp() * (initial - log_probs)).sum(-1) * (labels != -100)
    return edit_loss, (kl.sum(1) / (labels != -100).sum(1)).mean()


def main(args: Args) -> None:
    """Measures each in a process of its own and prints.

    Raises:
        SystemExit: If the two trajectories do not find the same losses.
    """
    context = multiprocessing.get_context("spawn")
    results: dict[str, Any] = {}
    for label, function, argument in (
        ("edit step", edit_step, args.repeats),
        ("trajectory", fast_trajectory, args.batches),
        ("naive trajectory", naive_trajectory, args.batches),
        ("judging", judging, args.judged),
    ):
        print(f"{label} ...", flush=True)
        with ProcessPoolExecutor(1, mp_context=context, initializer=end_with_parent) as pool:
            results[label] = pool.submit(function, argument).result()
    fast, naive, judged = results["trajectory"], results["naive trajectory"], results["judging"]
    differences = [abs(a - b) / abs(b) for a, b in zip(fast["losses"], naive["losses"], strict=True)]
    results["trajectory ratio"] = naive["seconds"] / fast["seconds"]
    results["largest relative difference of losses"] = max(differences)
    results["judging ratio"] = judged["naive_seconds"] / judged["seconds"]
    print(described(results, args.batches))
    if args.out is not None:
        atomic_write_text(args.out, json.dumps(results, indent=2) + "\n")
    if max(differences) > TOLERANCE:
        raise SystemExit("the two do not compute the same thing")


def described(results: dict[str, Any], batches: int) -> str:
    """The figures in some lines."""
    step, judged = results["edit step"], results["judging"]
    fast, naive = results["trajectory"], results["naive trajectory"]
    lines = [
        f"edit step of 20: {1000 * step['seconds']:.1f} ms, {step['ratio']:.2f} x the floor of "
        f"{1000 * step['floor_seconds']:.1f} ms",
        f"trajectory of {batches} x 20: {fast['seconds']:.1f} s, naive {naive['seconds']:.1f} s: "
        f"{results['trajectory ratio']:.1f} times faster",
        f"judging {judged['questions']} free answers: {judged['seconds']:.1f} s, generating each "
        f"{judged['naive_seconds']:.1f} s: {results['judging ratio']:.1f} times faster, same figures",
    ]
    for label, trajectory in (("trajectory", fast), ("naive trajectory", naive)):
        above_start = trajectory["peak_bytes"] - trajectory["peak_before_bytes"]
        lines.append(
            f"peak memory of the {label}: {trajectory['peak_bytes'] / 1e9:.2f} GB ({above_start / 1e9:.2f} GB above "
            "where it started)"
        )
    lines.append(f"largest relative difference of the losses: {results['largest relative difference of losses']:.1e}")
    return "\n".join(lines)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Args, description=__doc__))
