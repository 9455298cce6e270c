"""Running queries: a page can cancel its own, and the server all of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

from fewchannels.errors import FewchannelsError, InputError
from fewchannels.runs.sql.question import Question


class UnderWay:
    """Running queries of one run or sweep, by page."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._questions: dict[Question, str | None] = {}
        self._has_ended = False

    @contextmanager
    def asking(self, question: Question, page: str | None = None) -> Iterator[None]:
        """Inside the context, the query can be stopped; the page's earlier query is stopped first.

        Raises:
            FewchannelsError: the explorer is about to end.
        """
        if page is not None:
            self.cancel(page, "another query replaced it.")
        with self._lock:
            if self._has_ended:
                raise FewchannelsError("the explorer is shutting down; start it again.")
            self._questions[question] = page
        try:
            yield
        finally:
            with self._lock:
                del self._questions[question]

    def cancel(self, page: str, why: str) -> bool:
        """Stop a page's query; return whether there was one."""
        with self._lock:
            found = [question for question, of in self._questions.items() if of == page]
        for question in found:
            question.stop(InputError(why))
        return bool(found)

    def end(self) -> None:
        """Stop all queries, and accept no more."""
        with self._lock:
            self._has_ended = True
            found = list(self._questions)
        for question in found:
            question.stop()
