"""Broken files, made from whole ones with a seed, and what the command line makes of them.

Run as `python fuzzing.py FOLDER SEED COUNT`: prints a line of JSON for every case that ended in a traceback, took more
than 5 seconds of CPU or asked for more than a gigabyte. Every case runs in a fork of this process, for its imports.
"""

from __future__ import annotations

import copy
import importlib
import json
import os
import pkgutil
import random
import resource
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from click.testing import CliRunner

import raystage
from raystage.cli.main import main

MOST_SECONDS, MOST_BYTES = 5, 10**9
# Values that somebody's software has fallen over: of every kind, at every end, and of none.
ODD_VALUES = (
    None, True, False, 0, 1, -1, 3, 2**31, 2**63, 2**64, 10**6, 10**12, 10**27, 10**300, -(10**18), 0.1, 1e300, 5e-324,
    float("nan"), float("inf"), float("-inf"), "", " ", "0", "1e999", "9e99999999", "9" * 5000, "nan", "null", "yes",
    "1_000", "0x10", "-5K", "1.5B", "é", "\u202etxet", "\ud800", "\x00", "a\x1b[31mb", "\x1b]0;x\x07", "<b>x</b>",
    "../../x", "/etc/passwd", "/dev/zero", "~root", "x" * 10_000, "%s{}", "stages[0]", "s3://k:s@b", "a\nb",
    [], {}, [[]], [None], {"": 0}, {"a": {"b": [1]}}, list(range(100)), [1, "a", None],
)  # fmt: skip
ODD_KEYS = ("", "x", "0", "a.b", "name", "__class__", "é", "\ud800", "<<", "k" * 300, "stages[0]")
ODD_BYTES = (
    b"\0", b"\xff", b"\xef\xbb\xbf", b"{", b"}", b"[" * 2000, b'"', b"\\ud800", b"\n", b"\t", b": ", b"- ", b"&a ",
    b"*a", b"<<: ", b"!!int ", b"!!python/object:os.system ", b"NaN", b"1e999", b"9" * 5000, b"\x1b[2J", b"%", b"|\n",
    b"#",
)  # fmt: skip


# --- mutations -------------------------------------------------------------------------------------


def places_of(value: Any, path: tuple = ()) -> list[tuple]:
    """The path of every value in plain data, the whole among them."""
    found = [path]
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        found += places_of(inner, (*path, key))
    return found


def changed(value: Any, generator: random.Random) -> Any:
    """The data with one to three places of it changed."""
    value = json.loads(json.dumps(value))
    for _ in range(generator.choice((1, 1, 1, 2, 3))):
        path = generator.choice(places_of(value))
        if not path:
            continue
        *way, last = path
        holder = value
        for step in way:
            holder = holder[step]
        _change(holder, last, generator)
    return _odd_value(generator) if generator.random() < 0.01 else value


def _odd_value(generator: random.Random) -> Any:
    """A copy: a later change of it must not reach the table, nor put a value into itself."""
    return copy.deepcopy(generator.choice(ODD_VALUES))


def _change(holder: Any, last: Any, generator: random.Random) -> None:
    match generator.randrange(8):
        case 0:
            del holder[last]
        case 1 if isinstance(holder, dict):
            holder[generator.choice(ODD_KEYS)] = holder.pop(last)
        case 2 if isinstance(holder, dict):
            holder[generator.choice(ODD_KEYS)] = _odd_value(generator)
        case 3:
            other = generator.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
            holder[last], holder[other] = holder[other], holder[last]
        case 4 if isinstance(holder, list):
            holder[last:last] = [holder[last]] * generator.choice((1, 50))
        case 5:
            for _ in range(generator.choice((1, 5, 300))):
                holder[last] = [holder[last]] if generator.random() < 0.5 else {"a": holder[last]}
        case 6 if isinstance(holder[last], int | float) and not isinstance(holder[last], bool):
            holder[last] = holder[last] * generator.choice((-1, 0, 0.5, 2, 1000)) + generator.choice((0, 1, 0.25))
        case _:
            holder[last] = _odd_value(generator)


def damaged(content: bytes, generator: random.Random) -> bytes:
    """The bytes cut, overwritten, put in or doubled in one to four places."""
    for _ in range(generator.choice((1, 1, 2, 4))):
        at = generator.randrange(len(content) + 1)
        upto = min(len(content), at + generator.choice((1, 1, 8, 64)))
        match generator.randrange(5):
            case 0:
                content = content[:at]
            case 1:
                content = content[:at] + content[upto:]
            case 2:
                content = content[:at] + generator.choice(ODD_BYTES) + content[at:]
            case 3:
                content = content[:at] + generator.randbytes(upto - at) + content[upto:]
            case _:
                content = content[:upto] + content[at:]
    return content


def dumped_json(value: Any) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return json.dumps(value).encode()


def dumped_yaml(value: Any) -> bytes:
    """As YAML that a person could have written; what only JSON can say, as JSON, which is YAML, too."""
    try:
        return yaml.safe_dump(value, sort_keys=False, allow_unicode=True).encode()
    except (UnicodeEncodeError, ValueError, RecursionError):
        return json.dumps(value).encode()


# --- what is broken, and who reads it ----------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """A file of the template, and the commands that read it."""

    file: str
    commands: tuple[tuple[str, ...], ...]
    write: Callable[[Any], bytes] = dumped_json
    read: Callable[[bytes], Any] = json.loads


def targets(template: Path) -> list[Target]:
    """Every file of a template as `test_fuzz` makes it; names in commands are from its folder."""
    found = []
    for name, options in (("plain", ("--suggest",)), ("rich", ("--suggest",)), ("sweep", ()), ("asha-sweep", ())):
        file = f"{name}.yaml"
        commands = (("plan", file, *options), ("plan", file, "--json", *options))
        found += [Target(file, commands, dumped_yaml, yaml.safe_load)] * 6
    for file in sorted(path for path in template.rglob("*") if path.is_file()):
        name = str(file.relative_to(template))
        if name.startswith("hf/") and name.endswith(("config.json", "index.json", ".safetensors")):
            grow = ("grow", "--set=num_layers=4", "--explain", "hf")
            found += [Target(name, (grow, ("plan", "--set=init.from=hf", "plain.yaml")))] * 5
        elif name.startswith("store/runs/") and file.suffix in (".json", ".yaml"):
            run = name.split("/")[2]
            found += [
                Target(name, (("report", run), ("status",), ("status", run), *STORE, ("report", run, "other")))
            ] * 3
        elif name.startswith("store/stages/"):
            key = name.split("/")[2]
            found.append(Target(name, (*STORE, ("grow", key, "--set=num_layers=4", "--explain"), ("report", "mine"))))
    return found


STORE = (("store", "list"), ("store", "verify"), ("store", "prune"), ("store", "prune", "--yes"))


def broken(target: Target, content: bytes, generator: random.Random) -> bytes:
    if generator.random() < 0.3 or target.file.endswith(("safetensors", "bin")):
        return damaged(content, generator)
    return target.write(changed(target.read(content), generator))


# --- running it --------------------------------------------------------------------------------------


def run_case(template: Path, scratch: Path, seed: str) -> list[dict[str, Any]]:
    """What is wrong with one case: nothing, mostly."""
    generator = random.Random(seed)
    target = generator.choice(targets(template))
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(template, scratch)
    file = scratch / target.file
    content = broken(target, file.read_bytes(), generator)
    file.write_bytes(content)
    command = list(generator.choice(target.commands))
    if command[0] in ("store", "report", "status", "grow") and "hf" not in command:
        command += ["--store", "store"]
    case = {"seed": seed, "file": target.file, "command": command}
    return [{**case, **found} for found in _in_a_fork(scratch, command)]


def _in_a_fork(folder: Path, command: list[str]) -> list[dict[str, Any]]:
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        _run(folder, command, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read()
    _, status, used = os.wait4(child, 0)
    found = json.loads(said) if said else [{"problem": f"ended with status {status}"}]
    seconds = used.ru_utime + used.ru_stime
    return found + ([{"problem": f"took {seconds:.1f} s"}] if seconds > MOST_SECONDS else [])


def _run(folder: Path, command: list[str], writer: int) -> None:
    """Within the fork: call the command line, say what is wrong, and end."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MOST_BYTES, used + MOST_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(120)  # it may wait, or be slow on a busy machine, but not for ever
    os.chdir(folder)
    done = CliRunner().invoke(main, command)
    found = []
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        lines = traceback.format_exception(done.exception)[-4:]
        found.append({"problem": "traceback", "text": "".join(lines)[-1500:]})
    elif done.exit_code not in (0, 1, 2):
        found.append({"problem": f"exit {done.exit_code}", "text": done.output[-300:]})
    elif done.exit_code == 2 and max(map(len, done.output.splitlines() or [""])) > 2_100:
        found.append({"problem": "a message beyond all bounds", "text": done.output[:300]})
    elif "\x1b" in done.output or "\x07" in done.output:
        found.append({"problem": "control characters", "text": repr(done.output[-300:])})
    os.write(writer, json.dumps(found).encode()[:60_000])
    os._exit(0)


def fuzz(template: Path, scratch: Path, seed: int, count: int) -> None:
    for module in pkgutil.walk_packages(raystage.__path__, "raystage."):  # so that the forks have them
        importlib.import_module(module.name)
    for number in range(count):
        for found in run_case(template, scratch, f"{seed}-{number}"):
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    fuzz(Path(sys.argv[1]), Path(sys.argv[1] + "-scratch"), int(sys.argv[2]), int(sys.argv[3]))
