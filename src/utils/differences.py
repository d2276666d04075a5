"""Whether two configurations are of the same run."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

# What may differ where a run goes on.
FREE = (
    "resume",
    "checkpoint_interval",
    "keep_checkpoints",
    "max_hours",
    "local_results_path",
    "on_nonfinite",
    "render",
)
# Keys that came later, with what runs did before.
LATER = {
    "replay_dtype": "float32",
    "precision": "float32",
    "compile": False,
    "seeds": 1,
    "overlap": False,
    "heads.normalise_loss": False,
}


def differences(then: Mapping[str, Any], now: Mapping[str, Any], free: Sequence[str] = FREE) -> list[str]:
    """Where a configuration is not what it was, in words; keys in `free` are not looked at."""

    def flat(values: Mapping, prefix: str = "") -> dict:
        found = {}
        for key, value in values.items():
            found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        return found

    before, after = LATER | flat(then), LATER | flat(json.loads(json.dumps(now)))
    missing = "not set"
    return [
        f"{key} {before.get(key, missing)!r} (now {after.get(key, missing)!r})"
        for key in sorted(before.keys() | after.keys())
        if key.partition(".")[0] not in free and before.get(key, missing) != after.get(key, missing)
    ]
