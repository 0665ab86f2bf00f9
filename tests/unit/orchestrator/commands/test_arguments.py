"""What the help of a command lists."""

import pytest

from orchestrator.commands.arguments import COMPUTE, fields_of, parser
from orchestrator.experiment.spec import Compute

COMMANDS = parser()._subparsers._group_actions[0].choices  # type: ignore[union-attr]
FLAGS = {field.name: f"--{field.name.replace('_', '-')}" for field in fields_of("Compute")}


@pytest.mark.parametrize("name", ["run", "matrix", *COMPUTE])
def test_a_command_lists_the_flags_that_it_uses_and_accepts_those_of_run(name):
    listed, text = COMPUTE.get(name, tuple(FLAGS)), COMMANDS[name].format_help()
    assert set(listed) <= set(FLAGS) == set(Compute.__dataclass_fields__)
    for field, flag in FLAGS.items():
        assert (f"  {flag} " in text) == (field in listed), f"{name} --help: {flag}"
        assert flag in COMMANDS[name]._option_string_actions
    assert ("have no effect here" in text) == (name in COMPUTE) and "SUPPRESS" not in text


def test_every_command_with_flags_of_run_says_which_it_uses():
    takes = {name for name, command in COMMANDS.items() if "--trial-cpus" in command._option_string_actions}
    assert takes == {"run", "matrix", *COMPUTE}
