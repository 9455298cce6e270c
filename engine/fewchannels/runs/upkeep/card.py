"""The card of a run on the Hub: ``README.md``, with metadata for the Hub's search and viewer, and a page for people.

The page is between two markers. Text outside of them and existing fields of the metadata, such as a license, belong to
the user, and are kept when the run is pushed again; only the size is updated.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from fewchannels.errors import StorageError
from fewchannels.runs.description import COMPARISON, NAME, SWEEP
from fewchannels.runs.upkeep.contents import Contents
from fewchannels.settings.units import size

_BEGIN, _END = "<!-- fewchannels: this part is replaced by every push -->", "<!-- fewchannels: end -->"
_OURS = re.compile(rf"{re.escape(_BEGIN)}.*?{re.escape(_END)}", re.DOTALL)
_METADATA = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
_VIEWED = {NAME: ("samples", "cells"), SWEEP: ("edits",), COMPARISON: ("samples",)}
_SUMMARIES = {
    NAME: "Hidden-state channels of a diffusion transformer, recorded for every sample at every recorded layer and "
    "denoising step: statistics of all channels, token maps of the largest ones, and the generated images.",
    SWEEP: "Edited generations of a diffusion transformer: each image with channels ablated or patched, compared with "
    "the unedited image of the same batch, and with controls.",
    COMPARISON: "A comparison of two runs of diffusion transformers: the overlap of their largest hidden-state "
    "channels, matched by sample.",
}
_OPENED = {
    NAME: ("fewchannels query RUN massive_channels", 'run = fc.open_run("RUN")'),
    SWEEP: ('fewchannels sql RUN "select * from effects_means limit 5"', 'sweep = fc.open_sweep("RUN")'),
    COMPARISON: ("fewchannels report RUN -o report.html", ""),
}


def card(contents: Contents, repository: str, earlier: str | None) -> str:
    """The text of ``README.md``.

    Args:
        contents: the contents to push.
        repository: name of the repository.
        earlier: text of the existing card; None if there is none.

    Raises:
        StorageError: the metadata of the earlier card cannot be read.
    """
    metadata, text = _parsed(earlier or "")
    page = f"{_BEGIN}\n\n{_page(contents, repository)}\n{_END}"
    text = _OURS.sub(lambda _: page, text, count=1) if _OURS.search(text) else f"{text.rstrip()}\n\n{page}\n".lstrip()
    ours = _metadata(contents, repository)
    counted = {"size_categories": ours["size_categories"]}  # a run may have grown
    head = yaml.safe_dump(ours | metadata | counted, sort_keys=False, allow_unicode=True, width=120)
    return f"---\n{head}---\n\n{text.lstrip()}"


def _parsed(text: str) -> tuple[dict[str, Any], str]:
    found = _METADATA.match(text)
    if found is None:
        return {}, text
    try:
        metadata = yaml.safe_load(found[1]) or {}
    except yaml.YAMLError:
        metadata = None
    if not isinstance(metadata, dict):
        raise StorageError(
            "the metadata at the top of the repository's README.md are not YAML fields. Correct them on its page, then "
            "run again."
        )
    return metadata, text[found.end() :]


def _metadata(contents: Contents, repository: str) -> dict[str, Any]:
    n = contents.n_items
    viewed = [table for table in _VIEWED[contents.name] if any(key.startswith(f"{table}/") for key in contents.sizes)]
    configs = [
        {"config_name": table, "data_files": f"{table}/*.parquet"} | ({"default": True} if table == viewed[0] else {})
        for table in viewed
    ]
    return {
        "pretty_name": repository.partition("/")[2],
        "tags": ["fewchannels", "diffusion", "interpretability", "massive-activations", contents.kind],
        "size_categories": [next((name for limit, name in _SIZES if n < limit), "n>10M")],
    } | ({"configs": configs} if configs else {})


def _page(contents: Contents, repository: str) -> str:
    command, opened = _OPENED[contents.name]
    python = f"\n```python\nimport fewchannels as fc\n\n{opened}\n```\n" if opened else ""
    parts = [
        f"# {repository.partition('/')[2]}\n\n{_SUMMARIES[contents.name]} Prompts and images are included.\n",
        _table(("", ""), _about(contents)),
        "## Open it\n\nWith fewchannels installed:\n\n"
        f"```sh\nfewchannels runs pull {repository} RUN\nfewchannels runs verify RUN\n{command}\n```\n{python}",
    ]
    if settings := _settings(contents):
        parts.append("## Settings\n\n" + _table(("setting", "value"), settings))
    if contents.results:
        rows = [
            (
                f"`{label}`",
                str(each.get("analysis") or label),
                ", ".join(f"`{label}_{table}`" for table in each["tables"]),
            )
            for label, each in contents.results.items()
        ]
        parts.append("## Results\n\n" + _table(("result", "analysis", "tables in SQL"), rows))
    parts.append(
        "## License\n\nNone is set by the upload. Add `license:` to the metadata of this card; later uploads keep it, "
        "and everything outside of this part. The license of the model may restrict the use of its images.\n"
    )
    return "\n".join(parts)


def _about(contents: Contents) -> Iterator[tuple[str, str]]:
    about = contents.description
    if contents.name == COMPARISON:
        yield from ((f"run {side}", str(place)) for side, place in sorted(about["runs"].items()))
        yield "samples", f"{contents.n_items:,} in both"
    else:
        yield "model", f"{about['model']['name']} ({about['model']['family']})"
        if "weights_sha256" in about["model"]:
            yield "weights, SHA-256", f"`{about['model']['weights_sha256']}`"
        what = "samples" if contents.name == NAME else "items"
        missing = f"; {contents.n_missing:,} missing or failed" if contents.n_missing else ""
        yield what, f"{contents.n_done:,} of {contents.n_items:,}{missing}"
    if contents.name == NAME:
        geometry, config = about["geometry"], about["config"]
        yield "layers", f"{geometry['n_layers']:,}"
        yield "denoising steps", f"{geometry['n_steps']:,}"
        yield "channels", f"{geometry['n_channels']:,}, token maps of {config['top_k']:,} by `{config['score']}`"
        yield "image tokens", f"{geometry['n_tokens']:,}"
    if contents.name == SWEEP:
        yield "kind", about["identity"]["kind"] + (f", protocol {about['protocol']}" if about["protocol"] else "")
        yield "conditions", f"{about['n_conditions']:,}; {about['n_edits']:,} edited images in all"
    yield "size", f"{size(contents.n_bytes)} in {len(contents.sizes):,} files"
    if "fingerprint" in about:
        yield "fingerprint", f"`{about['fingerprint']}`"
    if about.get("created"):
        yield "created", str(about["created"])
    yield "versions", ", ".join(f"{name} {version}" for name, version in about["versions"].items())


def _settings(contents: Contents) -> list[tuple[str, str]]:
    about = contents.description
    chosen: Mapping[str, Any] = {}
    if contents.name == NAME:
        chosen = about["config"]
    elif contents.name == SWEEP:
        chosen = about["identity"]["generation"]
    return [(f"`{name}`", _short(value)) for name, value in chosen.items() if value is not None and name != "model"]


def _short(value: Any) -> str:
    if not isinstance(value, list):
        return str(value)
    is_range = (
        len(value) > 2 and all(isinstance(each, int) for each in value) and value == [*range(value[0], value[-1] + 1)]
    )
    return f"{value[0]}-{value[-1]}" if is_range else ", ".join(map(str, value))


def _table(heads: tuple[str, ...], rows: Any) -> str:
    """Rows in Markdown; texts of unknown origin cannot escape their cells."""
    lines = [heads, ("---",) * len(heads), *rows]
    return "".join(f"| {' | '.join(_cell(text) for text in line)} |\n" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
