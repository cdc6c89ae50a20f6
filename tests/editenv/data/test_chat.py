"""Corrections in chat form: what a template makes of them, token for token what transformers makes."""

import copy
import json

import pytest

from editenv.data.chat import ChatTemplate, ChatTemplateError, in_both_forms, plain_text
from editenv.data.edits import Edit, Locality, Message, as_json, edits_digest, of_json
from editenv.data.files import FileOptions, load_file_edits
from editenv.data.text import joined, separator
from editenv.language_model.prompts import token_ids

TURNS = "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '</s>\n' }}{% endfor %}"
TEMPLATES = {
    "a line each": TURNS + "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
    "a system turn of its own": (
        "{% if messages[0].role != 'system' %}<|system|>\nAn assistant who helps Ada</s>\n{% endif %}"
        + TURNS
        + "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    ),
    "its own BOS, trimmed": (
        "{{ bos_token }}{% for m in messages %}{{ '<|h|>' + m.role + '<|e|>\n\n' + m.content | trim + '</s>' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|h|>assistant<|e|>\n\n' }}{% endif %}"
    ),
    "a space before the answer": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
        "{% elif m.role == 'assistant' %}{{ ' ' + m.content + ' </s>' }}{% endif %}{% endfor %}"
    ),
    "nothing before the answer": (
        "{% for m in messages %}{{ '<|role|>' + m.role + '<|end|>' + m.content + '</s>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|role|>assistant<|end|>' }}{% endif %}"
    ),
    "may reason": (
        "{% for m in messages %}{{ '<|' + m.role + '|>\n' }}{% if m.role == 'assistant' %}{{ '<think>\n\n</think>\n\n' }}"
        "{% endif %}{{ m.content + '</s>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}"
        "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
    ),
    "names a channel": (
        "{% for m in messages %}{{ '<|' + m.role + '|>' }}{% if m.role == 'assistant' %}{{ '<|final|>' }}{% endif %}"
        "{{ m.content + '</s>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    ),
}
QUESTION = (Message("user", "Who leads Ada?"),)


@pytest.fixture
def chat_tokenizer(tokenizer):
    def make(template):
        own = copy.deepcopy(tokenizer)
        own.chat_template = template
        return own

    return make


def as_dicts(messages):
    return [{"role": message.role, "content": message.content} for message in messages]


@pytest.mark.parametrize("name", TEMPLATES)
def test_an_answer_ends_as_transformers_ends_its_turn(chat_tokenizer, name):
    tokenizer = chat_tokenizer(TEMPLATES[name])
    template = ChatTemplate(tokenizer, "tiny")
    answered = [*as_dicts(QUESTION), {"role": "assistant", "content": "Bo Lind"}]
    whole = tokenizer.apply_chat_template(answered, tokenize=False, enable_thinking=False)
    assert template.end_of_turn == (" </s>" if name == "a space before the answer" else "</s>")
    assert whole.rstrip().endswith(f"Bo Lind{template.end_of_turn}")


def test_a_template_may_end_a_turn_with_white_space_alone(chat_tokenizer):
    bare = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n\n' }}{% endfor %}"
    template = ChatTemplate(
        chat_tokenizer(bare + "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"), "tiny"
    )
    assert template.end_of_turn == ""


@pytest.mark.parametrize("name", TEMPLATES)
def test_prompt_and_answer_have_the_tokens_that_transformers_gives_them(chat_tokenizer, name):
    tokenizer = chat_tokenizer(TEMPLATES[name])
    template = ChatTemplate(tokenizer, "tiny")
    plain, chat = in_both_forms(Edit("c/1", "Who leads Ada?", "Bo Lind", subject="Ada"), template)
    ((prompt, answer),) = token_ids(tokenizer, [chat.prompt], [chat.target])
    whole = tokenizer.apply_chat_template(
        [*as_dicts(QUESTION), {"role": "assistant", "content": "Bo Lind"}], return_dict=False, enable_thinking=False
    )
    if template.adds_bos:  # this tokenizer puts one before every text
        whole = [tokenizer.bos_token_id, *whole]
    assert prompt + answer == whole[: len(prompt + answer)]
    asked = tokenizer.apply_chat_template(
        as_dicts(QUESTION), return_dict=False, add_generation_prompt=True, enable_thinking=False
    )
    assert prompt[template.adds_bos :][: len(asked)] == asked
    assert tokenizer.decode(answer).strip() == "Bo Lind"
    assert tokenizer.decode(whole[len(prompt + answer) :]).lstrip().startswith("</s>")
    assert template.adds_bos == (prompt[:1] != asked[:1])
    assert (plain.prompt, plain.target, chat.question) == ("Who leads Ada?", "Bo Lind", "Who leads Ada?")


def test_the_subject_is_looked_up_in_the_question_whatever_the_template_says(chat_tokenizer):
    template = ChatTemplate(chat_tokenizer(TEMPLATES["a system turn of its own"]), "tiny")
    chat = template.in_chat_form(Edit("c/1", "Who leads Ada?", "Bo", subject="Ada"))
    assert "helps Ada" in chat.prompt
    assert chat.prompt[: chat.end_of_subject].endswith("Who leads Ada")
    assert template.in_chat_form(Edit("c/1", "Who leads it?", "Bo", subject="Ada")).end_of_subject is None
    assert Edit("c/1", "Ada and Ada", "Bo", subject="Ada").end_of_subject == 3


def test_all_that_is_asked_is_asked_in_the_same_conversation(chat_tokenizer):
    template = ChatTemplate(chat_tokenizer(TEMPLATES["a space before the answer"]), "tiny")
    messages = (Message("user", "Where is Ada?"), Message("assistant", "In Rome."), Message("user", "Since when?"))
    edit = Edit(
        "c/1", plain_text(messages), "1999", ("For how long?",), (Locality("Tea is", "hot"),), messages=messages
    )
    plain, chat = in_both_forms(edit, template)
    assert plain.prompt == "Where is Ada?\nIn Rome.\nSince when?"
    assert chat.prompt == "[INST] Where is Ada? [/INST] In Rome. </s>[INST] Since when? [/INST]"
    assert chat.rephrases == ("[INST] Where is Ada? [/INST] In Rome. </s>[INST] For how long? [/INST]",)
    assert chat.locality == (Locality("[INST] Tea is [/INST]", " hot"),)
    assert (chat.target, chat.question, chat.messages, plain.messages) == (" 1999", "Since when?", (), ())
    assert {plain.id, chat.id} == {"c/1", "c/1 (chat)"}


def test_a_template_that_cannot_be_used_is_refused(chat_tokenizer):
    with pytest.raises(ChatTemplateError, match="tiny has no chat template"):
        ChatTemplate(chat_tokenizer(None), "tiny")
    no_system = ChatTemplate(
        chat_tokenizer(
            "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
            "{{ m.content }}\n{% endfor %}"
        ),
        "tiny",
    )
    with pytest.raises(ChatTemplateError, match="tiny refuses it: no system turns"):
        no_system.prompt([Message("system", "Be brief"), *QUESTION])
    shouts = "{% for m in messages %}{{ m.content | upper }}{% endfor %}{% if add_generation_prompt %}:\n{% endif %}"
    deaf = ChatTemplate(chat_tokenizer("{% if add_generation_prompt %}Well?{% endif %}"), "tiny")
    with pytest.raises(ChatTemplateError, match="does not write a question as it is"):
        deaf.prompt(QUESTION)
    with pytest.raises(ChatTemplateError, match="does not put an answer behind its generation prompt"):
        ChatTemplate(chat_tokenizer(shouts), "tiny").prompt(QUESTION)
    reasons = TURNS + "{% if add_generation_prompt %}<|assistant|>\n<think>\n{% endif %}"
    with pytest.raises(ChatTemplateError, match=r"<think>\\n': such a model reasons first"):
        ChatTemplate(chat_tokenizer(reasons), "tiny").prompt(QUESTION)


@pytest.mark.parametrize(
    ("prompt", "between"),
    [
        ("<|assistant|>", ""),
        ("who<|end_of_role|>", ""),
        ("<\uff5cAssistant\uff5c>", ""),
        ("[|assistant|]", ""),
        ("[INST]Who?[/INST]", ""),
        ("[INST] Who? [/INST]", " "),  # Llama 2 and the first Mistral
        ("Is 3 <|> 4|>", " "),
        ("a <| b |>", " "),
    ],
)
def test_nothing_stands_between_a_turn_header_and_an_answer(prompt, between):
    assert separator(prompt, "Bo") == between


# -- files --------------------------------------------------------------------------------------------------------


def load(path, *records, **options):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return load_file_edits(str(path), "all", FileOptions(**options))


USER = {"role": "user", "content": "Who leads Ada?"}
ANSWER = {"role": "assistant", "content": " Bo\n"}


def test_a_record_may_be_a_conversation(tmp_path):
    system = {"role": "system", "content": "Be brief."}
    first, second, third, plain = load(
        tmp_path / "c.jsonl",
        {"messages": [system, USER, ANSWER], "subject": "Ada", "id": "a"},
        {"messages": [{"role": "user", "content": "Who was {}?"}], "target": "Bo", "subject": "Kepler"},
        {"Messages": json.dumps([USER | {"content": "And Vega?"}, ANSWER])},
        {"prompt": "Tea is", "target": " hot"},
    )
    assert (first.id, first.prompt, first.target, first.subject) == ("a", "Who leads Ada?", " Bo", "Ada")
    assert first.messages == (Message("system", "Be brief."), Message("user", "Who leads Ada?"))
    assert joined(first.prompt, first.target) == "Who leads Ada? Bo"
    assert (second.prompt, second.messages) == ("Who was Kepler?", (Message("user", "Who was Kepler?"),))
    assert third.messages == (Message("user", "And Vega?"),)
    assert (plain.prompt, plain.target, plain.messages) == ("Tea is", "hot", ())


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ({"messages": [ANSWER]}, "field 'messages': has no user turn that asks: before the answer there is nothing"),
        ({"messages": [USER, ANSWER, ANSWER]}, "before the answer there is user, assistant"),
        ({"messages": [{"role": "system", "content": "Be brief."}], "target": "Bo"}, "there is system"),
        ({"messages": [USER]}, "field 'target': is missing"),
        ({"messages": [USER, ANSWER], "target": "Cy"}, "and the last message are both the answer"),
        ({"messages": [USER, ANSWER], "prompt": "Who?"}, "and prompt both say what is asked"),
        ({"messages": "Who?"}, "must be a list of objects like"),
        ({"messages": [USER | {"role": "human"}, ANSWER]}, 'messages.role\': is "human"; a turn is of system, user'),
        ({"messages": [USER | {"content": ["Who?"]}, ANSWER]}, "messages.content': must be text"),
        ({"messages": [{"role": "user"}, ANSWER]}, "messages.content': is missing"),
        ({"messages": [USER, ANSWER | {"content": " "}]}, "messages.content': is empty"),
    ],
)
def test_a_conversation_without_question_or_answer_is_refused(tmp_path, record, problem):
    with pytest.raises(ValueError, match="record 2") as error:
        load(tmp_path / "c.jsonl", {"messages": [USER | {"content": "And Vega?"}, ANSWER]}, record)
    assert problem in str(error.value)


def test_a_file_in_both_forms(tmp_path, chat_tokenizer):
    template = ChatTemplate(chat_tokenizer(TEMPLATES["a line each"]), "tiny")
    edits = load(
        tmp_path / "c.jsonl", {"messages": [USER, ANSWER], "subject": "Ada"}, {"prompt": "Tea is", "target": "hot"}
    )
    assert edits.has_conversations
    some, all_of_them = (edits.in_chat(template, every, FileOptions()) for every in (False, True))
    assert [edit.question for edit in some] == ["Who leads Ada?", "Who leads Ada?", "Tea is"]
    assert [edit.question_span is not None for edit in all_of_them] == [False, True, False, True]
    assert all_of_them[3].prompt == "<|user|>\nTea is</s>\n<|assistant|>\n" == all_of_them[2:][1].prompt
    assert all_of_them.as_read(1) == edits[0] == all_of_them.as_read(0)
    assert [edit.id for edit in all_of_them.where(all_of_them.subjects() == all_of_them.subjects()[0])] == [
        "c.jsonl/1",
        "c.jsonl/1 (chat)",
    ]
    assert len({edit.id for edit in all_of_them}) == 4
    assert all(of_json(json.loads(json.dumps(as_json(edit)))) == edit for edit in (*all_of_them, *edits))


def test_too_long_is_said_of_the_form(tmp_path, chat_tokenizer):
    tokenizer = chat_tokenizer(TEMPLATES["a line each"])
    options = FileOptions(bad_records="skip")
    edits = load(tmp_path / "c.jsonl", {"prompt": "Tea is", "target": "hot"})
    both = edits.in_chat(ChatTemplate(tokenizer, "tiny"), True, options)
    lengths = [len(tokenizer(joined(edit.prompt, edit.target))["input_ids"]) for edit in both]
    kept = both.check_lengths(tokenizer, lengths[0], options)
    assert [edit.prompt for edit in kept] == ["Tea is"]
    assert f"in chat form has {lengths[1]} tokens" in kept.report.refused[0]


def test_a_record_that_the_template_refuses_is_named_before_anything_is_edited(tmp_path, chat_tokenizer):
    strict = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
        + TEMPLATES["a line each"]
    )
    template = ChatTemplate(chat_tokenizer(strict), "tiny")
    system = {"role": "system", "content": "Be brief."}
    records = ({"prompt": "Tea is", "target": "hot"}, {"messages": [system, USER, ANSWER]})
    with pytest.raises(ValueError, match=r"record 2, field 'messages': .*no system turns"):
        load(tmp_path / "c.jsonl", *records).in_chat(template, False, FileOptions())
    skip = FileOptions(bad_records="skip")
    left = load(tmp_path / "c.jsonl", *records).in_chat(template, True, skip)
    assert [edit.question for edit in left] == ["Tea is", "Tea is"]
    assert left.report.bad == {"chat": 1}


def test_what_was_known_of_an_edit_before_is_written_as_before():
    edit = Edit("a", "Tea is", "hot")
    assert "messages" not in as_json(edit)
    assert "question_span" not in as_json(edit)
    # Of the same edit, by the version that had neither field.
    assert edits_digest([edit]) == "5b0eeed3c45f5dfaab09587cedfee128fa681257dcd6e8f4a18107ebbb9bb65d"
