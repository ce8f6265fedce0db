"""Programs: a model as a flat list of typed ops. `ops` defines them, `program` holds them."""

from edgellm.program.program import KvSlot, Program
from edgellm.program.show import format_program, to_dict
from edgellm.program.validate import validate

__all__ = ["KvSlot", "Program", "format_program", "to_dict", "validate"]
