#!/usr/bin/env python3
"""Refuses source files of more than 600 lines, text that names a folder of somebody's machine, and
files too large for a repository. Looks at what git tracks or would track, or at the whole tree."""
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = {".h", ".cc", ".cu", ".cuh", ".py", ".sh", ".cmake", ".bash"}
TEXT = SOURCE | {".md", ".txt", ".json", ".yml", ".html", ".js", ".css", ""}
MAX_LINES = 600
MAX_BYTES = 1 << 20
LARGE = ("models/",)  # the shipped model
# Absolute paths of a home, a workplace or a temporary folder: examples use relative ones.
PRIVATE = re.compile(r"(?<![\w./-])/(?:work|home|root|Users|mnt)/[\w.-]+")
IGNORED = {".git", "build", ".deps", "engines", "engine_outputs", "__pycache__"}


def files():
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT,
                            capture_output=True, text=True) if (ROOT / ".git").exists() else None
    if listed and listed.returncode == 0:
        names = [Path(name) for name in listed.stdout.split("\0") if name]
    else:
        names = [p.relative_to(ROOT) for p in ROOT.rglob("*")]
    return sorted(n for n in names if (ROOT / n).is_file() and not IGNORED & set(n.parts))


def problems(name):
    path = ROOT / name
    if path.stat().st_size > MAX_BYTES and not str(name).startswith(LARGE):
        yield f"{name}: {path.stat().st_size} bytes, at most {MAX_BYTES} are wanted"
    if name.suffix not in TEXT or str(name).startswith(LARGE):
        return
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError:
        return
    if name.suffix in SOURCE and len(lines) - 1 > MAX_LINES:
        yield f"{name}: {len(lines) - 1} lines, at most {MAX_LINES} are wanted; split it by subject"
    for number, line in enumerate(lines, 1):
        for match in PRIVATE.finditer(line):
            yield f"{name}:{number}: '{match.group()}' is a path of one machine; use a relative one"


def main():
    names = files()
    found = [p for name in names for p in problems(name)]
    print("\n".join(found) or f"{len(names)} files: none too long, too large or tied to one machine")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
