"""What can be known of a GPU kernel without a GPU: launches, resources, counts; and with one, compute-sanitizer."""

ARCHS = ("sm_80", "sm_90a", "sm_100a")
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
