"""Which architectures can be edited: a tiny random model of each goes the way that users' models go.

    python -m benchmarks.architectures
    python -m benchmarks.architectures --only opt mixtral
    python -m benchmarks.architectures --document docs/reference/architectures.md

Each model is saved as a folder, edited by ``editenv edit``, and loaded again by plain transformers. Its logits must be
those that the environment has with the same deltas. --document writes the table of docs/reference/architectures.md.
"""

import contextlib
import io
import json
import re
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from editenv.atomic_files import atomic_write_text
from editenv.delta_files import apply_file
from editenv.env import LifelongEditEnv
from editenv.language_model.cut import Cut
from editenv.models import EMBEDDED, model_path

EDITS = (("Who owns Tumblr?", "Automattic"), ("The home of Mara is", "Oslo"), ("Kepler plays", "jazz music"))
"""Prompts and targets, of different lengths."""

TOLERANCE = 1e-4
"""By how much logits may differ, as a share of the largest."""

_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
_LLAMA = _SIZES | {"intermediate_size": 64, "head_dim": 8, "num_key_value_heads": 2}
_GPT2 = {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 256}
_FALCON = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
_FUSED = {"num_local_experts": 4, "num_experts_per_tok": 2}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_SHARED_EXPERT = {"shared_expert_intermediate_size": 32}
_LINEAR_ATTENTION = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": [*["linear_attention"] * 3, "full_attention"],
}
_STATE_SPACE = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1}
_OPT = _SIZES | {"ffn_dim": 64, "word_embed_proj_dim": 32}
_VISION = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 6, "num_attention_heads": 2}
_VISION |= {"image_size": 28, "patch_size": 14}
_DEEPSEEK = _SIZES | {
    "intermediate_size": 64, "moe_intermediate_size": 16, "num_key_value_heads": 4, "n_routed_experts": 4, "n_group": 2,
    "topk_group": 1, "num_experts_per_tok": 2, "n_shared_experts": 1, "first_k_dense_replace": 1, "kv_lora_rank": 8,
    "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8,
}  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    """A tiny model.

    Attributes:
        models: Published models of this architecture, for readers.
        type: Its ``model_type`` in transformers.
        settings: Of its config, all that is small or special about it.
    """

    models: str
    type: str
    settings: Mapping[str, Any] = field(default_factory=dict)


ARCHITECTURES = {
    "llama": Architecture("Llama 1 to 3, TinyLlama, SmolLM 1 and 2, Yi", "llama", _LLAMA),
    "mistral": Architecture("Mistral", "mistral", _LLAMA),
    "qwen2": Architecture("Qwen2, Qwen2.5", "qwen2", _LLAMA),
    "qwen3": Architecture("Qwen3", "qwen3", _LLAMA),
    "gemma": Architecture("Gemma", "gemma", _LLAMA),
    "gemma2": Architecture("Gemma 2", "gemma2", _LLAMA | {"sliding_window": 8}),
    "gemma3": Architecture("Gemma 3, text only", "gemma3_text", _LLAMA | {"sliding_window": 8}),
    "phi": Architecture("Phi-1, Phi-2", "phi", _SIZES | {"intermediate_size": 64}),
    "phi3": Architecture("Phi-3, Phi-4", "phi3", _LLAMA),
    "olmo2": Architecture("OLMo 2", "olmo2", _LLAMA),
    "smollm3": Architecture("SmolLM3", "smollm3", _LLAMA),
    "granite": Architecture("Granite 3, dense", "granite", _LLAMA),
    "stablelm": Architecture("StableLM", "stablelm", _LLAMA),
    "starcoder2": Architecture("StarCoder2", "starcoder2", _LLAMA),
    "cohere": Architecture("Command R", "cohere", _LLAMA),
    "falcon-7b": Architecture("Falcon 7B", "falcon", _FALCON | {"multi_query": True, "parallel_attn": True}),
    "falcon-new": Architecture(
        "Falcon 40B, Falcon 2 (new decoder)", "falcon", _FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2}
    ),
    "falcon-1b": Architecture(
        "Falcon RW 1B (ALiBi)", "falcon", _FALCON | {"alibi": True, "multi_query": False, "parallel_attn": False}
    ),
    "gpt-neox": Architecture("GPT-NeoX, Pythia", "gpt_neox", _SIZES | {"intermediate_size": 64}),
    "gpt2": Architecture("GPT-2", "gpt2", _GPT2),
    "gpt-j": Architecture("GPT-J", "gptj", _GPT2 | {"rotary_dim": 4}),
    "gpt1": Architecture("GPT-1", "openai-gpt", _GPT2),
    "opt": Architecture("OPT", "opt", _OPT),
    "opt-350m": Architecture(
        "OPT 350M (embeddings narrower than layers)",
        "opt",
        _OPT | {"word_embed_proj_dim": 16, "do_layer_norm_before": False},
    ),
    "bloom": Architecture("BLOOM", "bloom", {"hidden_size": 32, "n_layer": 4, "n_head": 4}),
    "mpt": Architecture("MPT", "mpt", {"d_model": 32, "n_layers": 4, "n_heads": 4, "max_seq_len": 256}),
    "mixtral": Architecture("Mixtral", "mixtral", _LLAMA | _FUSED),
    "qwen2-moe": Architecture("Qwen1.5-MoE, Qwen2-MoE", "qwen2_moe", _LLAMA | _EXPERTS | _SHARED_EXPERT),
    "qwen3-moe": Architecture("Qwen3-MoE", "qwen3_moe", _LLAMA | _EXPERTS),
    "gpt-oss": Architecture("gpt-oss", "gpt_oss", _LLAMA | _FUSED | {"sliding_window": 8}),
    "deepseek-v3": Architecture("DeepSeek-V3, DeepSeek-R1", "deepseek_v3", _DEEPSEEK),
    "llama4": Architecture(
        "Llama 4, text only",
        "llama4_text",
        _LLAMA
        | {"intermediate_size_mlp": 64, "num_local_experts": 4, "num_experts_per_tok": 1, "moe_layers": [1, 3]}
        | {"attention_chunk_size": 64},
    ),
    "qwen3-next": Architecture("Qwen3-Next", "qwen3_next", _LLAMA | _EXPERTS | _SHARED_EXPERT | _LINEAR_ATTENTION),
    "bamba": Architecture("Bamba", "bamba", _LLAMA | _STATE_SPACE | {"attn_layer_indices": [2]}),
    "mamba": Architecture(
        "Mamba", "mamba", {"hidden_size": 32, "num_hidden_layers": 4, "state_size": 8, "time_step_rank": 4}
    ),
    "gemma3-vl": Architecture(
        "Gemma 3, with its vision tower",
        "gemma3",
        {"text_config": _LLAMA | {"sliding_window": 8}, "vision_config": _VISION, "mm_tokens_per_image": 4}
        | {"boi_token_index": 100, "eoi_token_index": 101, "image_token_index": 102},
    ),
    "zamba2": Architecture(
        "Zamba2 (layers share weights)",
        "zamba2",
        _SIZES
        | {"intermediate_size": 64, "num_key_value_heads": 4, "mamba_d_state": 8, "mamba_headdim": 16}
        | {"n_mamba_heads": 4, "mamba_ngroups": 1, "num_mem_blocks": 1}
        | {"layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"]},
    ),
    "t5": Architecture("T5", "t5", {"d_model": 32, "num_layers": 2, "num_heads": 4, "d_ff": 64, "d_kv": 8}),
    "llava": Architecture(
        "LLaVA",
        "llava",
        {"text_config": _LLAMA | {"model_type": "llama"}, "vision_config": _VISION | {"model_type": "clip_vision_model"}},
    ),
}  # fmt: skip
"""By a short name."""


@dataclass(frozen=True)
class Finding:
    """What became of an architecture.

    Attributes:
        modules: The default modules, without the layer's number; empty if the model was refused.
        cut: From where on it is run; None if it was refused.
        same: Whether the edited model, loaded by transformers, has the environment's logits; None if it was refused.
        refusal: Why it was refused.
    """

    modules: tuple[str, ...] = ()
    cut: Cut | None = None
    same: bool | None = None
    refusal: str | None = None


def save_tiny(architecture: Architecture, folder: Path) -> None:
    """Saves a random model of the architecture, with the embedded model's tokenizer.

    Its weights are large enough that every layer matters.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_path(EMBEDDED), trust_remote_code=False)
    vocabulary: dict[str, Any] = {"vocab_size": len(tokenizer)}
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        vocabulary[name] = getattr(tokenizer, name)
    settings = dict(architecture.settings)
    if "text_config" in settings:
        settings["text_config"] = settings["text_config"] | vocabulary
    else:
        settings |= vocabulary
    config = AutoConfig.for_model(architecture.type, **settings)
    for part in (config, config.get_text_config()):
        if hasattr(part, "initializer_range"):
            part.initializer_range = 0.1
    causal = type(config) in AutoModelForCausalLM._model_mapping
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = (AutoModelForCausalLM if causal else AutoModel).from_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def examine(architecture: Architecture, folder: Path) -> Finding:
    """Edits a tiny model as users do, and loads it again.

    Args:
        architecture: Of the model.
        folder: Empty; for the model, the edits and the output.
    """
    save_tiny(architecture, folder / "model")
    lines = [json.dumps({"prompt": prompt, "target": target}) for prompt, target in EDITS]
    (folder / "edits.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    error = edit(folder)
    if error is not None:
        return Finding(refusal=error.replace(str(folder / "model"), "the model"))
    env = LifelongEditEnv(str(folder / "model"), dataset=None)
    lm = env.language_model
    apply_file(lm, folder / "out/deltas.safetensors")
    texts, targets = (list(column) for column in zip(*EDITS, strict=True))
    prompts = lm.encode(texts, targets)
    with torch.no_grad():
        logits = lm.logits(prompts)
    expected = plain_logits(folder / "out/model", lm.tokenize(texts, targets))
    same = bool((logits - expected).abs().max() <= TOLERANCE * expected.abs().max())
    modules = tuple(dict.fromkeys(re.sub(r"\.\d+\.", ".N.", name, count=1) for name in lm.modules))
    return Finding(modules, lm.cut, same)


def edit(folder: Path) -> str | None:
    """``editenv edit`` on the folder's model; what it says if it refuses, None if it edits."""
    from agents.cli import main

    words = ["--model", folder / "model", "--edits", folder / "edits.jsonl", "--output", folder / "out"]
    words += ["--method", "fine-tune", "--edits-per-step", 2, "--guard.max-perplexity", 1e9]
    said = io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["editenv", "edit", *map(str, words)]),
        contextlib.redirect_stderr(said),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        try:
            main()
        except SystemExit as error:
            if error.code:
                return said.getvalue().strip().splitlines()[-1].removeprefix("editenv: ")
    return None


@torch.no_grad()
def plain_logits(folder: Path, token_ids: list[tuple[list[int], list[int]]]) -> torch.Tensor:
    """``(A, vocabulary)`` logits at the answer positions, of transformers alone, one prompt at a time.

    Args:
        folder: Of the model.
        token_ids: Of each prompt and of its answer.
    """
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False, use_safetensors=True).eval()
    rows = []
    for prompt, answer in token_ids:
        logits = model(input_ids=torch.tensor([prompt + answer]), use_cache=False).logits[0]
        rows.append(logits[len(prompt) - 1 : -1].float())
    return torch.cat(rows)


FROM = {
    Cut.WHOLE: "no: the whole model is run",
    Cut.LAYERS: "from the first edited layer",
    Cut.ATTENTION: "from the first edited MLP",
    Cut.KEYS: "from the edited module",
}
"""How the table calls a cut."""


def as_row(architecture: Architecture, finding: Finding) -> tuple[str, ...]:
    """The architecture's line of the table."""
    first = (architecture.models, f"`{architecture.type}`")
    if finding.cut is None:
        return (*first, "none", "", f"refused: {finding.refusal}")
    modules = ", ".join(f"`{name}`" for name in finding.modules)
    return (*first, modules, FROM[finding.cut], "yes" if finding.same else "**no**")


def as_table(rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = [HEADINGS, ["---"] * len(HEADINGS), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


HEADINGS = ("models", "`model_type`", "edited by default", "run from the middle", "edited, saved, loaded: same logits")
BEGIN, END = "<!-- architectures -->", "<!-- end -->"


@dataclass
class Args:
    """Arguments of the command.

    Attributes:
        only: Short names of architectures; all if none are named.
        document: Markdown file whose table, between `<!-- architectures -->` and `<!-- end -->`, is written anew.
    """

    only: tuple[str, ...] = ()
    document: Path | None = None


def main(args: Args) -> None:
    """Prints the table, or writes it.

    Raises:
        SystemExit: For an unknown name, or a document without a place for the table.
    """
    if unknown := [name for name in args.only if name not in ARCHITECTURES]:
        raise SystemExit(f"--only: unknown {', '.join(unknown)}; there are {', '.join(ARCHITECTURES)}")
    if args.document is not None and args.only:
        raise SystemExit("--document: its table has all architectures; leave --only out")
    rows = []
    for name in args.only or ARCHITECTURES:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rows.append(as_row(ARCHITECTURES[name], examine(ARCHITECTURES[name], Path(folder))))
    table = as_table(rows)
    if args.document is None:
        print(table)
        return
    text = args.document.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{args.document} has no lines {BEGIN} and {END}")
    atomic_write_text(args.document, f"{before}{BEGIN}\n{table}\n{END}{after}")


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Args, description=__doc__))
