"""Running prompts from one token on: the logits, and their gradient, of whole prompts."""

import pytest
import torch

from editenv.language_model import editable_lm
from editenv.language_model.suffix import SuffixError, SuffixRun


def texts_of(edits):
    return [edit.prompt for edit in edits], [edit.target for edit in edits]


def added(module, rows, columns, change):
    """Adds to the output of a module, or of a layer, at one token of each prompt."""

    def hook(_, args, output):
        hidden = output[0] if isinstance(output, tuple) else output
        hidden = hidden.index_put((rows, columns), change, accumulate=True)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    return module.register_forward_hook(hook)


@pytest.mark.parametrize("first", ["layers.0.mlp.down_proj", "layers.1.mlp.down_proj", "layers.0.self_attn.o_proj"])
@pytest.mark.parametrize("whole_layer", [False, True])
def test_logits_and_gradient_are_those_of_whole_prompts(make_lm, edits, first, whole_layer):
    lm = make_lm(first, "layers.1.mlp.down_proj")
    lm.apply({name: 0.1 * torch.randn(lm.shape(name)) for name in lm.modules})
    prompts = lm.encode(*texts_of(edits))
    module = lm.cut_model.layers[1] if whole_layer else lm.modules["model.layers.1.mlp.down_proj"]
    rows = torch.arange(len(edits))
    generator = torch.Generator().manual_seed(0)
    columns = (torch.rand(len(edits), generator=generator) * (prompts.starts + 1)).long()
    assert len(columns.unique()) > 2
    suffix = SuffixRun(lm, prompts, columns, module)
    results = []
    for run, column in ((lambda: lm.cut_model.logits(prompts), columns), (suffix.logits, torch.zeros_like(columns))):
        change = (0.3 * torch.randn(len(edits), 32, generator=generator.manual_seed(1))).requires_grad_()
        handle = added(module, rows, column, change)
        logits = run()
        handle.remove()
        (gradient,) = torch.autograd.grad(logits.logsumexp(-1).sum(), change)
        results.append((logits.detach(), gradient))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(results[0][0], lm.cut_model.logits(prompts), atol=1e-3), "the change matters"


def test_what_comes_before_is_kept_in_groups_of_like_length_too(make_lm, edits, monkeypatch):
    lm = make_lm("layers.0.mlp.down_proj", "layers.1.mlp.down_proj")
    prompts = lm.encode(*texts_of(edits))
    columns = torch.arange(len(edits)) % (prompts.starts + 1)
    logits = []
    for overhead in (0, 10**6):
        monkeypatch.setattr(editable_lm, "FORWARD_OVERHEAD", {"cpu": overhead})
        suffix = SuffixRun(lm, prompts, columns, lm.cut_model.layers[1])
        assert (len(lm.groups(prompts)) > 1) == (overhead == 0)
        logits.append(suffix.logits())
    torch.testing.assert_close(*logits)
    torch.testing.assert_close(logits[0], lm.cut_model.logits(prompts), rtol=1e-4, atol=1e-5)


def test_only_longer_prompts_than_before_are_tried_again(make_lm, edits, monkeypatch):
    """What a model makes of long ones may be something else, where its layers see the last few tokens alone."""
    lm = make_lm("layers.1.mlp.down_proj")
    layer = lm.cut_model.layers[1]
    prompts = lm.encode(*texts_of(edits))
    whole_runs = []
    logits = lm.cut_model.logits
    monkeypatch.setattr(lm.cut_model, "logits", lambda *args: whole_runs.append(1) or logits(*args))
    longer = lm.encode([f"So it is. {edit.prompt}" for edit in edits], texts_of(edits)[1])
    for some, tried in ((prompts, True), (prompts, False), (longer, True), (prompts, False)):
        whole_runs.clear()
        SuffixRun(lm, some, some.starts, layer)
        assert bool(whole_runs) == tried


def test_fewer_tokens_are_run(make_lm, edits):
    lm = make_lm("layers.1.mlp.down_proj")
    prompts = lm.encode(*texts_of(edits))
    suffix = SuffixRun(lm, prompts, prompts.starts, lm.cut_model.layers[1])
    assert suffix.hidden.shape[1] == prompts.lengths.max()
    assert suffix.mask.shape[1] == prompts.starts.max() + prompts.lengths.max()


def test_refused_where_other_tokens_are_not_run_at_all(make_lm, edits):
    lm = make_lm("layers.2.mlp.down_proj")
    prompts = lm.encode(*texts_of(edits))
    with pytest.raises(SuffixError):
        SuffixRun(lm, prompts, torch.zeros(len(edits), dtype=torch.long), lm.cut_model.layers[2])


def test_a_model_for_which_it_is_not_exact_is_refused(make_lm, edits, monkeypatch):
    """Positions that start from nothing are an example of what some models would make of the kept tokens."""
    lm = make_lm("layers.1.mlp.down_proj")
    prompts = lm.encode(*texts_of(edits))
    run_from = lm.cut_model.run_from
    monkeypatch.setattr(
        lm.cut_model,
        "run_from",
        lambda layer, hidden, **options: run_from(
            layer, hidden, **{k: 0 * v if k == "position_ids" else v for k, v in options.items()}
        ),
    )
    with pytest.raises(SuffixError, match="not those of whole prompts"):
        SuffixRun(lm, prompts, prompts.starts, lm.cut_model.layers[1])
