"""A model as a list of calls over memory that is planned once."""
