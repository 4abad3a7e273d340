"""The type checker behind the shape checks: whole numbers are fine where floats are asked for, as Python has it."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
