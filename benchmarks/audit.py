"""Look up what requirements files pin among known vulnerabilities, with pip-audit, where the network allows.

  python benchmarks/audit.py requirements.txt ...

Exit code 1 if there are any; without a network, or without pip-audit, it says that it was skipped, and ends with 0.
"""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence

PATIENCE = 300.0  # seconds for all look-ups


def main(files: Sequence[str]) -> int:
    if importlib.util.find_spec("pip_audit") is None:
        print("pip-audit is not installed: the audit is skipped")
        return 0
    command = [sys.executable, "-m", "pip_audit", "--format=json", "--progress-spinner=off", "--timeout=10"]
    # What is pinned, not what that brings along: resolving it would download gigabytes.
    command += ["--disable-pip", "--no-deps", *(f"--requirement={file}" for file in files)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
        found = json.loads(done.stdout)["dependencies"]
    except (subprocess.TimeoutExpired, ValueError, KeyError) as error:
        said = done.stderr.strip().splitlines() if isinstance(error, ValueError | KeyError) else []
        print(f"The audit is skipped, its database cannot be asked: {said[-1] if said else error}")
        return 0
    unknown = [one["name"] for one in found if "skip_reason" in one]
    if len(unknown) == len(found):
        print("The audit is skipped, its database answers nothing: no network?")
        return 0
    bad = [(one, fault) for one in found for fault in one.get("vulns", ())]
    for one, fault in bad:
        mended = ", ".join(fault["fix_versions"]) or "no version"
        print(f"error: {one['name']}=={one['version']} has the vulnerability {fault['id']}, mended in {mended}")
    print(f"{len(found)} requirements audited, {len(bad)} known vulnerabilities, not found: {unknown or 'none'}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
