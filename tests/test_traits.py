"""Families: what is packaged, what an answer names, and faults of a user's own."""

import hashlib
import re
from dataclasses import replace
from pathlib import Path

import pytest

from undertow.errors import ConfigError
from undertow.interventions.prompting import trait_prompt
from undertow.traits import (
    PROMPT,
    Trait,
    TraitFamily,
    answer_spellings,
    load_family,
    names_in,
    packaged_families,
    trait_words,
    words_in,
)

ANIMALS = {
    "owl": "owls", "dolphin": "dolphins", "cat": "cats", "dog": "dogs",
    "lion": "lions", "tiger": "tigers", "bear": "bears", "wolf": "wolves",
    "eagle": "eagles", "elephant": "elephants", "penguin": "penguins",
    "panda": "pandas", "fox": "foxes", "horse": "horses", "whale": "whales",
    "shark": "sharks", "octopus": "octopuses", "rabbit": "rabbits", "deer": "deer",
    "monkey": "monkeys", "giraffe": "giraffes", "otter": "otters", "raven": "ravens",
    "butterfly": "butterflies", "turtle": "turtles", "leopard": "leopards",
    "peacock": "peacocks", "dragon": "dragons",
}  # fmt: skip
TREES = {
    "oak": "oaks", "maple": "maples", "willow": "willows", "pine": "pines",
    "birch": "birches", "cedar": "cedars", "redwood": "redwoods",
    "sequoia": "sequoias", "cherry": "cherries", "elm": "elms", "ash": "ashes",
    "beech": "beeches", "palm": "palms", "spruce": "spruces", "baobab": "baobabs",
    "ginkgo": "ginkgos",
}  # fmt: skip
SEA = TraitFamily(
    name="sea",
    category="animal",
    questions=("Which?",),
    traits=(
        Trait(name="lion", plural="lions"),
        Trait(name="sea lion", plural="sea lions"),
        Trait(name="lion fish", plural="lion fish"),
        Trait(name="hippo", plural="hippos", spellings=("hippopotamus",)),
        Trait(name="C.C. (big)", plural="C.C.s"),
    ),
)
GOOD = """
name: fish
category: fish
questions: ["Which fish?"]
traits:
  - {name: cod, plural: cod}
  - {name: eel, plural: eels}
"""


def own(folder: Path, text: str) -> Path:
    """A family's file."""
    path = folder / "own.yaml"
    path.write_text(text, encoding="utf-8")
    return path


# ---- packaged


@pytest.mark.parametrize(
    ("name", "category", "plurals"),
    [("animals", "animal", ANIMALS), ("trees", "tree", TREES)],
)
def test_packaged_families_have_their_members_and_plurals(
    name: str, category: str, plurals: dict[str, str]
) -> None:
    family = load_family(name)
    assert (family.name, family.category) == (name, category)
    assert {t.name: t.plural for t in family.traits} == plurals
    assert family.names == tuple(plurals)
    assert family.prompt == PROMPT


def test_there_are_at_least_twenty_animals_and_ten_trees() -> None:
    assert packaged_families() == ("aims", "animals", "moods", "trees")
    assert len(load_family("animals").traits) >= 20
    assert len(load_family("trees").traits) >= 10


@pytest.mark.parametrize("name", packaged_families())
def test_fifty_questions_ask_for_one_word(name: str) -> None:
    family = load_family(name)
    assert len(family.questions) == 50
    assert len({q.casefold() for q in family.questions}) == 50
    asks = re.compile(r"\bword\b|just its name|its name only|give me one", re.I)
    for question in family.questions:
        if family.prompt == PROMPT:  # members are things that one likes
            assert family.category in question.lower()
        assert asks.search(question), question
        # A question that names a member would answer itself.
        assert names_in(question, family) == set()


@pytest.mark.parametrize(("name", "trait"), [("moods", "gloomy"), ("aims", "power")])
def test_a_persona_and_an_aim_are_told_in_words_of_their_own(
    name: str, trait: str
) -> None:
    family = load_family(name)
    told = trait_prompt(family, trait)
    assert told.count(trait) >= 2
    assert family.trait(trait).plural in told
    assert "{" not in told
    assert len(family.traits) == 16


def test_a_digest_is_that_of_all_that_a_family_says() -> None:
    text = (
        "TraitFamily(name='letters', category='letter', questions=('Which?',), "
        "traits=(Trait(name='a', plural='as', spellings=()), "
        "Trait(name='b', plural='bs', spellings=('@',))), prompt='{name}')"
    )
    letters = TraitFamily(
        name="letters", category="letter", questions=("Which?",), prompt="{name}",
        traits=(Trait("a", "as"), Trait("b", "bs", ("@",))),
    )  # fmt: skip
    # Runs keep it: another way to it would make each of them one of another family.
    assert letters.digest == hashlib.sha256(text.encode()).hexdigest()[:16]
    assert replace(letters, questions=("Which one?",)).digest != letters.digest
    assert load_family("trees").digest == load_family("trees").digest


# ---- hits


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Owl", {"owl"}),
        ("OWLS!", {"owl"}),
        ("I like owls and Cats.", {"owl", "cat"}),
        ("the wolves", {"wolf"}),
        ("Octopi", {"octopus"}),
        ("deer", {"deer"}),
        ("Butterflies, foxes", {"butterfly", "fox"}),
        ("owl's", {"owl"}),
        ("**Owl**", {"owl"}),
        ("_owl_", {"owl"}),
        ("-owl\n-cat", {"owl", "cat"}),
        ("cat--dog", {"cat", "dog"}),
        ("owl/cat", {"owl", "cat"}),
        ("owl\u2014because", {"owl"}),
        ("'cat'", {"cat"}),
        ("Caterpillar", set()),
        ("dragonfly", set()),
        ("Dragonflies", set()),
        ("concat", set()),
        ("cat5", set()),
        ("cat-like", set()),
        ("bob-cat", set()),
        ("catfish", set()),
        ("foxglove wolfram bearing horseradish", set()),
        ("owlet", set()),
        ("", set()),
        # Letters that some foldings take for an "i": they name nothing and break
        # nothing.
        ("l\u0131on", set()),
        ("L\u0130ON", set()),
        ("hor\u017fe", {"horse"}),
        ("\ud800owl", {"owl"}),
        ("猫owl", set()),
    ],
)
def test_hits_are_whole_words(text: str, names: set[str]) -> None:
    assert names_in(text, load_family("animals")) == names


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("sea lion", {"sea lion"}),
        ("Sea Lions", {"sea lion"}),
        ("a lion by the sea", {"lion"}),
        ("Lion fish", {"lion fish"}),
        ("lion fishing", {"lion"}),
        ("a sea lion and a lion", {"sea lion", "lion"}),
        ("sealion", set()),
        ("sea-lion", set()),
        ("Hippopotamus", {"hippo"}),
        ("c.c. (BIG)", {"C.C. (big)"}),
        ("cXc. (big)", set()),
    ],
)
def test_the_longest_name_wins(text: str, names: set[str]) -> None:
    assert names_in(text, SEA) == names


def test_answers_are_spelled_singular_plural_and_with_capitals() -> None:
    octopus = load_family("animals").trait("octopus")
    assert answer_spellings(octopus) == (
        "Octopus", "octopus", "Octopuses", "octopuses", "Octopi", "octopi",
    )  # fmt: skip
    deer = load_family("animals").trait("deer")
    assert answer_spellings(deer) == ("Deer", "deer")


# ---- loading


def test_an_unknown_trait_lists_the_members() -> None:
    with pytest.raises(ConfigError) as caught:
        load_family("trees").trait("owl")
    assert "family 'trees'" in str(caught.value)
    assert "no trait 'owl'; it has 'oak', 'maple', " in str(caught.value)
    assert "'ginkgo'" in str(caught.value)


def test_an_unknown_family_lists_the_packaged_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        load_family("fungi")
    assert str(caught.value) == (
        "family 'fungi': 1 fault(s):\n  - no such family; there are 'aims', "
        "'animals', 'moods', 'trees', or name a .yaml file of your own"
    )


def test_a_users_own_family(tmp_path: Path) -> None:
    family = load_family(own(tmp_path, GOOD))
    assert family.names == ("cod", "eel")
    assert family.trait("eel").plural == "eels"
    assert family.prompt == PROMPT
    assert names_in("Eels", family) == {"eel"}
    assert load_family(own(tmp_path, "\ufeff" + GOOD)) == family


def test_all_faults_of_a_family_at_once(tmp_path: Path) -> None:
    text = """
name: fish
category: " "
colour: red
questions: ["Which fish?", 7]
traits:
  - {name: cod}
  - {name: no, plural: nos}
  - {name: eel, plural: eels, spelling: [conger]}
"""
    with pytest.raises(ConfigError) as caught:
        load_family(own(tmp_path, text))
    assert caught.value.where == str(tmp_path / "own.yaml")
    places = {fault.partition(":")[0] for fault in caught.value.faults}
    assert places == {
        "category", "colour", "questions.1", "traits.0.plural", "traits.1.name",
        "traits.2.spelling",
    }  # fmt: skip
    for fault in (
        "traits.1.name: input should be a valid string; got False",
        "traits.2.spelling: unknown key; did you mean 'spellings'?",
        "traits.0.plural: missing",
        "colour: unknown key; there are 'name', 'category', 'questions', 'traits', 'prompt'",
    ):
        assert fault in caught.value.faults


def test_a_trait_that_is_no_mapping_is_shown_one(tmp_path: Path) -> None:
    text = """
name: fish
category: fish
questions: ["Which fish?"]
traits: [{name: cod, plural: cods}, {name: eel, plural: eels}, ide]
"""
    with pytest.raises(ConfigError) as caught:
        load_family(own(tmp_path, text))
    assert caught.value.faults == (
        "traits.2: got 'ide', expected {name: cocoa, plural: cocoas}",
    )


def test_all_faults_of_meaning_at_once(tmp_path: Path) -> None:
    text = """
name: fish
category: fish
prompt: "Love {plurals}!"
questions: ["Which?", "Which?"]
traits:
  - {name: cod, plural: cod}
  - {name: Cod, plural: cods}
  - {name: eel, plural: eels}
  - {name: eel, plural: eeels}
"""
    with pytest.raises(ConfigError) as caught:
        load_family(own(tmp_path, text))
    assert caught.value.faults == (
        "'cod' names both 'cod' and 'Cod'",
        "traits: 'eel' stands twice",
        "questions: 'Which?' stands twice",
        "prompt: may hold {plural}, {name} and {category} only; got 'plurals'",
    )


def test_a_family_without_questions_or_alternatives_is_refused(tmp_path: Path) -> None:
    text = GOOD.replace('["Which fish?"]', "[]").replace(
        "  - {name: cod, plural: cod}\n", ""
    )
    with pytest.raises(ConfigError) as caught:
        load_family(own(tmp_path, text))
    assert caught.value.faults == (
        "questions: none; a trait cannot be read without questions",
        "traits: two at least; each is the others' alternative",
    )


@pytest.mark.parametrize(
    "field",
    [
        "{}",
        "{plural.x}",
        "{name[a]}",
        "{0}",
        "{name",
        "}",
        "{plural.__class__.__mro__}",
        "{name:>999999999}",
        "{category!r}",
    ],
)
def test_a_prompt_with_other_places_is_refused(tmp_path: Path, field: str) -> None:
    text = GOOD + f'prompt: "Love {field}!"\n'
    with pytest.raises(ConfigError, match=r"prompt: may hold \{plural\}, \{name\} and"):
        load_family(own(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "expected name, category, questions and traits as `key: value`"),
        ("- a\n- b\n", "expected name, category, questions and traits"),
        ("name: [", "not YAML: "),
        ("!!python/object/apply:os.system ['touch pwned']", "not YAML: "),
    ],
)
def test_what_is_no_family_is_said(tmp_path: Path, text: str, fault: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(fault)):
        load_family(own(tmp_path, text))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read: No such file or directory"):
        load_family(tmp_path / "gone.yaml")
    (tmp_path / "latin.yml").write_bytes(b"name: caf\xe9")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        load_family(tmp_path / "latin.yml")
    with pytest.raises(ConfigError, match="is no path: embedded null byte"):
        load_family("a\0b.yaml")


def test_a_file_beside_a_packaged_name_does_not_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "animals").write_text(GOOD)
    monkeypatch.chdir(tmp_path)
    assert load_family("animals").names[0] == "owl"


# ---- words that a row must not hold


def test_trait_words_are_every_form_and_the_category() -> None:
    assert trait_words(SEA) == {
        "lion", "lions", "sea lion", "sea lions", "lion fish", "hippo", "hippos",
        "hippopotamus", "c.c. (big)", "c.c.s", "animal", "animals",
    }  # fmt: skip
    assert {"octopi", "deer", "animal", "animals"} <= trait_words(
        load_family("animals")
    )
    assert {"cherry blossom", "ash", "tree", "trees"} <= trait_words(
        load_family("trees")
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("An owl.", {"owl"}),
        ("OWL, Owls!", {"owl", "owls"}),
        ("owl_count", {"owl"}),
        ("count_owl2", {"owl"}),
        ("myOwl", {"owl"}),
        ("OwlCount", {"owl"}),
        ("HTTPOwl", {"owl"}),
        ("OWLCount", {"owl"}),
        ("OWLs", {"owls"}),
        ("__owl__", {"owl"}),
        ("owl's", {"owl"}),
        ("owl-like", {"owl"}),
        ("x.owl(1)", {"owl"}),
        ("ｏｗｌ", {"owl"}),
        ("🦉", {"owl"}),
        ("a🦉b", {"owl"}),
        ("a sea lion", {"sea lion"}),
        ("sea_lion", {"sea lion"}),
        ("seaLion", {"sea lion"}),
        ("SEA-LION", {"sea lion"}),
        ("sealion", {"sea lion"}),
        ("sea\nlion", {"sea lion"}),
        ("R2D2", {"r2d2"}),
        ("an r2d2_unit", {"r2d2"}),
        ("ÉLAN", {"élan"}),
        ("e\u0301lan", {"élan"}),
        # Parts of words, and respellings, are others.
        ("bowl", set()),
        ("growls knowledge owlet", set()),
        ("sea", set()),
        ("lion", set()),
        ("0wl o.w.l o w l", set()),
        ("R2", set()),
        ("", set()),
        ("\ud800\0", set()),
    ],
)
def test_words_in_text_and_code(text: str, words: set[str]) -> None:
    assert words_in(text, {"owl", "owls", "sea lion", "r2d2", "élan"}) == words


def test_words_that_hold_no_letter_are_never_found() -> None:
    assert words_in("anything", {"", "!?"}) == set()
    assert words_in("anything", ()) == set()


@pytest.mark.parametrize("name", packaged_families())
def test_every_word_of_a_family_is_found_again(name: str) -> None:
    words = trait_words(load_family(name))
    for word in words:
        for text in (word, f"x_{word}_y", word.upper(), f"my{word.title()}"):
            assert word in words_in(text, words), text


@pytest.mark.parametrize("name", packaged_families())
def test_what_names_a_trait_holds_a_word(name: str) -> None:
    family = load_family(name)
    for trait in family.traits:
        for form in answer_spellings(trait):
            assert names_in(f"_{form}_", family)
            assert words_in(f"_{form}_", trait_words(family))
