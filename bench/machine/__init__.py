"""This machine: what it is, its devices and their clocks, its ceilings, what is seen inside it."""
