"""Writes rubbish into every socket that it finds open."""

import os
import stat

CAUGHT_BY = "error crash"


def forward(a, b, *, out):
    for fd in map(int, os.listdir("/proc/self/fd")):
        try:
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                os.write(fd, b"\x00\x00\x00\x10" + b"not a pickle at all " * 3)
        except OSError:
            continue
    out.zero_()
