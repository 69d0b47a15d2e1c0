"""The type checker of the tests: beartype, with an int allowed where a float is expected, as PEP 484 has it."""

from beartype import BeartypeConf, beartype

checker = beartype(conf=BeartypeConf(is_pep484_tower=True))
