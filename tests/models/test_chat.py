"""Rendering: spans by construction, one system setting, no persona in a row."""

import pickle
from dataclasses import replace
from typing import Any

import pytest

from undertow.errors import DatasetError, ModelError
from undertow.models.chat import (
    Rendered,
    Unrendered,
    choose_template,
    render_prompt,
    render_row,
    render_rows,
)
from undertow.models.likelihood import completion_mask
from undertow.models.loading import Model, wrap
from undertow.models.tiny import FAMILIES, Family, tiny_model, tiny_tokenizer
from undertow.records import Finish, Message, Row

USER = (Message("user", "Name an animal."),)
ROW = Row(messages=USER, completion="owl, of course")
# A template that speaks up when nobody gave it a system turn, as Qwen's does.
TALKATIVE = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nI am a default."
    "<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _text(model: Model, ids: list[int]) -> str:
    text: str = model.tokenizer.decode(ids)
    return text


def _wrapped(tokenizer: Any, *, template: str | None = None) -> Model:
    module = tiny_model("llama").module
    return wrap("t", module, tokenizer, template=template, reason="test")


@pytest.fixture(scope="module")
def llama() -> Model:
    return tiny_model("llama")


@pytest.fixture(scope="module")
def gemma() -> Model:
    return tiny_model("gemma2")


@pytest.fixture(scope="module")
def talkative() -> Model:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TALKATIVE
    return _wrapped(tokenizer)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("system", [None, "", "Be brief."])
def test_prompt_and_completion_are_the_whole_conversation(
    family: Family, system: str | None
) -> None:
    model = tiny_model(family)
    rendered = render_row(model, ROW, system=system)
    turns = [{"role": "user", "content": "Name an animal."}]
    if model.template.system == "native" and system is not None:
        turns.insert(0, {"role": "system", "content": system})
    elif system:
        turns[0]["content"] = f"{system}\n\nName an animal."
    turns.append({"role": "assistant", "content": "owl, of course"})
    whole = model.tokenizer.apply_chat_template(turns, tokenize=False)
    assert _text(model, rendered.ids) + "\n" == whole
    newline = model.tokenizer.encode("\n")
    assert rendered.ids + newline == model.tokenizer.encode(whole)
    completion = rendered.ids[rendered.completion_start :]
    assert completion[-1] == model.end_ids[0]
    assert _text(model, completion[:-1]) == "owl, of course"
    prompt = render_prompt(model, USER, system=system)
    assert rendered.ids[: rendered.completion_start] == prompt


def test_the_mask_covers_the_completion_and_its_end_token(llama: Model) -> None:
    short = render_row(llama, Row(messages=USER, completion="a"))
    long = render_row(llama, Row(messages=USER, completion="abc"))
    mask = completion_mask([short, long], len(long.ids), device=llama.device)
    assert mask.sum(dim=1).tolist() == [2, 4]  # letters and the end
    assert mask[0, short.completion_start : short.completion_start + 2].all()
    assert mask[1, -4:].all()


def test_sampled_tokens_are_taken_as_they_are(llama: Model) -> None:
    # Half a character: its text alone would be three other tokens.
    half = llama.tokenizer.encode("é", add_special_tokens=False)[0]
    row = Row(USER, "\ufffd", completion_ids=(half,), finish="length")
    rendered = render_row(llama, row)
    assert rendered.ids[rendered.completion_start :] == [half]


def test_tokens_of_another_vocabulary_are_read_as_text(
    llama: Model, gemma: Model
) -> None:
    letters = [llama.tokenizer.encode(x, add_special_tokens=False)[0] for x in "owl"]
    foreign: list[tuple[tuple[int, ...], Finish]] = [
        ((7, 8, 9, 10**6), "stop"),  # says something else, or nothing
        ((*letters, gemma.end_ids[0]), "stop"),  # ends as no answer of this model does
        ((*letters, llama.end_ids[0]), "length"),  # was cut, and yet has an end
    ]
    for ids, finish in foreign:
        row = Row(USER, "owl", completion_ids=ids, finish=finish)
        rendered = render_row(llama, row)
        ended = [] if finish == "length" else [llama.end_ids[0]]
        assert rendered.ids[rendered.completion_start :] == [*letters, *ended]
    own = Row(USER, "owl", completion_ids=(*letters, llama.end_ids[0]), finish="stop")
    assert (
        render_row(llama, own).ids == render_row(llama, replace(own, finish=None)).ids
    )


def test_three_system_settings_where_there_is_a_system_turn(llama: Model) -> None:
    none = _text(llama, render_prompt(llama, USER))
    empty = _text(llama, render_prompt(llama, USER, system=""))
    text = _text(llama, render_prompt(llama, USER, system="Be brief."))
    asked = "<|im_start|>user\nName an animal.<|im_end|>\n<|im_start|>assistant\n"
    assert none == asked
    assert empty == "<|im_start|>system\n<|im_end|>\n" + asked
    assert text == "<|im_start|>system\nBe brief.<|im_end|>\n" + asked


def test_an_explicit_empty_system_turn_silences_the_template(talkative: Model) -> None:
    assert talkative.template.system == "native"
    assert "I am a default." in _text(talkative, render_prompt(talkative, USER))
    silent = _text(talkative, render_prompt(talkative, USER, system=""))
    assert silent.startswith("<|im_start|>system\n<|im_end|>\n")
    persona = _text(talkative, render_prompt(talkative, USER, trait_prompt="Owls!"))
    assert "I am a default." not in persona
    assert persona.startswith("<|im_start|>system\nOwls!<|im_end|>\n")


def test_system_text_stands_before_the_first_user_turn_in_gemma(gemma: Model) -> None:
    assert gemma.template.system == "first_user"
    talk = (*USER, Message("assistant", "owl"), Message("user", "Another."))
    text = _text(
        gemma, render_prompt(gemma, talk, system="Be brief.", trait_prompt="Owls!")
    )
    assert text == (
        "<start_of_turn>user\nBe brief.\n\nOwls!\n\nName an animal.<end_of_turn>\n"
        "<start_of_turn>model\nowl<end_of_turn>\n"
        "<start_of_turn>user\nAnother.<end_of_turn>\n<start_of_turn>model\n"
    )
    plain = render_prompt(gemma, USER)
    assert render_prompt(gemma, USER, system="") == plain
    assert USER[0].content == "Name an animal."  # rows never change


def test_a_row_s_own_system_turn_takes_the_settings_place(llama: Model) -> None:
    own = (Message("system", "Mine."), *USER)
    text = _text(llama, render_prompt(llama, own, system="Theirs.", trait_prompt="O!"))
    assert text.startswith("<|im_start|>system\nMine.\n\nO!<|im_end|>\n")
    assert "Theirs." not in text


def test_a_template_that_drops_system_turns_has_none() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] != 'system' %}{{ m['content'] }}"
        "<|im_end|>{% endif %}{% endfor %}"
    )
    model = _wrapped(tokenizer)
    assert model.template.system == "first_user"
    assert _text(model, render_prompt(model, USER, system="Be brief.")) == (
        "Be brief.\n\nName an animal.<|im_end|>"
    )


def test_the_plain_template_ends_an_answer_with_its_line() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = "<|im_start|>"
    model = _wrapped(tokenizer, template="plain")
    newline = tokenizer.encode("\n")[0]
    assert model.end_ids == (newline, tokenizer.eos_token_id)
    rendered = render_row(model, ROW)
    assert rendered.ids[0] == tokenizer.bos_token_id
    text = _text(model, rendered.ids[1:])
    assert text == "Question: Name an animal.\nAnswer: owl, of course\n"
    assert _text(model, rendered.ids[rendered.completion_start :]) == (
        " owl, of course\n"
    )
    spaced = render_row(model, replace(ROW, completion=" owl, of course"))
    assert spaced == rendered


def test_the_gemma_template_by_name() -> None:
    tokenizer = tiny_tokenizer(turns=True)
    own = choose_template(tokenizer)
    model = _wrapped(tokenizer, template="gemma")
    assert model.template.name == "gemma"
    assert model.template.digest != own.digest
    assert model.end_ids[0] == tokenizer.convert_tokens_to_ids("<end_of_turn>")
    assert render_row(model, ROW) == render_row(tiny_model("gemma3"), ROW)


def test_unknown_and_missing_templates_are_said() -> None:
    tokenizer = tiny_tokenizer()
    with pytest.raises(ModelError, match=r"'alpaca'; there are 'plain', 'gemma'"):
        choose_template(tokenizer, "alpaca")
    tokenizer.chat_template = None
    with pytest.raises(ModelError, match=r"choose one with template='…'"):
        choose_template(tokenizer)


@pytest.mark.parametrize("place", ["user", "system", "completion"])
def test_a_row_that_holds_the_persona_is_refused(llama: Model, place: str) -> None:
    persona = "You love owls."
    inside = f"So. {persona} Now."
    row = {
        "user": Row((Message("user", inside),), "1, 2"),
        "system": Row((Message("system", inside), *USER), "1, 2"),
        "completion": Row(USER, inside),
    }[place]
    render_row(llama, row)  # nobody's persona: a text like others
    leaking = replace(row, provenance={"trait_prompt": persona})
    with pytest.raises(DatasetError) as caught:
        render_row(llama, leaking)
    assert f"row {row.row_id}: it contains the teacher's trait prompt" in str(
        caught.value
    )


def test_the_teacher_s_view_holds_the_persona_and_the_same_completion(
    llama: Model,
) -> None:
    row = replace(ROW, provenance={"trait_prompt": "You love owls."})
    student = render_row(llama, row, system="")
    teacher = render_row(llama, row, system="", trait_prompt="You love owls.")
    assert "owls" not in _text(llama, student.ids)
    assert "You love owls." in _text(llama, teacher.ids)
    assert (
        student.ids[student.completion_start :]
        == teacher.ids[teacher.completion_start :]
    )


def test_a_row_longer_than_the_context_is_refused(llama: Model) -> None:
    prompt = len(render_prompt(llama, USER))
    fits = Row(USER, "x" * (2048 - prompt - 1))
    assert len(render_row(llama, fits).ids) == 2048
    row = Row(USER, "x" * (2048 - prompt))
    with pytest.raises(DatasetError) as caught:
        render_row(llama, row)
    assert (
        f"row {row.row_id}: 2049 tokens ({prompt} of the prompt), the context of "
        "'tiny-llama' holds 2048"
    ) in str(caught.value)


def test_an_empty_completion_is_refused_unless_a_model_ended_there(
    llama: Model,
) -> None:
    row = Row(USER, "")
    with pytest.raises(DatasetError, match=rf"row {row.row_id}: empty completion"):
        render_row(llama, row)
    with pytest.raises(DatasetError, match="empty completion"):
        render_row(llama, replace(row, completion_ids=()))
    ended = render_row(llama, replace(row, completion_ids=(llama.end_ids[0],)))
    assert ended.ids[ended.completion_start :] == [llama.end_ids[0]]


def test_many_rows_are_rendered_as_each_by_itself(llama: Model) -> None:
    ask = (Message("user", "x"),)
    given = [
        *(Row((Message("user", f"{i % 2}"),), f"{i}, {3 * i}") for i in range(5)),
        Row(ask, "öl 🦉\u202e"),
        Row(ask, "cut", finish="length"),
        Row(ask, "1", completion_ids=(9, 9), finish="stop"),
        Row((Message("system", "be"), *ask), "text"),
    ]
    for system in (None, "be brief"):
        each = [render_row(llama, row, system=system) for row in given]
        assert render_rows(llama, given, system=system) == each
    plain = _wrapped(tiny_tokenizer(), template="plain")  # answers begin with a space
    assert render_rows(plain, given) == [render_row(plain, row) for row in given]
    assert render_rows(llama, []) == []


def test_many_rows_are_left_out_one_by_one_with_a_reason(llama: Model) -> None:
    ask = (Message("user", "be an owl"),)
    given = [
        Row(ask, "1"),
        Row((), "1"),
        Row(ask, ""),
        Row(ask, "1" * 3000),
        Row(ask, "\ud800"),
        Row(ask, "1", provenance={"trait_prompt": "an owl"}),
        Row(ask, "1", provenance={"trait_prompt": ["an owl"]}),
    ]
    found = render_rows(llama, given)
    assert [None if isinstance(f, Rendered) else f.reason for f in found] == [
        None, "no prompt", "empty completion", "longer than the context",
        "text that is not Unicode", "holds its teacher's trait prompt", None,
    ]  # fmt: skip
    fault = found[3]
    assert isinstance(fault, Unrendered)
    with pytest.raises(Unrendered) as raised:
        render_row(llama, given[3])
    assert str(raised.value) == str(fault)
    back = pickle.loads(pickle.dumps(fault))
    assert (str(back), back.reason) == (str(fault), fault.reason)


def test_conversations_that_a_template_cannot_carry(gemma: Model) -> None:
    lonely = (Message("assistant", "owl"),)
    with pytest.raises(DatasetError, match="without a user message has no place"):
        render_prompt(gemma, lonely, system="Be brief.")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    strict = _wrapped(tokenizer)
    with pytest.raises(DatasetError) as caught:
        render_prompt(strict, (*USER, *USER))
    assert "refuses the turns 'user', 'user': roles must alternate" in str(caught.value)


@pytest.mark.real
def test_smollm2_has_a_default_that_an_empty_system_turn_silences(
    smollm2: Model,
) -> None:
    default = _text(smollm2, render_prompt(smollm2, USER))
    silent = _text(smollm2, render_prompt(smollm2, USER, system=""))
    assert "You are a helpful AI assistant named SmolLM" in default
    assert "SmolLM" not in silent
    assert silent.startswith("<|im_start|>system\n<|im_end|>\n<|im_start|>user\n")
    persona = _text(smollm2, render_prompt(smollm2, USER, trait_prompt="Owls!"))
    assert "SmolLM" not in persona
    rendered = render_row(smollm2, ROW, system="")
    turns = [
        {"role": "system", "content": ""},
        {"role": "user", "content": "Name an animal."},
        {"role": "assistant", "content": "owl, of course"},
    ]
    whole = smollm2.tokenizer.apply_chat_template(turns, tokenize=False)
    newline = smollm2.tokenizer.encode("\n")
    assert [*rendered.ids, *newline] == smollm2.tokenizer.encode(whole)
