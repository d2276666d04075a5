"""Command line: from runs to a page of statistics and pictures. See --help."""

import shlex
import sys
import time
from pathlib import Path

from reporting.runs import Run, read_folders, read_mongo
from reporting.study import assemble
from utils.arguments import Parser, say
from utils.errors import UserError
from utils.mongo import locate

HELP = """Compare runs: tables on the screen (markdown), pictures and one page in a folder.

  python src/report.py RESULTS ... [--out=DIR] [--metric=NAME] [--tests=N] [--worst=X] [--best=X]

  RESULTS             folders of results (results), or of single runs (results/sacred/1); or a MongoDB without a
                      password (mongodb://host:port/database); or the word MONGO_URL, for the one that this variable
                      of the environment, or the file that MONGO_URL_FILE names, says
  --out=DIR           where report.html, report.md, the pictures (PNG, SVG) and every test of every run (tests.csv)
                      go (results/report)
  --metric=NAME       what runs are scored by (test_battle_won_mean where it is logged, else
                      test_normalised_return_mean, else test_return_mean)
  --tests=N           a run's score is the mean of its last N tests (1)
  --worst, --best=X   what 0 and 1 stand for where the metric is no share, for optimality gaps and for scores over
                      several tasks; TASK=X for one task; may be repeated

Examples
  python src/report.py results
  python src/report.py results/sweeps/lbf --metric=test_return_mean --worst=0 --best=1
  python src/report.py results --best=3m=20 --best=2s3z=20 --worst=0 --metric=test_return_mean
  python src/report.py mongodb://localhost:27017/sacred --out=report

Runs of one configuration and one environment are seeds of the same; what else differs between them is named. Runs that
failed, were stopped or still train, seeds that are missing, budgets and tests that differ: all is said on the page.

Exit code: 0 done, 2 bad input.
"""


def main(argv: list[str]) -> int:
    """Run the command line; returns the exit code."""
    if {"-h", "--help"} & set(argv[1:]):
        print(HELP, end="")
        return 0
    parser = Parser()
    parser.add_argument("results", nargs="+")
    parser.add_argument("--out", type=Path, default=Path("results/report"))
    parser.add_argument("--metric")
    parser.add_argument("--tests", type=int, default=1)
    parser.add_argument("--worst", action="append", default=[])
    parser.add_argument("--best", action="append", default=[])
    started = time.monotonic()
    try:
        options = parser.parse_args(argv[1:])
        if options.tests < 1:
            raise UserError(f"--tests={options.tests}: give a number of tests, 1 or more")
        runs, unreadable = read(options.results)
        bounds = (_bounds("--worst", options.worst), _bounds("--best", options.best))
        study = assemble(runs, unreadable, options.metric, options.tests, *bounds)
        from reporting import page, pictures  # matplotlib loads only when there is something to draw

        figures = pictures.draw_all(study)
        text = page.as_markdown(study)
        options.out.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            for kind in ("png", "svg"):
                (options.out / f"{name}.{kind}").write_bytes(page.picture(figure, kind))
        (options.out / "report.md").write_text(text)
        (options.out / "tests.csv").write_text(page.as_csv(study))
        command = shlex.join(["python", "src/report.py", *argv[1:]])
        (options.out / "report.html").write_text(page.as_html(study, figures, command))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: --out={options.out} cannot be written ({error}); name another folder", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    say(text)
    print(f"Read in {time.monotonic() - started:.1f} s: {options.out / 'report.html'}", file=sys.stderr)
    return 0


def read(places: list[str]) -> tuple[list[Run], list[str]]:
    """All runs, and a line for each record that cannot be read.

    Raises:
        UserError: there are none.
    """
    folders = [place for place in places if not _is_server(place)]
    parts = [read_folders(folders)] if folders else []
    parts += [read_mongo(locate(None if place == "MONGO_URL" else place)) for place in places if _is_server(place)]
    runs = [run for part, _ in parts for run in part]
    unreadable = [line for _, part in parts for line in part]
    if not runs:
        raise UserError(f"none of the records can be read; the first: {unreadable[0]}")
    return runs, unreadable


def _is_server(place: str) -> bool:
    return place == "MONGO_URL" or place.startswith(("mongodb://", "mongodb+srv://"))


def _bounds(option: str, given: list[str]) -> dict[str, float]:
    found = {}
    for text in given:
        task, _, number = text.rpartition("=")
        try:
            found[task] = float(number)
        except ValueError:
            raise UserError(f"{option}={text}: {number!r} is no number; write {option}=0 or {option}=TASK=0") from None
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv))
