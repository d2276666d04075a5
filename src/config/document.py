"""Writes docs/configuration.md from the yaml files, their comments and the schema.

`python src/config/document.py` writes it; with `--check` it only says whether the file is out of date.
"""

import argparse
import difflib
import re
import sys
from pathlib import Path
from typing import NamedTuple

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the import root, when this file is run as a script

from config.schema import (
    BLOCKS,
    ENV_ARGS,
    FOLDER,
    Run,
    Section,
    allowed,
    config_files,
    lineage,
    read_yaml,
    shown,
)

PAGE = FOLDER.parents[1] / "docs" / "configuration.md"
DEFAULTS = FOLDER / "default.yaml"

INTRODUCTION = """# Configuration

This page is generated: edit the comments in `src/config`, then run `python src/config/document.py`.

## How a run is configured

```
python src/main.py --config=greedy_qmix --env-config=smax with env_args.map_name=8m gate.mode=hard seed=1
```

Four sources are merged key by key, and a later one wins:

1. `src/config/default.yaml`;
2. the environment's file, `src/config/envs/smax.yaml` for `--env-config=smax`;
3. the algorithm's file, `src/config/algs/greedy_qmix.yaml` for `--config=greedy_qmix`;
4. what follows `with` on the command line.

Both flags also take the path of a yaml file of your own, as `--config=mine.yaml`. Such a file holds only what differs
from the defaults, or, with `extends: greedy_qmix` as its first key, what differs from that algorithm's file.

Everything is checked before anything starts. An unknown key, a wrong type or a value out of range ends the run with
one line that names the key, the file that set it, and what is allowed.

| to write | on the command line | in yaml |
|---|---|---|
| a key of a block | `gate.mode=hard` | `mode: hard` below `gate:` |
| nothing | `mixer=None` | `mixer: null` |
| a truth value | `double_q=False` | `double_q: False` |
| a small number | `lr=5e-4` | `lr: 5.0e-4` (yaml reads `5e-4` as text) |
| a large integer | `t_max=2000000` | `t_max: 2000000` |
| text that looks like a number | `label='"7"'` | `label: "7"` |

`env_args.seed: null` means the run's `seed`.

## Your own classes and their keys

Keys that name a class (`env`, `runner`, `mac`, `agent`, `action_selector`, `learner`, `mixer`, `critic`) take a
built-in name or `package.module:ClassName`. The module is found from the current folder or on `PYTHONPATH`.

Keys that your classes read go below `plugin`, where any key is allowed that is not one of the project's:

```
python src/main.py --config=qmix --env-config=smax with learner=mine.learners:MyLearner plugin.my_weight=0.3
```

The class finds the value as `args.my_weight`, and as `args.plugin["my_weight"]`. `args` cannot be written to.
An environment of your own is called with `**env_args`; any key is allowed there, and `seed` is always given.

## Defaults

What `src/config/default.yaml` sets. Steps are environment steps, summed over all environments.
"""


class Entry(NamedTuple):
    """A line `key: value  # comment` of a yaml file."""

    value: str
    comment: str
    line: int


def read_entries(path: Path) -> dict[str, Entry]:
    """The entries of a yaml file by their dotted keys, one level of blocks deep, as they are written there."""
    text = path.read_text(encoding="utf-8")
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    lines = text.splitlines()
    entries = {}

    def walk(block: yaml.MappingNode, prefix: str) -> None:
        for key, value in block.value:
            is_block = isinstance(value, yaml.MappingNode) and not value.flow_style
            end = key.end_mark if is_block else value.end_mark
            comment = lines[end.line][end.column :].partition("#")[2].strip()
            written = " ".join(text[value.start_mark.index : value.end_mark.index].split())
            entries[prefix + key.value] = Entry("" if is_block else written, comment, key.start_mark.line)
            if is_block and not prefix:
                walk(value, f"{key.value}.")

    assert isinstance(root, yaml.MappingNode)
    walk(root, "")
    return entries


def heading_comment(path: Path) -> str:
    """The comment lines that a file starts with."""
    comment = re.match(r"(?:#.*\n)*", path.read_text(encoding="utf-8"))
    return " ".join(line.lstrip("# ") for line in comment[0].splitlines()) if comment else ""


def page() -> str:
    """The text of docs/configuration.md."""
    files = {kind: config_files(kind) for kind in ("algs", "envs")}
    defaults = read_entries(DEFAULTS)
    parts = [INTRODUCTION, *_default_tables(defaults)]
    introduction = (
        "They exist only in the files that head their columns; an empty cell: as in the file that is extended."
    )
    parts.append(f"## Blocks of algorithms\n\n{introduction}\n")
    parts += [_block_table(name, name, model, files["algs"].values()) for name, model in BLOCKS.items()]
    parts.append("## Arguments of environments\n")
    for env, model in ENV_ARGS.items():
        owners = [
            path for path in files["envs"].values() if read_yaml(lineage("env-config", path)[0]).get("env") == env
        ]
        parts.append(_block_table(f"env_args of {env}", "env_args", model, owners))
    for title, kind in (("What the algorithms set", "algs"), ("What the environments set", "envs")):
        parts.append(f"## {title}\n\nThe keys of their blocks are in the tables above.\n")
        parts += [_file_table(path, defaults) for path in files[kind].values()]
    return "\n".join(parts)


def _default_tables(defaults: dict[str, Entry]) -> list[str]:
    """The top level, a table for each heading `# --- title` of default.yaml."""
    lines = DEFAULTS.read_text(encoding="utf-8").splitlines()
    titles = {number: line[5:].strip() for number, line in enumerate(lines) if line.startswith("# ---")}
    tables = []
    for start, title in titles.items():
        end = min((number for number in titles if number > start), default=len(lines))
        rows = [
            (f"`{key}`", f"`{entry.value}`", _allowed(Run, key), entry.comment)
            for key, entry in defaults.items()
            if start < entry.line < end
        ]
        tables.append(f"### {title.capitalize()}\n\n" + _table(("key", "default", "allowed", "meaning"), rows))
    return tables


def _block_table(title: str, block: str, model: type[Section], paths) -> str:
    """The keys of a block, with a column of values for each file that has it."""
    owners = {path.stem: entries for path in paths if block in (entries := read_entries(path))}
    ancestors_first = dict(sorted(owners.items(), key=lambda owner: "extends" in owner[1]))
    rows = []
    for key in model.model_fields:
        found = [entries.get(f"{block}.{key}") for entries in owners.values()]
        values = ["" if entry is None else f"`{entry.value}`" if entry.value else "see the file" for entry in found]
        comment = _joint_comment({name: entries.get(f"{block}.{key}") for name, entries in ancestors_first.items()})
        rows.append((f"`{block}.{key}`", *values, _allowed(model, key), comment))
    meaning = next((entries[block].comment for entries in ancestors_first.values() if entries[block].comment), "")
    introduction = f"{meaning[:1].upper()}{meaning[1:]}.\n\n" if meaning else ""
    return f"### {title}\n\n{introduction}" + _table(("key", *owners, "allowed", "meaning"), rows)


def _joint_comment(entries: dict[str, Entry | None]) -> str:
    """What the files say of one key: the first comment, and behind it whatever another file says differently."""
    said: dict[str, str] = {}
    for name, entry in entries.items():
        if entry and entry.comment:
            said.setdefault(entry.comment, name)
    return "; ".join(comment if k == 0 else f"{name}: {comment}" for k, (comment, name) in enumerate(said.items()))


def _file_table(path: Path, defaults: dict[str, Entry]) -> str:
    """The top-level keys that a file sets."""
    rows = [
        (f"`{key}`", f"`{entry.value}`", entry.comment or defaults[key].comment)
        for key, entry in read_entries(path).items()
        if "." not in key and key not in (*BLOCKS, "env_args", "extends")
    ]
    introduction = f"{heading_comment(path)}\n\n" if heading_comment(path) else ""
    if parent := read_yaml(path).get("extends"):
        introduction += f"Extends `{parent}`: keys that it leaves out are those of that file.\n\n"
    table = _table(("key", "value", "meaning"), rows) if rows else "Only keys of its blocks.\n"
    return f"### {shown(path)}\n\n{introduction}{table}"


def _allowed(model: type[Section], key: str) -> str:
    return allowed(model, key) if key in model.model_fields else "a block of keys"


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    cells = [header, ("---",) * len(header), *rows]
    return "".join("| " + " | ".join(map(_escape, row)) + " |\n" for row in cells)


def _escape(cell: str) -> str:
    return re.sub(r"\||<(?=\w)", r"\\\g<0>", cell)  # a bar would end the cell, and <token> be taken for HTML


def main(argv: list[str] | None = None, target: Path = PAGE) -> int:
    """Write the page, or with --check return 1 and print the difference if it is out of date."""
    parser = argparse.ArgumentParser(description="Write docs/configuration.md from the yaml files and the schema.")
    parser.add_argument("--check", action="store_true", help="only say whether the page is out of date")
    check = parser.parse_args(argv).check
    new = page()
    if not check:
        target.write_text(new, encoding="utf-8")
        return 0
    old = target.read_text(encoding="utf-8") if target.exists() else ""
    difference = difflib.unified_diff(old.splitlines(), new.splitlines(), str(target.name), "generated", lineterm="")
    for line in difference:
        print(line)
    if old != new:
        print("out of date: run `python src/config/document.py`", file=sys.stderr)
    return int(old != new)


if __name__ == "__main__":
    sys.exit(main())
