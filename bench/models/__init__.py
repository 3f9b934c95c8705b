"""A model as a list of calls over memory that is planned once."""

RECOMPUTABLE = ("gelu", "layernorm")  # outputs that backward can make again from what is kept anyway
