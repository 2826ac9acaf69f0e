"""Help that helps: every command has examples, and the examples are right."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys

import pytest

import streamvos
from bench.door import COMMANDS as BENCHES
from streamvos.cli import COMMANDS as COMMAND_LINES

GROUPS = ["train", "weights", "engines", "ctl", "fleet", "keys", "export", "bench"]
COMMANDS = [
    "run",
    "serve",
    "watch",
    "console",
    "ros2",
    "pick",
    "stage",
    "demo",
    "eval",
    "score",
    "doctor",
    *GROUPS,
]
COMMANDS += ["train tvos", "weights list", "weights inspect", "weights convert"]
COMMANDS += [f"engines {verb}" for verb in ("build", "list", "prune", "export")]
COMMANDS += [f"ctl {verb}" for verb in ("status", "annotate", "forget", "pause", "resume", "stop")]
COMMANDS += [f"fleet {verb}" for verb in ("status", "add", "remove", "drain")]
COMMANDS += ["keys new", "keys show", "export coco", *(f"bench {name}" for name in BENCHES)]


def example_lines(text: str) -> list[str]:
    return re.findall(r"^ +(streamvos .*)$", text.partition("Examples:")[2], re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_examples_one_a_line(call, command):
    answer = call(*command.split(), "--help")
    assert answer.code == 0
    assert answer.err == ""
    examples = example_lines(answer.out)
    assert examples
    assert all(line.startswith(f"streamvos {command}") for line in examples)
    assert call(*command.split(), "-h").out == answer.out


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_use_options_that_exist(call, command):
    for line in example_lines(call(*command.split(), "--help").out):
        words = shlex.split(line)[1:]
        own = words[: 2 if words[0] in GROUPS else 1]
        known = call(*own, "--help").out
        for option in (word for word in words if word.startswith("-")):
            assert re.search(rf"(?<!\S){option}(?=[\s,])", known), f"{line}: {option}"


@pytest.mark.parametrize(
    "command", [name for name in COMMANDS if name not in [*GROUPS, "stage", "bench report"]]
)
def test_every_command_offers_json(call, command):
    assert "--json [FILE]" in call(*command.split(), "--help").out


def test_nothing_given_shows_the_commands(call):
    answer = call()
    assert answer.code == 0
    assert call("--help").out == answer.out
    for command in [*COMMANDS[:8], *GROUPS]:
        # one line each, none of them cut off
        assert re.search(rf"^  {command} +\S.*[.]$", answer.out, re.MULTILINE)
    assert "..." not in answer.out.partition("Commands:")[2].partition("Examples:")[0]
    for group in GROUPS:
        assert call(group).out == call(group, "--help").out


def test_the_version_is_the_package_s(call):
    assert call("--version").out == f"streamvos {streamvos.__version__}\n"


def test_the_help_names_the_methods_that_there_are():
    from streamvos.cli.options import BUNDLED_NAMES, METHOD_NAMES
    from streamvos.methods import METHODS
    from streamvos.weights import BUNDLED

    assert tuple(METHODS) == METHOD_NAMES
    assert set(BUNDLED_NAMES) == set(BUNDLED)


@pytest.mark.parametrize("name", COMMAND_LINES)
def test_a_command_s_line_in_the_list_is_the_first_of_its_help(call, name):
    text = call(name, "--help").out.partition("\n\n")[2]
    assert COMMAND_LINES[name] == " ".join(text.partition("\n\n")[0].split())


def test_help_imports_nothing_heavy():
    heavy = ["torch", "cv2", "av", "numpy", "PIL", "zmq", "rich"]
    for command in ["", "run", "demo", "eval", "score", "ctl", "keys", "train", "weights"]:
        assert not imported(heavy, *command.split(), "--help")
    for command in ["serve", "stage", "watch"]:
        assert not imported(["torch", "cv2", "av"], command, "--help")


def imported(modules: list[str], *arguments: str) -> set[str]:
    """Which of some modules a call of the command line imports."""
    code = "import json, sys; from streamvos.cli import main; main(sys.argv[1:]); "
    code += "sys.stderr.write(json.dumps(list(sys.modules)))"
    command = [sys.executable, "-c", code, *arguments]
    answer = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=True)
    return set(json.loads(answer.stderr)) & set(modules)
