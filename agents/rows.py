"""The one table of rows: every method with its options, under the name that benchmarks and `--method` know it by.

Adding a method: a file in agents/baselines with its class, a row here, a file of settings in agents/settings/atlas.
No agent is imported until one is made.
"""

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agents.settings import build, check_settings, merged, read_environment, read_settings, settings_path

if TYPE_CHECKING:
    from agents.base import Agent


@dataclass(frozen=True)
class Row:
    """One row: which class, and what makes it that row.

    The constructor's arguments are ``arguments``, over them the settings, over them ``fixed``.

    Attributes:
        about: What it is, in a few words.
        agent: ``module:Class``, imported when the row is made.
        paper: Where it comes from; empty for what is ours.
        arguments: What makes the row the row on any model, unless settings say otherwise.
        settings: ``FOLDER/METHOD`` of agents/settings: what was chosen for the embedded model. None if it takes none.
        fixed: What sets the row apart from others with the same settings; settings do not change it.
        changes: What the class says that it changes (:attr:`agents.base.Agent.changes`), for tables that load no class.
    """

    about: str
    agent: str
    paper: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    settings: str | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)
    changes: tuple[str, ...] = ("weights",)

    def load(self) -> "type[Agent]":
        """The class."""
        module, _, name = self.agent.partition(":")
        kind: type[Agent] = getattr(importlib.import_module(module), name)
        return kind

    def make(self, settings: Mapping[str, Any]) -> "Agent":
        """The agent with these settings.

        Raises:
            ValueError: If a setting is unknown, of a wrong type or out of range, naming it.
        """
        check_settings(self.load(), settings)  # also those that the row then sets otherwise
        return build(self.load(), merged(merged(self.arguments, settings), self.fixed))

    def read_settings(self, folder: str | None = None) -> dict[str, Any]:
        """The settings chosen for it in its own folder or another one; empty if it takes none.

        Raises:
            FileNotFoundError: If the folder has none.
            ValueError: If the file is not one of settings.
        """
        if self.settings is None:
            return {}
        own_folder, _, method = self.settings.rpartition("/")
        return read_settings(method, folder or own_folder)

    def read_environment(self, folder: str | None = None) -> dict[str, Any]:
        """Where these settings edit, if their file says; raises as :meth:`read_settings` does."""
        if self.settings is None:
            return {}
        own_folder, _, method = self.settings.rpartition("/")
        return read_environment(method, folder or own_folder)

    def settings_file(self, folder: str | None = None) -> Path | None:
        """The file of its own settings or of those of another folder; None if it takes none."""
        if self.settings is None:
            return None
        own_folder, _, method = self.settings.rpartition("/")
        return settings_path(method, folder or own_folder)

    def chosen(self, folder: str | None = None) -> str:
        """How those settings were chosen; empty if it takes none."""
        path = self.settings_file(folder)
        return "" if path is None else str(json.loads(path.read_text(encoding="utf-8")).get("chosen", ""))


RLEDIT = "agents.rledit.agent:RLEdit"
MEND = "agents.baselines.mend:MEND"
MALMEN = "agents.baselines.malmen:MALMEN"
ULTRAEDIT = "agents.baselines.ultraedit:UltraEdit"
STABLEEDIT = "agents.baselines.stableedit:StableEdit"
MEMIT = "agents.baselines.memit:MEMIT"
FINE_TUNE = "agents.baselines.fine_tune:FineTune"
LOCFT_BF = "agents.baselines.locft_bf:LocFTBF"
SB3 = "agents.rl.sb3:SB3Agent"

RLEDIT_PAPER = "Li et al. 2025, ICML, arXiv 2502.05759"
MEND_PAPER = "Mitchell et al. 2022, ICLR, arXiv 2110.11309"
MALMEN_PAPER = "Tan et al. 2024, ICLR, arXiv 2311.04661"
ULTRAEDIT_PAPER = "Gu et al. 2025, arXiv 2505.14679"
STABLEEDIT_PAPER = "Ma et al. 2026, arXiv 2605.11836"
LOCFT_BF_PAPER = "Yang et al. 2026, ICLR, openreview.net/forum?id=cfHuA5jsPt"
MEMIT_PAPER = "Meng et al. 2023, ICLR, arXiv 2210.07229"
ALPHAEDIT_PAPER = "Fang et al. 2025, ICLR, arXiv 2410.02355"

SIDE_MEMORY = ("side memory",)
CONTEXT = ("context",)

MEND_NETWORK: Mapping[str, Any] = {"network": "mend", "blocks": 2}
MALMEN_NETWORK: Mapping[str, Any] = {"network": "malmen", "blocks": 2}

# The paper's network without the paper's gradient: a trajectory is one optimiser step on several episodes, and the
# environment's own rewards look back at all past batches.
EPISODES: Mapping[str, Any] = {"memory_samples": None}


def packaged_policy(name: str) -> Path:
    """Folder of a policy that ships with the package."""
    return Path(str(resources.files("agents"))) / "policies" / name


ROWS: dict[str, Row] = {
    "no-edit": Row("nothing is done", "agents.baselines.no_edit:NoEdit", changes=()),
    "fine-tune": Row("Adam on the edited modules, batch after batch", FINE_TUNE, settings="atlas/fine-tune"),
    "joint-fine-tune": Row(
        "the ceiling: all edits at once, to convergence",
        "agents.baselines.joint_fine_tune:JointFineTune",
        settings="atlas/joint-fine-tune",
    ),
    "ultraedit": Row(
        "RLEdit's regression with running normalisation in place of the network",
        ULTRAEDIT,
        ULTRAEDIT_PAPER,
        settings="atlas/ultraedit",
    ),
    "ultraedit-k4": Row(
        "UltraEdit with four actions per batch",
        ULTRAEDIT,
        ULTRAEDIT_PAPER,
        {"actions_per_batch": 4},
        "atlas/ultraedit-k4",
    ),
    "stableedit": Row(
        "UltraEdit with warmed-up statistics and whitened gradients",
        STABLEEDIT,
        STABLEEDIT_PAPER,
        settings="atlas/stableedit",
    ),
    "stableedit-k4": Row(
        "StableEdit with four actions per batch",
        STABLEEDIT,
        STABLEEDIT_PAPER,
        {"actions_per_batch": 4},
        "atlas/stableedit-k4",
    ),
    "ft-l": Row(
        "fine-tuning that moves no weight by more than a bound (FT-L)",
        FINE_TUNE,
        "Zhu et al. 2021, arXiv 2012.00363",
        {"steps": 25, "learning_rate": 5e-4, "norm_constraint": 5e-4},  # ROME's code, for GPT-2 XL
        "atlas/ft-l",
    ),
    "fine-tune-replay": Row(
        "fine-tuning on each batch together with a sample of earlier edits",
        "agents.baselines.fine_tune_replay:FineTuneReplay",
        "Chaudhry et al. 2019, arXiv 1902.10486",
        settings="atlas/fine-tune-replay",
    ),
    "locft-bf": Row(
        "LocFT-BF: fine-tuning breadth first, over all edits of the stream in mini-batches",
        LOCFT_BF,
        LOCFT_BF_PAPER,
        settings="atlas/locft-bf",
    ),
    "locft-bf-batch": Row(
        "LocFT-BF on each batch as it comes",
        LOCFT_BF,
        LOCFT_BF_PAPER,
        {"edits": "batch"},
        "atlas/locft-bf-batch",
    ),
    "lora": Row(
        "a low-rank adapter fine-tuned on each batch, and merged",
        "agents.baselines.lora:LoRA",
        "Hu et al. 2022, ICLR, arXiv 2106.09685",
        settings="atlas/lora",
    ),
    "grace": Row(
        "GRACE: a codebook beside the module, with balls that split and grow",
        "agents.baselines.grace:GRACE",
        "Hartvigsen et al. 2023, NeurIPS, arXiv 2211.11031",
        settings="atlas/grace",
        changes=SIDE_MEMORY,
    ),
    "t-patcher": Row(
        "T-Patcher: a neuron beside the module for each mistake, trained to fire on it alone",
        "agents.baselines.t_patcher:TPatcher",
        "Huang et al. 2023, ICLR, arXiv 2301.09785",
        settings="atlas/t-patcher",
        changes=SIDE_MEMORY,
    ),
    "wise": Row(
        "WISE: a side copy of the weight, for tokens that it changes by more than a margin",
        "agents.baselines.wise:WISE",
        "Wang et al. 2024, NeurIPS, arXiv 2405.14768",
        settings="atlas/wise",
        changes=SIDE_MEMORY,
    ),
    "rag": Row(
        "RAG: the edited facts as sentences, the nearest put before a question",
        "agents.baselines.rag:RAG",
        "Thede et al. 2025, ICML, arXiv 2503.05683",
        settings="atlas/rag",
        changes=CONTEXT,
    ),
    "ike": Row(
        "IKE: demonstrations of copying, updating and retaining, and the fact, before a question",
        "agents.baselines.ike:IKE",
        "Zheng et al. 2023, EMNLP, arXiv 2305.12740",
        settings="atlas/ike",
        changes=CONTEXT,
    ),
    "serac": Row(
        "SERAC: a trained scope classifier decides which questions are asked with the nearest edit",
        "agents.baselines.serac:SERAC",
        "Mitchell et al. 2022, ICML, arXiv 2206.06520",
        settings="atlas/serac",
        changes=CONTEXT,
    ),
    "lte": Row(
        "LTE: RAG, and the model is trained once to go by a correction that stands before a question",
        "agents.baselines.lte:LTE",
        "Jiang et al. 2024, ACL, arXiv 2402.11905",
        settings="atlas/lte",
        changes=("weights", "context"),
    ),
    "lte-gated": Row(
        "LTE whose change of the model holds only where a correction stands before the question, as SERAC's does",
        "agents.baselines.lte:GatedLTE",
        "Jiang et al. 2024 and SERAC's second model, Mitchell et al. 2022, arXiv 2206.06520",
        settings="atlas/lte-gated",
        changes=("side memory", "context"),
    ),
    "oneedit": Row(
        "OneEdit over RAG: a graph of facts says what an edit contradicts, which is rolled back first",
        "agents.baselines.oneedit:OneEdit",
        "Zhang et al. 2024, EMNLP, arXiv 2409.07497",
        settings="atlas/oneedit",
        changes=CONTEXT,
    ),
    "lora-merge": Row(
        "an adapter fine-tuned on each batch, of which a share is merged",
        "agents.baselines.lora_merge:LoRAMerge",
        "Thede et al. 2025, ICML, arXiv 2503.05683",
        settings="atlas/lora-merge",
    ),
    "kn": Row(
        "knowledge neurons: the rows that an old answer comes from are turned to the new one",
        "agents.baselines.kn:KN",
        "Dai et al. 2022, ACL, arXiv 2104.08696",
        settings="atlas/kn",
    ),
    "ke": Row(
        "KnowledgeEditor: a network reads an edit's old and new answer and masks the gradient",
        "agents.baselines.ke:KE",
        "De Cao et al. 2021, EMNLP, arXiv 2104.08164",
        settings="atlas/ke",
    ),
    "mend": Row(
        "MEND: a network turns gradients into rank-one updates",
        MEND,
        MEND_PAPER,
        {"config": {"policy": MEND_NETWORK}},
        "atlas/mend",
    ),
    "mend-k4": Row(
        "MEND with four actions per batch",
        MEND,
        MEND_PAPER,
        {"config": {"policy": MEND_NETWORK, "actions_per_batch": 4}},
        "atlas/mend-k4",
    ),
    "mend-retrained": Row(
        "MEND*: trained again on the edited model every 3 batches",
        MEND,
        f"{MEND_PAPER}; {RLEDIT_PAPER}, appendix A.1",
        {"config": {"policy": MEND_NETWORK}, "retrain_every": 3},
        "atlas/mend-retrained",
    ),
    "mend-rledit": Row(
        "MEND's network, RLEdit's training",
        RLEDIT,
        f"{RLEDIT_PAPER}, section 3.3",
        {"config": {"policy": MEND_NETWORK}},
        "atlas/mend-rledit",
    ),
    "malmen": Row(
        "MALMEN: a network and least squares over a batch",
        MALMEN,
        MALMEN_PAPER,
        {"config": {"policy": MALMEN_NETWORK}},
        "atlas/malmen",
    ),
    "malmen-k4": Row(
        "MALMEN with four actions per batch",
        MALMEN,
        MALMEN_PAPER,
        {"config": {"policy": MALMEN_NETWORK, "actions_per_batch": 4}},
        "atlas/malmen-k4",
    ),
    "malmen-retrained": Row(
        "MALMEN*: trained again on the edited model every 3 batches",
        MALMEN,
        f"{MALMEN_PAPER}; {RLEDIT_PAPER}, appendix A.1",
        {"config": {"policy": MALMEN_NETWORK}, "retrain_every": 3},
        "atlas/malmen-retrained",
    ),
    "malmen-rledit": Row(
        "MALMEN's network, RLEdit's training",
        RLEDIT,
        f"{RLEDIT_PAPER}, section 3.3",
        {"config": {"policy": MALMEN_NETWORK, "locality": 1.0}},
        "atlas/malmen-rledit",
    ),
    "dafnet": Row(
        "DAFNet: a network over the whole sequence of edits",
        "agents.baselines.dafnet:DAFNet",
        "Zhang et al. 2024, ACL Findings, arXiv 2405.20588",
        settings="atlas/dafnet",
    ),
    "rome": Row(
        "ROME: one rank-one update a fact",
        "agents.baselines.rome:ROME",
        "Meng et al. 2022, NeurIPS, arXiv 2202.05262",
        settings="atlas/rome",
    ),
    "memit": Row("MEMIT: least squares over a batch of facts", MEMIT, MEMIT_PAPER, settings="atlas/memit"),
    "memit-seq": Row(
        "MEMIT with earlier batches' keys added to the covariance",
        MEMIT,
        f"{MEMIT_PAPER}; the public code of {ALPHAEDIT_PAPER}",
        {"cache_keys": True},
        "atlas/memit-seq",
    ),
    "memit-rehearsed": Row(
        "memit-seq with one value for all facts of a subject, earlier ones rehearsed, in passes until all is said",
        "agents.baselines.memit_rehearsed:RehearsedMEMIT",
        f"{MEMIT_PAPER}; the rest is this project's",
        settings="atlas/memit-rehearsed",
    ),
    "memit-reworded": Row(
        "memit-rehearsed whose values hold for other wordings of a fact, as training edits show them",
        "agents.baselines.memit_reworded:RewordedMEMIT",
        f"{MEMIT_PAPER}; the rest is this project's",
        settings="atlas/memit-reworded",
    ),
    "prune": Row(
        "PRUNE: MEMIT, with the singular values of all updates held down at the end",
        "agents.baselines.prune:PRUNE",
        "Ma et al. 2025, ICLR, arXiv 2405.16821",
        settings="atlas/prune",
    ),
    "rect": Row(
        "RECT: MEMIT, keeping the largest relative changes of each update",
        "agents.baselines.rect:RECT",
        "Gu et al. 2024, EMNLP, arXiv 2401.04700",
        settings="atlas/rect",
    ),
    "alphaedit": Row(
        "AlphaEdit: MEMIT in the null space of the text's keys",
        "agents.baselines.alphaedit:AlphaEdit",
        ALPHAEDIT_PAPER,
        settings="atlas/alphaedit",
    ),
    "memit-seq-nas": Row(
        "memit-seq with each solved value scaled to the length of the unedited model's (NAS)",
        "agents.baselines.nas:NAS",
        "Liu et al. 2026, arXiv 2602.02543",
        {"cache_keys": True},
        "atlas/memit-seq-nas",
    ),
    "pmet": Row(
        "PMET: MEMIT with values of attention and MLP searched together, the MLP's written",
        "agents.baselines.pmet:PMET",
        "Li et al. 2024, AAAI, arXiv 2308.08742",
        settings="atlas/pmet",
    ),
    "nse": Row(
        "NSE: memit-seq on active neurons alone, with values of the unedited model, in rounds",
        "agents.baselines.nse:NSE",
        "Jiang et al. 2025, ACL, arXiv 2410.04045",
        settings="atlas/nse",
    ),
    "ece": Row(
        "ECE: memit-seq on the neurons that explain each cluster of similar facts",
        "agents.baselines.ece:ECE",
        "Zhang et al. 2025, WWW, doi.org/10.1145/3696410.3714835",
        settings="atlas/ece",
    ),
    "anyedit": Row(
        "AnyEdit: MEMIT with a target edited chunk by chunk, each at the token before it",
        "agents.baselines.anyedit:AnyEdit",
        "Jiang et al. 2025, ICML, arXiv 2502.05628",
        settings="atlas/anyedit",
    ),
    "rlsedit": Row(
        "RLSEdit: recursive least squares over all edits, held by the text's keys and by theta_0",
        "agents.baselines.rlsedit:RLSEdit",
        "Wang et al. 2026, arXiv 2601.15686",
        settings="atlas/rlsedit",
    ),
    "simie": Row(
        "SimIE around MEMIT: each batch edits theta_0, and recursive least squares adds the edits up",
        "agents.baselines.simie:SimIE",
        "Guo et al. 2025, ICML, openreview.net/forum?id=VdEG08ZJCH",
        settings="atlas/simie",
    ),
    "o-edit": Row(
        "O-Edit: MEMIT, each update orthogonal to the earlier ones and to text",
        "agents.baselines.o_edit:OEdit",
        "Cai and Cao 2024, arXiv 2410.11469",
        settings="atlas/o-edit",
    ),
    "crispedit": Row(
        "CrispEdit: fine-tuning kept out of the directions in which text's loss is curved",
        "agents.baselines.crispedit:CrispEdit",
        "Ikram et al. 2026, ICML, arXiv 2602.15823",
        settings="atlas/crispedit",
    ),
    # RLEdit in the paper's form, one action per batch; one training budget for all of these.
    "untrained": Row(
        "RLEdit's network as it is initialised", RLEDIT, RLEDIT_PAPER, {}, "atlas/rledit", {"train": False}
    ),
    "rledit": Row("RLEdit as the paper has it", RLEDIT, RLEDIT_PAPER, settings="atlas/rledit"),
    "hiedit": Row(
        "HiEdit: RLEdit with a gate that chooses the modules of each batch",
        "agents.rledit.hiedit:HiEdit",
        "Wang et al. 2026, ACL, arXiv 2604.11214",
        settings="atlas/hiedit",
    ),
    "rledit-fixed": Row(
        "RLEdit's network and budget, trained on the fixed initial model",
        RLEDIT,
        RLEDIT_PAPER,
        {},
        "atlas/rledit",
        {"config": {"environment": "fixed"}},
    ),
    "rledit-step-credit": Row(
        "RLEdit with each delta answering for its own reward only",
        RLEDIT,
        RLEDIT_PAPER,
        {},
        "atlas/rledit",
        {"config": {"credit": "step"}},
    ),
    "rledit-no-memory": Row(
        "RLEdit without memory backtracking",
        RLEDIT,
        RLEDIT_PAPER,
        {},
        "atlas/rledit",
        {"config": {"memory_batches": 0}},
    ),
    "rledit-no-regularization": Row(
        "RLEdit without its regularizer", RLEDIT, RLEDIT_PAPER, {}, "atlas/rledit", {"config": {"regularization": 0.0}}
    ),
    "rledit-previous-reference": Row(
        "RLEdit with locality measured against the model before the batch, not the initial one",
        RLEDIT,
        RLEDIT_PAPER,
        {},
        "atlas/rledit",
        {"config": {"reference": "previous"}},
    ),
    # The same network, trained in other ways.
    "online-rledit": Row(
        "RLEdit with an optimiser step after every reward (the paper, section 3.2, rejects it)",
        "agents.rl.online:OnlineRLEdit",
        RLEDIT_PAPER,
        settings="atlas/rledit",
    ),
    "reinforce": Row(
        "RLEdit's network trained by REINFORCE, from rewards alone",
        "agents.rl.reinforce:ReinforceAgent",
        "Williams 1992, Machine Learning 8",
        {},
        "atlas/rledit",
        {"config": {**EPISODES, "rollouts": 4}},
    ),
    "evolution": Row(
        "RLEdit's network trained by an evolution strategy",
        "agents.rl.evolution:EvolutionAgent",
        "Salimans et al. 2017, arXiv 1703.03864",
        {},
        "atlas/rledit",
        {"config": {**EPISODES, "pairs": 4}},
    ),
    # Beyond the paper: the recursive key-covariance preconditioner (P), and up to four actions per batch (K4).
    "untrained-p": Row(
        "the untrained network with P",
        RLEDIT,
        RLEDIT_PAPER,
        {"config": {"preconditioner": True}, "train": False},
        "atlas/untrained-p",
    ),
    "rledit-p": Row("RLEdit with P", RLEDIT, RLEDIT_PAPER, {"config": {"preconditioner": True}}, "atlas/rledit-p"),
    "rledit-p-fixed": Row(
        "RLEdit with P, trained on the fixed initial model",
        RLEDIT,
        RLEDIT_PAPER,
        {"config": {"preconditioner": True}},
        "atlas/rledit-p",
        {"config": {"environment": "fixed"}},
    ),
    "rledit-p-long": Row(
        "RLEdit with P, trained over trajectories of 3,000 edits",
        RLEDIT,
        RLEDIT_PAPER,
        {"config": {"preconditioner": True, "trajectories": 8, "horizon": 150}},
        "atlas/rledit-p-long",
    ),
    "rledit-p-long-fixed": Row(
        "rledit-p-long, trained on the fixed initial model",
        RLEDIT,
        RLEDIT_PAPER,
        {"config": {"preconditioner": True, "trajectories": 8, "horizon": 150}},
        "atlas/rledit-p-long",
        {"config": {"environment": "fixed"}},
    ),
    "rledit-p-long-step-credit": Row(
        "rledit-p-long with each delta answering for its own reward only",
        RLEDIT,
        RLEDIT_PAPER,
        {"config": {"preconditioner": True, "trajectories": 8, "horizon": 150}},
        "atlas/rledit-p-long",
        {"config": {"credit": "step"}},
    ),
    # Settings chosen on 8,000 edits of the training split, as rledit-p-long's were.
    "untrained-p-long": Row(
        "the untrained network with P, set for 8,000 edits",
        RLEDIT,
        RLEDIT_PAPER,
        {"config": {"preconditioner": True}, "train": False},
        "atlas-long/untrained-p",
    ),
    "memit-seq-long": Row(
        "memit-seq, set for 8,000 edits", MEMIT, MEMIT_PAPER, {"cache_keys": True}, "atlas-long/memit-seq"
    ),
    "rledit-k4": Row(
        "RLEdit with four actions per batch",
        RLEDIT,
        RLEDIT_PAPER,
        {"config": {"actions_per_batch": 4}},
        "atlas/rledit-k4",
    ),
    "untrained-p-k4": Row(
        "the untrained network with P, four actions",
        RLEDIT,
        RLEDIT_PAPER,
        {"config": {"preconditioner": True, "actions_per_batch": 4}},
        "atlas/rledit-p-k4",
        {"train": False},
    ),
    "rledit-p-k4": Row(
        "RLEdit with P, four actions",
        RLEDIT,
        RLEDIT_PAPER,
        {"config": {"preconditioner": True, "actions_per_batch": 4}},
        "atlas/rledit-p-k4",
    ),
    # Reinforcement learning in general, on two numbers a module (Stable-Baselines3).
    "sb3-ppo": Row("PPO chooses step size and ridge", SB3, "Schulman et al. 2017, arXiv 1707.06347", {"algo": "ppo"}),
    "sb3-a2c": Row("A2C chooses step size and ridge", SB3, "Mnih et al. 2016, ICML, arXiv 1602.01783", {"algo": "a2c"}),
    "sb3-sac": Row(
        "SAC chooses step size and ridge", SB3, "Haarnoja et al. 2018, ICML, arXiv 1801.01290", {"algo": "sac"}
    ),
    "sb3-td3": Row(
        "TD3 chooses step size and ridge", SB3, "Fujimoto et al. 2018, ICML, arXiv 1802.09477", {"algo": "td3"}
    ),
    "sb3-ddpg": Row(
        "DDPG chooses step size and ridge", SB3, "Lillicrap et al. 2016, ICLR, arXiv 1509.02971", {"algo": "ddpg"}
    ),
    "sb3-tqc": Row(
        "TQC chooses step size and ridge", SB3, "Kuznetsov et al. 2020, ICML, arXiv 2005.04269", {"algo": "tqc"}
    ),
    # The demo trains for about a minute.
    "demo-rledit": Row(
        "RLEdit with P, trained briefly",
        RLEDIT,
        RLEDIT_PAPER,
        {"config": {"preconditioner": True}},
        "atlas/rledit-p",
        {"config": {"trajectories": 5}},
    ),
    "demo-untrained": Row(
        "the network of demo-rledit before its training",
        RLEDIT,
        RLEDIT_PAPER,
        {"config": {"preconditioner": True}},
        "atlas/rledit-p",
        {"config": {"trajectories": 5}, "train": False},
    ),
    "rledit-packaged": Row(
        "a policy that ships with the package", RLEDIT, RLEDIT_PAPER, fixed={"policy": packaged_policy("atlas")}
    ),
}


def row_of(agent: str) -> Row | None:
    """The row of a name, or of a method with the settings of another folder (``METHOD@FOLDER``); None for other names."""
    return ROWS.get(agent) or ROWS.get(agent.partition("@")[0])
