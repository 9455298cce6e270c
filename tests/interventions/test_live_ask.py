"""What is asked of a live session: to and from flat text, and refused in words."""

from urllib.parse import parse_qsl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewchannels.errors import InputError
from fewchannels.interventions.conditions import SELECTIONS
from fewchannels.interventions.live.ask import ACTIONS, MOST_CHARACTERS, TOKENS, Ask, Edit, parse

PROMPT = "a small red star"
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
INDICES = st.lists(st.integers(0, 9999), min_size=1, max_size=9).map(lambda many: ",".join(map(str, many)))
TEXTS = st.text(min_size=1, max_size=40).filter(lambda text: text.strip() and "\0" not in text)


@st.composite
def edits(draw: st.DrawFn) -> Edit:
    action, selection = draw(st.sampled_from(ACTIONS)), draw(st.sampled_from(SELECTIONS))
    return Edit(
        action,
        factor=draw(NUMBERS) if action == "scale" else None,
        alpha=1.0 if action == "scale" else draw(NUMBERS),
        source=draw(TEXTS) if action == "transport" else None,
        selection=selection,
        k=draw(st.integers(0, 5000)),
        channels=tuple(draw(st.lists(st.integers(0, 5000), min_size=1))) if selection == "listed" else (),
        layers=draw(st.sampled_from(["all", "dual", "single"]) | INDICES),
        steps=draw(st.sampled_from(["all", "last"]) | INDICES),
        tokens=draw(st.sampled_from(TOKENS)),
    )


SIDES = st.none() | st.integers(1, 4096)
ASKS = st.builds(
    Ask,
    TEXTS,
    st.integers(0, 2**63 - 1),
    st.none() | st.integers(1, 200),
    SIDES,
    SIDES,
    st.none() | st.floats(0, 1000),
    st.none() | edits(),
)


@given(ASKS)
def test_an_ask_comes_back_from_flat_text(ask: Ask) -> None:
    query = ask.as_query()
    assert all(type(text) is str for text in query.values())
    assert parse(query) == ask
    assert hash(parse(query)) == hash(ask)
    address = {"prompt": PROMPT, "seed": "1", "action": "zero", "k": "4", "layers": "0,2"}
    assert parse(address) == Ask(PROMPT, 1, edit=Edit("zero", k=4, layers="0,2"))


P, Z, S = f"prompt={PROMPT}&", f"prompt={PROMPT}&action=zero&", f"prompt={PROMPT}&action=scale&"
T, L = f"prompt={PROMPT}&action=transport&", f"prompt={PROMPT}&action=zero&selection=listed&"
REFUSED = [
    ("", "prompt is missing; every image needs one. Give a text"),
    ("prompt=%20", "prompt ' ' is empty; it needs a character that is not white space. Write what to draw"),
    (f"prompt={'x' * (MOST_CHARACTERS + 1)}", r"prompt 'x+\.\.\.x+' has 2001 characters; it takes 2000. Shorten it"),
    ("prompt=a\ud800", r"prompt 'a\\ud800' holds half a character or a NUL; it must be text. Take those out"),
    (P + "sed=1", "unknown setting 'sed'. Did you mean 'seed'"),
    (P + f"seed={2**63}", "seed is 9223372036854775808; it must be a whole number from 0 to 9223372036854775807. Give"),
    (P + f"seed={'1' * 5000}", r"seed is '1+\.\.\.1+'; it must be a whole number. Give only digits"),
    (P + "n_steps=201", "n_steps is 201; it must be a whole number from 1 to 200. Give one"),
    (P + "n_steps=²", "n_steps is '²'; it must be a whole number. Give only digits"),
    (P + "guidance=-1", "guidance is -1; it must be a number from 0 to 1000. Give one"),
    (P + "guidance=nan", "guidance is nan; it must be a number from 0"),
    (P + "k=3", "k is '3', but there is no action to apply it to. Give an action"),
    (Z + "tokens=inside", "unknown tokens 'inside'.* Valid: all, foreground, background"),
    (Z + "factor=2", "factor is 2.0 and action is 'zero'; factor belongs to the action scale.* Leave factor out"),
    (S, "factor is missing and action is 'scale'; .* needs it. Give factor"),
    (S + "factor=2&alpha=0.5", "alpha is 0.5, but the factor of scale .* Omit alpha"),
    (T + "source=%20", "source ' ' is empty; .* Write what to draw"),
    (Z + "channels=3", r"channels is \(3,\) and selection is 'top'; .* Leave channels out"),
    (L, "channels is missing and selection is 'listed'; .* Give channels"),
    (L + "channels=3,,4", "channels is '3,,4'; it must be whole numbers .* Give a list such as"),
    (L + f"channels={'1,' * 20000}1", "channels lists 20001; it takes .* List fewer"),
    (Z + "layers=windows:2", "layers is 'windows:2'; it must be a word or indices. Give all"),
]


@pytest.mark.parametrize(("query", "text"), REFUSED)
def test_what_cannot_work_is_refused_with_value_rule_and_remedy(query: str, text: str) -> None:
    with pytest.raises(InputError, match=text) as refused:
        parse(dict(parse_qsl(query)))
    assert len(str(refused.value)) < 500
