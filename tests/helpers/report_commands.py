"""What a report says gives its numbers again, run as it is written there."""

import io
import json
import shlex
from contextlib import redirect_stdout
from pathlib import Path

from typer.testing import CliRunner

from fewchannels.analyses.document import How
from fewchannels.cli import app


def ran(how: How) -> int:
    """Rows that a command prints, or files that it writes; of a program, lines that it prints."""
    if how.language == "python":
        with redirect_stdout(io.StringIO()) as said:
            exec(how.text, {})
        return len(said.getvalue().splitlines())
    words = shlex.split(how.text)
    assert words[0] == "fewchannels"
    answers = words[1] in ("sql", "query")
    answer = CliRunner().invoke(app, [*words[1:], *(["--json"] if answers else [])])
    assert answer.exit_code == 0, (how.text, answer.output, answer.exception)
    if answers:
        return len(json.loads(answer.stdout))
    return sum(path.stat().st_size > 0 for path in Path().iterdir()) if "--out" in words else 1
