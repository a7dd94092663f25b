/* A borg that was taken over and will not end: chains of processes that fork and end, on and on,
   each link in a session of its own after PAUSE microseconds. Compiled with SECONDS, CHAINS, PAUSE
   and MARKER. */
#include <fcntl.h>
#include <time.h>
#include <unistd.h>

int main(void)
{
    time_t end = time(NULL) + SECONDS;
    for (int chain = 0; chain < CHAINS; chain++) {
        if (fork() != 0)
            continue;
        setsid();
        while (time(NULL) < end) {
            if (PAUSE > 0)
                usleep(PAUSE);
            if (fork() > 0)
                _exit(0);
        }
        /* Whoever comes so far was not ended. */
        close(open(MARKER, O_CREAT | O_WRONLY, 0600));
        _exit(0);
    }
    /* The chains grow before the program that starts them ends. */
    usleep(200 * 1000);
    return 2;
}
