"""The wall clock as some processes see it, set by a test; the machine's own stays."""

from __future__ import annotations

import subprocess
from pathlib import Path

CLOCK = """\
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static char path[4096];

__attribute__((constructor)) static void note(void)
{
    snprintf(path, sizeof path, "%s", getenv("CLOCK_OFFSET_FILE"));
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    static int (*real)(clockid_t, struct timespec *);
    if (real == NULL)
        real = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, now);
    FILE *file = clock == CLOCK_REALTIME ? fopen(path, "re") : NULL;
    long offset = 0;
    if (file != NULL && fscanf(file, "%ld", &offset) == 1)
        now->tv_sec += offset;
    if (file != NULL)
        fclose(file);
    return result;
}

time_t time(time_t *into)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (into != NULL)
        *into = now.tv_sec;
    return now.tv_sec;
}
"""


class Clock:
    """A wall clock for what is started with ``environment`` and no more privilege than its caller.

    Its files are made in ``directory``, where those processes must be able to read them.
    """

    def __init__(self, directory: Path) -> None:
        self._offset = directory / "offset"
        self._library = directory / "clock.so"
        self.jump_to(0)
        subprocess.run(
            ["gcc", "-shared", "-fPIC", "-O1", "-x", "c", "-", "-o", self._library],
            input=CLOCK,
            text=True,
            check=True,
        )
        self._library.chmod(0o755)

    @property
    def environment(self) -> dict[str, str]:
        """What makes a process see it."""
        return {"LD_PRELOAD": str(self._library), "CLOCK_OFFSET_FILE": str(self._offset)}

    def words(self) -> list[str]:
        """The words that stand before a command which is to see it."""
        return ["/usr/bin/env", *(f"{name}={value}" for name, value in self.environment.items())]

    def jump_to(self, seconds: int) -> None:
        """So far before or after the true time."""
        draft = self._offset.with_suffix(".new")
        draft.write_text(str(seconds))
        draft.chmod(0o644)
        draft.rename(self._offset)
