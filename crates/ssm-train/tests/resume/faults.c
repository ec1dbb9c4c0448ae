/* Preloaded into a process, makes one of its calls that change files below a directory go wrong.
 *
 * FAULT_DIR  the directory
 * FAULT_AT   which call, counted from 1; 0 for none
 * FAULT_KIND kill: the process dies there, a write after half of its bytes
 *            full: there and from there on whatever needs space fails with ENOSPC
 *            fail: there alone, with EIO
 *            term: SIGTERM arrives there
 *            clock: from there on the time of day is FAULT_SHIFT seconds later
 *            thread: the thread of that number, of those with a stack of FAULT_STACK bytes, cannot be started
 * FAULT_LOG  file that gets a line for every such call
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static atomic_long calls;

#define REAL(type, name, ...) ((type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name))

static void path_of(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    path[length < 0 ? 0 : length] = 0;
}

static void log_call(const char *name, const char *path, long number) {
    const char *log = getenv("FAULT_LOG");
    if (!log) return;
    char line[PATH_MAX + 64];
    int length = snprintf(line, sizeof line, "%ld %s %s\n", number, name, path);
    int fd = REAL(int, "open", const char *, int, ...)(log, O_WRONLY | O_CREAT | O_APPEND, 0644);
    if (fd < 0) return;
    ssize_t ignored = REAL(ssize_t, "write", int, const void *, size_t)(fd, line, length);
    (void)ignored;
    close(fd);
}

/* 0: go on. Otherwise the call returns -1 with this error number; -1: a torn write, then death. */
static int fault(const char *name, const char *path, int needs_space) {
    const char *dir = getenv("FAULT_DIR"), *at = getenv("FAULT_AT"), *kind = getenv("FAULT_KIND");
    if (!dir || !at || !kind || strncmp(path, dir, strlen(dir)) != 0) return 0;
    long number = atomic_fetch_add(&calls, 1) + 1, wanted = atol(at);
    log_call(name, path, number);
    if (wanted == 0) return 0;
    if (!strcmp(kind, "full")) return number >= wanted && needs_space ? ENOSPC : 0;
    if (number != wanted) return 0;
    if (!strcmp(kind, "fail")) return EIO;
    if (!strcmp(kind, "term")) raise(SIGTERM);
    if (!strcmp(kind, "kill")) {
        if (!strcmp(name, "write")) return -1;
        kill(getpid(), SIGKILL);
    }
    return 0;
}

#define STOP(name, path, needs_space)                      \
    do {                                                   \
        int error = fault(name, path, needs_space);        \
        if (error) { errno = error; return -1; }           \
    } while (0)

ssize_t write(int fd, const void *bytes, size_t length) {
    char path[PATH_MAX];
    path_of(fd, path);
    int error = fault("write", path, 1);
    if (error == -1) {
        ssize_t ignored = REAL(ssize_t, "write", int, const void *, size_t)(fd, bytes, length / 2);
        (void)ignored;
        kill(getpid(), SIGKILL);
    }
    if (error) { errno = error; return -1; }
    return REAL(ssize_t, "write", int, const void *, size_t)(fd, bytes, length);
}

#define ON_FD(name, needs_space)                           \
    int name(int fd) {                                     \
        char path[PATH_MAX];                               \
        path_of(fd, path);                                 \
        STOP(#name, path, needs_space);                    \
        return REAL(int, #name, int)(fd);                  \
    }
ON_FD(fsync, 1)
ON_FD(fdatasync, 1)

#define TRUNCATE(name, type)                               \
    int name(int fd, type length) {                        \
        char path[PATH_MAX];                               \
        path_of(fd, path);                                 \
        STOP("ftruncate", path, 0);                        \
        return REAL(int, #name, int, type)(fd, length);    \
    }
TRUNCATE(ftruncate, off_t)
TRUNCATE(ftruncate64, off64_t)

#define ON_PATH(name)                                      \
    int name(const char *path) {                           \
        STOP(#name, path, 0);                              \
        return REAL(int, #name, const char *)(path);       \
    }
ON_PATH(unlink)
ON_PATH(rmdir)

int mkdir(const char *path, mode_t mode) {
    STOP("mkdir", path, 1);
    return REAL(int, "mkdir", const char *, mode_t)(path, mode);
}

int rename(const char *from, const char *to) {
    STOP("rename", from, 0);
    return REAL(int, "rename", const char *, const char *)(from, to);
}

int unlinkat(int dir, const char *name, int flags) {
    char path[2 * PATH_MAX] = "";
    if (name[0] != '/' && dir != AT_FDCWD) {
        path_of(dir, path);
        strcat(path, "/");
    }
    strcat(path, name);
    STOP("unlinkat", path, 0);
    return REAL(int, "unlinkat", int, const char *, int)(dir, name, flags);
}

#define OPEN(name)                                                              \
    int name(const char *path, int flags, ...) {                                \
        va_list list;                                                           \
        va_start(list, flags);                                                  \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(list, mode_t) : 0; \
        va_end(list);                                                           \
        if (flags & O_CREAT) STOP("create", path, 1);                           \
        return REAL(int, #name, const char *, int, ...)(path, flags, mode);     \
    }
OPEN(open)
OPEN(open64)

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = REAL(int, "clock_gettime", clockid_t, struct timespec *)(clock, now);
    const char *kind = getenv("FAULT_KIND"), *at = getenv("FAULT_AT"), *shift = getenv("FAULT_SHIFT");
    if (clock == CLOCK_REALTIME && kind && at && shift && !strcmp(kind, "clock") && calls >= atol(at))
        now->tv_sec += atol(shift);
    return result;
}

int pthread_create(pthread_t *thread, const pthread_attr_t *how, void *(*run)(void *), void *with) {
    static atomic_long threads;
    const char *kind = getenv("FAULT_KIND"), *at = getenv("FAULT_AT"), *stack = getenv("FAULT_STACK");
    size_t size = 0;
    if (how) pthread_attr_getstacksize(how, &size);
    if (kind && at && stack && !strcmp(kind, "thread") && size == strtoul(stack, NULL, 10) &&
        atomic_fetch_add(&threads, 1) + 1 == atol(at))
        return EAGAIN;
    return REAL(int, "pthread_create", pthread_t *, const pthread_attr_t *, void *(*)(void *), void *)(
        thread, how, run, with);
}
