"""Text, its tokens, and shards of them on disk."""

VAL_FRACTION = 0.1
