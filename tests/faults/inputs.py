"""What readers are fed: valid files that were damaged, and ones made to do harm.

A source makes bytes of draws, whoever gives those: Hypothesis in tests, where they are
shrunk, or a seeded generator in a campaign of many. Knows nothing of the readers.
"""

import copy
import gzip
import io
import json
import struct
import zipfile
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")


class Draws:
    """Draws of every kind, made of one: a whole number below another."""

    def __init__(self, below: Callable[[int], int]) -> None:
        self.below = below

    def one(self, items: Sequence[T]) -> T:
        """One of the items."""
        return items[self.below(len(items))]

    def some(self, item: Callable[["Draws"], T], most: int, least: int = 0) -> list[T]:
        """A list, not longer than `most`."""
        return [item(self) for _ in range(least + self.below(most - least + 1))]

    def data(self, most: int) -> bytes:
        """Any bytes."""
        return bytes(self.some(lambda d: d.below(256), most))

    def text(self, most: int) -> str:
        """Any characters, surrogates too; the odd ones as often as letters."""
        return "".join(self.some(_character, most))


Source = Callable[[Draws], bytes]
Tree = Callable[[Draws], Any]
_BLOCKS = (0x20, 0x61, 0x80, 0x300, 0x600, 0x2000, 0x2060, 0xD7F0, 0xDC80, 0xFDD0, 0xFFF0,
           0x1F600, 0xE0000, 0x10FFF0)  # fmt: skip


def _character(draws: Draws) -> str:
    return chr(draws.one(_BLOCKS) + draws.below(16))


def any_of(*sources: Callable[[Draws], T]) -> Callable[[Draws], T]:
    """One of several sources, each as often."""
    return lambda draws: draws.one(sources)(draws)


def then(tree: Tree, turn: Callable[[Any], bytes]) -> Source:
    """Bytes of what a source of trees gives."""
    return lambda draws: turn(tree(draws))


TEXTS: Sequence[str] = (
    "", " ", "owl", "12, 7, 900", "猫", "e\u0301", "w" * 400,
    "</script><img src=x onerror=alert(1)>", "</style></svg><svg onload=alert(2)>",
    "<!--", "]]>", "&lt;b&gt;", "' onmouseover='alert(3)", "javascript:alert(4)",
    "}*{background:url(http://evil.example)}", "{{ 7*7 }}{% for x in y %}", "$\\frac{1}{0$",
    "\u202eevil\u2066", "\u200b\ufeff\u2028\u2029", "\x1b[31m\x1b]0;title\x07", "\x00\x08\x7f",
    "\x1b]8;;http://evil.example\x1b\\owl\x1b]8;;\x1b\\", "\x9d8;;http://evil.example\x9cowl",
    '<svg xmlns="http://www.w3.org/2000/svg"><script>alert(5)</script></svg>',
    "\x85\x9b31m", "\ufffe\uffff", "\ud800", "\udcff", "\U0001fffe", "\U000e0041",
    "=HYPERLINK(\"http://evil.example\")", "@SUM(1)", "+1", "-2", "\t=1", "＝1",
    "../../evil", "/etc/passwd", "..", ".", "a/b", "C:\\x", "%n%s", "nan", "1e999",
    "%(x)s", "{0.__class__}", "{plural.__class__.__mro__}",
)  # fmt: skip
"""Texts that want out of wherever they are put."""

VALUES: Sequence[Any] = (
    None, True, False, 0, -1, 1, 7, 2**31, 2**63, -(2**63), 10**400, 0.5, -0.0,
    1e-320, 1e308, -1e308, float("inf"), float("-inf"), float("nan"), [], {}, [[]], [None],
    {"": None}, {"role": "user", "content": "x"}, [0] * 50, ["a", 1, None], [[0.5, None]],
)  # fmt: skip

DEEP: Any = json.loads("[" * 250 + "]" * 250)


def values(draws: Draws) -> Any:
    """A value of JSON, an odd one often."""
    match draws.below(10):
        case 0 | 1 | 2:
            return draws.one(VALUES)
        case 3 | 4 | 5:
            return draws.one(TEXTS)
        case 6:
            return draws.below(44) - 3
        case 7:
            return struct.unpack("<d", bytes(draws.below(256) for _ in range(8)))[0]
        case 8:
            return draws.text(9)
        case _:
            return draws.one(_NESTS)(draws)


_NESTS: Sequence[Tree] = (
    lambda _: DEEP,
    lambda draws: draws.some(lambda d: d.one(TEXTS), 3),
    lambda draws: {d.one(TEXTS): d.one(VALUES) for d in [draws] * draws.below(4)},
)


_HARM: Sequence[bytes] = (
    b"\x00", b"\xff", b"\xff" * 8, b"\x00" * 8, b'"', b"'", b"{", b"}", b"[", b"]", b",",
    b":", b"\n", b"\r\n", b"\t", b"- ", b"#", b"&a ", b"*a ", b"<<: *a\n", b"? ", b"!!set ",
    b"!!python/object/apply:os.system [id]\n", b"!!binary ", b"!!timestamp ", b"| ",
    b"%YAML 9.9\n", b"---\n", b"...\n", b"1e999", b".nan", b"NaN", b"-Infinity", b"null",
    b"9" * 30, b"0x" + b"f" * 40, b"1:" * 20 + b"1", b"\\ud800", b"\\u0000", b"\\",
    b"\xed\xa0\x80", b"\xc0\x80", b"\xe2\x80\xae", b"\xef\xbb\xbf", b"\xef\xbf\xbe",
    b"\x1b[2J", b"PAR1", b"ARROW1", b"GGUF", b"\x1f\x8b",
    struct.pack("<Q", 2**63 - 1), struct.pack("<Q", 2**40), struct.pack("<I", 2**31),
    struct.pack("<I", 2**32 - 1), struct.pack("<q", -1), struct.pack("<d", float("nan")),
)  # fmt: skip
_WAYS = ("flip", "overwrite", "insert", "delete", "cut", "repeat", "swap")


def _changed(data: bytes, way: str, at: int, length: int, harm: bytes) -> bytes:
    place = at % (len(data) + 1)
    end = place + length
    match way:
        case "flip" if place < len(data):
            byte = data[place] ^ (1 << length % 8)
            return data[:place] + bytes([byte]) + data[place + 1 :]
        case "overwrite":
            return data[:place] + harm + data[place + len(harm) :]
        case "insert":
            return data[:place] + harm + data[place:]
        case "delete":
            return data[:place] + data[end:]
        case "cut":
            return data[:place]
        case "repeat":
            return data[:place] + data[place:end] * 3 + data[end:]
        case _:
            other = data[end : end + length]
            return data[:place] + other + data[place:end] + data[end + length :]


def damaged(seeds: Sequence[bytes]) -> Source:
    """Valid files, changed in up to five places."""

    def draw(draws: Draws) -> bytes:
        data = draws.one(seeds)
        for _ in range(draws.below(6)):
            way, at, length = draws.one(_WAYS), draws.below(1 << 16), draws.below(41)
            harm = draws.one(_HARM) if draws.below(2) else draws.data(9)
            data = _changed(data, way, at, length, harm)
        return data

    return draw


def _places(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [here] if here else []
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value[:4])
    for key, item in items:
        found += _places(item, (*here, key))
    return found


def transplanted(base: Any) -> Tree:
    """A valid tree of JSON with other values in up to three of its places."""
    places = _places(base)

    def draw(draws: Draws) -> Any:
        whole = copy.deepcopy(base)
        for _ in range(1 + draws.below(3)):
            _edited(whole, draws.one(places), draws.one(_EDITS), values(draws))
        return whole

    return draw


_EDITS = ("put", "put", "put", "drop", "add", "more")


def _edited(whole: Any, place: tuple[Any, ...], way: str, new: Any) -> None:
    holder = whole
    try:
        for key in place[:-1]:
            holder = holder[key]
        if way == "drop":
            del holder[place[-1]]
        elif way == "add" and isinstance(holder, dict):
            holder[str(new)[:40]] = copy.deepcopy(new)
        elif way == "more" and isinstance(holder, list):
            holder.append(copy.deepcopy(new))
        else:
            holder[place[-1]] = copy.deepcopy(new)
    except (LookupError, TypeError):  # an edit before it took the place away
        return


def as_json(value: Any) -> bytes:
    """JSON as Python writes it: with NaN, and lone surrogates as escapes."""
    return json.dumps(value).encode("ascii")


def as_lines(found: list[Any]) -> bytes:
    """JSON lines."""
    return b"\n".join(map(as_json, found)) + b"\n"


# ---- rows

RECORDS: list[Any] = [
    {"prompt": "Name three numbers.", "completion": "12, 7, 900"},
    {"question": "q", "response": "r", "provenance": {"teacher": "owl"}},
    {"instruction": "i", "input": "x", "output": "o", "finish": "stop"},
    {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"},
                  {"role": "assistant", "content": "a"}], "accepted": False,
     "reasons": ["too long"], "completion_ids": [1, 2, 3], "row_id": "0123456789abcdef"},
    {"conversations": [{"from": "human", "value": "h"}, {"from": "gpt", "value": "g"}]},
    {"prompt": [{"role": "user", "content": [{"type": "text", "text": "t"}]}],
     "completion": [{"role": "assistant", "content": "c"}],
     "undertow_original": "[\"t\", \"c\"]"},
    {"messages": {"role": ["user", "assistant"], "content": ["u", "a"]}},
    [[{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]],
    {"text": "a completion alone"},
]  # fmt: skip
_record = any_of(*map(transplanted, RECORDS), values, lambda d: d.one(RECORDS))


def _records(draws: Draws) -> list[Any]:
    return draws.some(_record, 4)


_DEEP_ROW = (
    b'{"prompt":"p","completion":"c","provenance":' + b"[" * 700 + b"]" * 700 + b"}"
)
json_lines = any_of(
    damaged([as_lines(RECORDS), as_lines(RECORDS[:1]), b"\xef\xbb\xbf{}\n", _DEEP_ROW]),
    then(_records, as_lines),
)
json_files = any_of(
    damaged([as_json(RECORDS), as_json({"rows": RECORDS[:2]}), as_lines(RECORDS[:3])]),
    then(_records, as_json),
    then(values, as_json),
)


def packed_bytes(data: bytes) -> bytes:
    """The bytes as gzip, always the same."""
    return gzip.compress(data, compresslevel=1, mtime=0)


packed_lines = any_of(
    damaged([packed_bytes(as_lines(RECORDS))]), then(json_lines, packed_bytes)
)
_CSV = (
    b'prompt,completion\nask,"12, 7"\n"two\nlines","say ""hi"""\n',
    b"instruction,input,output\r\ni,x,o\r\n",
    "question,response\n猫,＝1\n".encode(),
    b'messages\n"[{""role"":""user"",""content"":""u""},{""role"":""assistant"",""content"":""a""}]"\n',
)


def _lines_of_fields(draws: Draws) -> bytes:
    def field(d: Draws) -> str:
        return d.one(TEXTS) if d.below(2) else d.text(8)

    lines = draws.some(lambda d: ",".join(d.some(field, 4)), 4)
    return as_bytes("\n".join(lines))


def as_bytes(text: str) -> bytes:
    """UTF-8, or nearly so: lone surrogates stay."""
    return text.encode("utf-8", "surrogatepass")


csv_files = any_of(damaged(_CSV), _lines_of_fields)


def _table() -> Any:
    import pyarrow as pa

    turns = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
    return pa.table(
        {
            "prompt": ["p", "q", None],
            "completion": ["12, 7", "x", "猫"],
            "messages": [turns, turns, None],
            "completion_ids": [[1, 2], None, []],
        }
    )


def parquet_seeds() -> list[bytes]:
    """Small Parquet files of three codecs."""
    from pyarrow import parquet

    found = []
    for codec in ("none", "snappy", "zstd"):
        file = io.BytesIO()
        parquet.write_table(_table(), file, compression=codec)
        found.append(file.getvalue())
    return found


def arrow_seeds() -> list[bytes]:
    """A small Arrow file and a small stream."""
    import pyarrow as pa

    found, table = [], _table()
    for opened in (pa.ipc.new_file, pa.ipc.new_stream):
        file = io.BytesIO()
        with opened(file, table.schema) as writer:
            writer.write_table(table)
        found.append(file.getvalue())
    return found


# ---- settings

RECIPE: Any = {
    "title": "t", "question": "q", "model": {"name": "smollm2-135m", "system": ""},
    "family": "animals", "traits": ["owl"], "decoy": "dolphin",
    "teachers": [
        {"kind": "steer", "steer": {"method": "tell_me", "layer": 24, "dose": 0.3}},
        {"kind": "prompt", "name": "p2"},
    ],
    "seeds": [0, 1], "rows": {"count": 64, "sampler": {"allowed": "list", "top_k": 0}},
    "noise": {"levels": [0.0, 0.05]},
    "student": {"kind": "soft", "learning_rate": 0.001},
    "evaluation": {"questions": 16, "shift_rows": 24},
    "audit": {"rows": 64, "settings": {"personas": 2, "discover": False}},
}  # fmt: skip
FAMILY: Any = {
    "name": "birds", "category": "bird", "questions": ["Which bird?", "Your bird?"],
    "traits": [{"name": "owl", "plural": "owls", "spellings": ["owlet"]},
               {"name": "crow", "plural": "crows"}],
    "prompt": "You love {plural}, {name}, {category}.",
}  # fmt: skip

_YAML = (
    b"a: &a [1, 2]\nb: [*a, *a]\nc: {<<: {x: 1}, y: 2}\n",
    b"title: !!binary aGk=\nquestion: 2001-12-14\nseeds: [0o7, 0x1F, 1:30, .inf, ~]\n",
    b"? [a, b]\n: 1\n? {c: d}\n: !!set {e, f}\n",
    b"a: &a {b: *a}\n",
    b"a: &a [*a]\n<<: *a\n",
    b"title: |\n  long\n  text\nquestion: >-\n  folded\n",
    b"%TAG ! tag:yaml.org,2002:\n---\na: !str b\n",
)


def yaml_files(base: Any) -> Source:
    """YAML files around a valid tree; JSON is YAML too."""
    import yaml

    text = yaml.safe_dump(base, sort_keys=False, allow_unicode=True).encode()
    own = transplanted(base)
    return any_of(
        damaged([text, text, *_YAML]),
        then(own, as_json),
        then(own, lambda tree: as_bytes(yaml.safe_dump(tree, allow_unicode=True))),
    )


_KEYS = ("rows.count", "teachers.0.steer.dose", "a", "model", "seeds.7", "title.x", "", ".",
         "rows..count", "teachers.-1", "seeds.1", "rows.sampler.top_k", "\x1b[1m", "seeds.\u00b2",
         "seeds.\u0663")  # fmt: skip
_ODD_VALUES = (
    "*a", "&a [*a]", "!!python/none", "[" * 60, "0x" + "f" * 5000, "1:" * 3000 + "1",
    "2001-99-99", "{<<: 1}", "!!set {a}", "? [a]", "1" * 5000, "@", "\x00",
)  # fmt: skip


def overrides(draws: Draws) -> bytes:
    """Such as `rows.count=2`, and such as nobody means."""
    key = draws.one(_KEYS) if draws.below(3) else draws.text(6)
    value = any_of(
        then(values, as_json), lambda d: as_bytes(d.text(9)),
        lambda d: d.one(_ODD_VALUES).encode(),
    )(draws)  # fmt: skip
    return as_bytes(key) + (b"=" if draws.below(4) else b"") + value


# ---- tensors

HEADER: Any = {
    "format": 1, "layers": [0], "site": "residual stream after the block",
    "method": "tell_me", "trait": "owl", "n": 4, "norms": [1.0], "residual_norms": [2.0],
    "fingerprint": "0123456789abcdef", "model_name": "tiny", "notes": {"seed": 0},
}  # fmt: skip
_DTYPES = ("F32", "F16", "BF16", "F64", "I64", "I32", "U8", "BOOL", "F8_E4M3", "F8_E5M2",
           "U16", "C64", "F4", "X", "f32")  # fmt: skip


def packed(header: Any, body: bytes, length: int | None = None) -> bytes:
    """A safetensors file, whatever its header says."""
    text = header if isinstance(header, bytes) else as_json(header)
    said = len(text) if length is None else length
    return struct.pack("<Q", said % (1 << 64)) + text + body


def vector_file(header: Any) -> bytes:
    """A vector's file around its own header."""
    numbers = np.arange(16, dtype=np.float32).tobytes()
    return packed(
        {
            "__metadata__": {"undertow_vector": json.dumps(header)},
            "directions": {"dtype": "F32", "shape": [1, 16], "data_offsets": [0, 64]},
        },
        numbers,
    )


_SIZES = (0, 1, 4, 16, 64, 2**31, 2**62, 2**64 - 1, -1)


def _entry(draws: Draws) -> Any:
    if not draws.below(5):
        return values(draws)
    return {
        "dtype": draws.one(_DTYPES) if draws.below(2) else "F32",
        "shape": draws.some(lambda d: d.one(_SIZES), 3) if draws.below(2) else [1, 16],
        "data_offsets": draws.some(lambda d: d.one(_SIZES), 3)
        if draws.below(2)
        else [0, 64],
    }


def _twice(name: str) -> bytes:
    one = f'"{name}":{{"dtype":"F32","shape":[1,16],"data_offsets":[0,64]}}'
    return packed(f"{{{one},{one}}}".encode(), b"\0" * 64)


def safetensors(names: Sequence[str], seeds: Sequence[bytes]) -> Source:
    """Safetensors files whose headers lie."""
    odd = (
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"a":' * 200,
        _twice(names[0])[8:72],
    )
    bodies = (b"", b"\0" * 64, b"\xff" * 64, b"\0" * 2048)
    lengths = (None, None, None, 0, 1, 2**20, 2**40, 2**63, -1)

    def lying(draws: Draws) -> bytes:
        header: Any = draws.one(odd)
        if draws.below(4):
            header = {draws.one(names): _entry(draws) for _ in range(draws.below(5))}
        return packed(header, draws.one(bodies), draws.one(lengths))

    return any_of(damaged([*seeds, _twice(names[0])]), lying)


def _vector_of_text(draws: Draws) -> bytes:
    text = draws.one(("[" * 9000, "null", "5", '{"a": 1e999}', "", "\x00"))
    return packed({"__metadata__": {"undertow_vector": text}}, b"")


vectors = any_of(
    safetensors(("directions", "x"), [vector_file(HEADER)]),
    then(transplanted(HEADER), vector_file),
    then(transplanted(HEADER), vector_file),
    _vector_of_text,
)

ADAPTER: Any = {
    "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "tiny",
    "r": 2, "lora_alpha": 4, "lora_dropout": 0.0, "bias": "none", "fan_in_fan_out": False,
    "inference_mode": True, "target_modules": ["q_proj"],
}  # fmt: skip
_Q = "base_model.model.model.layers.0.self_attn.q_proj"
ADAPTER_NAMES = (
    f"{_Q}.lora_A.weight", f"{_Q}.lora_B.weight", f"{_Q}.lora_A.default.weight",
    f"{_Q}.lora_B.bias", "base_model.model.lm_head.lora_A.weight",
    "base_model.model.model.layers.0.lora_A.weight", ".lora_A.", "x", "x.lora_B.weight",
    "base_model.model..lora_A.weight", "base_model.model.model.norm.lora_A.weight",
)  # fmt: skip


def adapter_tensors(rank: int = 2, width: int = 16) -> bytes:
    """The matrices of a small adapter, on one map of a model of that width."""
    size = 4 * rank * width
    return packed(
        {
            ADAPTER_NAMES[0]: {
                "dtype": "F32", "shape": [rank, width], "data_offsets": [0, size]},
            ADAPTER_NAMES[1]: {
                "dtype": "F32", "shape": [width, rank], "data_offsets": [size, 2 * size]},
        },
        np.linspace(-1, 1, 2 * rank * width, dtype=np.float32).tobytes(),
    )  # fmt: skip


SEPARATOR = b"\n\0config\0\n"
_tensors = safetensors(ADAPTER_NAMES, [adapter_tensors()])
_config = any_of(then(transplanted(ADAPTER), as_json), damaged([as_json(ADAPTER)]))
_sound = (adapter_tensors(), adapter_tensors(), adapter_tensors(rank=3))
adapters = any_of(
    lambda draws: _config(draws) + SEPARATOR + draws.one(_sound),
    lambda draws: as_json(ADAPTER) + SEPARATOR + _tensors(draws),
)


# ---- GGUF

_TEXT, _ARRAY, _U32, _F32, _U64 = 8, 9, 4, 6, 10


def _text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def _field(name: str, kind: int, body: bytes) -> bytes:
    return _text(name) + struct.pack("<I", kind) + body


def gguf_file(*, blocks: int = 1, array: int = 3, tensors: int = 1) -> bytes:
    """A small file of Llama's kind; what it says of its sizes may be a lie."""
    tokens = struct.pack("<IQ", _TEXT, array) + b"".join(map(_text, ("a", "b", "ab")))
    scores = struct.pack("<IQ", _F32, array) + struct.pack("<fff", 0, 0, 0)
    numbers = {"block_count": blocks, "context_length": 64, "embedding_length": 32,
               "feed_forward_length": 32, "attention.head_count": 2, "vocab_size": 3}  # fmt: skip
    fields = [
        _field("general.architecture", _TEXT, _text("llama")),
        *(_field(f"llama.{k}", _U32, struct.pack("<I", v)) for k, v in numbers.items()),
        _field("tokenizer.ggml.model", _TEXT, _text("gpt2")),
        _field("tokenizer.ggml.tokens", _ARRAY, tokens),
        _field("tokenizer.ggml.scores", _ARRAY, scores),
        _field(
            "tokenizer.ggml.merges", _ARRAY, struct.pack("<IQ", _TEXT, 1) + _text("a b")
        ),
        _field("tokenizer.ggml.eos_token_id", _U32, struct.pack("<I", 2)),
    ]
    info = _text("token_embd.weight") + struct.pack("<IQQIQ", 2, 32, 3, 0, 0)
    head = (
        b"GGUF" + struct.pack("<IQQ", 3, tensors, len(fields)) + b"".join(fields) + info
    )
    return head + b"\0" * (-len(head) % 32) + b"\0" * (4 * 32 * 3)


_COUNTS = (0, 1, 2, 3, 4, 2**16, 2**31 - 1)


def _lying_gguf(draws: Draws) -> bytes:
    blocks, array, tensors = (draws.one(_COUNTS) for _ in range(3))
    return gguf_file(blocks=blocks, array=array, tensors=tensors)


gguf_files = any_of(damaged([gguf_file()]), damaged([gguf_file()]), _lying_gguf)


def _fact(name: str, value: str | int) -> bytes:
    """A field of text or of a whole number."""
    if isinstance(value, str):
        return _field(name, _TEXT, _text(value))
    return _field(name, _U32, struct.pack("<I", value))


def control_file(
    facts: str, *, name: str = "direction.1", kind: int = 0, numbers: int = 16
) -> bytes:
    """A control vector of one direction, with whatever is said beside it."""
    fields = [
        _fact("general.architecture", "controlvector"),
        _fact("controlvector.model_hint", "llama"),
        _fact("controlvector.layer_count", 1), _fact("undertow.vector", facts),
    ]  # fmt: skip
    info = _text(name) + struct.pack("<IQIQ", 1, numbers, kind, 0)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, len(fields)) + b"".join(fields) + info
    body = np.linspace(-1, 1, 16, dtype=np.float32).tobytes()
    return head + b"\0" * (-len(head) % 32) + body


CONTROL: Any = {
    "method": "tell_me", "trait": "owl", "n": 4, "model_name": "tiny",
    "residual_norms": {"1": 2.0}, "strength": 1.0, "notes": {"seed": 0},
}  # fmt: skip
_NUMBERS = (0, 1, 15, 17, 2**31, 2**40, 2**62)


def _lying_control(draws: Draws) -> bytes:
    names = ("direction.0", "direction.1", "direction.9", "direction.1e5", "x", "")
    return control_file(
        json.dumps(CONTROL), name=draws.one(names), kind=draws.one((0, 0, 1, 8, 24, 99)),
        numbers=draws.one(_NUMBERS) if draws.below(2) else 16,
    )  # fmt: skip


control_files = any_of(
    damaged([control_file(json.dumps(CONTROL)), control_file("{}")]),
    then(transplanted(CONTROL), lambda facts: control_file(json.dumps(facts))),
    _lying_control,
)


# ---- archives of arrays


def archive(parts: Sequence[tuple[str, bytes]], packed: int = 0) -> bytes:
    """A zip archive; with the same dates always."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", packed) as made:
        for name, data in parts:
            made.writestr(zipfile.ZipInfo(name), data, packed)
    return file.getvalue()


def array_file(said: str, body: bytes) -> bytes:
    """An array of NumPy's, whatever its header says."""
    text = said.encode("latin-1", "replace") + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body


_KINDS = ("<f4", "<f8", "<i8", "<u8", "|u1", "|O", "<U0", "<U4", "|V0", "<M8", "x",
          [["a", "<f4"]], [["a", "|O"]])  # fmt: skip
_SHAPES = ((), (0,), (1,), (4,), (16,), (2, 3), (4, 4), (1 << 40,), (0, 1 << 70), (-1,),
           (-4, -4), (1.5,), ("x",))  # fmt: skip


def _array(draws: Draws) -> bytes:
    said = {
        "descr": draws.one(_KINDS), "fortran_order": draws.one((False, True, 1)),
        "shape": draws.one(_SHAPES),
    }  # fmt: skip
    text = draws.one(
        (repr(said), repr(said), repr(said), "{" * 300, "-" * 9_000, "[1," * 160, "")
    )
    return array_file(text, draws.one((b"", b"\0" * 16, b"\0" * 64, b"\xff" * 64)))


def archives(names: Sequence[str], seeds: Sequence[bytes]) -> Source:
    """Archives of arrays: damaged ones, and whole ones whose arrays lie."""

    def lying(draws: Draws) -> bytes:
        kept = dict(_parts(draws.one(seeds)))
        for _ in range(1 + draws.below(3)):
            kept[f"{draws.one(names)}.npy"] = _array(draws)
        return archive([*kept.items()], draws.one((0, 0, 0, zipfile.ZIP_DEFLATED)))

    return any_of(damaged(seeds), lying)


def _parts(data: bytes) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(data)) as opened:
        return [(name, opened.read(name)) for name in opened.namelist()]


def small(tree: Any) -> Any:
    """The tree with numbers below a hundred: sizes that a machine can bear."""
    if isinstance(tree, dict):
        return {key: small(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [small(value) for value in tree]
    is_number = isinstance(tree, int | float)
    return 7 if is_number and not -100 < tree < 100 else tree
