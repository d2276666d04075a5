"""Command line: runs from their folders into MongoDB. See --help."""

import sys
from pathlib import Path

from utils.arguments import Parser
from utils.errors import UserError
from utils.mongo import FAILURES, Copy, Word, errors, locate, reason
from utils.record import find_runs

HELP = """Bring runs from their folders into MongoDB, where Omniboard and others read them.

  python src/sync_runs.py [RESULTS ...] [--mongo SERVER]

  RESULTS             folders of results (results), or of single runs (results/sacred/1)
  --mongo SERVER      host:port:database, as for src/main.py's -m; without it the environment says where:
                      MONGO_URL=mongodb://user:password@host:port/database, or MONGO_URL_FILE=a file that holds this

Only what differs is written, so that it can be repeated at any time, also while runs are under way: to add what was
recorded while MongoDB was away, runs that were killed, and runs of machines that never reached it. A run keeps its
number there, wherever its folder lies; a copy of a folder is the same run. Nothing is removed but what a run itself
has replaced.

Exit code: 0 done, 1 MongoDB does not answer or a folder cannot be read, 2 bad input.
"""


def main(argv: list[str]) -> int:
    """Run the command line; returns the exit code."""
    if {"-h", "--help"} & set(argv[1:]):
        print(HELP, end="")
        return 0
    parser = Parser()
    parser.add_argument("results", nargs="*", default=["results"])
    parser.add_argument("--mongo")
    try:
        options = parser.parse_args(argv[1:])
        server = locate(options.mongo)
        folders = [run for path in options.results for run in find_runs(Path(path))]
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    unreadable = 0
    counts: dict[Word, int] = {"new": 0, "changed": 0, "unchanged": 0}
    try:
        database = server.open()
        for folder in folders:
            try:
                number, word = Copy(database, folder).sync()
            except errors.PyMongoError:
                raise
            except (*FAILURES, KeyError) as error:
                print(
                    f"error: {folder}: not a whole record of a run ({type(error).__name__}: {error})", file=sys.stderr
                )
                unreadable += 1
                continue
            counts[word] += 1
            if word != "unchanged":
                print(f"{folder} is run {number} ({word})")
    except errors.PyMongoError as error:
        print(f"error: {server} {reason(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(f"{server}: {', '.join(f'{count} runs {word}' for word, count in counts.items())}")
    return 1 if unreadable else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
