"""Files that the explorer serves besides pages: images, and results for download."""

import io
import tempfile
from collections.abc import Iterator
from pathlib import Path

from flask import Flask, Response, abort, request, send_file

from fewchannels.errors import FewchannelsError
from fewchannels.runs.images import opened
from fewchannels.runs.sql.question import Question
from fewchannels.runs.sql.writing import csv_texts, write
from fewchannels.views.explore.console import question_of
from fewchannels.views.explore.lookup import Places, place_of, run_of, sweep_of
from fewchannels.views.explore.under_way import UnderWay

_SIDES = (96, 192, 384)


def serve_files(server: Flask, places: Places) -> None:
    """Add their routes.

    Args:
        server: server of the application.
        places: open runs and sweeps.
    """

    @server.get("/picture/<name>/<int:sample>.png")
    def image(name: str, sample: int) -> Response:
        try:
            return _sent(run_of(places, name).image(sample))
        except FewchannelsError as error:
            abort(404, str(error))

    @server.get("/edit/<name>/<int:item>/<int:row>.png")
    def edit(name: str, item: int, row: int) -> Response:
        try:
            images = sweep_of(places, name).item(item)["image"]
            return _sent(images[row] if row < len(images) else None)
        except FewchannelsError as error:
            abort(404, str(error))

    @server.get("/download/<name>/answer.<kind>")
    def download(name: str, kind: str) -> Response:
        if kind not in ("csv", "parquet"):
            abort(404, f"a result can be downloaded as csv or parquet, not {kind!r}.")
        try:
            place = place_of(places, name)
            question = question_of(place, request.args)
            send = _as_csv if kind == "csv" else _as_parquet
            return send(place.under_way, question)
        except FewchannelsError as error:
            abort(400, str(error))


def _sent(data: bytes | None) -> Response:
    """An image, reduced to ``side`` pixels if requested."""
    if data is None:
        abort(404, "There is no such image: its sample failed, or has none.")
    side = request.args.get("side", type=int)
    if side in _SIDES:
        image = opened(data)
        if max(image.size) > side:
            image.thumbnail((side, side))
            buffer = io.BytesIO()
            image.save(buffer, "PNG", compress_level=1)
            data = buffer.getvalue()
    response = Response(data, mimetype="image/png")
    response.headers["Cache-Control"] = "private, max-age=60"
    return response


def _as_csv(under_way: UnderWay, question: Question) -> Response:
    """Stream the rows. If they end early, so does the connection, so that a part is not mistaken for the whole."""

    def pieces() -> Iterator[str]:
        with under_way.asking(question):
            yield from csv_texts(question.batches())

    texts = pieces()
    first = next(texts)  # most errors of a query are known after the first batch

    def sent() -> Iterator[str]:
        yield first
        try:
            yield from texts
        except FewchannelsError as error:
            raise ConnectionAbortedError(str(error)) from None

    return Response(sent(), mimetype="text/csv", headers={"Content-Disposition": "attachment; filename=answer.csv"})


def _as_parquet(under_way: UnderWay, question: Question) -> Response:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "answer.parquet")
        with under_way.asking(question):
            write(path, question.batches)
        file = path.open("rb")  # it stays readable after its name is removed
    return send_file(
        file, mimetype="application/vnd.apache.parquet", as_attachment=True, download_name="answer.parquet"
    )
