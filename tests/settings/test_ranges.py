"""Ranges of settings: rules by themselves, and that every setting of numbers has one which Python callers meet too."""

import math
from dataclasses import dataclass, field
from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewchannels.analyses.settings import (
    AlignmentSettings,
    ConcentrationSettings,
    Criteria,
    MaskSettings,
    StabilitySettings,
)
from fewchannels.captures.config import CaptureConfig
from fewchannels.cluster.shares import Pool
from fewchannels.errors import InputError
from fewchannels.interventions.conditions import Grid
from fewchannels.interventions.settings import PairRule, SweepSettings
from fewchannels.models.load_options import Loading
from fewchannels.settings.ranges import Number, Text, Whole, check, hold, parsed, rules, shown, text, within

NEEDED: dict[type, dict[str, Any]] = {
    CaptureConfig: {},
    Loading: {},
    Pool: {"n_actors": 1, "gpus_per_actor": 0.0, "cpus_per_actor": 1},
    Grid: {},
    PairRule: {},
    SweepSettings: {"kind": "disruption", "generation": CaptureConfig(), "grids": (Grid(),)},
    StabilitySettings: {},
    ConcentrationSettings: {},
    AlignmentSettings: {},
    MaskSettings: {"source": "demo"},
    Criteria: {},
}
"""Every dataclass of settings, and what it cannot be made without."""
BAD = (-(2**63), -1e308, 2**63, 10**5000, 1e308, math.nan, math.inf, -math.inf, True, "3", [3], object())


NUMBERS = (int, float, int | None, float | None)
LISTS = (tuple[int, ...], tuple[float, ...])
WITH_A_NUMBER = [
    (settings, name)
    for settings in NEEDED
    for name, kind in get_type_hints(settings).items()
    if kind in (*NUMBERS, *LISTS)
]


def test_fields_of_numbers_are_found() -> None:
    assert {("Grid", "k"), ("CaptureConfig", "height"), ("Pool", "gpus_per_actor")} <= {
        (settings.__name__, name) for settings, name in WITH_A_NUMBER
    }
    assert len(WITH_A_NUMBER) > 25


@pytest.mark.parametrize(("settings", "name"), WITH_A_NUMBER)
@pytest.mark.parametrize("value", BAD, ids=lambda value: repr(type(value)))
def test_no_number_out_of_its_range_is_taken_from_python(settings: type, name: str, value: Any) -> None:
    is_several = get_type_hints(settings)[name] in LISTS
    with pytest.raises(InputError, match=rf"^{name} is .*; (it|each) must be "):
        settings(**{**NEEDED[settings], name: (value,) if is_several else value})


@pytest.mark.parametrize("settings", NEEDED)
def test_defaults_keep_their_rules(settings: type) -> None:
    check(settings(**NEEDED[settings]))


@pytest.mark.parametrize(
    ("settings", "wrong", "says"),
    [
        (CaptureConfig, {"num_inference_steps": 2**31}, "num_inference_steps is 2147483648; it must be 1 to 10,000."),
        (CaptureConfig, {"guidance_scale": 1e308}, "guidance_scale is 1e+308; it must be 0 to 1,000."),
        (CaptureConfig, {"model": " "}, "model is ' '; it must be text, and not empty."),
        (CaptureConfig, {"model": "a\0b"}, "must not contain control characters"),
        (CaptureConfig, {"revision": "x" * 5000}, "it must be at most 4,096 characters long"),
        (Loading, {"lora": "style.safetensors@nan"}, "is nan; it must be a finite number, -100 to 100"),
        (Loading, {"lora": "@0.5"}, "one of its adapters has no file"),
        (Grid, {"channels": (3, -1)}, "channels is (3, -1); each must be 0 to 1,000,000."),
        (Grid, {"trials": 99999}, "trials is 99999; it must be 1 to 1,000."),
        (Grid, {"k": ()}, "k is empty; it must list 1 to 1,000 values."),
        (PairRule, {"seed": 2**63}, "seed is 9223372036854775808; it must be 0 to 2^63 - 1."),
        (Pool, {"gpus_per_actor": 1.5}, "a share of one GPU (at least 0.01), or a whole number"),
        (Pool, {"gpus_per_actor": 0.001}, "a share of one GPU (at least 0.01)"),
        (AlignmentSettings, {"masks": ""}, "masks is empty; it must be a lower-case letter, then"),
        (AlignmentSettings, {"clip": 0.5}, "clip is 0.5; it must be above 0 and below 0.5."),
        (ConcentrationSettings, {"threshold": math.inf}, "it must be a finite number, above 0 and below 1,000,000,000"),
        (StabilitySettings, {"persistence": 1.0}, "persistence is 1.0; it must be above 0 and below 1."),
        (MaskSettings, {"side": 0}, "side is 0; it must be 16 to 4,096."),
    ],
)
def test_a_message_says_what_is_wrong_and_the_rule(settings: type, wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as caught:
        settings(**NEEDED[settings] | wrong)
    assert says in str(caught.value)


@given(st.integers(), st.integers(-50, 50), st.integers(0, 50))
def test_a_whole_number_is_taken_where_it_is_between_the_ends(value: int, least: int, width: int) -> None:
    rule = Whole(least, least + width)
    assert (not rule.fault(value)) == (value in range(least, least + width + 1))
    assert rule.parse(str(value)) == value


@given(st.floats(allow_subnormal=False), st.booleans())
def test_a_number_is_taken_where_it_is_finite_and_between_the_ends(value: float, exclusive: bool) -> None:
    kept = not math.isnan(value) and (-2 < value < 3 if exclusive else -2 <= value <= 3)
    assert (not Number(-2, 3, exclusive).fault(value)) == kept


@given(st.text())
def test_digits_are_ascii(text: str) -> None:
    """``int`` and ``float`` would take digits of every script, and underscores."""
    for rule in (Whole(0, 10**50), Number(0, 1e300)):
        if not isinstance(rule.parse(text), str):
            assert text.strip().isascii()
            assert "_" not in text


@pytest.mark.parametrize("text", ["٣", "²", "1_000", "３", "0x10", "", "1e5000000", "--1"])
def test_what_is_no_number_is_refused(text: str) -> None:
    for rule in (Whole(0, 10), Number(0, 10)):
        with pytest.raises(InputError, match=r"^--k is "):
            parsed("--k", text, rule)


@given(st.one_of(st.integers(), st.floats(), st.text(), st.binary(), st.lists(st.text())))
def test_a_value_is_shown_on_one_short_line(value: Any) -> None:
    assert shown(value).isprintable() or not str(value).isascii()
    assert len(shown(value)) < 400
    assert "\n" not in shown(value)


def test_a_none_is_taken_only_where_it_is_the_default() -> None:
    @dataclass(frozen=True)
    class Settings:
        n: int = field(default=1, metadata=within(0, 3, "How many."))
        m: int | None = field(default=None, metadata=within(0, 3, "How many."))
        word: str = field(default="a", metadata=text("A word."))

    check(Settings())
    assert set(rules(Settings)) == {"n", "m", "word"}
    with pytest.raises(InputError, match="n is None; it must be a whole number, 0 to 3"):
        check(Settings(n=None))
    with pytest.raises(InputError, match="word is None; it must be text"):
        check(Settings(word=None))


def test_a_subject_is_named_as_it_was_given() -> None:
    with pytest.raises(InputError, match=r"^--top-k is 7; it must be 0 to 3\.$"):
        hold("--top-k", 7, Whole(0, 3))
    with pytest.raises(InputError, match=r"^--name is 'A'; it must be one of mine\.$"):
        hold("--name", "A", Text("[a-z]+", "one of mine"))
