"""What the import hook puts on every function of vitscale; as in the type checker, an int will do for a float."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
