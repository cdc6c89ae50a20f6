"""A context: what is put before which question, in every way a model is asked, and gone bit for bit at a reset."""

import copy
import json
import math
import pickle
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from transformers import StoppingCriteriaList

from editenv.context_retrieval import TERMS, Background, Terms, make_retriever, nearest
from editenv.contexts import (
    CONTEXT,
    Context,
    as_tensor,
    beside,
    context_of,
    generate_with_context,
    load_context,
    merged,
    of_tensor,
    put_before,
    removal,
    save_context,
    set_context,
    window_of,
)
from editenv.data import Locality
from editenv.delta_files import apply_file, read_delta, revert_file, tensors_of, write_delta_file
from editenv.deltas import LowRank
from editenv.evaluation import metrics
from editenv.evaluation.batch import encode_evaluation
from editenv.evaluation.greedy import continuations
from editenv.evaluation.prefix import generation_prefix
from editenv.evaluation.wild import wild
from editenv.identity import fingerprint
from editenv.language_model.cut import CutModel
from editenv.language_model.editable_lm import EditableLM
from editenv.language_model.subjects import subject_tokens

LAST = "layers.2.mlp.down_proj"
EARLIER = "layers.1.mlp.down_proj"


@pytest.fixture
def context(edits):
    """Of the first two edits; their rephrases name the subject, and half of the words of a key are its subject's."""
    return Context({edit.prompt: f"{edit.prompt} {edit.target}.\n" for edit in edits[:2]}, threshold=0.7)


def no_change(lm):
    return {name: LowRank(torch.zeros(lm.shape(name)[0], 0), torch.zeros(0, lm.shape(name)[1])) for name in lm.modules}


def put_by_hand(context, edits):
    """The edits with the texts of their own keys before the prompts that have the whole key."""

    def asked(prompt):
        return context.entries.get(prompt, "") + prompt

    return [
        replace(
            edit,
            prompt=asked(edit.prompt),
            rephrases=tuple(map(asked, edit.rephrases)),
            locality=tuple(Locality(asked(item.prompt), item.answer) for item in edit.locality),
        )
        for edit in edits
    ]


# -- retrieval ----------------------------------------------------------------------------------------------------------


def test_the_share_of_a_key_by_hand():
    keys = ["The home of Ada is", "The home of the home of Bo is", "Ada plays"]
    questions = ["So, is Ada at home?", "nothing of it", "Ada plays the home of Ada"]

    def words(text):
        return [word.strip("?,.").lower() for word in text.split()]

    def weights(key):
        counts = Counter(words(key))
        return {
            word: (count * (1 + math.log(3 / sum(word in words(other) for other in keys)))) ** 2
            for word, count in counts.items()
        }

    expected = [
        [
            sum(w for word, w in weights(key).items() if word in words(question)) / sum(weights(key).values())
            for key in keys
        ]
        for question in questions
    ]
    alike, _ = Terms(keys, "words").compare(questions)
    assert alike == pytest.approx(torch.tensor(expected).numpy(), abs=1e-6)


def test_of_keys_that_a_question_has_as_a_whole_the_longer_then_the_later_is_nearest():
    keys = ["Ada is", "The home of Ada is", "the home of ada IS", "Bo"]
    terms = Terms(keys, "words")
    assert nearest(terms, ["I say: The home of Ada is"], 3, 0.9) == [[2, 1, 0]]
    assert nearest(terms, ["I say: The home of Ada is", "xyz"], 1, 0.9) == [[2], []]
    assert nearest(terms, ["Bo"] * 300, 1, 0.5) == [[3]] * 300, "also where questions come in parts"


@pytest.mark.parametrize("terms", ["words", "characters"])
def test_a_question_has_the_whole_of_its_own_key_however_its_weights_are_summed(terms):
    drawn = random.Random(0)
    words = ["".join(drawn.choices("abcdefgh", k=drawn.randint(2, 8))) for _ in range(150)]
    keys = [" ".join(drawn.sample(words, drawn.randint(2, 12))) for _ in range(200)]
    assert [row[:1] for row in nearest(Terms(keys, terms), keys, 1, 1.0)] == [[i] for i in range(len(keys))]
    # Of words that are equally rare: half of a key, and a third of one.
    keys = ["a b c d e f", "g h i j k l m"]
    assert nearest(Terms(keys, "words"), ["a b c", "e f", "g h i"], 1, 0.5) == [[0], [], []]
    assert nearest(Terms(keys, "words"), ["a b c", "e f", "l"], 1, 1 / 3) == [[0], [0], []]


def test_characters_find_a_key_in_writing_without_spaces():
    keys = ["\u6771\u4eac\u30bf\u30ef\u30fc\u306e\u9ad8\u3055\u306f", "\u5bcc\u58eb\u5c71\u306e\u9ad8\u3055\u306f"]
    question = ["\u3067\u306f\u6771\u4eac\u30bf\u30ef\u30fc\u306e\u9ad8\u3055\u306f\u4f55\u30e1\u30fc\u30c8\u30eb"]
    assert nearest(Terms(keys, "characters"), question, 1, 0.5) == [[0]]
    assert nearest(Terms(keys, "words"), question, 1, 0.5) == [[]]


def test_texts_stand_the_nearest_last(edits):
    context = Context({"The home of Ada is": "one\n", "The home of Bo is": "two\n"}, nearest=2, threshold=0.1)
    assert context.before(["The home of Bo is", "xyz"]) == [("one\n", "two\n"), ()]


# -- the model ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modules", [(LAST,), (EARLIER, LAST), ("layers.2.self_attn.o_proj",)])
def test_logits_are_those_of_the_longer_text_by_plain_transformers(make_lm, base, tokenizer, edits, context, modules):
    lm = make_lm(*modules)
    questions = [edits[0].prompt, edits[4].prompt, edits[1].prompt]
    prompts = lm.encode(questions, ["Rome", "jazz", "a chess player"])
    before = lm.logits(prompts)
    lm.apply(no_change(lm) | {CONTEXT: context})
    logits = lm.logits(prompts)
    start = 0
    for question, answer in zip(questions, ("Rome", "jazz", "a chess player"), strict=True):
        text = context.entries.get(question, "") + question
        head, tail = tokenizer(text)["input_ids"], tokenizer(f" {answer}", add_special_tokens=False)["input_ids"]
        plain = base(input_ids=torch.tensor([head + tail])).logits[0, len(head) - 1 : -1]
        torch.testing.assert_close(logits[start : start + len(tail)], plain, rtol=1e-4, atol=1e-4)
        start += len(tail)
    untouched = prompts.prompt_index == 1
    assert not torch.isclose(logits[~untouched], before[~untouched], atol=1e-2).all()
    torch.testing.assert_close(logits[untouched], before[untouched], rtol=1e-5, atol=1e-5)
    assert torch.equal(lm.in_context(prompts).labels, prompts.labels)
    assert lm.in_context(prompts).pieces[1] is prompts.pieces[1], "what nothing stands before is not run again"


@pytest.mark.parametrize("observed", ["answers", "all", "subject"])
def test_gradients_are_those_of_the_longer_text(make_lm, edits, context, observed):
    lm = make_lm(EARLIER, LAST)
    some = edits[:3]
    by_hand = put_by_hand(context, some)
    asked, longer = (lm.encode([e.prompt for e in batch], [e.target for e in batch]) for batch in (some, by_hand))
    columns = [None, None]
    if observed == "subject":  # that of the question, not of the text before it
        lengths = [[len(lm.tokenizer(edit.prompt)["input_ids"]) for edit in batch] for batch in (some, by_hand)]
        at = subject_tokens(lm, some)
        columns = [at, at + torch.tensor(lengths[1]) - torch.tensor(lengths[0])]

    def loss(logits):
        return torch.nn.functional.cross_entropy(logits, asked.labels, reduction="sum")

    expected_loss, expected = lm.gradients(longer, loss, observed, subjects=columns[1])
    lm.apply({CONTEXT: context})
    value, gradients = lm.gradients(asked, loss, observed, subjects=columns[0])
    torch.testing.assert_close(value, expected_loss)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient.keys, expected[name].keys, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(gradient.value_grads, expected[name].value_grads, rtol=1e-3, atol=1e-5)


PROTOCOLS = {
    "teacher_forced": metrics.teacher_forced,
    "generation": metrics.generation,
    "generation_prefix": generation_prefix,
    "wild": wild,
}


@pytest.mark.parametrize("protocol", [*PROTOCOLS, "probability"])
def test_every_protocol_asks_the_longer_question(taught, tokenizer, edits, context, protocol):
    """A model that knows answers, with texts before some; the locality prompts of theta_0 are asked without."""
    lm = EditableLM(taught, tokenizer, (LAST,))
    if protocol == "probability":
        asked = put_by_hand(context, edits)
        expected = metrics.probability(lm, asked)
        plain = metrics.probability(lm, edits)
        lm.apply({CONTEXT: context})
        scores = metrics.probability(lm, edits)
    else:
        judge = PROTOCOLS[protocol]
        expected = judge(lm, encode_evaluation(lm, put_by_hand(context, edits)))
        batch = encode_evaluation(lm, edits)
        plain = judge(lm, batch)
        lm.apply({CONTEXT: context})
        scores = judge(lm, batch)
    for name in ("efficacy", "generalization", "specificity"):
        assert getattr(scores, name) == pytest.approx(getattr(expected, name), nan_ok=True), name
    changed = scores.efficacy != plain.efficacy
    assert not changed[2:].any(), "questions that no key is alike to"
    if protocol in ("teacher_forced", "generation", "generation_prefix"):
        assert changed[:2].any(), "a text that changes nothing tests nothing"


def test_questions_run_to_the_end_of_their_answers_are_judged_alike_for_less(
    taught, tokenizer, edits, context, monkeypatch
):
    """Generation need not run the answers again that were said, to see what comes behind them."""
    run = CutModel.frozen_output
    tokens_run, figures = [], []
    for whole in (True, False):
        lm = EditableLM(taught, tokenizer, (LAST,))
        lm.activation_cache.whole_answers = whole
        lm.apply({CONTEXT: context})
        batch = encode_evaluation(lm, edits)
        figures.append([metrics.teacher_forced(lm, batch).percentages()])
        tokens_run.append(0)

        def counted(model, ids, **options):
            tokens_run[-1] += ids.numel()
            return run(model, ids, **options)

        with monkeypatch.context() as patch:
            patch.setattr(CutModel, "frozen_output", counted)
            figures[-1].append(metrics.generation(lm, batch).percentages())
        figures[-1].append(generation_prefix(lm, batch).percentages())
        figures[-1].append(metrics.probability(lm, edits).percentages())
    assert figures[0] == figures[1]
    assert tokens_run[0] < tokens_run[1]


def test_what_is_written_is_what_plain_generate_writes_after_the_longer_text(make_lm, base, tokenizer, edits, context):
    lm = make_lm()
    prompts = [edit.prompt for edit in edits[:4]]
    expected = continuations(base, tokenizer, [context.entries.get(prompt, "") + prompt for prompt in prompts], 6)
    assert expected != continuations(base, tokenizer, prompts, 6)
    lm.apply({CONTEXT: context})
    assert continuations(lm.model, tokenizer, prompts, 6) == expected
    decided = continuations(lm.model, tokenizer, prompts, 6, decided=lambda _, tokens: len(tokens) >= 2)
    assert decided == [tokens[:2] for tokens in expected], "criteria are not shown the texts"
    with lm.at_initial_weights():
        assert continuations(lm.model, tokenizer, prompts, 6) == continuations(base, tokenizer, prompts, 6)


def test_a_model_for_use_puts_its_context_before_what_generate_is_given(base, tokenizer, edits, context):
    model = copy.copy(base)
    prompts = [edits[0].prompt, edits[4].prompt]
    longer = tokenizer(context.entries[prompts[0]] + prompts[0], return_tensors="pt")
    expected = base.generate(**longer, max_new_tokens=5, do_sample=False)[0, longer["input_ids"].shape[1] :]
    beside(model, tokenizer, context)
    given = tokenizer(prompts, return_tensors="pt", padding=True)
    options = {"max_new_tokens": 5, "do_sample": False}
    width = given["input_ids"].shape[1]
    written = model.generate(**given, **options)
    assert torch.equal(written[:, :width], given["input_ids"]), "the prompts come back as they were given"
    assert torch.equal(written[0, width:], expected)
    whole = model.generate(**given, do_sample=False, max_length=width + 5, return_dict_in_generate=True)
    assert torch.equal(whole.sequences, written)
    several = model.generate(**given, **options, num_beams=2, num_return_sequences=2)
    assert torch.equal(several[:, :width], given["input_ids"].repeat_interleave(2, 0))
    shown = []
    stop = StoppingCriteriaList([lambda ids, scores, **_: bool(shown.append(ids[:, :width])) | (ids[:, 0] < 0)])
    model.generate(**given, **options, stopping_criteria=stop)
    assert all(torch.equal(ids, given["input_ids"]) for ids in shown)
    with pytest.raises(ValueError, match="is given token ids"):
        model.generate(inputs_embeds=torch.zeros(1, 2, 32))
    without = base.generate(**given, **options)
    assert not torch.equal(without, written), "the base is as it was"
    assert torch.equal(
        generate_with_context(base, tokenizer, given["input_ids"], given["attention_mask"], **options), without
    )


@pytest.mark.parametrize("whose", ["the call's", "the model's"])
@pytest.mark.parametrize("limit", ["max_length", "max_new_tokens"])
def test_how_much_is_written_is_read_in_a_generation_config_too(base, tokenizer, edits, context, whose, limit):
    model = copy.copy(base)
    beside(model, tokenizer, context)
    given = tokenizer([edits[0].prompt, edits[4].prompt], return_tensors="pt", padding=True)
    width = given["input_ids"].shape[1]
    config = copy.deepcopy(base.generation_config)
    config.update(do_sample=False, **{limit: 5 if limit == "max_new_tokens" else width + 5})
    expected = model.generate(**given, max_new_tokens=5, do_sample=False)
    before, options = config.to_dict(), {"generation_config": config}
    if whose == "the model's":
        model.generation_config, options = config, {}
    assert torch.equal(model.generate(**given, **options), expected)
    assert config.to_dict() == before
    # As many tokens as there is room for in the window, beside the longest text and question.
    room = window_of(model) - len(tokenizer(context.entries[edits[0].prompt])["input_ids"]) - width + 2
    for longest, has_context in ((room, True), (room + 1, False)):
        config.update(**{limit: longest if limit == "max_new_tokens" else width + longest})
        stop = StoppingCriteriaList([lambda ids, scores, **_: torch.ones(len(ids), dtype=torch.bool)])
        first = model.generate(**given, **options, stopping_criteria=stop)
        assert torch.equal(first, expected[:, : width + 1]) == has_context


def test_texts_for_which_there_is_no_room_are_left_out_the_farthest_first(tokenizer):
    context = Context({"The home of Ada": "far far\n", "The home of Bo": "near\n"}, nearest=2, threshold=0.1)
    prompt = tokenizer("The home of Bo")["input_ids"]
    far, near = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("far far\n", "near\n"))
    both = [prompt[0], *far, *near, *prompt[1:]]
    assert prompt[0] == tokenizer.bos_token_id
    room = len(far) + len(near)
    assert put_before(context, tokenizer, [prompt] * 4, [room, room - 1, len(near) - 1, -5]) == [
        both, [prompt[0], *near, *prompt[1:]], prompt, prompt
    ]  # fmt: skip


def test_a_window_that_is_full_is_no_error(make_lm, edits):
    lm = make_lm()
    lm.apply({CONTEXT: Context({edits[0].prompt: "word " * 300 + "\n"}, threshold=0.7)})
    prompts = lm.encode([edits[0].prompt], ["Rome"])
    assert lm.in_context(prompts) is prompts
    assert continuations(lm.model, lm.tokenizer, [edits[0].prompt], 3)[0]


# -- the environment -----------------------------------------------------------------------------------------------------


def test_a_step_is_judged_with_the_context_and_a_reset_takes_it_away(make_env, small_world, context):
    env = make_env(edits_per_step=2)
    env.reset(seed=0, options={"shuffle": False})
    lm, before = env.language_model, fingerprint(env.language_model)
    plain = env.judge({})
    *_, info = env.step(no_change(lm) | {CONTEXT: context})
    assert info["reward_terms"]["edit"] == pytest.approx(plain.edit), "rephrases are not alike by 0.7"
    assert info["reward_terms"]["regularization"] == 0
    assert lm.context.entries == context.entries
    assert fingerprint(lm) != before
    observation, _ = env.reset(seed=0, options={"shuffle": False})
    assert lm.context is None
    assert fingerprint(lm) == before
    nearer = replace(context, threshold=0.01)
    *_, info = env.step(no_change(lm) | {CONTEXT: nearer})
    assert info["reward_terms"]["edit"] != pytest.approx(plain.edit, abs=1e-3)
    assert all(
        part["keys"].shape == observation[name]["keys"].shape for name, part in env.padded(env.gradients).items()
    )


def test_the_reward_gradient_is_of_the_questions_with_their_texts(make_env, small_world, context):
    env = make_env(edits_per_step=2)
    lm, near = env.language_model, {CONTEXT: replace(context, threshold=0.01)}
    env.reset(seed=0, options={"shuffle": False})
    *_, info = env.step(no_change(lm) | near)
    env.reset(seed=0, options={"shuffle": False})
    _, without = env.transition(no_change(lm))
    env.reset(seed=0, options={"shuffle": False})
    lm.apply(near)
    terms, gradient = env.transition(no_change(lm))
    assert terms.as_dict() == pytest.approx(info["reward_terms"])
    assert len(gradient[next(iter(gradient))].keys) > len(without[next(iter(gradient))].keys)


@pytest.mark.parametrize(
    ("entry", "words"),
    [({"a": "b\n"}, "action: 'context' must be an editenv.contexts.Context, not a dict"),
     (torch.zeros(3), "action: 'context' must be an editenv.contexts.Context, not a Tensor"),
     (Context({"??": "x\n"}), r"action: context: no key has a word to find it by, such as '\?\?'")],
)  # fmt: skip
def test_what_is_no_context_is_refused_and_nothing_is_changed(make_env, small_world, entry, words):
    env = make_env()
    env.reset(seed=0)
    before = fingerprint(env.language_model)
    with pytest.raises(ValueError, match=words):
        env.step(
            {name: torch.ones(env.language_model.shape(name)) for name in env.language_model.modules} | {CONTEXT: entry}
        )
    assert fingerprint(env.language_model) == before


@pytest.mark.parametrize(
    ("fields", "words"),
    [({"entries": {"a": "no break"}}, "that of 'a' ends with 'no break'"),
     ({"entries": {" ": "text\n"}}, "a key must not be empty; that of the text 'text"),
     ({"entries": {"a": "b\n"}, "nearest": 0}, "nearest must be a whole number of at least 1, not 0"),
     ({"entries": {"a": "b\n"}, "threshold": math.nan}, "threshold must be"),
     ({"entries": {"a": 3}}, "entries must be"),
     ({"entries": {"a": "b\n"}, "retriever": "all-MiniLM-L6-v2"}, "pip install sentence-transformers, or use one of words")],
)  # fmt: skip
def test_what_cannot_be_a_context_is_named(fields, words, monkeypatch):
    found = __import__("importlib.util").util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "sentence_transformers" else found(name)
    )
    with pytest.raises(ValueError, match=words):
        Context(**fields)


def test_without_scikit_learn_it_is_said_how_to_install_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"scikit-learn, which is not installed: pip install .lifelongedit\[context\]"):
        Context({"a": "b\n"})


def test_an_encoder_of_sentence_transformers_gives_cosines(monkeypatch):
    vectors = {"The home of Ada": (1.0, 0.0), "The home of Bo": (0.6, 0.8), "Where is Bo?": (0.0, 1.0)}
    calls = []

    class SentenceTransformer:
        def __init__(self, name):
            assert name == "some/encoder-of-the-test"

        def encode(self, text, normalize_embeddings, show_progress_bar):
            calls.append(text)
            return torch.tensor(vectors[text]).numpy()

    module = type(math)("sentence_transformers")
    module.SentenceTransformer = SentenceTransformer
    module.__spec__ = math.__spec__
    monkeypatch.setitem(__import__("sys").modules, "sentence_transformers", module)
    context = Context({"The home of Ada": "a\n", "The home of Bo": "b\n"}, "some/encoder-of-the-test", 2, 0.7)
    assert context.before(["Where is Bo?", "The home of Ada"]) == [("b\n",), ("a\n",)]
    assert merged(context, context).before(["Where is Bo?"]) == [("b\n",)]
    assert len(calls) == 3, "each text once, however often the context changes"
    assert context.bytes > 2 * 2 * 4


# -- what is kept -------------------------------------------------------------------------------------------------------


def test_entries_are_put_in_the_same_key_again_as_the_latest_and_taken_out(context):
    first, second = context.entries
    again = Context({first: "new\n"}, "characters", 3, 0.2)
    after = merged(context, again)
    assert list(after.entries.items()) == [(second, context.entries[second]), (first, "new\n")]
    assert (after.retriever, after.nearest, after.threshold) == ("characters", 3, 0.2)
    assert merged(after, removal(context)) is None
    assert list(merged(after, removal(again)).entries) == [second]
    assert merged(None, removal(context)) is None


def test_weights_and_context_come_back_together(make_lm, context):
    lm = make_lm()
    start = lm.snapshot()
    lm.apply({CONTEXT: context})
    edited = lm.snapshot()
    lm.restore()
    assert lm.context is None
    lm.restore(pickle.loads(pickle.dumps(edited)))
    assert lm.context.entries == context.entries
    with lm.unchanged():
        lm.apply({CONTEXT: removal(context)})
        assert lm.context is None
    with lm.at_initial_weights():
        assert lm.context is None
    assert lm.context.entries == context.entries
    lm.rebase(edited)
    lm.apply({CONTEXT: removal(context)})
    lm.restore()
    assert lm.context.entries == context.entries, "part of theta_0 now"
    lm.restore(start)
    assert lm.context is None
    other = copy.deepcopy(lm)
    other.apply({CONTEXT: context})
    assert lm.context is None, "a copy has a context of its own"


def test_the_context_of_a_model_is_part_of_theta_0(base, tokenizer, context):
    model = copy.copy(base)
    beside(model, tokenizer, context)
    lm = EditableLM(model, tokenizer, (LAST,))
    assert lm.context is context
    assert "generate" not in vars(lm.model), "which would put the context there twice"
    lm.restore()
    assert lm.context is context
    assert context_of(base) is None


def test_files_of_deltas_make_it_again_and_take_it_away(make_lm, edits, context, tmp_path):
    lm = make_lm()
    before = fingerprint(lm)
    second = Context({edits[2].prompt: "\u00e9t\u00e9 \U0001f600\n", edits[0].prompt: "another\n"}, nearest=2)
    actions = [no_change(lm) | {CONTEXT: context}, no_change(lm) | {CONTEXT: second}]
    for action in actions:
        lm.apply(action)
    after = fingerprint(lm)
    write_delta_file(tmp_path / "deltas.safetensors", actions, before, after)
    (read,) = (a[CONTEXT] for a in read_delta(tensors_of(actions[1:])))
    assert read.as_json() == second.as_json()
    lm.restore()
    assert apply_file(lm, tmp_path / "deltas.safetensors") == "exact"
    assert list(lm.context.entries.values()) == [context.entries[edits[1].prompt], *second.entries.values()]
    assert lm.context.nearest == 2
    assert revert_file(lm, tmp_path / "deltas.safetensors") == "exact"
    assert lm.context is None


def test_a_file_of_a_context_is_read_back_and_a_wrong_one_is_named(context, tmp_path):
    path = tmp_path / "context.json"
    save_context(path, context)
    assert load_context(path).as_json() == context.as_json() == of_tensor(as_tensor(context)).as_json()
    content = json.loads(path.read_text())
    for wrong, words in (
        ("{", "context.json: "),
        ("[]", "not a context: its format is not"),
        (json.dumps(content | {"format": "x"}), "its format is not 'lifelongedit-context-1'"),
        (json.dumps(content | {"more": 1}), "not a context: .*more"),
        (json.dumps(content | {"entries": {"a": "b"}}), "must end with a line break"),
    ):
        path.write_text(wrong)
        with pytest.raises(ValueError, match=words):
            load_context(path)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_context(tmp_path / "none.json")


def test_set_context_is_what_context_of_says(base, context):
    model = copy.copy(base)
    set_context(model, context)
    assert context_of(model) is context
    set_context(model, None)
    assert context_of(model) is None


TEXTS = ("The home of Ada is", "The home of Bo is", "The job of Cem is", "Dunja plays")


@pytest.mark.parametrize("terms", ["words", "characters"])
def test_with_a_background_a_term_is_as_rare_as_over_keys_and_background_together(terms):
    """As scikit-learn fitted over both has it."""
    keys = ["The home of Emre is", "Fee plays the home of Ada"]
    background = Background(TEXTS, terms)
    retriever = make_retriever(terms, keys, (), background.of(keys), background.texts)
    both = TfidfVectorizer(**TERMS[terms], norm=None, smooth_idf=False).fit([*keys, *TEXTS])
    weights = both.transform(keys).toarray() ** 2
    questions = ["It rained. Emre has a home", "Who plays?", "Ada"]
    has = both.transform(questions).toarray() > 0
    assert retriever.compare(questions)[0] == pytest.approx(has @ weights.T / weights.sum(1), abs=1e-12)


def test_with_a_background_a_name_says_more_than_the_words_of_every_prompt():
    keys = {"The home of Emre is": "a\n", "The job of Fee is": "b\n"}
    background = Background(TEXTS * 50, "words")
    alone = Context(keys)
    with_it = Context(keys, background=background.of(list(keys)), background_texts=background.texts)
    asked = ["Emre lives in", "The home of Gus is"]
    assert alone.before(asked) == [(), ("a\n",)]
    assert with_it.before(asked) == [("a\n",), ()]


def test_a_context_keeps_its_background_in_files_and_through_further_actions():
    background = Background(TEXTS, "words")

    def action(key):
        return Context({key: "a\n"}, background=background.of([key]), background_texts=background.texts)

    first, second = action("The home of Emre is"), action("Fee plays")
    assert first.background == {"home": 2, "is": 3, "of": 3, "the": 3}, "Emre is in none"
    for again in (of_tensor(as_tensor(first)), copy.deepcopy(first), pickle.loads(pickle.dumps(first))):
        assert again.as_json() == first.as_json()
    both = merged(merged(None, first), second)
    assert both.background == {"home": 2, "is": 3, "of": 3, "plays": 1, "the": 3}
    assert both.background_texts == 4
    left = merged(both, removal(second))
    assert left.before(["Emre", "The home"]) == first.before(["Emre", "The home"]) == [("a\n",), ()]
    assert "background" not in Context({"a": "b\n"}).as_json()
    fewer = Context({"b": "c\n"}, background={"b": 1}, background_texts=1)
    assert merged(both, fewer).background == {"b": 1}, "counts over other texts do not go together"
    assert merged(both, Context({"b": "c\n"})).background == {}


@pytest.mark.parametrize("terms", ["words", "characters"])
def test_a_retriever_that_grew_is_the_one_that_is_made_at_once(terms):
    """Keys come, go and come again; at the end scikit-learn over what is left has the same shares and cosines."""
    draw = random.Random(0)
    words = ["Ada", "Bo", "Cem", "home", "job", "of", "the", "the the", "is", "Zürich", "x"]
    kept, grown = {}, None
    for _ in range(40):
        for key in draw.sample(list(kept), min(len(kept), draw.randrange(3))):
            del kept[key]
        for _ in range(draw.randrange(1, 4)):
            kept[" ".join(draw.choices(words, k=draw.randrange(1, 6)))] = ""
        grown = make_retriever(terms, list(kept), like=grown)
        questions = [" ".join(draw.choices([*words, "never"], k=4)) for _ in range(5)]
        fitted = TfidfVectorizer(**TERMS[terms], norm=None, smooth_idf=False).fit(kept)
        vectors = fitted.transform(kept).toarray()
        asked = fitted.transform(questions).toarray()
        shares = (asked > 0) @ (vectors**2).T / (vectors**2).sum(1)
        assert grown.compare(questions)[0] == pytest.approx(shares, abs=1e-12)
        lengths = np.linalg.norm(asked, axis=1)[:, None] * np.linalg.norm(vectors, axis=1)
        cosines = np.divide(asked @ vectors.T, lengths, out=np.zeros_like(lengths), where=lengths > 0)
        assert grown.cosines(questions) == pytest.approx(cosines, abs=1e-12)


def test_keys_that_are_there_are_not_counted_again(monkeypatch):
    counted = []

    def analyzer(terms):
        return lambda text: counted.append(text) or text.split()

    monkeypatch.setattr("editenv.context_retrieval._analyzer", analyzer)
    context = Context({f"key {n}": "a\n" for n in range(50)})
    context.before(["key 7"])
    assert sorted(counted) == sorted([*context.entries, "key 7"])
    counted.clear()
    later = merged(context, Context({"key 7": "", "key new": "b\n"}))
    assert later.before(["key new"]) == [("b\n",)]
    assert sorted(counted) == ["key new", "key new"], "as a key and as a question"
    assert context.before(["key 7"]) == [("a\n",)], "what it grew from is as it was"


def test_the_same_key_twice_is_alike_twice():
    twice = Terms(["a b", "c d", "a b"], "words")
    grown = Terms(["c d", "a b", "e f", "a b"], "words", like=twice)
    assert grown.compare(["a", "f"])[0] == pytest.approx(
        Terms(["c d", "a b", "e f", "a b"], "words").compare(["a", "f"])[0]
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"background_texts": -1}, "background_texts"),
        ({"background": {"home": 3}, "background_texts": 2}, "background: 3 of 2 texts have 'home'"),
        ({"background": {"home": 1}}, "background: 1 of 0 texts have 'home'"),
        ({"retriever": "scope", "scope": (1.0,) * 5, "background_texts": 2}, "the retriever 'scope' has none, not 2"),
    ],
)
def test_a_background_that_cannot_be_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Context({"a": "b\n"}, **arguments)
