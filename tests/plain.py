"""What the package computes, computed plainly: whole Hugging Face models, one prompt at a time, no shortcuts."""

import torch
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from transformers.pytorch_utils import Conv1D


def tokens(tokenizer, prompt, answer):
    head = tokenizer(prompt)["input_ids"]
    return head, tokenizer(f" {answer}", add_special_tokens=False)["input_ids"]


def answer_logits(model, tokenizer, prompt, answer, weights=None):
    """Logits before each answer token and the answer tokens, with some weights replaced."""
    head, tail = tokens(tokenizer, prompt, answer)
    ids = torch.tensor([head + tail])
    logits = functional_call(model, weights or {}, (ids,), {"use_cache": False}).logits
    return logits[0, len(head) - 1 : -1].float(), torch.tensor(tail)


def edited_weights(model, deltas):
    """theta_0 + D of each module, in the module's own layout; carries gradient to D."""
    weights = {}
    for name, delta in deltas.items():
        module = model.get_submodule(name)
        weights[f"{name}.weight"] = module.weight.detach() + (delta.T if isinstance(module, torch.nn.Linear) else delta)
    return weights


def nll(model, tokenizer, prompt, answer, weights=None):
    logits, labels = answer_logits(model, tokenizer, prompt, answer, weights)
    return cross_entropy(logits, labels)


def kl(model, tokenizer, prompt, answer, weights, reference=None):
    """KL(theta_0 || theta), or from other weights than theta_0; no gradient goes through those."""
    with torch.no_grad():
        before = answer_logits(model, tokenizer, prompt, answer, reference)[0].log_softmax(-1)
    after = answer_logits(model, tokenizer, prompt, answer, weights)[0].log_softmax(-1)
    return (before.exp() * (before - after)).sum(-1).mean()


def answer_factors(model, tokenizer, pairs, weights=None):
    """Inputs of every linear module and gradients at its outputs, at the token before each answer token.

    The loss is the summed -log p of the answers of ``pairs``; each ``(prompt, answer)`` goes through the model alone.
    """
    linear = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear | Conv1D) and "head" not in n}
    keys, grads = {name: [] for name in linear}, {name: [] for name in linear}
    for prompt, answer in pairs:
        seen = {}

        def watch(name, seen=seen):
            def hook(_, args, output):
                output = output if output.requires_grad else output.detach().requires_grad_()
                seen[name] = (args[0], output)
                return output

            return hook

        handles = [module.register_forward_hook(watch(name)) for name, module in linear.items()]
        logits, labels = answer_logits(model, tokenizer, prompt, answer, weights)
        for handle in handles:
            handle.remove()
        outputs = {name: output for name, (_, output) in seen.items()}
        found = torch.autograd.grad(cross_entropy(logits, labels, reduction="sum"), list(outputs.values()))
        for name, grad in zip(outputs, found, strict=True):
            keys[name].append(seen[name][0][0, -1 - len(labels) : -1].detach())
            grads[name].append(grad[0, -1 - len(labels) : -1])
    return {name: (torch.cat(keys[name]), torch.cat(grads[name])) for name in linear}


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def batch_losses(model, tokenizer, edits, weights, reference=None):
    """Edit and locality loss of a batch; both need every edit to have rephrases and locality prompts."""
    edit = mean(mean(nll(model, tokenizer, text, e.target, weights) for text in e.rephrases) for e in edits)
    locality = mean(
        mean(kl(model, tokenizer, x.prompt, x.answer, weights, reference) for x in e.locality) for e in edits
    )
    return edit, locality


def batch_loss(model, tokenizer, edits, weights, locality_weight, reference=None):
    edit, locality = batch_losses(model, tokenizer, edits, weights, reference)
    return edit + locality_weight * locality


def random_deltas(lm, scale=0.05, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(lm.shape(name), generator=generator) for name in lm.modules}


def teach(model, tokenizer, pairs, steps):
    """Plain full fine-tuning on ``(prompt, answer)`` and the end of text."""
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    rows = [tokens(tokenizer, *pair) for pair in pairs]
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(steps):
        loss = 0.0
        for head, tail in rows:
            tail = [*tail, tokenizer.eos_token_id]
            logits = model(torch.tensor([head + tail])).logits[0, len(head) - 1 : -1]
            loss = loss + cross_entropy(logits, torch.tensor(tail))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model.eval()


def greedy(model, tokenizer, prompt, limit):
    """Token by token without cache or padding; None if no end of text comes within the limit."""
    ids = tokenizer(prompt)["input_ids"]
    written = []
    for _ in range(limit):
        token = int(model(torch.tensor([ids + written]), use_cache=False).logits[0, -1].argmax())
        if token == tokenizer.eos_token_id:
            return tokenizer.decode(written).strip()
        written.append(token)
    return None
