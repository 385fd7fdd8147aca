/*
 * canary STAMPS CONSOLE: a writer that can be held to account.
 *
 * Every 50 ms it writes one record to STAMPS (a file on a volume, or a raw block device), makes it durable, and only then
 * repeats the same record in CONSOLE, a file that is not on the volume. So what CONSOLE says was acknowledged by the
 * volume, whatever becomes of the volume. A write that fails is told in CONSOLE and tried again for ever: it is a
 * program that does not notice, as databases are.
 *
 * A record is one line of 128 bytes: "ok NODE POD-UID NUMBER MONOTONIC-NS WALL-NS" and spaces. Failures are
 * "error NODE POD-UID NUMBER MONOTONIC-NS WALL-NS ERRNO" in CONSOLE only. NODE_NAME and POD_UID come from the environment.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { RECORD = 128, SECTOR = 512, SLOTS = 4096, PAUSE_NS = 50 * 1000 * 1000 };

static void end(int signal) { (void)signal; _exit(0); }

static long long now(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (long long)t.tv_sec * 1000000000 + t.tv_nsec;
}

static const char *of(const char *name) {
    const char *value = getenv(name);
    return value && *value ? value : "-";
}

/* Fills the record up with spaces and ends the line. */
static void record(char *to, const char *word, long number, int error) {
    int length = snprintf(to, RECORD, "%s %s %s %ld %lld %lld", word, of("NODE_NAME"), of("POD_UID"), number,
                          now(CLOCK_MONOTONIC), now(CLOCK_REALTIME));
    if (error) length += snprintf(to + length, RECORD - length, " %d", error);
    memset(to + length, ' ', RECORD - length);
    to[RECORD - 1] = '\n';
}

/* The first free place of a device: one sector per record, in a ring. */
static long first_free(int volume) {
    static char sector[SECTOR] __attribute__((aligned(SECTOR)));
    long slot;
    for (slot = 0; slot < SLOTS; slot++)
        if (pread(volume, sector, SECTOR, (off_t)slot * SECTOR) != SECTOR || memcmp(sector, "ok ", 3)) break;
    return slot;
}

int main(int count, char **arguments) {
    static char sector[SECTOR] __attribute__((aligned(SECTOR)));
    struct stat kind;
    long number, slot = 0;
    int volume = -1, console, raw = 0;

    signal(SIGTERM, end);
    signal(SIGINT, end);
    if (count != 3) return 2;
    console = open(arguments[2], O_WRONLY | O_CREAT | O_APPEND, 0644);
    if (console < 0) return 3;
    for (number = 0;; number++) {
        struct timespec pause = {0, PAUSE_NS};
        int error = 0;
        if (volume < 0) {
            raw = !stat(arguments[1], &kind) && S_ISBLK(kind.st_mode);
            volume = raw ? open(arguments[1], O_RDWR | O_DIRECT) : open(arguments[1], O_WRONLY | O_CREAT | O_APPEND, 0644);
            if (volume >= 0 && raw) slot = first_free(volume);
        }
        memset(sector, 0, SECTOR);
        record(sector, "ok", number, 0);
        if (volume < 0)
            error = errno;
        else if (raw && pwrite(volume, sector, SECTOR, (off_t)(slot++ % SLOTS) * SECTOR) != SECTOR)
            error = errno ? errno : EIO;
        else if (!raw && write(volume, sector, RECORD) != RECORD)
            error = errno ? errno : EIO;
        else if (fsync(volume))
            error = errno;
        if (error) record(sector, "error", number, error);
        if (write(console, sector, RECORD) != RECORD) return 4;
        nanosleep(&pause, NULL);
    }
}
