"""The grammar of a whole answer: reasoning, then calls of tools or what the request's own says."""

import hashlib
import threading
from collections import OrderedDict

from broker.wire import Grammar, Job
from worker.engines.base import InvalidRequest
from worker.engines.transformers.guidance.answer_rules import answer_grammars
from worker.engines.transformers.guidance.grammars import Grammars
from worker.engines.transformers.guidance.guide import Guide
from worker.engines.transformers.text.chat_format import ChatFormat

MAX_REFUSED = 1024  # grammars that are not compiled a second time


class AnswerGrammars:
    """Used by all intake threads."""

    def __init__(self, grammars: Grammars, chat_format: ChatFormat) -> None:
        self._grammars = grammars
        self._format = chat_format
        self._refused: OrderedDict[bytes, InvalidRequest] = OrderedDict()
        self._lock = threading.Lock()

    def start(self, job: Job) -> Guide | None:
        """Begins the answer to `job`; None if it may be anything. Raises as `Grammars.start`.

        A tool that is not strict, whose schema cannot be kept, gets any object instead.
        """
        wanted = answer_grammars(job, self._format)
        refusal: InvalidRequest | None = None
        for grammar in wanted.grammars:
            try:
                return self._start(grammar)
            except InvalidRequest as error:
                refusal = refusal or error
        if refusal is not None and not wanted.optional:
            raise self._of_a_tool(job) or refusal
        return None

    def _of_a_tool(self, job: Job) -> InvalidRequest | None:
        """The refusal of the first strict tool whose schema cannot be kept, with its name."""
        for tool in job.tools:
            if not tool.strict or not tool.parameters:
                continue
            try:
                self._start(Grammar(kind="json_schema", source=tool.parameters))
            except InvalidRequest as error:
                return InvalidRequest(f"tools: {tool.name}: {error}")
        return None

    def _start(self, grammar: Grammar) -> Guide:
        key = hashlib.sha256(f"{grammar.kind}\0{grammar.source}".encode()).digest()
        with self._lock:
            refusal = self._refused.get(key)
        if refusal is not None:
            raise InvalidRequest(str(refusal))
        try:
            return self._grammars.start(grammar)
        except InvalidRequest as error:
            with self._lock:
                self._refused[key] = error
                if len(self._refused) > MAX_REFUSED:
                    self._refused.popitem(last=False)
            raise
