"""One variant on trial: the truth, the checks, the race, and the session that puts them together."""
