"""Runs the README's quick start as its reader does: with an installed package, in an empty folder.

    python -I tests/check_wheel.py README.md

The quick start is the ```python blocks of the first section that has one, run one after the other in one namespace. The
run must write no file, and must show nothing but what the quick start itself prints: a line or a warning from anyone
else fails it. Nothing but the standard library is imported here; `-I` keeps the checkout off the path.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

FENCE_OR_HEADING = re.compile(r"^```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^```$|^#{1,6} ", re.MULTILINE | re.DOTALL)

# What the blocks print goes to a file, so that whatever still reaches stdout or stderr was printed by someone else.
RUNNER = """
import sys, titans_ts
source, printed, *_ = sys.argv[1:]
assert titans_ts.__file__.startswith(sys.prefix), f"{titans_ts.__file__} is not the installed package"
with open(printed, "w", encoding="utf-8") as page:
    show = lambda *values, **options: print(*values, **{"file": page, **options})
    exec(compile(open(source, encoding="utf-8").read(), "README.md", "exec"), {"__name__": "__main__", "print": show})
"""


def quick_start(readme: str) -> str:
    """The python blocks of the first section that has any; lines keep their numbers, so that errors name them."""
    source = ""
    for match in FENCE_OR_HEADING.finditer(readme):
        if match["language"] == "python":
            source += "\n" * (readme.count("\n", 0, match.start("code")) - source.count("\n")) + match["code"]
        elif match["code"] is None and source:
            break
    if not source:
        raise SystemExit("README.md has no ```python block: there is no quick start to run")
    return source


def run(source: str) -> None:
    with tempfile.TemporaryDirectory() as outer:
        control, empty = Path(outer, "control"), Path(outer, "empty")
        control.mkdir()
        empty.mkdir()
        script, printed = control / "quick_start.py", control / "printed.txt"
        script.write_text(source, encoding="utf-8")
        # Home and caches lie in the empty folder: writing to any of them is seen. Temporary files do not, because torch
        # makes an empty cache folder there when it is first used.
        environment = {
            name: value for name, value in os.environ.items() if name not in ("TITANS_TS_DATA", "XDG_CACHE_HOME")
        }
        environment |= {"HOME": str(empty), "TMPDIR": str(control)}
        command = [sys.executable, "-I", "-c", RUNNER, str(script), str(printed)]
        done = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"the quick start failed:\n{done.stdout}{done.stderr}")
        if done.stdout or done.stderr:
            raise SystemExit(f"the quick start showed more than it prints:\n{done.stdout}{done.stderr}")
        written = sorted(str(path.relative_to(empty)) for path in empty.rglob("*"))
        if written:
            raise SystemExit(f"the quick start wrote {', '.join(written)}")
        print(printed.read_text(encoding="utf-8"), end="")


if __name__ == "__main__":
    run(quick_start(Path(sys.argv[1]).read_text(encoding="utf-8")))
    print("the quick start ran from the installed wheel, wrote nothing and showed only what it prints")
