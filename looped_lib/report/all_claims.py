"""All claims of the report, in the order of its rows."""

from looped_lib.report import claims_addition, claims_beyond, claims_ouro, claims_recipes

ALL = (*claims_addition.CLAIMS, *claims_ouro.CLAIMS, *claims_beyond.CLAIMS, *claims_recipes.CLAIMS)
