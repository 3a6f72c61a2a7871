/* Preloaded into a broker: while the file named by $SLOW_DISK_FLAG exists, every fdatasync takes as
   many milliseconds as the file says, as on a disk that stalls. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

int fdatasync(int file) {
    static int (*next)(int);
    if (next == NULL)
        next = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    const char *name = getenv("SLOW_DISK_FLAG");
    FILE *flag = name == NULL ? NULL : fopen(name, "r");
    if (flag != NULL) {
        long milliseconds = 0;
        if (fscanf(flag, "%ld", &milliseconds) == 1 && milliseconds > 0) {
            struct timespec pause = {milliseconds / 1000, milliseconds % 1000 * 1000000L};
            nanosleep(&pause, NULL);
        }
        fclose(flag);
    }
    return next(file);
}
