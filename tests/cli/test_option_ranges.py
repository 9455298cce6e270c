"""Every option of every command, with values that cannot be: a sentence and exit code 2, or a run that ends."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import odd_values
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

COMMANDS = dict(odd_values.commands())
PARAMETERS = [(command, each) for command, node in COMMANDS.items() for each in node.params]
VALUED = [(command, each) for command, each in PARAMETERS if not getattr(each, "is_flag", False)]
NEVER_FILES = st.text(st.characters(exclude_characters="/.\0"), max_size=40)
VALUES = st.one_of(
    st.sampled_from(odd_values.ODD),
    st.integers().map(str),
    st.floats().map(repr),
    st.lists(st.one_of(st.integers(), st.floats()), min_size=1, max_size=4).map(lambda part: ",".join(map(str, part))),
    NEVER_FILES,
)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[tuple[str, ...], odd_values.Base]]:
    """What each command is given besides, in a folder of its own that it may write to."""
    folder = tmp_path_factory.mktemp("odd")
    here, home = os.getcwd(), os.environ.get("HOME", "")
    made = odd_values.bases(folder)
    (folder / "a" / "b").mkdir(parents=True)
    os.chdir(folder / "a" / "b")
    with odd_values.stopped_where_work_begins(work=False):
        yield made
    os.chdir(here)
    os.environ["HOME"] = home


def test_every_command_has_a_place_to_be_tried_in(bases: dict[tuple[str, ...], odd_values.Base]) -> None:
    assert set(bases) == set(COMMANDS)
    assert len(VALUED) > 200


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_command_works_without_an_odd_value(
    bases: dict[tuple[str, ...], odd_values.Base], command: tuple[str, ...]
) -> None:
    """Else what is refused below would be refused for another reason."""
    arguments = [word for words in bases[command].arguments.values() for word in words]
    code, text = odd_values.outcome([*command, *bases[command].options, *arguments])
    is_away = command[0] in ("submit", "status", "logs", "stop")
    assert code == (1 if is_away else 0), text


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(VALUED), VALUES)
def test_any_value_of_any_option_ends_in_words(
    bases: dict[tuple[str, ...], odd_values.Base], where: tuple[tuple[str, ...], Any], value: str
) -> None:
    command, parameter = where
    assert not odd_values.fault(odd_values.words_with(command, bases[command], parameter, value))


@pytest.mark.exhaustive
def test_each_odd_value_of_each_option_alone_ends_in_words(bases: dict[tuple[str, ...], odd_values.Base]) -> None:
    faults = {
        (*command, parameter.opts[0], value): found
        for command, parameter in VALUED
        for value in odd_values.ODD
        if (found := odd_values.fault(odd_values.words_with(command, bases[command], parameter, value)))
    }
    assert not faults


OTHERS = ("--port", "--limit", "--item", "--timeout")
NUMBERS = ("-9223372036854775809", "9223372036854775808", "nan", "٣")


@pytest.mark.parametrize(
    ("command", "parameter"),
    [
        pytest.param(command, each, id=" ".join((*command, each.opts[0])))
        for command, each in VALUED
        if each.type_descriptor.annotation in (int, float)
        and each.opts[0] not in ("--port", "--limit", "--item", "--timeout")
    ],
)
def test_no_number_out_of_its_range_is_taken(
    bases: dict[tuple[str, ...], odd_values.Base], command: tuple[str, ...], parameter: Any
) -> None:
    for value in NUMBERS:
        code, text = odd_values.outcome(odd_values.words_with(command, bases[command], parameter, value))
        assert (code, parameter.opts[0] in text) == (2, True), text
        assert "Traceback" not in text


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("capture --num-inference-steps 2147483648", "--num-inference-steps is 2147483648; it must be 1 to 10,000."),
        ("capture --actors 0", "--actors is 0; it must be 1 to 10,000."),
        ("capture --gpus-per-actor nan", "--gpus-per-actor is nan; it must be a finite number, 0 to 64."),
        ("capture --cpus-per-actor 99999", "--cpus-per-actor is 99999; it must be 1 to 1,024."),
        ("capture --cpus-per-actor 1024", "this process may use"),
        ("capture --actors 10000", "10000 actors are too many for this machine"),
        ("capture --height 65536 --width 65536 --tokens pool:2", "a worker needs at least"),
        ("capture --max-bytes 1e400TB", "--max-bytes is '1e400TB'; it must be bytes up to 1e18"),
        ("capture --controls random:99999999999999999999", "random:N with N of 1 to 1,000"),
        ("capture --lora x@nan", "the strength of lora 'x' is nan; it must be a finite number, -100 to 100."),
        ("capture --out=", "--out is '', which is blank. Give a value, or omit the option."),
        ("probe disruption --channels ,", "--channels is ','; it must list 1 to 1,000 values."),
        ("probe disruption --k 4,-1", "--k is '4,-1'; each must be 0 to 1,000,000."),
        ("probe disruption --trials 99999", "--trials is 99999; it must be 1 to 1,000."),
        ("probe disruption --amount 1e30", "--amount is '1e30'; each must be -1,000 to 1,000."),
        ("transport text --pairs 0", "--pairs is 0; it must be 1 to 1,000,000, or all."),
        ("transport text --alpha nan", "--alpha is 'nan'; each must be a finite number"),
        ("analyze masks --side 0", "--side is 0; it must be 16 to 4,096."),
        ("analyze stability --persistence 1", "--persistence is 1.0; it must be above 0 and below 1."),
        ("analyze concentration --threshold inf", "--threshold is inf; it must be a finite number"),
        ("analyze concentration --workers -1", "--workers is -1; it must be 1 to 10,000."),
        ("analyze alignment --clusters 2,9", "--clusters is '2,9'; each must be 2 to 6."),
        ("analyze alignment --label Early", "--label is 'Early'; it must be a lower-case letter, then"),
        ("analyze stability --seed -1", "--seed is -1; it must be 0 to 2^63 - 1."),
        ("demo --prompts 100001", "--prompts is 100001; it must be 1 to 100,000."),
        ("runs verify --recompute -1", "--recompute is -1; it must be 0 to 1,000,000."),
    ],
)
def test_a_message_names_the_option_the_value_and_the_rule(
    bases: dict[tuple[str, ...], odd_values.Base], line: str, says: str
) -> None:
    words = line.split()
    n = next(n for n in (1, 2) if tuple(words[:n]) in bases)
    base = bases[tuple(words[:n])]
    arguments = [word for each in base.arguments.values() for word in each]
    code, text = odd_values.outcome([*words[:n], *base.options, *words[n:], *arguments])
    assert (code, says in " ".join(text.split())) == (2, True), text


def test_help_tells_the_range(bases: dict[tuple[str, ...], odd_values.Base]) -> None:
    code, text = odd_values.outcome(["capture", "--help"])
    text = " ".join(text.replace("│", " ").split())
    assert code == 0
    assert "Number of denoising steps (1 to 10,000)." in text
    assert "GPUs per actor (0 to 64)." in text


def test_python_meets_the_same_ranges_of_a_pool(tmp_path: Path) -> None:
    from fewchannels.cluster.sizing import choose_pool
    from fewchannels.errors import InputError
    from fewchannels.machine import processors

    for given_, says in (
        ((0, None), "n_actors is 0; it must be 1 to 10,000"),
        ((None, float("nan")), "gpus_per_actor is nan; it must be a finite number, 0 to 64"),
        ((None, 1.5), r"a share of one GPU \(at least 0.01\), or a whole number of GPUs"),
        ((None, None, None, 0), "cpus_per_actor is 0; it must be 1 to 1,024"),
        ((None, None, None, 1024), f"this process may use {processors()} CPU"),
        ((10_000, None), "10000 actors are too many for this machine"),
    ):
        with pytest.raises(InputError, match=says):
            choose_pool(*given_)
