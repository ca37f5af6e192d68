"""The line protocol of a side: one JSON request a line on stdin, one JSON reply a line on stdout.

Needs nothing but the standard library: peers run it in environments of their own.
"""

import importlib.metadata
import json
import os
import resource
import sys
import time
import traceback


def serve(**handlers):
    """Answers requests until stdin ends.

    A request {"do": NAME, ...} calls the handler NAME with the other fields; the reply is {"ok": what it returns}, or
    {"error": a traceback}. Output of libraries goes to stderr. Two requests need no handler: `peak_memory`, the most
    bytes that this process has had in memory, and `versions`, of the packages in `names`. An answer with
    `seconds` gets `cpu_seconds` too: the processor time of all threads, to which other processes add nothing.
    """
    handlers = {"peak_memory": _peak_memory, "versions": _versions, **handlers}
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        start = time.process_time()
        try:
            answer = handlers[request.pop("do")](**request)
            if isinstance(answer, dict) and "seconds" in answer:
                answer["cpu_seconds"] = time.process_time() - start
            reply = {"ok": answer}
        except Exception:  # the other side says it
            reply = {"error": traceback.format_exc()}
        print(json.dumps(reply), file=replies, flush=True)


def _peak_memory():
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024


def _versions(names):
    return {name: importlib.metadata.version(name) for name in names}
