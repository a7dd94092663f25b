/* launch UID GID PROGRAM [ARGUMENT...]: run PROGRAM once and say when.
 *
 * Prints "STARTED ENDED STATUS": CLOCK_MONOTONIC in nanoseconds just before the process is made
 * and just after its end was collected, and the wait status. UID and GID apply to this process
 * first, so that the time holds nothing of the change. */
#define _GNU_SOURCE
#include <grp.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static long long now(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec * 1000000000LL + at.tv_nsec;
}

int main(int count, char **arguments)
{
    if (count < 4) {
        fprintf(stderr, "usage: launch UID GID PROGRAM [ARGUMENT...]\n");
        return 64;
    }
    uid_t uid = (uid_t)strtoul(arguments[1], NULL, 10);
    gid_t gid = (gid_t)strtoul(arguments[2], NULL, 10);
    if (getuid() == 0 && (setgroups(0, NULL) || setresgid(gid, gid, gid) || setresuid(uid, uid, uid))) {
        perror("launch");
        return 71;
    }
    pid_t pid;
    int status;
    long long started = now();
    if (posix_spawn(&pid, arguments[3], NULL, NULL, arguments + 3, environ) != 0
        || waitpid(pid, &status, 0) != pid) {
        perror(arguments[3]);
        return 71;
    }
    printf("%lld %lld %d\n", started, now(), status);
    return 0;
}
