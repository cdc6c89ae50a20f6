"""Pre-trains the embedded language model on the atlas world, from scratch; or goes on, on what a data set says.

    python -m benchmarks.pretrain --output editenv/models/atlas           # the model in the package (12 M parameters)
    python -m benchmarks.pretrain --output runs/atlas-base --size base    # 34 M parameters, for whoever has a GPU
    python -m benchmarks.pretrain --output runs/models/real --suites counterfact-100x20 zsre-50x20 --data DIR

The last form teaches the embedded model what it is to believe before a suite's edits (benchmarks/corpus.py says what
that is): editing facts that a model never knew would show little.

The result is a plain Hugging Face folder (LlamaForCausalLM, byte-level BPE tokenizer, safetensors). A killed run
goes on from its last checkpoint when the same command is given again. Progress is printed and logged beside the
output.

What is unusual, and why:

* Most of the loss is on the object; the prompt's tokens count little (``prompt_weight``).
* Objects are smoothed *within their relation*: a part of the probability (``smoothing``) goes to the other objects the
  relation can take. Text about a fact is never unanimous, and a model trained on unanimous text puts a counterfactual
  answer at 14 nats and more, where real 8B models put it at 5 to 9. This is what makes the miniature behave like them.
"""

import json
import math
import random
import time
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch
import tyro
from rich.progress import TimeRemainingColumn
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from agents.progress import progress_bars
from benchmarks.corpus import LEAD_INS, Corpus, Statement, atlas_corpus, dataset_corpus, joined
from benchmarks.suites import SUITES
from editenv.atomic_files import atomic_write
from editenv.data import atlas
from editenv.models import model_path

SIZES = {
    "mini": {"hidden_size": 256, "intermediate_size": 3072, "num_hidden_layers": 4, "num_attention_heads": 4},
    "base": {"hidden_size": 384, "intermediate_size": 6144, "num_hidden_layers": 4, "num_attention_heads": 6},
}


@dataclass
class Args:
    """Arguments of the command.

    Attributes:
        output: Folder for the finished model; the checkpoint lies beside it as OUTPUT.checkpoint.
        size: mini ships in the package; base is for a GPU. Only for training from scratch.
        suites: Go on from START with what these suites of benchmarks.suites take the model to believe, training split
            included.
        data: Folder of the data sets that the suites read.
        start: The model that --suites starts from.
        replay: Share of the atlas facts that each pass over other data repeats.
        epochs: Passes over the facts.
        phrasings_per_epoch: Random phrasings of each fact per pass.
        lead_in_share: Share of sentences that start with a few words of lead-in.
        batch_size: Sentences per optimiser step.
        learning_rate: Peak; warms up over 2% of the steps, then falls along a cosine to 2% of the peak.
        weight_decay: Of Muon, which trains the matrices.
        smoothing: Probability that goes to the relation's other objects.
        prompt_weight: Weight of a prompt token's loss relative to an object token's.
        prompt_share: Share of the prompt tokens whose loss is computed (reweighted, so that the expectation stays).
        vocab_size: Tokens of a new tokenizer.
        seed: Seeds the weights, the text and the order of its sentences.
        device: Torch device.
        checkpoint_seconds: Seconds between checkpoints.
        facts: Only so many atlas facts, for trying things out.
    """

    output: Path
    size: Literal["mini", "base"] = "mini"
    suites: tuple[str, ...] = ()
    data: Path | None = None
    start: str = "atlas"
    replay: float = 0.2
    epochs: int = 5
    phrasings_per_epoch: int = 3
    lead_in_share: float = 0.15
    batch_size: int = 256
    learning_rate: float = 5e-3
    weight_decay: float = 0.01
    smoothing: float = 0.15
    prompt_weight: float = 0.05
    prompt_share: float = 0.2
    vocab_size: int = 6000
    seed: int = 0
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    checkpoint_seconds: int = 120
    facts: int | None = None


@dataclass
class Sentence:
    """A prompt with its answer, as it is trained on.

    Attributes:
        prompt: With a lead-in, if it has one.
        answer: What it is continued with.
        group: Of its statement.
        ids: The prompt's tokens, once it is encoded.
    """

    prompt: str
    answer: str
    group: str
    ids: list[int] = field(default_factory=list)


def sentences_of(corpus: Corpus, args: Args, epoch: int) -> list[Sentence]:
    """The sentences of one pass: a function of seed and epoch alone, so that a resumed run sees the same text."""
    rng = random.Random(f"{args.seed}/{epoch}")
    sentences = []
    for statement in corpus.statements:
        if args.suites and statement.lead_ins and rng.random() >= args.replay:
            continue
        for prompt in rng.sample(statement.forms, min(args.phrasings_per_epoch, len(statement.forms))):
            if statement.lead_ins and rng.random() < args.lead_in_share:
                prompt = f"{rng.choice(LEAD_INS)} {prompt}"
            sentences.append(Sentence(prompt, statement.answer, statement.group))
    return sentences


def train_tokenizer(corpus: Corpus, args: Args) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of the first pass."""
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=args.vocab_size,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((f"{s.prompt} {s.answer}" for s in sentences_of(corpus, args, epoch=0)), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", padding_side="left"
    )


def batches(sentences: list[Sentence], args: Args, epoch: int) -> list[list[Sentence]]:
    """Sentences of like length together, batches in random order."""
    rng = random.Random(f"{args.seed}/{epoch}/order")
    order = sorted(sentences, key=lambda s: (len(s.ids), rng.random()))
    chunks = [order[i : i + args.batch_size] for i in range(0, len(order), args.batch_size)]
    rng.shuffle(chunks)
    return chunks


class ObjectLoss:
    """Cross-entropy with the answer's first token smoothed over the answers of its group.

    Args:
        corpus: Its statements say how often a group has each answer, which is half of what is smoothed to; the other
            half is shared equally.
        tokenizer: Of the model.
        args: The command's.
    """

    def __init__(self, corpus: Corpus, tokenizer: PreTrainedTokenizerFast, args: Args) -> None:
        self.args = args
        self.eos, self.pad = tokenizer.eos_token_id, tokenizer.pad_token_id
        names = sorted({name for group in corpus.answers.values() for name in group})
        encoded = tokenizer([f" {name}" for name in names], add_special_tokens=False)["input_ids"]
        self.answer_ids = dict(zip(names, encoded, strict=True))
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for statement in corpus.statements:
            counts[statement.group][statement.answer] += 1
        self.groups = {group: i for i, group in enumerate(corpus.answers)}
        prior = torch.zeros(len(self.groups), len(tokenizer))
        for group, i in self.groups.items():
            options = corpus.answers[group]
            for name in options:
                share = 0.5 / len(options) + 0.5 * counts[group][name] / max(1, counts[group].total())
                prior[i, self.answer_ids[name][0]] += share
        self.prior = (prior / prior.sum(1, keepdim=True)).to(args.device)

    def __call__(self, model: LlamaForCausalLM, batch: list[Sentence], step: int) -> torch.Tensor:
        """The loss of one batch, a mean over its sentences.

        Args:
            model: Maps tokens to logits.
            batch: Encoded sentences.
            step: Seeds the choice of the prompt tokens whose loss is computed.
        """
        answers = [[*self.answer_ids[s.answer], self.eos] for s in batch]
        rows = [s.ids + answer for s, answer in zip(batch, answers, strict=True)]
        width = max(map(len, rows))
        device = torch.device(self.args.device)
        ids = torch.tensor([row + [self.pad] * (width - len(row)) for row in rows], device=device)
        starts = torch.tensor([len(s.ids) - 1 for s in batch], device=device)
        ends = torch.tensor([len(row) - 1 for row in rows], device=device)
        positions = torch.arange(width - 1, device=device)
        is_answer = (positions >= starts[:, None]) & (positions < ends[:, None])
        generator = torch.Generator().manual_seed(self.args.seed * 1_000_003 + step)
        drawn = torch.rand(len(batch), width - 1, generator=generator).to(device) < self.args.prompt_share
        used = is_answer | ((positions < starts[:, None]) & drawn)

        # Padding is on the right and attention is causal, so no mask is needed. The head is applied where it counts.
        with torch.autocast(device.type, torch.bfloat16):
            hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
            log_probs = model.lm_head(hidden[used]).float().log_softmax(-1)
        nll = -log_probs.gather(1, ids[:, 1:][used][:, None]).squeeze(1)
        answer = is_answer[used]
        first = (positions == starts[:, None])[used]
        group = torch.tensor([self.groups[s.group] for s in batch], device=device)
        smoothed = -(self.prior[group] * log_probs[first]).sum(-1)
        object_loss = nll[answer].sum() + self.args.smoothing * (smoothed - nll[first]).sum()
        prompt_loss = nll[~answer].sum() / self.args.prompt_share
        return (object_loss + self.args.prompt_weight * prompt_loss) / len(batch)


def new_model(tokenizer: PreTrainedTokenizerFast, args: Args) -> LlamaForCausalLM:
    """A model of the size that was asked for, with random weights."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        **SIZES[args.size],
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        # Nothing behind the last layer moves its inputs, so its keys never drift; and it is the widest input there is.
        edited_modules=[f"layers.{SIZES[args.size]['num_hidden_layers'] - 1}.mlp.down_proj"],
    )
    return LlamaForCausalLM(config).to(args.device)


def make_optimizers(model: LlamaForCausalLM, args: Args) -> list[torch.optim.Optimizer]:
    """Muon for the matrices, AdamW for embeddings and norms.

    Facts seen a handful of times are the tail that Muon learns and Adam does not: measured on 2,000 facts, six
    exposures each, 94% known against 1%.
    """
    embedding = model.get_input_embeddings().weight
    matrices = [p for p in model.parameters() if p.ndim == 2 and p is not embedding]
    rest = [p for p in model.parameters() if p.ndim != 2 or p is embedding]
    rate, decay = args.learning_rate, args.weight_decay
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=rate, weight_decay=0.0, betas=(0.9, 0.98), fused=True),
    ]


@torch.no_grad()
def known_share(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, pairs: list[tuple[str, str]]) -> float:
    """Share of (prompt, object) pairs generated exactly: greedy, natural stop, no teacher forcing."""
    model.eval()
    correct = 0
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]))
    for start in range(0, len(order), 256):
        chunk = [pairs[i] for i in order[start : start + 256]]
        inputs = tokenizer([p for p, _ in chunk], return_tensors="pt", padding=True).to(model.device)
        inputs.pop("token_type_ids", None)
        output = model.generate(**inputs, max_new_tokens=8, do_sample=False)[:, inputs["input_ids"].shape[1] :]
        texts = tokenizer.batch_decode(output, skip_special_tokens=True)
        stopped = (output == tokenizer.eos_token_id).any(1).tolist()
        correct += sum(
            stop and text.strip() == name for text, stop, (_, name) in zip(texts, stopped, chunk, strict=True)
        )
    model.train()
    return 100 * correct / len(pairs)


def sample_questions(statements: list[Statement], count: int, seed: int) -> list[tuple[str, str]]:
    """Prompts and answers of so many statements, each in one of its forms."""
    rng = random.Random(seed)
    sample = rng.sample(statements, min(count, len(statements)))
    return [(rng.choice(statement.forms), statement.answer) for statement in sample]


def suite_corpora(args: Args) -> list[Corpus]:
    """What the suites take a model to believe: about the edits they make, and about those that agents learn from.

    Raises:
        SystemExit: If there is no such suite, or it needs a folder of data sets.
    """
    corpora = []
    for name in args.suites:
        if name not in SUITES:
            raise SystemExit(f"unknown suite {name!r}; there are {', '.join(SUITES)}")
        try:
            suite = SUITES[name].at(str(args.output), args.data)
        except ValueError as error:
            raise SystemExit(str(error)) from None
        for arguments in (suite.environment(), suite.environment(training=True)):
            if arguments["dataset"] != "atlas":
                corpora.append(
                    dataset_corpus(arguments["dataset"], arguments["split"], arguments["dataset_options"], args.seed)
                )
    return corpora


class Training:
    """A model on its way: its optimisers, and the step that it is at.

    Args:
        model: Is trained.
        loss: Of a batch.
        total: Steps in all.
        args: The command's.

    Attributes:
        step: How many are done.
        recent_loss: Exponential mean over the last steps.
    """

    def __init__(self, model: LlamaForCausalLM, loss: ObjectLoss, total: int, args: Args) -> None:
        self.model, self.loss, self.total = model, loss, total
        self.learning_rate = args.learning_rate
        self.optimizers = make_optimizers(model, args)
        self.step = 0
        self.recent_loss = torch.zeros(())
        # What a checkpoint must agree on; everything that only says where and how often may change.
        options = {k: v for k, v in asdict(args).items() if k not in ("output", "device", "checkpoint_seconds")}
        self._identity = json.loads(json.dumps(options, default=str))

    def rate_factor(self) -> float:
        """Share of the peak learning rate at this step: up a line, and down a cosine to 2%."""
        warm_up = max(1, self.total // 50)
        if self.step < warm_up:
            return (self.step + 1) / warm_up
        progress = (self.step - warm_up) / max(1, self.total - warm_up)
        return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress))

    def train_on(self, batch: list[Sentence]) -> None:
        """One step of every optimiser."""
        rate = self.learning_rate * self.rate_factor()
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        loss = self.loss(self.model, batch, self.step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        loss = loss.detach()
        self.recent_loss = loss if self.step == 1 else 0.95 * self.recent_loss + 0.05 * loss

    def save(self, checkpoint: Path) -> None:
        """Writes everything that the rest of the training depends on."""
        state = {
            "identity": self._identity,
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        with atomic_write(checkpoint) as partial:
            torch.save(state, partial)

    def load(self, checkpoint: Path) -> None:
        """Goes on where a checkpoint stands.

        Raises:
            SystemExit: If it was made with other options.
        """
        state = torch.load(checkpoint, map_location=self.model.device, weights_only=True)
        if state["identity"] != self._identity:
            raise SystemExit(
                f"{checkpoint} belongs to a run with other options: {state['identity']}; remove it to start anew"
            )
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step = state["step"]


def starting_point(corpus: Corpus, args: Args) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A new model and tokenizer, or with suites those that are gone on from."""
    if not args.suites:
        tokenizer = train_tokenizer(corpus, args)
        return new_model(tokenizer, args), tokenizer
    source = model_path(args.start)
    model = LlamaForCausalLM.from_pretrained(source, dtype=torch.float32, use_safetensors=True).train().to(args.device)
    return model, AutoTokenizer.from_pretrained(source, trust_remote_code=False)


def encoded(sentences: list[Sentence], tokenizer: PreTrainedTokenizerFast) -> list[Sentence]:
    """The sentences with their prompts' tokens."""
    all_ids = tokenizer([sentence.prompt for sentence in sentences])["input_ids"]
    for sentence, ids in zip(sentences, all_ids, strict=True):
        sentence.ids = ids
    return sentences


def questions_by_source(corpus: Corpus, seed: int) -> dict[str, list[tuple[str, str]]]:
    """Prompts and answers of 500 statements of each source, the embedded world being one."""
    sources: dict[str, list[Statement]] = defaultdict(list)
    for statement in corpus.statements:
        sources["atlas" if statement.lead_ins else statement.group].append(statement)
    return {source: sample_questions(statements, 500, seed) for source, statements in sources.items()}


def train(corpus: Corpus, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, args: Args) -> None:
    """Trains to the end, with checkpoints beside the output; after each pass the log says what the model knows.

    Raises:
        SystemExit: If there is a checkpoint of other options.
    """
    checkpoint = args.output.with_name(args.output.name + ".checkpoint")
    log_path = args.output.with_name(args.output.name + ".log.jsonl")
    # Passes differ in length where facts are replayed at random.
    lengths = [math.ceil(len(sentences_of(corpus, args, epoch)) / args.batch_size) for epoch in range(args.epochs)]
    starts = [sum(lengths[:epoch]) for epoch in range(args.epochs + 1)]
    training = Training(model, ObjectLoss(corpus, tokenizer, args), starts[-1], args)
    if checkpoint.exists():
        training.load(checkpoint)
    questions = questions_by_source(corpus, args.seed)
    last_saved = time.monotonic()
    with progress_bars(TimeRemainingColumn(), off_terminal=True) as progress, log_path.open("a") as log:
        bar = progress.add_task("pre-training", total=training.total, completed=training.step)
        for epoch in range(args.epochs):
            if training.step >= starts[epoch + 1]:
                continue
            sentences = encoded(sentences_of(corpus, args, epoch), tokenizer)
            for batch in batches(sentences, args, epoch)[training.step - starts[epoch] :]:
                training.train_on(batch)
                description = f"pre-training, loss {training.recent_loss:.3f}"
                progress.update(bar, completed=training.step, description=description)
                if time.monotonic() - last_saved > args.checkpoint_seconds or training.step == training.total:
                    training.save(checkpoint)
                    last_saved = time.monotonic()
            loss = float(training.recent_loss)
            known = {source: known_share(model, tokenizer, pairs) for source, pairs in questions.items()}
            log.write(json.dumps({"step": training.step, "loss": loss, "known": known}) + "\n")
            log.flush()
            shares = ", ".join(f"{Path(source).name} {share:.1f}%" for source, share in known.items())
            progress.console.print(f"epoch {epoch + 1}: loss {loss:.3f}; of 500 sampled facts known: {shares}")


def main(args: Args) -> None:
    """Trains and writes the model.

    Raises:
        SystemExit: For wrong arguments, with a message.
    """
    torch.manual_seed(args.seed)
    facts = list(atlas.facts())[:: max(1, len(atlas.facts()) // args.facts) if args.facts else 1]
    args.output.parent.mkdir(parents=True, exist_ok=True)
    corpus = joined([atlas_corpus(facts), *suite_corpora(args)])
    model, tokenizer = starting_point(corpus, args)
    train(corpus, model, tokenizer, args)
    # Half precision on disk: the package carries the weights, and every user of them computes in float32.
    model.generation_config.update(max_new_tokens=8, do_sample=False)
    model.to(torch.float16).save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
