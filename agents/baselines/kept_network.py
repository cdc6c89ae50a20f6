"""A trained network that an agent keeps in its workspace, and what it must agree on to be taken again."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from agents.base import Agent
from agents.covariance import training_edits
from agents.hypernetwork.networks import load_weights, save_policy
from editenv.data import edits_digest
from editenv.env import LifelongEditEnv
from editenv.identity import fingerprint, frozen_fingerprint, same
from editenv.identity import identity as model_identity
from editenv.sealed_json import read_sealed


def train_once(
    agent: Agent,
    network: Any,
    env: LifelongEditEnv,
    seed: int,
    config: Mapping[str, Any],
    train: Callable[[], None],
) -> None:
    """Trains an agent's network, or takes the weights that its workspace keeps; in evaluation mode afterwards.

    Args:
        agent: Told what the training of kept weights had cost.
        network: As it is initialised; changed in place.
        env: In which it is trained.
        seed: Of the training.
        config: Its options, under the method's name.
        train: Trains the network.
    """
    identity = identity_of(env, seed, config) if agent.workspace is not None else {}
    kept_seconds = load_kept(network, agent.workspace, identity)
    if kept_seconds is None:
        started = time.perf_counter()
        train()
        if agent.workspace is not None:
            save_policy(network, agent.workspace, identity | {"seconds": time.perf_counter() - started})
    else:
        agent.kept_seconds = kept_seconds
    network.eval()


def identity_of(env: LifelongEditEnv, seed: int, config: Mapping[str, Any]) -> dict[str, Any]:
    """What a kept network must agree on.

    Args:
        env: In which it is trained.
        seed: Of the training.
        config: Its options, under the method's name.
    """
    lm = env.language_model
    made_of = {
        **config,
        "seed": seed,
        "model": env.model_arguments,
        "weights": fingerprint(lm),
        "frozen": frozen_fingerprint(lm),
        "identity": model_identity(lm),
        "edits": edits_digest(training_edits(env)),
    }
    identity: dict[str, Any] = json.loads(json.dumps(made_of))
    return identity


def load_kept(network: Any, workspace: Path | None, identity: Mapping[str, Any]) -> float | None:
    """Gives the network the weights that are kept for this identity.

    Returns:
        The seconds that its training took; None if nothing is kept that fits.

    Raises:
        ValueError: If what is kept is damaged; says what to remove.
    """
    if workspace is None or not (workspace / "policy.json").exists():
        return None
    try:
        record = read_sealed(workspace / "policy.json")
        if not same({key: value for key, value in record.items() if key in identity}, identity):
            return None
        load_weights(network, workspace, record)
    except ValueError as error:
        raise ValueError(f"{error}; remove {workspace}, and what was in it is made anew") from error
    return float(record["seconds"])
