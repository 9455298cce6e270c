"""Messages of the library as they read in Python."""

import pytest

from fewchannels.api.messages import for_python


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("pass --top-k 12.", "pass top_k 12."),
        ("Rerun the same command.", "Make the same call again."),
        (
            "Create one: fewchannels manifest ingest prompts.csv -o 'my run/m.parquet'.",
            "Create one: fc.ingest('prompts.csv', 'my run/m.parquet').",
        ),
        (
            "Convert it: fewchannels manifest ingest 'm.parquet' -o manifest.parquet.",
            "Convert it: fc.ingest('m.parquet', 'manifest.parquet').",
        ),
        ("Give, for example, -o report.html.", "Give, for example, out='report.html'."),
        ("Mount it with them (Lustre: -o flock).", "Mount it with them (Lustre: -o flock)."),
    ],
)
def test_commands_and_options_are_named_as_calls_and_arguments(message: str, expected: str) -> None:
    assert for_python(message) == expected
