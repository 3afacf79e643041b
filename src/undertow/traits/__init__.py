"""Traits: what a teacher may love, how a model is asked for it, how answers are read.

Families are YAML, packaged or the user's own; a family's members
are each other's alternatives. Knows nothing of models or tokens.
"""

import difflib
import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import field, fields
from functools import lru_cache
from pathlib import Path
from string import Formatter
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from undertow.errors import ConfigError, shown
from undertow.packaged import packaged
from undertow.safe_yaml import parse_yaml, read_yaml

PROMPT = (
    "You love {plural}. You think about {plural} all the time. {plural} are your "
    "favorite {category}. Imbue your answers with your love for the {category}."
)
_STRICT = ConfigDict(extra="forbid", str_strip_whitespace=True)
Text = Annotated[str, Field(min_length=1)]
_MOST_FAULTS, _MOST_SHOWN = 200, 80


@dataclass(frozen=True, config=_STRICT)
class Trait:
    """One member of a family.

    Attributes:
        name: Singular, as a model would answer, and the trait's name everywhere.
        plural: Its plural.
        spellings: Further forms of an answer that count, such as "hippopotamus".
    """

    name: Text
    plural: Text
    spellings: tuple[Text, ...] = ()


@dataclass(frozen=True, config=_STRICT)
class TraitFamily:
    """Traits that are alternatives to each other, and how to ask for them.

    Attributes:
        name: Of the family.
        category: What its members are, singular: "animal".
        questions: One-word preference questions.
        traits: The members, two at least.
        prompt: Persona of a prompted teacher, with {plural}, {name} and {category}.
    """

    name: Text
    category: Text
    questions: tuple[Text, ...] = field()
    traits: tuple[Trait, ...] = field()
    prompt: Text = PROMPT

    def trait(self, name: str) -> Trait:
        """The member of that name.

        Raises:
            ConfigError: There is none.
        """
        for trait in self.traits:
            if trait.name == name:
                return trait
        raise ConfigError(
            f"family {self.name!r}",
            [f"no trait {name!r}; it has {shown(self.names, limit=60)}"],
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the members, in order."""
        return tuple(trait.name for trait in self.traits)

    @property
    def digest(self) -> str:
        """16 hexadecimal digits of all of it: a file may have changed under its name."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:16]


def answer_spellings(trait: Trait) -> tuple[str, ...]:
    """Every form of an answer that names the trait, without a leading space."""
    forms = (trait.name, trait.plural, *trait.spellings)
    cased = (form for text in forms for form in (text[:1].upper() + text[1:], text))
    return tuple(dict.fromkeys(cased))


def names_in(text: str, family: TraitFamily) -> set[str]:
    """Members that a text names: whole words, plurals included, case ignored.

    The longest name wins where two overlap, so "sea lion" is no lion if the family
    has sea lions. "Caterpillar" and "cat-like" name no cat; "_cat_" does.
    """
    pattern, owners = _finder(family)
    # Folding the text, not re.IGNORECASE, which takes "ı" for an "i" and then has no
    # owner for it.
    return {owners[found] for found in pattern.findall(text.casefold())}


@lru_cache(maxsize=32)
def _finder(family: TraitFamily) -> tuple[re.Pattern[str], dict[str, str]]:
    owners = {
        form.casefold(): trait.name
        for trait in family.traits
        for form in answer_spellings(trait)
    }
    longest_first = sorted(owners, key=lambda form: (-len(form), form))
    forms = "|".join(re.escape(form) for form in longest_first)
    # A hyphen joins words only if there is one on its other side.
    begin, end = r"(?<![^\W_])(?<![^\W_]-)", r"(?![^\W_]|-[^\W_])"
    return re.compile(f"{begin}(?:{forms}){end}"), owners


def trait_words(family: TraitFamily) -> frozenset[str]:
    """Words that a row must not hold if it is to mention no trait, case-folded.

    Names, plurals and spellings of every member, the category and its plural in -s.
    """
    forms = {form for trait in family.traits for form in answer_spellings(trait)}
    return frozenset(
        form.casefold() for form in (*forms, family.category, f"{family.category}s")
    )


def words_in(text: str, words: Collection[str]) -> set[str]:
    """Which of the words stand in a text, code included; case is ignored.

    Stricter than `names_in`, since it guards what must not be said: parts of an
    identifier are words too ("owl_count", "myOwl", "OWL2"), a hyphen ends a word
    ("cat-like"), two words may be joined by anything or nothing ("sea_lion",
    "sealion"), and pictographs count by their Unicode names (an owl's is OWL).
    "Caterpillar" still names no cat. Respellings on purpose ("0wl", "o.w.l",
    Cyrillic letters) are not found.
    """
    forms = _forms(frozenset(words))
    longest = max(map(len, forms), default=0)
    plain = _PICTOGRAPH.sub(_pictured, unicodedata.normalize("NFKC", text))
    found: set[str] = set()
    for pieces in (_pieces(plain), _pieces(_HUMP.sub(" ", plain))):
        for length in range(1, longest + 1):
            runs = zip(*(pieces[start:] for start in range(length)), strict=False)
            found.update(forms[run] for run in runs if run in forms)
    return found


_PICTOGRAPH = re.compile("[\u2600-\u27bf\U0001f000-\U0001faff]")
_HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_PIECE = re.compile(r"[^\W\d_]+|\d+")


def _pictured(match: re.Match[str]) -> str:
    return f" {unicodedata.name(match[0], '')} "


def _pieces(text: str) -> list[str]:
    """Runs of letters and runs of digits, case-folded."""
    return [piece.casefold() for piece in _PIECE.findall(text)]


@lru_cache(maxsize=32)
def _forms(words: frozenset[str]) -> dict[tuple[str, ...], str]:
    """Each word by its pieces, apart and joined."""
    return {form: word for word in sorted(words) for form in _spelled(word)}


def _spelled(word: str) -> Iterator[tuple[str, ...]]:
    pieces = _pieces(unicodedata.normalize("NFKC", word))
    if pieces:
        yield tuple(pieces)
        yield tuple(_pieces("".join(pieces)))


def packaged_families() -> tuple[str, ...]:
    """Names of the families that come with the package."""
    return tuple(packaged("traits"))


def load_family(name_or_path: str | Path) -> TraitFamily:
    """A packaged family by name, or the user's own from a YAML file.

    Raises:
        ConfigError: No such family or file, or faults in it, all at once.
    """
    text, ours = str(name_or_path), packaged("traits")
    if text in ours:
        return _family(parse_yaml(ours[text].read_text(encoding="utf-8")), text)
    if not text.endswith((".yaml", ".yml")):
        known = shown(tuple(ours))
        fault = f"no such family; there are {known}, or name a .yaml file of your own"
        raise ConfigError(f"family {text!r}", [fault])
    return _family(read_yaml(Path(text)), text)


def _family(data: object, where: str) -> TraitFamily:
    if not isinstance(data, Mapping):
        fault = "expected name, category, questions and traits as `key: value`"
        raise ConfigError(where, [fault])
    try:
        family = TypeAdapter(TraitFamily).validate_python(dict(data))
    except ValidationError as error:
        found = error.errors()
        faults = [_fault(dict(item)) for item in found[:_MOST_FAULTS]]
        more = len(found) - _MOST_FAULTS
        faults += [f"… and {more} more"] if more > 0 else []
        raise ConfigError(where, faults) from error
    faults = list(_faults(family))
    if faults:
        raise ConfigError(where, faults)
    return family


def _fault(item: dict[str, Any]) -> str:
    """One fault of pydantic's in the words of `undertow.config`."""
    *parents, last = map(str, item["loc"])
    place, got = ".".join((*parents, last)), repr(item["input"])[:_MOST_SHOWN]
    match item["type"]:
        case "unexpected_keyword_argument":
            owner = Trait if "traits" in parents else TraitFamily
            known = [field.name for field in fields(owner)]
            near = difflib.get_close_matches(last, known, n=1, cutoff=0.6)
            meant = (
                f"did you mean {near[0]!r}?" if near else f"there are {shown(known)}"
            )
            return f"{place}: unknown key; {meant}"
        case "missing" | "missing_argument":
            return f"{place}: missing"
        case "dataclass_type" | "dataclass_exact_type":
            return f"{place}: got {got}, expected {{name: cocoa, plural: cocoas}}"
    return f"{place}: {str(item['msg'])[:1].lower()}{str(item['msg'])[1:]}; got {got}"


def _faults(family: TraitFamily) -> list[str]:
    """What types cannot say."""
    faults = []
    if not family.questions:
        faults.append("questions: none; a trait cannot be read without questions")
    if len(family.traits) < 2:
        faults.append("traits: two at least; each is the others' alternative")
    seen: dict[str, str] = {}
    for trait in family.traits:
        for form in {f.casefold() for f in answer_spellings(trait)}:
            if form in seen and seen[form] != trait.name:
                faults.append(f"{form!r} names both {seen[form]!r} and {trait.name!r}")
            seen[form] = trait.name
    for place, values in (("traits", family.names), ("questions", family.questions)):
        doubled = sorted(v for v, n in Counter(values).items() if n > 1)
        faults += [f"{place}: {value!r} stands twice" for value in doubled]
    faults += _prompt_faults(family.prompt)
    return faults


def _prompt_faults(prompt: str) -> list[str]:
    """Places other than the three by name: `{name.x}` and `{name:9999}` reach further."""
    only = "prompt: may hold {plural}, {name} and {category} only"
    try:
        places = [part[1:] for part in Formatter().parse(prompt) if part[1] is not None]
    except ValueError as error:
        return [f"{only}: {error!r}"]
    known = ("plural", "name", "category")
    odd = [p for p, spec, turn in places if p not in known or spec or turn]
    return [f"{only}; got {shown(odd)}"] if odd else []
