"""The tutorials' notebooks: run from their first cell to their last, and, from the command line, stored with outputs.

python tests/helpers/notebooks.py docs/tutorials/*.ipynb
"""

import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from queue import Empty
from typing import Any

from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import start_new_kernel

_KEPT = ("image/png", "text/html", "text/plain")
_MOST_HTML = 10_000  # xarray's has a style sheet in each
_CELL_S = 1_800


def outputs_of(path: Path, folder: Path, smaller: Mapping[str, str] | None = None) -> list[list[dict[str, Any]]]:
    """Run a notebook in a kernel of its own, and return the outputs of each of its cells.

    Args:
        path: the notebook.
        folder: empty folder, in which it runs.
        smaller: lines to replace, such as a number of prompts, by what they become.

    Raises:
        AssertionError: a line to be replaced is not there, or a cell raised.
    """
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) if cell["cell_type"] == "code" else "" for cell in cells]
    for line, becomes in (smaller or {}).items():
        assert any(line in source for source in sources), f"{path.name} has no line {line!r}"
        sources = [source.replace(line, becomes) for source in sources]
    manager, client = start_new_kernel(kernel_name="python3", cwd=str(folder), env=dict(os.environ))
    try:
        return [_run(client, source, path.name) if source else [] for source in sources]
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def _run(client: BlockingKernelClient, source: str, name: str) -> list[dict[str, Any]]:
    sent, found = client.execute(source), list[dict[str, Any]]()
    while True:
        try:
            message = client.get_iopub_msg(timeout=_CELL_S)
        except Empty:
            raise AssertionError(f"{name}: a cell takes longer than {_CELL_S} s:\n{source}") from None
        if message["parent_header"].get("msg_id") != sent:
            continue
        kind, content = message["msg_type"], message["content"]
        if kind == "error":
            raise AssertionError(f"{name}:\n{source}\n" + "\n".join(content["traceback"]))
        if kind == "stream" and content["name"] == "stdout":  # the other has progress bars
            found.append({"output_type": "stream", "name": "stdout", "text": content["text"].splitlines(keepends=True)})
        elif kind in ("execute_result", "display_data"):
            found.append(_stored(kind, content["data"]))
        elif kind == "status" and content["execution_state"] == "idle":
            return found


def _stored(kind: str, data: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: data[name] for name in _KEPT if name in data}
    if len(kept.get("text/html", "")) > _MOST_HTML or "image/png" in kept:
        kept.pop("text/html", None)
    texts = {name: value if name == "image/png" else value.splitlines(keepends=True) for name, value in kept.items()}
    counted = {"execution_count": None} if kind == "execute_result" else {}
    return {"output_type": kind, "metadata": {}, "data": texts} | counted


def store(path: Path) -> None:
    """Run a notebook, and write it with its outputs."""
    content = json.loads(path.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        found = outputs_of(path, Path(folder))
    count = 0
    for cell, outputs in zip(content["cells"], found, strict=True):
        if cell["cell_type"] == "code":
            count += 1
            results = [each | {"execution_count": count} if "execution_count" in each else each for each in outputs]
            cell |= {"execution_count": count, "outputs": results}
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        store(Path(name))
        sys.stdout.write(f"{name}\n")
