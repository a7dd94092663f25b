/* A borg that does nothing but note when it began to run.
 *
 * CLOCK_MONOTONIC in nanoseconds goes to the file "exec" in BORG_BASE_DIR, else HOME: a forced
 * command clears the environment, and one of these it must tell its borg. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

int main(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    char path[4096], text[32];
    const char *base = getenv("BORG_BASE_DIR");
    if (base == NULL)
        base = getenv("HOME");
    snprintf(path, sizeof path, "%s/exec", base != NULL ? base : ".");
    int length = snprintf(text, sizeof text, "%lld\n", at.tv_sec * 1000000000LL + at.tv_nsec);
    int file = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    return file < 0 || write(file, text, (size_t)length) != length;
}
