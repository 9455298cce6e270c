"""What a page of the explorer posts to have a callback run."""

import json
from typing import Any


def items(parts: list[dict[str, Any]], values: list[Any]) -> list[Any]:
    """Inputs or states as a page posts them."""
    found: list[Any] = []
    for part, value in zip(parts, values, strict=True):
        if part["id"].startswith("{"):
            name = {"kind": json.loads(part["id"])["kind"], "name": "k", "channel": 1}
            found.append([{"id": name, "property": part["property"], "value": value}])
        else:
            found.append({"id": part["id"], "property": part["property"], "value": value})
    return found


def outputs(output: str) -> Any:
    """The outputs of a callback as a page posts them."""
    each = [part for part in output.strip(".").split("...") if part]
    found = [dict(zip(("id", "property"), part.rsplit(".", 1), strict=True)) for part in each]
    return found if output.startswith("..") else found[0]


def body(callback: dict[str, Any], values: list[Any], changed: list[str]) -> dict[str, Any]:
    n = len(callback["inputs"])
    return {
        "output": callback["output"],
        "outputs": outputs(callback["output"]),
        "inputs": items(callback["inputs"], values[:n]),
        "state": items(callback["state"], values[n:]),
        "changedPropIds": changed,
    }
