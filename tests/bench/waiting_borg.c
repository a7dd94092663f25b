/* A borg that says it runs, by the file "waiting" in BORG_BASE_DIR (else HOME), and ends when the
 * file "end" appears there, or after a minute. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

int main(void)
{
    char waiting[4096], end[4096];
    const char *base = getenv("BORG_BASE_DIR");
    if (base == NULL)
        base = getenv("HOME");
    snprintf(waiting, sizeof waiting, "%s/waiting", base != NULL ? base : ".");
    snprintf(end, sizeof end, "%s/end", base != NULL ? base : ".");
    int file = open(waiting, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (file < 0)
        return 2;
    struct timespec pause = {0, 10 * 1000 * 1000};
    for (int tries = 0; tries < 6000 && access(end, F_OK) != 0; tries++)
        nanosleep(&pause, NULL);
    return 0;
}
