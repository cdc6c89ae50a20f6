"""The model, records and environment that both sides are given: a tiny Llama with random weights, in float32.

Its tokenizer has no token at the start of a text: most of the public code assumes none.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from agents.base import Agent
from agents.progress import silent
from editenv.data import Edit, load_edits
from editenv.env import LifelongEditEnv
from editenv.language_model.editable_lm import Gradient
from editenv.language_model.prompts import answer_ids

LAYERS = 4
FIRST, LAST = f"model.layers.{LAYERS - 2}.mlp.down_proj", f"model.layers.{LAYERS - 1}.mlp.down_proj"
"""The last two layers' projections: what methods that edit from gradients are compared on."""

TEXT = 300
"""Sentences of which the covariance of keys is taken."""


@dataclass(frozen=True)
class TinyModel:
    """A model folder, and what is in it.

    Attributes:
        folder: Where the model, its tokenizer and files of records are.
    """

    folder: Path

    @classmethod
    def made_in(cls, folder: Path) -> "TinyModel":
        """Writes the model. Its weights are large enough that every layer matters."""
        tokenizer = _tokenizer()
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            max_position_embeddings=256,
            initializer_range=0.2,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=0,
            pad_token_id=1,
            # What GPT-2 calls these: public code that was written for it asks for them.
            n_embd=32,
            n_positions=256,
        )
        LlamaForCausalLM(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return cls(folder)

    def model(self) -> Any:
        """The model, anew, as public code loads it."""
        model = AutoModelForCausalLM.from_pretrained(
            self.folder, dtype=torch.float32, trust_remote_code=False, use_safetensors=True
        ).eval()
        return model.requires_grad_(False)

    @cached_property
    def tokenizer(self) -> Any:
        return AutoTokenizer.from_pretrained(self.folder, trust_remote_code=False)

    def edits(self, count: int, answer_tokens: int | None = None) -> list[Edit]:
        """So many edits, each with one rephrase and one locality prompt.

        Args:
            count: How many.
            answer_tokens: Tokens of every target and locality answer; None takes them as they come.
        """
        edits: list[Edit] = []
        for edit in load_edits("atlas", "train"):
            if edit.prompt.count(edit.subject or "{}") != 1:
                continue
            target, *kept = answer_ids(self.tokenizer, [edit.target, *(item.answer for item in edit.locality)])
            fitting = [
                item
                for item, ids in zip(edit.locality, kept, strict=True)
                if answer_tokens is None or len(ids) == len(target) == answer_tokens
            ]
            if fitting:
                edits.append(replace(edit, rephrases=edit.rephrases[:1], locality=tuple(fitting[:1])))
            if len(edits) == count:
                return edits
        raise ValueError(f"there are only {len(edits)} edits whose answers have {answer_tokens} tokens, not {count}")

    def environment(self, edits: Sequence[Edit], modules: Sequence[str], **arguments: Any) -> LifelongEditEnv:
        """An environment of these edits, in their order (``reset`` with ``shuffle: False``)."""
        path = self.folder / f"edits-{len(list(self.folder.glob('edits-*')))}.jsonl"
        records = [
            {
                "prompt": edit.prompt,
                "target": edit.target,
                "subject": edit.subject,
                "rephrases": list(edit.rephrases),
                "locality": [{"prompt": item.prompt, "answer": item.answer} for item in edit.locality],
            }
            for edit in edits
        ]
        path.write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")
        return LifelongEditEnv(str(self.folder), str(path), "all", modules=list(modules), **arguments)

    @cached_property
    def text(self) -> str:
        """A file of sentences."""
        path = self.folder / "text.txt"
        sentences = [f"{edit.prompt} {edit.old_answer}" for edit in load_edits("atlas", "train")[:TEXT]]
        path.write_text("\n".join(sentences), encoding="utf-8")
        return str(path)


def _tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE of a few hundred tokens."""
    bpe = Tokenizer(models.BPE(unk_token=None))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=["</s>", "<pad>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator((f"{e.prompt} {e.target}" for e in load_edits("atlas", "validation")[:1000]), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="</s>",
        pad_token="<pad>",
        padding_side="right",
        model_input_names=["input_ids", "attention_mask"],
    )


def labelled(tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> dict[str, torch.Tensor]:
    """Prompts with their answers as public code gives them to a model, padded to the right.

    Returns:
        ``input_ids``, ``attention_mask`` and ``labels``, ``(pairs, tokens)``: labels stand where their tokens do, -100
        elsewhere.
    """
    ids = [(tokenizer(prompt)["input_ids"], tokenizer(f" {answer}")["input_ids"]) for prompt, answer in pairs]
    width = max(len(prompt) + len(answer) for prompt, answer in ids)
    rows: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "labels": []}
    for prompt, answer in ids:
        padding = width - len(prompt) - len(answer)
        rows["input_ids"].append([*prompt, *answer, *[tokenizer.pad_token_id] * padding])
        rows["attention_mask"].append([1] * (width - padding) + [0] * padding)
        rows["labels"].append([-100] * len(prompt) + answer + [-100] * padding)
    return {name: torch.tensor(values) for name, values in rows.items()}


def gradients_of_all_tokens(env: LifelongEditEnv, edits: Sequence[Edit]) -> dict[str, tuple[Gradient, torch.Tensor]]:
    """The fine-tuning gradient at every token that has one; for each module also ``(edits,)`` how many tokens."""
    lm = env.language_model
    prompts = lm.encode([edit.prompt for edit in edits], [edit.target for edit in edits])
    _, gradients = lm.gradients(prompts, lambda logits: F.cross_entropy(logits, prompts.labels, reduction="sum"))
    of_tokens = {}
    for name, gradient in gradients.items():
        kept = (gradient.value_grads != 0).any(1)
        of_tokens[name] = Gradient(gradient.keys[kept], gradient.value_grads[kept]), kept.view(len(edits), -1).sum(1)
    return of_tokens


def total_delta(env: LifelongEditEnv, agent: Agent) -> dict[str, torch.Tensor]:
    """What an agent's edits of the whole stream, in order, have changed: for each module ``(d_in, d_out)``."""
    for _ in batch_deltas(env, agent):
        pass
    lm = env.language_model
    return {name: lm.weight(name) - lm.initial_weight(name) for name in lm.modules}


def batch_deltas(env: LifelongEditEnv, agent: Agent) -> Iterator[dict[str, torch.Tensor]]:
    """Lets an agent edit the stream in order, batch after batch; after each what it has changed so far."""
    lm = env.language_model
    env.reset(seed=0, options={"shuffle": False})
    agent.begin(env)
    done, info = False, {"batch": 0, "attempt": 0}
    while not done:
        _, _, done, _, info = env.step(agent.act(env.gradients, info))
        yield {name: lm.weight(name) - lm.initial_weight(name) for name in lm.modules}


def prepared(agent: Agent, env: LifelongEditEnv, text: str) -> Agent:
    """The agent after its preparation, with covariances of a text."""
    agent.text = text
    agent.prepare(env, 0, silent)
    return agent
