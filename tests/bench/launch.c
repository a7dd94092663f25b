/* launch UID GID PROGRAM [ARGUMENT...]: run PROGRAM once and say when.
 *
 * Prints "STARTED ENDED STATUS CPU": CLOCK_MONOTONIC in nanoseconds just before the process is made
 * and just after its end was collected, the wait status, and the processor time in microseconds of
 * the process and all it waited for. UID and GID apply to this process first, so that the figures
 * hold nothing of the change. */
#define _GNU_SOURCE
#include <grp.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
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
    struct rusage used;
    long long started = now();
    if (posix_spawn(&pid, arguments[3], NULL, NULL, arguments + 3, environ) != 0
        || wait4(pid, &status, 0, &used) != pid) {
        perror(arguments[3]);
        return 71;
    }
    long long ended = now();
    long long seconds = used.ru_utime.tv_sec + used.ru_stime.tv_sec;
    printf("%lld %lld %d %lld\n", started, ended, status,
           seconds * 1000000 + used.ru_utime.tv_usec + used.ru_stime.tv_usec);
    return 0;
}
