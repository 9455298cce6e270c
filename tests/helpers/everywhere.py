"""Ask a run many questions and print the answers: to be run in several environments, which must not matter.

python everywhere.py RUN OUT
"""

import hashlib
import json
import sys
from pathlib import Path

from fewchannels.analyses.analysis import analyze
from fewchannels.analyses.concentration.units import Concentration
from fewchannels.analyses.selection import select
from fewchannels.analyses.stability.units import Stability
from fewchannels.cluster.shares import Pool
from fewchannels.runs.sql.catalog import Catalog
from fewchannels.runs.sql.named_queries import queries
from fewchannels.runs.storage import open_storage
from fewchannels.runs.upkeep.datasets import chosen_samples, export

WHERE = (
    "stamp < '2022-08-08'",
    "stamp < timestamp '2022-08-08'",
    "stamp < timestamptz '2022-08-08 00:00:00+00'",
    "stamp::date = '2022-08-08'",
    "local < '2022-08-08'",
    "local < stamp",
    "date_trunc('day', stamp) = '2022-08-07'",
    "extract(hour from stamp) < 12",
    "name < 'b'",
    "lower(name) > 'z'",
)
TEXTS = (
    "select sample, stamp, local, stamp::varchar as text, strftime(stamp, '%c') as said from samples "
    "join manifest using (sample_id) order by sample",
    "select name from manifest order by name",
    "select name, count(*) as n from manifest group by name order by all",
    "select finished, host from tasks order by all",
    "select layer, step, avg(ratio) as ratio, sum(energy_share) as share from cells group by all order by all",
    "select timestamp '2022-08-08' at time zone 'UTC' as t, epoch(stamp) as e from manifest order by all",
)


def main(run: str, out: Path) -> None:
    """Print everything as JSON."""
    said: dict[str, object] = {}
    with Catalog(run) as catalog:
        for where in WHERE:
            said[where] = chosen_samples(catalog, where)
        for text in TEXTS:
            answer = catalog.sql(text)
            said[text] = [answer.as_json(), answer.as_csv(), str(answer.df().to_dict("records")), repr(answer)]
            answer.write_parquet(out / "answer.parquet")
            said[f"{text} as Parquet"] = hashlib.sha256((out / "answer.parquet").read_bytes()).hexdigest()
    for by in ("name", "stamp", "local"):
        said[f"by {by}"] = select(run, by=by).categories.tolist()
    export(open_storage(run), said["name < 'b'"], open_storage(out / "exported"))
    said["exported"] = _digests(out / "exported")
    selected, alone = select(run, where="stamp < '2022-08-08'", by="name"), Pool(1, 0, 1)
    said["selected"] = selected.identity()
    for label, analysis in {
        "s": Stability(ks=(2, 4), rank_pairs=4, by="name"),
        "c": Concentration(ks=(1,), k=4),
    }.items():
        said[f"analysis {label}"] = analyze(analysis, selected, label, alone).numbers
    with Catalog(run) as catalog:
        for name, query in queries().items():
            if query.of == "run" and set(query.needs) <= set(catalog.results):
                said[name] = catalog.query(name).as_json()
        for view in catalog.views:
            if view.startswith(("s_", "c_")):
                said[view] = catalog.sql(f"select * from {view} order by all").as_json()
    sys.stdout.write(json.dumps(said, indent=1))


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
