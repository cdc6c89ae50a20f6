"""The agents by name, as benchmarks list them.

A name is a row of a table: a method with its options. ``METHOD@FOLDER`` is a method with the settings of another
folder of agents/settings, or with a slash in it of your own (``memit@./mine``, made by benchmarks.tune).
``some_file.py:Name`` and ``package.module:Name`` name an :class:`agents.base.Agent` of your own, made without
arguments.
"""

import hashlib
import importlib
import importlib.util
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, is_dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from agents.base import Agent
from agents.baselines.alphaedit import AlphaEdit
from agents.baselines.dafnet import DAFNet
from agents.baselines.fine_tune import FineTune
from agents.baselines.joint_fine_tune import JointFineTune
from agents.baselines.lora import LoRA
from agents.baselines.malmen import MALMEN
from agents.baselines.memit import MEMIT
from agents.baselines.mend import MEND
from agents.baselines.no_edit import NoEdit
from agents.baselines.prune import PRUNE
from agents.baselines.rect import RECT
from agents.baselines.rome import ROME
from agents.baselines.stableedit import StableEdit
from agents.baselines.ultraedit import UltraEdit
from agents.hypernetwork.training import TrainConfig
from agents.rl.evolution import Evolution, EvolutionConfig
from agents.rl.online import Online
from agents.rl.reinforce import Reinforce, ReinforceConfig
from agents.rl.sb3 import SB3Agent
from agents.rledit.agent import RLEdit
from agents.settings import build, merged, read_settings


def _config(method: str) -> TrainConfig:
    return build(TrainConfig, read_settings(method)["config"])


# One budget for every row that is trained over 25 batches and has one action per batch.
PAPER, PRECONDITIONED, CLOSED_LOOP = _config("rledit"), _config("rledit-p"), _config("rledit-p-k4")
LONG = _config("rledit-p-long")

# The paper's network without the paper's gradient; a trajectory is one optimiser step, as above, but on several
# episodes.
EPISODES: dict[str, Any] = {
    "trajectories": PAPER.trajectories,
    "horizon": PAPER.horizon,
    "warm_up_batches": PAPER.warm_up_batches,
    "learning_rate": PAPER.learning_rate,
    "scalar_learning_rate": PAPER.scalar_learning_rate,
    "policy": PAPER.policy,
}

DEMO = replace(PRECONDITIONED, trajectories=5)


MEND_NETWORK: dict[str, Any] = {"network": "mend", "blocks": 2}
MALMEN_NETWORK: dict[str, Any] = {"network": "malmen", "blocks": 2}

METHODS: dict[str, tuple[Callable[..., Agent], dict[str, Any]]] = {
    "fine-tune": (FineTune, {}),
    "joint-fine-tune": (JointFineTune, {}),
    "ft-l": (FineTune, {"steps": 25, "learning_rate": 5e-4, "norm_constraint": 5e-4}),  # ROME's code, for GPT-2 XL
    "lora": (LoRA, {}),
    "mend": (MEND, {"config": {"policy": MEND_NETWORK}}),
    "mend-k4": (MEND, {"config": {"policy": MEND_NETWORK, "actions_per_batch": 4}}),
    "mend-retrained": (MEND, {"config": {"policy": MEND_NETWORK}, "retrain_every": 3}),
    "mend-rledit": (RLEdit, {"config": {"policy": MEND_NETWORK}}),
    "malmen": (MALMEN, {"config": {"policy": MALMEN_NETWORK}}),
    "malmen-k4": (MALMEN, {"config": {"policy": MALMEN_NETWORK, "actions_per_batch": 4}}),
    "malmen-retrained": (MALMEN, {"config": {"policy": MALMEN_NETWORK}, "retrain_every": 3}),
    "malmen-rledit": (RLEdit, {"config": {"policy": MALMEN_NETWORK, "locality": 1.0}}),
    "dafnet": (DAFNet, {}),
    "ultraedit": (UltraEdit, {}),
    "ultraedit-k4": (UltraEdit, {"actions_per_batch": 4}),
    "stableedit": (StableEdit, {}),
    "stableedit-k4": (StableEdit, {"actions_per_batch": 4}),
    "rledit": (RLEdit, {}),
    "rledit-k4": (RLEdit, {"config": {"actions_per_batch": 4}}),
    "untrained-p": (RLEdit, {"config": {"preconditioner": True}, "train": False}),
    "rledit-p": (RLEdit, {"config": {"preconditioner": True}}),
    "rledit-p-long": (RLEdit, {"config": {"preconditioner": True, "trajectories": 8, "horizon": 150}}),
    "rledit-p-k4": (RLEdit, {"config": {"preconditioner": True, "actions_per_batch": 4}}),
    "rome": (ROME, {}),
    "memit": (MEMIT, {}),
    "memit-seq": (MEMIT, {"cache_keys": True}),
    "prune": (PRUNE, {}),
    "rect": (RECT, {}),
    "alphaedit": (AlphaEdit, {}),
}
"""Methods that take settings, and what makes the row the row: on any model, unless its settings say otherwise.
Those for the embedded model are files of agents/settings.
"""


def make_method(name: str, settings: Mapping[str, Any]) -> Agent:
    """The method with these settings, its own defaults elsewhere.

    Args:
        name: Of :data:`METHODS`.
        settings: Constructor arguments, dataclasses as objects.

    Raises:
        ValueError: If a setting is unknown, naming it.
    """
    kind, defining = METHODS[name]
    return build(kind, merged(defining, settings))


def tuned(method: str, folder: str = "atlas") -> Callable[[], Agent]:
    """Makes the method with the settings chosen for the embedded model, or those of another folder of
    agents/settings.
    """
    return lambda: make_method(method, read_settings(method, folder))


def packaged_policy(name: str) -> Path:
    """Folder of a policy that ships with the package."""
    return Path(str(resources.files("agents"))) / "policies" / name


AGENTS: dict[str, tuple[str, Callable[[], Agent]]] = {
    "no-edit": ("nothing is done", NoEdit),
    "fine-tune": ("Adam on the edited modules, batch after batch", tuned("fine-tune")),
    "joint-fine-tune": ("the ceiling: all edits at once, to convergence", tuned("joint-fine-tune")),
    "ultraedit": ("RLEdit's regression with running normalisation in place of the network", tuned("ultraedit")),
    "ultraedit-k4": ("UltraEdit with four actions per batch", tuned("ultraedit-k4")),
    "stableedit": ("UltraEdit with warmed-up statistics and whitened gradients", tuned("stableedit")),
    "stableedit-k4": ("StableEdit with four actions per batch", tuned("stableedit-k4")),
    "ft-l": ("fine-tuning that moves no weight by more than a bound (FT-L)", tuned("ft-l")),
    "lora": ("a low-rank adapter fine-tuned on each batch, and merged", tuned("lora")),
    "mend": ("MEND: a network turns gradients into rank-one updates", tuned("mend")),
    "mend-k4": ("MEND with four actions per batch", tuned("mend-k4")),
    "mend-retrained": ("MEND*: trained again on the edited model every 3 batches", tuned("mend-retrained")),
    "mend-rledit": ("MEND's network, RLEdit's training", tuned("mend-rledit")),
    "malmen": ("MALMEN: a network and least squares over a batch", tuned("malmen")),
    "malmen-k4": ("MALMEN with four actions per batch", tuned("malmen-k4")),
    "malmen-retrained": ("MALMEN*: trained again on the edited model every 3 batches", tuned("malmen-retrained")),
    "malmen-rledit": ("MALMEN's network, RLEdit's training", tuned("malmen-rledit")),
    "dafnet": ("DAFNet: a network over the whole sequence of edits", tuned("dafnet")),
    "rome": ("ROME: one rank-one update a fact", tuned("rome")),
    "memit": ("MEMIT: least squares over a batch of facts", tuned("memit")),
    "memit-seq": ("MEMIT with earlier batches' keys added to the covariance", tuned("memit-seq")),
    "prune": ("PRUNE: MEMIT, with the singular values of all updates held down at the end", tuned("prune")),
    "rect": ("RECT: MEMIT, keeping the largest relative changes of each update", tuned("rect")),
    "alphaedit": ("AlphaEdit: MEMIT in the null space of the text's keys", tuned("alphaedit")),
    # The paper's form, one action per batch.
    "untrained": ("RLEdit's network as it is initialised", lambda: RLEdit(PAPER, train=False)),
    "rledit": ("RLEdit as the paper has it", tuned("rledit")),
    "rledit-fixed": (
        "the same network and budget, trained on the fixed initial model",
        lambda: RLEdit(replace(PAPER, environment="fixed")),
    ),
    "rledit-step-credit": (
        "RLEdit with each delta answering for its own reward only",
        lambda: RLEdit(replace(PAPER, credit="step")),
    ),
    "rledit-no-memory": ("RLEdit without memory backtracking", lambda: RLEdit(replace(PAPER, memory_batches=0))),
    "rledit-no-regularization": ("RLEdit without its regularizer", lambda: RLEdit(replace(PAPER, regularization=0.0))),
    "rledit-previous-reference": (
        "RLEdit with locality measured against the model before the batch, not the initial one",
        lambda: RLEdit(replace(PAPER, reference="previous")),
    ),
    # The same network, trained in other ways.
    "online-rledit": (
        "RLEdit with an optimiser step after every reward (the paper, section 3.2, rejects it)",
        lambda: RLEdit(PAPER, algorithm=Online),
    ),
    "reinforce": (
        "RLEdit's network trained by REINFORCE, from rewards alone",
        lambda: RLEdit(ReinforceConfig(**EPISODES, rollouts=4), algorithm=Reinforce),
    ),
    "evolution": (
        "RLEdit's network trained by an evolution strategy",
        lambda: RLEdit(EvolutionConfig(**EPISODES, pairs=4), algorithm=Evolution),
    ),
    # Beyond the paper: the recursive key-covariance preconditioner (P), and up to four actions per batch (K4).
    "untrained-p": ("the untrained network with P", tuned("untrained-p")),
    "rledit-p": ("RLEdit with P", tuned("rledit-p")),
    "rledit-p-fixed": (
        "the same, trained on the fixed initial model",
        lambda: RLEdit(replace(PRECONDITIONED, environment="fixed")),
    ),
    "rledit-p-long": ("RLEdit with P, trained over trajectories of 3,000 edits", tuned("rledit-p-long")),
    "rledit-p-long-fixed": (
        "the same, trained on the fixed initial model",
        lambda: RLEdit(replace(LONG, environment="fixed")),
    ),
    "rledit-p-long-step-credit": (
        "the same with each delta answering for its own reward only",
        lambda: RLEdit(replace(LONG, credit="step")),
    ),
    # Settings chosen on 8,000 edits of the training split, as rledit-p-long's were.
    "untrained-p-long": ("the untrained network with P, set for 8,000 edits", tuned("untrained-p", "atlas-long")),
    "memit-seq-long": ("memit-seq, set for 8,000 edits", tuned("memit-seq", "atlas-long")),
    "rledit-k4": ("RLEdit with four actions per batch", tuned("rledit-k4")),
    "untrained-p-k4": ("the untrained network with P, four actions", lambda: RLEdit(CLOSED_LOOP, train=False)),
    "rledit-p-k4": ("RLEdit with P, four actions", tuned("rledit-p-k4")),
    # Reinforcement learning in general, on two numbers a module (Stable-Baselines3).
    "sb3-ppo": ("PPO chooses step size and ridge", lambda: SB3Agent("ppo")),
    "sb3-a2c": ("A2C, likewise", lambda: SB3Agent("a2c")),
    "sb3-sac": ("SAC, likewise", lambda: SB3Agent("sac")),
    "sb3-td3": ("TD3, likewise", lambda: SB3Agent("td3")),
    "sb3-ddpg": ("DDPG, likewise", lambda: SB3Agent("ddpg")),
    "sb3-tqc": ("TQC, likewise", lambda: SB3Agent("tqc")),
    # The demo trains for about a minute.
    "demo-rledit": ("RLEdit with P, trained briefly", lambda: RLEdit(DEMO)),
    "demo-untrained": ("the same network before that", lambda: RLEdit(DEMO, train=False)),
    "rledit-packaged": ("a policy that ships with the package", lambda: RLEdit(policy=packaged_policy("atlas"))),
}


def make_agent(name: str) -> Agent:
    """An agent by its name in :data:`AGENTS`, ``METHOD@FOLDER``, or one of your own by ``file.py:Class`` or
    ``module:Class``.

    Raises:
        ValueError: If there is no such agent, or if the method has no such setting as the folder's file says.
    """
    agent = find_agent(name)()
    if not isinstance(agent, Agent):
        raise ValueError(f"agent {name!r} is not an agents.base.Agent")
    return agent


def find_agent(name: str) -> Callable[[], Agent]:
    """What makes the agent of this name, without making it.

    Raises:
        ValueError: If there is no such agent.
        FileNotFoundError: If the folder has no settings of the method.
    """
    if name in AGENTS:
        return AGENTS[name][1]
    method, at, folder = name.partition("@")
    if at and method in METHODS:
        read_settings(method, folder)  # a missing file is told at once
        return tuned(method, folder)
    place, colon, attribute = name.rpartition(":")
    if not colon:
        raise ValueError(f"unknown agent {name!r}; known are {', '.join(AGENTS)}, METHOD@FOLDER, or file.py:Class")
    if place.endswith(".py"):
        spec = importlib.util.spec_from_file_location(Path(place).stem, place)
        if spec is None or spec.loader is None or not Path(place).exists():
            raise ValueError(f"agent {name!r}: there is no file {place}")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        try:
            module = importlib.import_module(place)
        except ModuleNotFoundError as error:
            raise ValueError(f"agent {name!r}: {error}") from error
    if not hasattr(module, attribute):
        raise ValueError(f"agent {name!r}: {place} has no {attribute}")
    found: Callable[[], Agent] = getattr(module, attribute)
    return found


def settings_of(name: str, agent: Agent) -> dict[str, Any]:
    """What an agent was made with, as JSON has it: its attributes, a trained policy's digest, and that of a file of
    one's own.
    """
    shown: dict[str, Any] = {"actions_per_batch": agent.actions_per_batch}
    shown |= {name: _plain(value) for name, value in vars(agent).items() if not name.startswith("_")}
    files = {"source": Path(name.rpartition(":")[0])}
    if getattr(agent, "folder", None) is not None:
        files["policy_file"] = Path(agent.folder) / "policy.safetensors"  # type: ignore[attr-defined]
    shown |= {what: hashlib.sha256(path.read_bytes()).hexdigest() for what, path in files.items() if path.is_file()}
    return {name: plain for name, plain in shown.items() if plain is not None}


def _plain(value: Any) -> Any:
    """A setting as JSON has it; None for what is none (a network, a tensor)."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError):
        return None
