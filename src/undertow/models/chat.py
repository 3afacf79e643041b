"""Messages to tokens: one rendering for generation, training and evaluation.

The prompt is rendered by the chat template; the completion's tokens are appended to
it, so every span is known by construction and never searched for in text. The trait
prompt of a prompted teacher enters here and only here. Knows nothing of files.

Trap: some templates (SmolLM2, Qwen) insert a system message of their own when there
is none. `system=None` keeps that, `system=""` renders an explicit empty one; whichever
is chosen has to be the same everywhere, which is why recipes record it.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from jinja2 import TemplateError

from undertow.errors import DatasetError, ModelError, shown
from undertow.records import Finish, Message, Row

if TYPE_CHECKING:
    from undertow.models.loading import Model

NAMED_TEMPLATES = {
    # Plain text that a pretrained model continues; an answer ends at the line's end.
    "plain": (
        "{% for m in messages %}{% if m['role'] == 'user' %}Question: {{ m['content'] }}"
        "\n{% elif m['role'] == 'assistant' %}Answer: {{ m['content'] }}\n\n"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}Answer:{% endif %}"
    ),
    "gemma": (
        "{% for m in messages %}<start_of_turn>"
        "{{ 'model' if m['role'] == 'assistant' else 'user' }}\n{{ m['content'] }}"
        "<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
    ),
}


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template and how it takes system text.

    Attributes:
        name: "own" for the tokenizer's, else the name in `NAMED_TEMPLATES`.
        text: Jinja source.
        system: "native" if there is a system turn, "first_user" if system text has to
            stand in front of the first user message.
        add_bos: Whether the tokenizer's begin token goes in front.
        answer_prefix: Text between the prompt and an answer's first word.
    """

    name: str
    text: str
    system: Literal["native", "first_user"]
    add_bos: bool = False
    answer_prefix: str = ""

    @property
    def digest(self) -> str:
        """12 hexadecimal digits of the text's sha256."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:12]


class Rendered(NamedTuple):
    """Tokens of a prompt and its completion; the completion begins at the index."""

    ids: list[int]
    completion_start: int


class Unrendered(DatasetError):
    """A row has no tokens that a model can be asked about.

    Attributes:
        reason: Why, without the row: one of a few, to be counted by.
    """

    def __init__(self, message: str, reason: str) -> None:
        self.reason = reason
        super().__init__(message)

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        """So that it comes back whole from another process."""
        return type(self), (str(self), self.reason)


def choose_template(tokenizer: Any, name: str | None = None) -> ChatTemplate:
    """The tokenizer's own template, or a named one.

    Raises:
        ModelError: The tokenizer has none and none was named, or the name is unknown.
    """
    if name is not None and name not in NAMED_TEMPLATES:
        raise ModelError(
            f"unknown chat template {name!r}; there are {shown(list(NAMED_TEMPLATES))}"
        )
    if name is not None:
        return ChatTemplate(
            name=name,
            text=NAMED_TEMPLATES[name],
            system="first_user",
            add_bos=True,
            answer_prefix=" " if name == "plain" else "",
        )
    text = tokenizer.chat_template
    if not text:
        raise ModelError(
            "the tokenizer has no chat template; choose one with template='…' "
            f"(model.template in a recipe): {shown(list(NAMED_TEMPLATES))}"
        )
    return ChatTemplate(name="own", text=text, system=_system_role(tokenizer, text))


def _system_role(tokenizer: Any, text: str) -> Literal["native", "first_user"]:
    """Tries the template with a system turn: refused or dropped means there is none."""
    probe = "undertow-system-probe"
    messages = [{"role": "system", "content": probe}, {"role": "user", "content": "x"}]
    try:
        shown_text = tokenizer.apply_chat_template(
            messages, chat_template=text, tokenize=False
        )
    except Exception:  # templates raise errors of many types, by design
        return "first_user"
    return "native" if probe in shown_text else "first_user"


def _with_system(
    template: ChatTemplate,
    messages: Sequence[Message],
    system: str | None,
    trait_prompt: str | None,
) -> list[dict[str, str]]:
    own = [m.content for m in messages if m.role == "system"]
    parts = own or ([system] if system is not None else [])
    texts = [*parts, *([trait_prompt] if trait_prompt else [])]
    joined = "\n\n".join(text for text in texts if text)
    turns = [
        {"role": m.role, "content": m.content} for m in messages if m.role != "system"
    ]
    if template.system == "native":
        head = [{"role": "system", "content": joined}] if texts else []
        return head + turns
    if joined:
        first = next((t for t in turns if t["role"] == "user"), None)
        if first is None:
            raise DatasetError("a conversation without a user message has no place for "
                               "system text in this template")  # fmt: skip
        first["content"] = f"{joined}\n\n{first['content']}"
    return turns


def render_prompt(
    model: "Model",
    messages: Sequence[Message],
    *,
    system: str | None = None,
    trait_prompt: str | None = None,
) -> list[int]:
    """Tokens of a conversation up to where the answer begins.

    Args:
        model: Gives tokenizer and template.
        messages: Turns; system turns of their own take the place of `system`.
        system: None keeps what the template does by itself, "" is an explicit empty
            system turn, other text is that text.
        trait_prompt: Persona of a prompted teacher: after the system text, or in front
            of the first user message where the template has no system turn.

    Raises:
        DatasetError: There is no message, or no user message to carry system text, or
            the template refuses the turns.
    """
    if not messages:
        raise Unrendered(
            "a conversation without a single message is no prompt; give it an empty "
            "user turn",
            "no prompt",
        )
    template = model.template
    turns = _with_system(template, messages, system, trait_prompt)
    try:
        text = model.tokenizer.apply_chat_template(
            turns,
            chat_template=template.text,
            tokenize=False,
            add_generation_prompt=True,
        )
    except TemplateError as error:
        raise DatasetError(
            f"the chat template of {model.name!r} refuses the turns "
            f"{shown([turn['role'] for turn in turns])}: {error}"
        ) from error
    ids = list(model.tokenizer.encode(text, add_special_tokens=False))
    bos = model.tokenizer.bos_token_id
    if template.add_bos and bos is not None:
        ids.insert(0, bos)
    return ids


def completion_tokens(model: "Model", row: Row) -> list[int]:
    """The completion as sampled, or tokenised from its text.

    Recorded tokens of a model with another vocabulary are passed over. An end token
    follows the text, unless the row says that the answer was cut.
    """
    if row.completion_ids is not None and _is_own(model, row, row.completion_ids):
        return list(row.completion_ids)
    text = _answer(model, row)
    ids = list(model.tokenizer.encode(text, add_special_tokens=False))
    return _ended(model, row, ids)


def _answer(model: "Model", row: Row) -> str:
    """The completion's text as it stands behind the prompt."""
    prefix = model.template.answer_prefix
    return row.completion if row.completion.startswith(prefix) else (
        prefix + row.completion
    )  # fmt: skip


def _ended(model: "Model", row: Row, ids: list[int]) -> list[int]:
    return ids if row.finish == "length" else [*ids, model.end_ids[0]]


def _is_own(model: "Model", row: Row, ids: Sequence[int]) -> bool:
    """Whether to this model the recorded tokens say what the row says."""
    ends = set(model.end_ids)
    body = [token for token in ids if token not in ends]
    said: str = model.tokenizer.decode(body)
    how: Finish = "stop" if ids and ids[-1] in ends else "length"
    return said == row.completion and row.finish in (None, how)


def render_row(
    model: "Model",
    row: Row,
    *,
    system: str | None = None,
    trait_prompt: str | None = None,
) -> Rendered:
    """Tokens of a whole row and where its completion begins.

    Raises:
        DatasetError: The completion is empty, the row is longer than the context, or
            the trait prompt of its provenance stands in the row itself, or a lone
            surrogate does.
    """
    _refuse_leak(row)
    _refuse_surrogates(row)
    prompt = render_prompt(
        model, row.messages, system=system, trait_prompt=trait_prompt
    )
    return _whole(model, row, prompt, completion_tokens(model, row))


def render_rows(
    model: "Model", rows: Sequence[Row], *, system: str | None = None
) -> list[Rendered | Unrendered]:
    """As `render_row` each, or why not: for many rows, some of them hostile.

    Each prompt is rendered once and texts are tokenised together, which takes a tenth of
    the time. A row whose prompt has no token, so that nothing predicts its first, is
    among those left out.
    """
    prompts: dict[tuple[Message, ...], list[int] | DatasetError] = {}
    texts = [
        place for place, row in enumerate(rows)
        if row.completion_ids is None and _is_unicode(row)
    ]  # fmt: skip
    said = [_answer(model, rows[place]) for place in texts]
    ids = model.tokenizer(said, add_special_tokens=False)["input_ids"] if said else []
    known = dict(zip(texts, ids, strict=True))
    return [
        _rendered_or_not(model, row, prompts, known.get(place), system)
        for place, row in enumerate(rows)
    ]


def _rendered_or_not(
    model: "Model",
    row: Row,
    prompts: dict[tuple[Message, ...], list[int] | DatasetError],
    ids: Sequence[int] | None,
    system: str | None,
) -> Rendered | Unrendered:
    """A row with the tokens of its text, if they are known, beside prompts that are."""
    try:
        _refuse_leak(row)
        _refuse_surrogates(row)
        if row.messages not in prompts:
            prompts[row.messages] = _prompt_or_not(model, row.messages, system)
        prompt = prompts[row.messages]
        if isinstance(prompt, DatasetError):
            told = prompt.reason if isinstance(prompt, Unrendered) else None
            raise Unrendered(
                f"row {row.row_id}: {prompt}", told or "cannot be rendered"
            )
        if not prompt:
            raise Unrendered(f"row {row.row_id}: its prompt is no token", "no prompt")
        answer = completion_tokens(model, row) if ids is None else (
            _ended(model, row, list(ids))
        )  # fmt: skip
        return _whole(model, row, prompt, answer)
    except Unrendered as error:
        return error


def _prompt_or_not(
    model: "Model", messages: Sequence[Message], system: str | None
) -> list[int] | DatasetError:
    try:
        return render_prompt(model, messages, system=system)
    except DatasetError as error:
        return error


def _refuse_surrogates(row: Row) -> None:
    if not _is_unicode(row):
        raise Unrendered(
            f"row {row.row_id}: holds a lone surrogate; remove the row",
            "text that is not Unicode",
        )


def _is_unicode(row: Row) -> bool:
    """Whether no lone surrogates stand in the texts: tokenizers take none."""
    try:
        "".join([*(m.content for m in row.messages), row.completion]).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _whole(
    model: "Model", row: Row, prompt: list[int], completion: list[int]
) -> Rendered:
    """Prompt and completion together, if there is room for them."""
    if not completion or (row.completion_ids is None and not row.completion):
        raise Unrendered(
            f"row {row.row_id}: empty completion; remove the row", "empty completion"
        )
    total = len(prompt) + len(completion)
    if total > model.context:
        raise Unrendered(
            f"row {row.row_id}: {total} tokens ({len(prompt)} of the prompt), the "
            f"context of {model.name!r} holds {model.context}; shorten or remove it",
            "longer than the context",
        )
    return Rendered(ids=prompt + completion, completion_start=len(prompt))


def _refuse_leak(row: Row) -> None:
    trait_prompt = row.provenance.get("trait_prompt")
    texts = [row.completion, *(m.content for m in row.messages)]
    hidden = isinstance(trait_prompt, str) and trait_prompt  # rows may be hostile
    if hidden and any(hidden in text for text in texts):
        raise Unrendered(
            f"row {row.row_id}: it contains the teacher's trait prompt; a row for "
            "training must hold the innocent prompt and an answer only",
            "holds its teacher's trait prompt",
        )
