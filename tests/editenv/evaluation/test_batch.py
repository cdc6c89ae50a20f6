import torch
from plain import answer_logits, random_deltas

from editenv.evaluation.batch import LOCALITY, PROMPT, REPHRASE, encode_evaluation, greedy_tokens


def test_every_question_is_there_with_its_edit_and_kind(make_lm, edits):
    batch = encode_evaluation(make_lm(), edits[:3])
    expected = [(i, PROMPT, (e.prompt, e.target)) for i, e in enumerate(edits[:3])]
    expected += [(i, REPHRASE, (text, e.target)) for i, e in enumerate(edits[:3]) for text in e.rephrases]
    expected += [(i, LOCALITY, (x.prompt, x.answer)) for i, e in enumerate(edits[:3]) for x in e.locality]
    assert list(zip(batch.edit_index.tolist(), batch.kind.tolist(), batch.texts, strict=True)) == expected
    assert len(batch.prompts) == len(expected)


def test_before_is_what_theta_0_says_even_if_asked_later(make_lm, base, tokenizer, edits):
    lm = make_lm("layers.1.mlp.down_proj")
    lm.apply(random_deltas(lm, scale=0.5))
    batch = encode_evaluation(lm, edits)
    expected = [
        answer_logits(base, tokenizer, item.prompt, item.answer)[0].argmax(-1) for e in edits for item in e.locality
    ]
    assert torch.equal(batch.initial_tokens, torch.cat(expected))
    now = greedy_tokens(lm, batch.prompts)[-len(batch.initial_tokens) :]
    assert not torch.equal(now, batch.initial_tokens)


def test_first_choices_do_not_depend_on_the_batch_size(make_lm, edits):
    lm = make_lm("layers.1.mlp.down_proj")
    prompts = encode_evaluation(lm, edits).prompts
    whole = greedy_tokens(lm, prompts)
    assert torch.equal(whole, lm.logits(prompts).argmax(-1))
    for batch_size in (1, 7, len(prompts) - 1):
        assert torch.equal(greedy_tokens(lm, prompts, batch_size), whole)
