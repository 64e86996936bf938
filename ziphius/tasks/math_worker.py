"""The process that runs math-verify: one JSON line in, two out. Started by `mathematics.py` as a script.

It answers `"ready"` once loaded; then, for each job {answer, gold, limit_s}, `"taken"` when it begins and
{score, reason} when it is done. Whoever reads holds the watch; this process only sees to it that no job, however it
hangs, outlives a reader that died, and that none eats the machine's memory.
"""

import json
import os
import resource
import signal
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))  # a source tree that is not installed
from ziphius.tasks.math_check import check

MEMORY_BYTES = 4 << 30
GRACE_S = 10  # beyond the limit, for a reader that no longer watches


def main() -> None:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not land among the replies

    def reply(value: object) -> None:
        print(json.dumps(value), file=replies, flush=True)

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    check("x", "y")  # loads math-verify, sympy and the grammar before anyone's watch runs
    reply("ready")
    for line in sys.stdin:
        job = json.loads(line)
        signal.alarm(int(job["limit_s"]) + GRACE_S)
        reply("taken")
        try:
            score, reason = check(job["answer"], job["gold"])
        except Exception as error:
            score, reason = None, f"math-verify failed: {type(error).__name__}: {' '.join(str(error).split())[:120]}"
        reply({"score": score, "reason": reason})
        signal.alarm(0)


if __name__ == "__main__":
    main()
