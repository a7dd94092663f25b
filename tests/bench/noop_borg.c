/* A borg that does nothing but note when it began to run.
 *
 * "TIME CPU" goes to the file "exec" in BORG_BASE_DIR, else HOME: a forced command clears the
 * environment, and one of these it must tell its borg. TIME is CLOCK_MONOTONIC, CPU the processor
 * time of the parent and of this process so far, both in nanoseconds. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static long long read_clock(clockid_t clock)
{
    struct timespec at = {0, 0};
    clock_gettime(clock, &at);
    return at.tv_sec * 1000000000LL + at.tv_nsec;
}

int main(void)
{
    long long now = read_clock(CLOCK_MONOTONIC);
    long long cpu = read_clock(CLOCK_PROCESS_CPUTIME_ID);
    clockid_t parent;
    if (clock_getcpuclockid(getppid(), &parent) == 0)
        cpu += read_clock(parent);
    char path[4096], text[64];
    const char *base = getenv("BORG_BASE_DIR");
    if (base == NULL)
        base = getenv("HOME");
    snprintf(path, sizeof path, "%s/exec", base != NULL ? base : ".");
    int length = snprintf(text, sizeof text, "%lld %lld\n", now, cpu);
    int file = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    return file < 0 || write(file, text, (size_t)length) != length;
}
