"""The type checker that `conftest` has the tensor code run under."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int will do where a float is asked for
