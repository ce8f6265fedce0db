from __future__ import annotations

import os
import subprocess
import sys

import pytest

import edgellm as package
from edgellm.cli.app import COMMANDS, main


def test_version_is_printed(edgellm):
    assert edgellm("--version").stdout == f"edgellm {package.__version__}\n"


def test_help_lists_every_command(edgellm):
    process = edgellm("--help")
    assert process.returncode == 0
    listed = [line.split()[0] for line in process.stdout.partition("Commands:")[2].splitlines() if line]
    assert listed == list(COMMANDS)


def test_no_arguments_print_the_help(edgellm):
    assert edgellm().stdout == edgellm("--help").stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_commands_help_has_an_example(command, capsys):
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"edgellm {command}" in text.partition("Example")[2]


@pytest.mark.parametrize(
    ("arguments", "phrase"),
    [
        (["rnu"], "No such command 'rnu'"),
        (["run", "--no-such-option", "hi"], "--no-such-option"),
        (["run", "hi", "--threads", "0"], "'--threads'"),
        (["run", "hi", "-n", "-1"], "'-n'"),
        (["run", "hi", "-n", "0"], "'-n'"),
        (["run", "hi", "-n", "many"], "'-n'"),
        (["run", "hi", "--temp", "-1"], "'--temp'"),
        (["run", "hi", "--temp", "nan"], "temp"),
        (["run", "hi", "--temp", "inf"], "temperature"),
        (["run", "hi", "--top-p", "1.5"], "'--top-p'"),
        (["run", "hi", "--seed", "-1"], "'--seed'"),
        (["run", "hi", "--executor", "abacus"], "'abacus'"),
        (["run", "hi", "--logit-bias", "five=1"], "ID=BIAS"),
        (["run", "one", "two", "three"], "quotes"),
        (["run", "--model", "one", "two", "three"], "quotes"),
        (["bench"], "Missing argument 'MODEL'"),
        (["bench", "smollm2", "-p", "0", "-n", "0"], "nothing to measure"),
        (["perplexity", "smollm2"], "Missing argument 'FILE'"),
        (["inspect"], "Missing argument 'MODEL'"),
    ],
)
def test_wrong_usage_is_one_sentence_and_exit_code_2(arguments, phrase, capsys):
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert phrase in output.err
    assert output.err.count("\n") == 1


def test_wrong_usage_of_the_installed_command_is_one_sentence(edgellm, sentence):
    assert "--threads" in sentence(edgellm("run", "hi", "--threads", "0"))


def test_importing_edgellm_imports_nothing_heavy(environment):
    code = (
        "import sys, edgellm\n"
        "heavy = {'numpy', 'numba', 'llvmlite', 'gguf', 'tokenizers', 'jinja2', 'rich', 'typer'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or None)"
    )
    process = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["run", "--help"]])
def test_version_and_help_import_no_numerics(arguments, environment):
    code = (
        "import sys\n"
        "from edgellm.cli.app import main\n"
        f"main({arguments})\n"
        "heavy = {'numpy', 'numba', 'llvmlite', 'gguf', 'tokenizers', 'jinja2'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or None)"
    )
    process = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr


def test_help_takes_less_than_half_a_second_of_processor_time(edgellm):
    def seconds() -> float:
        before = os.times()
        edgellm("--help")
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    assert min(seconds() for _ in range(3)) < 0.5
