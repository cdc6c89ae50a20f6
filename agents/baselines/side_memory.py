"""What methods that put a memory beside one module share."""

from collections.abc import Sequence
from pathlib import Path

import torch

from agents.covariance import keys_of_tokens, sample_text, texts_of, training_edits
from editenv.env import LifelongEditEnv
from editenv.language_model.editable_lm import EditableLM
from editenv.language_model.prompts import Prompts
from editenv.memories import Memory, no_memory

SMALLEST = 1e-6
"""The least that a module's inputs and outputs are taken to measure: dead ones have no scale of their own."""

TEXTS_AT_ONCE = 128
"""Texts that are run together."""

TOKENS_OF_A_TEXT = 5
"""Tokens that are drawn of a text on average: more of each would be alike, fewer need more texts."""


def one_module(lm: EditableLM, method: str) -> str:
    """The edited module.

    Raises:
        ValueError: If there are several.
    """
    if len(lm.modules) > 1:
        last = ".".join(list(lm.modules)[-1].split(".")[-4:])
        raise ValueError(f"modules: {method} edits one module, not {', '.join(lm.modules)}; name one, such as {last}")
    return next(iter(lm.modules))


def memory_beside(lm: EditableLM, name: str) -> Memory:
    """What is there now; without entries if there is none."""
    return lm.memories.get(name, no_memory(lm.shape(name)).to(lm.device))


@torch.no_grad()
def queries(lm: EditableLM, name: str, prompts: Prompts) -> tuple[torch.Tensor, torch.Tensor]:
    """``(A, d_in)`` inputs of a module at the tokens that predict an answer token, and ``(A, d_out)`` what it makes of
    them without its memory.
    """
    with torch.enable_grad():
        _, gradients = lm.gradients(prompts, lambda logits: logits.sum(), "answers")
    keys, module = gradients[name].keys, lm.modules[name]
    with lm.unchanged():
        lm.apply({name: no_memory(lm.shape(name))})
        return keys, module(keys.to(module.get_parameter("weight"))).to(keys)


def root_mean_square(tensor: torch.Tensor) -> float:
    """Of all entries; what a module's numbers measure."""
    return max(SMALLEST, float(tensor.square().mean().sqrt()))


@torch.no_grad()
def queries_of_text(env: LifelongEditEnv, text: str | None, count: int, seed: int) -> torch.Tensor:
    """``(count, d_in)`` inputs of the one edited module at tokens of ordinary text, drawn from the seed; fewer if the
    text is shorter.

    Args:
        env: Whose model, and whose training split if no text is named.
        text: What :func:`agents.covariance.texts_of` takes.
        count: Tokens, of a fifth as many texts.
        seed: Of the draw.

    Raises:
        ValueError: If the text is a folder of statistics, which has no tokens any more.
    """
    lm = env.language_model
    if text is not None and Path(text).is_dir():
        raise ValueError(f"text: {text} is a folder of statistics; this method needs the text itself")
    most = -(-count // TOKENS_OF_A_TEXT)
    texts: Sequence[str] = sample_text(training_edits(env), most) if text is None else [*texts_of(lm, text, most)]
    context = getattr(lm.model.config.get_text_config(), "max_position_embeddings", None)
    rows = [ids[:context] for ids in lm.tokenizer(list(texts))["input_ids"]]
    with lm.at_initial_weights():
        keys = torch.cat([next(iter(part.values())) for part in keys_of_tokens(lm, rows, TEXTS_AT_ONCE, bos=False)])
    order = torch.randperm(len(keys), generator=torch.Generator().manual_seed(seed))
    return keys[order[:count].to(keys.device)]
