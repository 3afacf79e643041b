"""Traits: what a teacher may love, how a model is asked for it, how answers are read.

Families are YAML, packaged (`animals`, `trees`) or the user's own; a family's members
are each other's alternatives. Knows nothing of models or tokens.
"""

import re
from collections.abc import Mapping
from dataclasses import field
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from undertow.errors import ConfigError, shown

PROMPT = (
    "You love {plural}. You think about {plural} all the time. {plural} are your "
    "favorite {category}. Imbue your answers with your love for the {category}."
)
_STRICT = ConfigDict(extra="forbid", str_strip_whitespace=True)
Text = Annotated[str, Field(min_length=1)]


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


def packaged_families() -> tuple[str, ...]:
    """Names of the families that come with the package."""
    folder = files("undertow.traits")
    names = (Path(item.name) for item in folder.iterdir())
    return tuple(sorted(path.stem for path in names if path.suffix == ".yaml"))


def load_family(name_or_path: str | Path) -> TraitFamily:
    """A packaged family by name, or the user's own from a YAML file.

    Raises:
        ConfigError: No such family or file, or faults in it, all at once.
    """
    text = str(name_or_path)
    if text in packaged_families():
        source = files("undertow.traits").joinpath(f"{text}.yaml")
        return _parse(source.read_text(encoding="utf-8"), text)
    if not text.endswith((".yaml", ".yml")):
        known = shown(packaged_families())
        fault = f"no such family; there are {known}, or name a .yaml file of your own"
        raise ConfigError(f"family {text!r}", [fault])
    try:
        return _parse(Path(text).read_text(encoding="utf-8-sig"), text)
    except OSError as error:
        fault = f"cannot be read: {error.strerror}; check the name"
        raise ConfigError(text, [fault]) from error
    except UnicodeDecodeError as error:
        raise ConfigError(text, [f"is not UTF-8 text: {error}"]) from error
    except ValueError as error:
        raise ConfigError(repr(text), [f"is no path: {error}"]) from error


def _parse(text: str, where: str) -> TraitFamily:
    try:
        data = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(where, [f"not YAML: {error}"]) from error
    if not isinstance(data, Mapping):
        fault = "expected name, category, questions and traits as `key: value`"
        raise ConfigError(where, [fault])
    try:
        family = TypeAdapter(TraitFamily).validate_python(dict(data))
    except ValidationError as error:
        faults = [_fault(dict(item)) for item in error.errors()]
        raise ConfigError(where, faults) from error
    faults = list(_faults(family))
    if faults:
        raise ConfigError(where, faults)
    return family


def _fault(item: dict[str, Any]) -> str:
    place = ".".join(map(str, item["loc"]))
    return f"{place}: {str(item['msg'])[:1].lower()}{str(item['msg'])[1:]}"


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
        doubled = sorted({value for value in values if values.count(value) > 1})
        faults += [f"{place}: {value!r} stands twice" for value in doubled]
    try:
        family.prompt.format(plural="x", name="x", category="x")
    except (LookupError, ValueError, AttributeError, TypeError) as error:
        faults.append(
            f"prompt: may hold {{plural}}, {{name}} and {{category}} only: {error!r}"
        )
    return faults
