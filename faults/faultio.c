/* Faults of a disk, for one process and one SQLite file: preloaded with LD_PRELOAD, it numbers the calls that change the
 * file or its journals, and has one of them, or a row of them, go wrong. `faults/shim.py` compiles it and sets:
 *
 *   FAULTIO_FILE   path of the database; calls on it, on -wal and on -journal count (-shm is memory, not disk)
 *   FAULTIO_AT     the call that goes wrong, from 1; 0 for none
 *   FAULTIO_HOW    kill: SIGKILL before the call; torn: half of it, then SIGKILL; a number: it fails with this errno
 *   FAULTIO_WHILE  path; as long as this file exists, the later calls fail too
 *   FAULTIO_COUNTS path of 16 bytes, shared with the test: calls seen, calls that went wrong
 *   FAULTIO_TAPE   path; every call is written there with its data, in the order in which they were made
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

enum kind { NONE = 0, MAIN = 'm', WAL = 'w', JOURNAL = 'j', NOTE = 'n', FOLDER = 'f' };

static const char *file, *how, *lasting;
static char folder[4096];
static long at;
static int64_t none[2], *counts = none;
static int tape = -1;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;

static const char *given(const char *name) {
    const char *value = getenv(name);
    return value && *value ? value : NULL;
}

/* Straight to the kernel, so that nothing of our own is counted. */
static int raw_open(const char *path, int flags) { return (int)syscall(SYS_openat, AT_FDCWD, path, flags, 0600); }

/* Also called by a fork that has its own settings. */
void faultio_begin(void) {
    file = given("FAULTIO_FILE");
    how = given("FAULTIO_HOW");
    lasting = given("FAULTIO_WHILE");
    at = given("FAULTIO_AT") ? atol(given("FAULTIO_AT")) : 0;
    if (file) {
        snprintf(folder, sizeof folder, "%s", file);
        char *slash = strrchr(folder, '/');
        if (slash) *slash = 0;
    }
    if (given("FAULTIO_COUNTS")) {
        int fd = raw_open(given("FAULTIO_COUNTS"), O_RDWR);
        void *shared = fd < 0 ? MAP_FAILED : mmap(NULL, 16, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (shared != MAP_FAILED) counts = shared;
    }
    if (given("FAULTIO_TAPE")) tape = raw_open(given("FAULTIO_TAPE"), O_WRONLY | O_CREAT | O_APPEND);
}

static enum kind kind_of(const char *path) {
    if (!file) return NONE;
    size_t length = strlen(file);
    if (!strcmp(path, folder)) return FOLDER;
    if (strncmp(path, file, length)) return NONE;
    const char *rest = path + length;
    if (!*rest) return MAIN;
    if (!strcmp(rest, "-wal")) return WAL;
    if (!strcmp(rest, "-journal")) return JOURNAL;
    return strcmp(rest, "-note") ? NONE : NOTE;
}

static enum kind kind_of_fd(int fd) {
    char link[64], path[4096];
    pthread_once(&once, faultio_begin);
    if (!file) return NONE;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0) return NONE;
    path[length] = 0;
    return kind_of(path);
}

/* Count one call; 1 if it is to go wrong. The folder and the test's own notes never do. */
static int goes_wrong(enum kind kind) {
    if (kind == FOLDER || kind == NOTE) return 0;
    long number = ++counts[0];
    if (!at || !how || number < at) return 0;
    if (number > at && !(lasting && syscall(SYS_faccessat, AT_FDCWD, lasting, F_OK) == 0)) return 0;
    counts[1]++;
    return 1;
}

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

static void record(char what, enum kind kind, int64_t offset, const void *data, int64_t size) {
    if (tape < 0) return;
    char head[18] = {what, (char)kind};
    memcpy(head + 2, &offset, 8);
    memcpy(head + 10, &size, 8);
    if (syscall(SYS_write, tape, head, sizeof head) != sizeof head) abort();
    if (data && syscall(SYS_write, tape, data, size) != size) abort();
}

static void real(void **function, const char *name) {
    if (!*function) *function = dlsym(RTLD_NEXT, name);
}

static ssize_t store(int fd, const void *data, size_t size, off_t offset, enum kind kind) {
    pthread_mutex_lock(&turn);
    ssize_t done;
    if (goes_wrong(kind)) {
        if (!strcmp(how, "kill")) die();
        if (!strcmp(how, "torn")) {
            syscall(SYS_pwrite64, fd, data, size / 2, offset);
            die();
        }
        errno = atoi(how);
        done = -1;
    } else {
        done = syscall(SYS_pwrite64, fd, data, size, offset);
        if (done > 0) record('W', kind, offset, data, done);
    }
    pthread_mutex_unlock(&turn);
    return done;
}

#define PWRITE(NAME)                                                                            \
    ssize_t NAME(int fd, const void *data, size_t size, off_t offset) {                         \
        enum kind kind = kind_of_fd(fd);                                                        \
        return kind ? store(fd, data, size, offset, kind) : syscall(SYS_pwrite64, fd, data, size, offset); \
    }
PWRITE(pwrite)
PWRITE(pwrite64)

ssize_t write(int fd, const void *data, size_t size) {
    enum kind kind = kind_of_fd(fd);
    if (!kind) return syscall(SYS_write, fd, data, size);
    off_t offset = kind == NOTE ? 0 : lseek(fd, 0, SEEK_CUR);
    ssize_t done = store(fd, data, size, offset, kind);
    if (done > 0 && kind != NOTE) lseek(fd, done, SEEK_CUR);
    return done;
}

/* The other calls: done under the same lock, so that the tape has them in their order. */
#define CHANGE(CALL, WHAT, KIND, OFFSET)                        \
    pthread_mutex_lock(&turn);                                  \
    int done;                                                   \
    if (goes_wrong(KIND)) {                                     \
        if (!strcmp(how, "kill") || !strcmp(how, "torn")) die(); \
        errno = atoi(how);                                      \
        done = -1;                                              \
    } else {                                                    \
        done = CALL;                                            \
        if (done == 0) record(WHAT, KIND, OFFSET, NULL, 0);     \
    }                                                           \
    pthread_mutex_unlock(&turn);                                \
    return done;

#define SYNC(NAME)                                         \
    int NAME(int fd) {                                     \
        static int (*next)(int);                           \
        real((void **)&next, #NAME);                       \
        enum kind kind = kind_of_fd(fd);                   \
        if (!kind) return next(fd);                        \
        CHANGE(next(fd), 'S', kind, 0)                     \
    }
SYNC(fsync)
SYNC(fdatasync)

#define TRUNCATE(NAME)                                     \
    int NAME(int fd, off_t size) {                         \
        static int (*next)(int, off_t);                    \
        real((void **)&next, #NAME);                       \
        enum kind kind = kind_of_fd(fd);                   \
        if (!kind) return next(fd, size);                  \
        CHANGE(next(fd, size), 'T', kind, size)            \
    }
TRUNCATE(ftruncate)
TRUNCATE(ftruncate64)

int unlink(const char *path) {
    static int (*next)(const char *);
    real((void **)&next, "unlink");
    pthread_once(&once, faultio_begin);
    enum kind kind = kind_of(path);
    if (!kind) return next(path);
    CHANGE(next(path), 'U', kind, 0)
}
