"""What editing and training cost on a large model: time against its floor, and memory.

    python -m benchmarks.scale --shape llama-3-8b --preset llama-3-8b/zsre --device cuda --out runs/scale.json
    python -m benchmarks.scale --shape llama-1b --modules layers.8.mlp.down_proj layers.9.mlp.down_proj --horizon 0

Neither time nor memory depends on what the weights are, so they are random: no such model has to be there, and
nothing is said about quality. The edits are those of the embedded world and the tokenizer is its model's, which has
about a token for a word. The model is written to a folder (``--folder``, for one in memory or on a fast disk) and
read from it like any other.
"""

import gc
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from agents.base import Agent
from agents.baselines.ultraedit import UltraEdit
from agents.editing.editor import LifelongEditor
from agents.hypernetwork.config import PolicyConfig, TrainConfig
from agents.hypernetwork.training import training_environment
from agents.progress import silent
from agents.rledit.agent import RLEdit
from agents.rledit.trainer import RLEditTrainer
from benchmarks.results.records import hardware, versions
from benchmarks.running.timing import clock, medians, peak_memory_bytes, time_steps
from editenv.atomic_files import atomic_write_text, replace_folder
from editenv.data import load_edits
from editenv.env import LifelongEditEnv
from editenv.models import EMBEDDED, check_device, load_model, model_path
from editenv.models.modules import find_modules, modules_of, preset

if TYPE_CHECKING:
    from transformers import LlamaConfig

SHAPES: dict[str, dict[str, int]] = {
    "llama-3-8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
    "llama-3-70b": {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
    "llama-1b": {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "vocab_size": 32000,
    },
}
"""Of Llama 3 (Grattafiori et al. 2024, table 3) and TinyLlama (Zhang et al. 2024)."""

EMBEDDINGS = 2
"""Matrices of vocabulary by hidden size: what is read, and the head."""


@dataclass
class Args:
    """Arguments of the command.

    Attributes:
        shape: Whose sizes the model has.
        layers: Fewer layers than it has.
        preset: Edited modules and rank of a policy, by the paper's Table 3; `editenv models` lists them.
        modules: Edited modules in place of a preset's; the model's default if there is neither.
        rank: Rank of the policy where there is no preset.
        edits_per_step: Edits in a batch.
        steps: Edit steps timed.
        horizon: Batches of the training trajectory; 0 leaves training out.
        memory_samples: Past batches that each reward of the trajectory looks back at; None takes all ten.
        journaled: Batches edited as `editenv edit` does it, with its guard and a journal on disk.
        device: Torch device.
        dtype: Precision of the model; edits add up in float32.
        folder: Where the model is written; a temporary folder, which is removed in the end, if there is none.
        seed: Seeds weights, policy and streams.
        out: Write the figures to this JSON file, too, as they are found.
    """

    shape: Literal["llama-3-8b", "llama-3-70b", "llama-1b"] = "llama-3-8b"
    layers: int | None = None
    preset: str | None = None
    modules: tuple[str, ...] = ()
    rank: int = 64
    edits_per_step: int = 20
    steps: int = 10
    horizon: int = 25
    memory_samples: int | None = 3
    journaled: int = 5
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    folder: Path | None = None
    seed: int = 0
    out: Path | None = None


def config_of(args: Args) -> "LlamaConfig":
    """Of the model, without the tokenizer's special tokens."""
    from transformers import LlamaConfig

    shape = SHAPES[args.shape] | ({} if args.layers is None else {"num_hidden_layers": args.layers})
    return LlamaConfig(**shape, max_position_embeddings=8192, tie_word_embeddings=False)


def check(args: Args) -> None:
    """Checks the arguments, before anything large is made.

    Raises:
        ValueError: If a number is too small, there is no such device, or the model has no such modules.
    """
    from transformers import LlamaForCausalLM

    check_device(args.device)
    smallest = dict.fromkeys(("edits_per_step", "steps", "rank", "layers", "memory_samples"), 1)
    smallest |= {"horizon": 0, "journaled": 0}
    for name, least in smallest.items():
        value = getattr(args, name)
        if value is not None and value < least:
            raise ValueError(f"{name} must be {least} or more, not {value}")
    if modules := modules_of(args.modules, args.preset):
        with torch.device("meta"):
            find_modules(LlamaForCausalLM(config_of(args)), modules)


def write_model(folder: Path, args: Args) -> None:
    """A Llama of random weights with the embedded model's tokenizer."""
    from transformers import AutoTokenizer, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(model_path(EMBEDDED), trust_remote_code=False)
    config = config_of(args)
    for name in ("bos", "eos", "pad"):
        setattr(config, f"{name}_token_id", getattr(tokenizer, f"{name}_token_id"))
    torch.manual_seed(args.seed)
    # Made where it will run: billions of random numbers take a CPU minutes.
    usual_dtype = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, args.dtype))
    try:
        with torch.device(args.device):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(usual_dtype)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def parameters(args: Args) -> int:
    """Of the model, counted from its shape: attention, MLP and two norms for each layer, a norm, embeddings and
    head.
    """
    shape = SHAPES[args.shape]
    width, layers = shape["hidden_size"], args.layers or shape["num_hidden_layers"]
    # Queries and outputs are as wide as the model, keys and values as their fewer heads.
    attention = 2 * width**2 + 2 * width**2 * shape["num_key_value_heads"] // shape["num_attention_heads"]
    layer = attention + 3 * width * shape["intermediate_size"] + 2 * width
    return layers * layer + width + EMBEDDINGS * shape["vocab_size"] * width


@contextmanager
def peak_memory(device: torch.device, results: dict[str, Any]) -> Iterator[None]:
    """Notes the most memory that was held within the context, and how much of it was held before.

    Args:
        device: Of the model.
        results: Gets ``host_peak_bytes``, and on a GPU ``device_bytes_before`` and ``device_peak_bytes``.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        results["device_bytes_before"] = torch.cuda.memory_allocated(device)
    yield
    if device.type == "cuda":
        results["device_peak_bytes"] = peak_memory_bytes(device)
    results["host_peak_bytes"] = peak_memory_bytes(torch.device("cpu"))  # of the process so far


def policy_config(args: Args) -> PolicyConfig:
    """Of the policy, with the preset's rank if there is one."""
    return PolicyConfig(rank=args.rank if args.preset is None else preset(args.preset).rank)


def train_config(args: Args) -> TrainConfig:
    """Of a trajectory as long as was asked for, two batches at least."""
    return TrainConfig(
        horizon=max(args.horizon, 2),
        edits_per_step=args.edits_per_step,
        memory_samples=args.memory_samples,
        warm_up_batches=2,
        policy=policy_config(args),
    )


def time_editing(agent: Agent, env: LifelongEditEnv, args: Args) -> dict[str, Any]:
    """Medians over steps of acting, of the whole edit step (observation and update are the environment's) and of
    the floor; and the peak memory.
    """
    results: dict[str, Any] = {}
    with peak_memory(env.language_model.device, results):
        times = medians(time_steps(agent, env, args.steps, args.seed))
    return results | {
        "act_seconds": times["act"],
        "step_seconds": times["step"],
        "floor_seconds": times["floor"],
        "ratio": times["ratio"],
        "environment_step_seconds": times["environment"],
    }


def time_training(env: LifelongEditEnv, args: Args) -> dict[str, Any]:
    """One trajectory and its policy gradient, after a short one that warms up the device."""
    config = train_config(args)
    _time_trajectory(env, replace(config, horizon=2), args.seed)
    return {"horizon": config.horizon} | _time_trajectory(env, config, args.seed)


def _time_trajectory(env: LifelongEditEnv, config: TrainConfig, seed: int) -> dict[str, Any]:
    results: dict[str, Any] = {}
    trainer = RLEditTrainer(training_environment(env, config), config, seed, None)
    device = trainer.lm.device
    with peak_memory(device, results):
        started = clock(device)
        steps = list(trainer.credited_roll_out())
        rolled_out = clock(device)
        trainer.backward(steps)
        trainer.ascend()
        ended = clock(device)
    return results | {
        "roll_out_seconds": rolled_out - started,
        "backward_seconds": ended - rolled_out,
        "answer_tokens_per_step": statistics.mean(len(next(iter(step.gradients.values())).keys) for step in steps),
        "policy_parameters": sum(parameter.numel() for parameter in trainer.policy.parameters()),
    }


def time_journaled(model: str, args: Args, modules: tuple[str, ...] | None, folder: Path) -> dict[str, Any]:
    """Seconds of batches as `editenv edit` makes them: edited, checked by the guard, on disk.

    Args:
        model: Folder of the model.
        args: The command's.
        modules: Edited modules; None for the model's own.
        folder: Where the journal is written.
    """
    edits = load_edits(EMBEDDED, "validation", None, None)
    started = time.perf_counter()
    editor = LifelongEditor(
        model, "ultraedit", output=folder, modules=modules, device=args.device, dtype=args.dtype, seed=args.seed
    )
    opening_seconds = time.perf_counter() - started
    seconds = []
    for batch in range(args.journaled):
        result = editor.edit([edits[i] for i in range(batch * args.edits_per_step, (batch + 1) * args.edits_per_step)])
        seconds.append(result.seconds)
    return {"opening_seconds": opening_seconds, "batch_seconds": statistics.median(seconds)}


def measure(args: Args) -> dict[str, Any]:
    """Everything, in the order in which it can be afforded; kept in ``args.out`` as it is found."""
    modules = modules_of(args.modules, args.preset) or None
    results: dict[str, Any] = {
        "arguments": asdict(args) | {"folder": None, "out": None, "rank": policy_config(args).rank},
        "versions": versions(),
        "hardware": hardware(args.device),
        "parameters": parameters(args),
    }

    def keep(name: str, figures: dict[str, Any], description: str) -> None:
        results[name] = figures
        print(f"{name}: {description}", flush=True)
        if args.out is not None:
            atomic_write_text(args.out, json.dumps(results, indent=2) + "\n")

    with _model_folder(args) as folder:
        started = time.perf_counter()
        model = made_model(folder, args)
        results["writing_seconds"] = time.perf_counter() - started
        started = time.perf_counter()
        load_model(model, args.device, args.dtype)
        results["loading_seconds"] = time.perf_counter() - started
        env = LifelongEditEnv(
            model=model,
            split="validation",
            modules=modules,
            device=args.device,
            dtype=args.dtype,
            edits_per_step=args.edits_per_step,
            memory_batches=0,
        )
        results["modules"] = {name: list(env.language_model.shape(name)) for name in env.language_model.modules}
        policy = RLEdit(replace(train_config(args), horizon=2), train=False)
        policy.prepare(env, args.seed, silent)
        for name, agent in (("ultraedit", UltraEdit()), ("rledit", policy)):
            editing = time_editing(agent, env, args)
            keep(name, editing, describe_editing(editing, args))
        del agent, policy  # what comes next needs the memory
        if args.horizon:
            training = time_training(env, args)
            keep("training", training, describe_training(training, results["rledit"], args))
        del env
        if args.journaled:
            with tempfile.TemporaryDirectory(dir=folder) as journal:
                journaled = time_journaled(model, args, modules, Path(journal))
            keep("journaled", journaled, describe_journaled(journaled, args))
    return results


@contextmanager
def _model_folder(args: Args) -> Iterator[Path]:
    """The folder for models: the one that was named, or a temporary one."""
    if args.folder is not None:
        yield args.folder
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)


def made_model(folder: Path, args: Args) -> str:
    """The model's folder in this one; written first if it is not there yet."""
    model = folder / f"{args.shape}-{args.layers or 'all'}-{args.dtype}-{args.seed}"
    if not model.exists():
        partial = model.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        write_model(partial, args)
        replace_folder(partial, model)
    return str(model)


def describe_editing(editing: dict[str, Any], args: Args) -> str:
    """The figures of :func:`time_editing` in a line."""
    peak = editing.get("device_peak_bytes", editing["host_peak_bytes"])
    step, floor, environment_step = (
        1000 * editing[name] for name in ("step_seconds", "floor_seconds", "environment_step_seconds")
    )
    return (
        f"edit step of {args.edits_per_step} {step:.0f} ms, {editing['ratio']:.2f} x the floor of {floor:.0f} ms; with "
        f"the reward {environment_step:.0f} ms; {peak / 1e9:.1f} GB"
    )


def describe_training(training: dict[str, Any], editing: dict[str, Any], args: Args) -> str:
    """The figures of :func:`time_training` in a line, beside what editing takes."""
    seconds = training["roll_out_seconds"] + training["backward_seconds"]
    edits = seconds / editing["step_seconds"] * args.edits_per_step
    peak = training.get("device_peak_bytes", training["host_peak_bytes"])
    return (
        f"a trajectory of {training['horizon']} x {args.edits_per_step} takes {seconds:.1f} s "
        f"({training['backward_seconds']:.1f} of them backward), as long as {edits:,.0f} edits; {peak / 1e9:.1f} GB, "
        f"{training['host_peak_bytes'] / 1e9:.1f} GB of the host's"
    )


def describe_journaled(journaled: dict[str, Any], args: Args) -> str:
    """The figures of :func:`time_journaled` in a line."""
    return f"{args.edits_per_step / journaled['batch_seconds']:.1f} edits/s of editenv edit, with guard and journal"


def main(args: Args) -> None:
    """Measures and prints.

    Raises:
        SystemExit: For wrong arguments, with a message.
    """
    try:
        check(args)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    print(f"{args.shape}: {parameters(args) / 1e9:.2f} B parameters, {args.dtype}, on {args.device}", flush=True)
    measure(args)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Args, description=__doc__))
