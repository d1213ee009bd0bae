/* A disk that fails, or a process that dies, at the k-th call that changes files below a folder.
 *
 * Preloaded into the process from which the tests of faults fork their runs; each run arms it for itself. Python,
 * SQLite, Arrow and Rust all reach the disk through these functions of the C library, so one count covers them and the
 * product needs no hook. Not covered: stores into mapped memory, which no call announces (SQLite's -shm file is the
 * only such file here, and it is rebuilt after a crash).
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum mode { OFF, COUNT, SIGNAL, TEAR, FAIL_ONCE, FAIL_ON };
enum kind { GROWTH, TIDYING };

static char folder[PATH_MAX];
static size_t folder_length;
static enum mode mode;
static long victim; /* the number of the call that meets the fault, from 1 */
static int fault;   /* the signal sent, or what a failing call leaves in errno */
static long calls;

/* Arms this process: the `number`-th call below `path` meets `how`, with a signal or an error number. */
void faulty_disk_arm(const char *path, int how, long number, int what) {
    folder_length = strlen(strncpy(folder, path, sizeof folder - 1));
    victim = number;
    fault = what;
    calls = 0;
    mode = how;
}

/* Gives the number of calls since. */
long faulty_disk_calls(void) { return calls; }

/* Counts a call on a path; says whether it is to fail. Removing and renaming is what a full disk still does. */
static int fails(const char *path, enum kind kind) {
    if (mode == OFF || strncmp(path, folder, folder_length) != 0) return 0;
    long number = __atomic_add_fetch(&calls, 1, __ATOMIC_SEQ_CST);
    if (mode == COUNT || number < victim || (mode != FAIL_ON && number > victim)) return 0;
    if (mode == SIGNAL || mode == TEAR) return kill(getpid(), fault);
    if (kind == TIDYING && (fault == ENOSPC || fault == EDQUOT)) return 0;
    errno = fault;
    return 1;
}

static void resolve(int at, const char *path, char *full) {
    full[0] = 0;
    if (path[0] != '/') {
        char link[64];
        snprintf(link, sizeof link, at == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", at);
        ssize_t length = readlink(link, full, PATH_MAX);
        full[length < 0 ? 0 : length] = 0;
        strncat(full, "/", 2);
    }
    strncat(full, path, PATH_MAX);
}

static int fails_at(int at, const char *path, enum kind kind) {
    if (mode == OFF) return 0;
    int before = errno;
    char full[2 * PATH_MAX + 2];
    resolve(at, path, full);
    errno = before;
    return fails(full, kind);
}

static int fails_on(int file) { return fails_at(file, "", GROWTH); }

/* Whether half of the write at hand is to reach the disk before the fault: the process dies in it, or the disk is full. */
static int is_torn(int file) {
    if (!(mode == TEAR || (mode == FAIL_ON && fault == ENOSPC)) || calls + 1 != victim) return 0;
    char full[2 * PATH_MAX + 2];
    resolve(file, "", full);
    return strncmp(full, folder, folder_length) == 0;
}

#define REAL(name, ...)                                                       \
    static int (*real)(__VA_ARGS__);                                          \
    if (!real) real = (int (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)
#define REAL_WRITE(name, ...)                                                 \
    static ssize_t (*real)(__VA_ARGS__);                                      \
    if (!real) real = (ssize_t(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

/* -- bytes ------------------------------------------------------------------------------------------------------- */

#define TORN_OR_FAILED(half)                                                  \
    if (is_torn(file) && size > 1) {                                          \
        ssize_t done = half;                                                  \
        if (mode == TEAR) kill(getpid(), fault);                              \
        calls++;                                                              \
        victim++; /* a short write now, the error with the next one */        \
        return done;                                                          \
    }                                                                         \
    if (fails_on(file)) return -1

ssize_t write(int file, const void *bytes, size_t size) {
    REAL_WRITE("write", int, const void *, size_t);
    TORN_OR_FAILED(real(file, bytes, size / 2));
    return real(file, bytes, size);
}

static ssize_t write_at(int file, const void *bytes, size_t size, off_t at) {
    REAL_WRITE("pwrite64", int, const void *, size_t, off_t);
    TORN_OR_FAILED(real(file, bytes, size / 2, at));
    return real(file, bytes, size, at);
}
ssize_t pwrite(int file, const void *bytes, size_t size, off_t at) { return write_at(file, bytes, size, at); }
ssize_t pwrite64(int file, const void *bytes, size_t size, off_t at) { return write_at(file, bytes, size, at); }

ssize_t writev(int file, const struct iovec *parts, int count) {
    REAL_WRITE("writev", int, const struct iovec *, int);
    return fails_on(file) ? -1 : real(file, parts, count);
}

#define ON_FILE(name)                                                         \
    int name(int file) {                                                      \
        REAL(#name, int);                                                     \
        return fails_on(file) ? -1 : real(file);                              \
    }
ON_FILE(fsync)
ON_FILE(fdatasync)

static int cut(int file, off_t size) {
    REAL("ftruncate64", int, off_t);
    return fails_on(file) ? -1 : real(file, size);
}
int ftruncate(int file, off_t size) { return cut(file, size); }
int ftruncate64(int file, off_t size) { return cut(file, size); }

/* -- names ------------------------------------------------------------------------------------------------------- */

static int open_at(int at, const char *path, int flags, mode_t permissions) {
    REAL("openat64", int, const char *, int, ...);
    int changes = flags & (O_CREAT | O_TRUNC);
    return changes && fails_at(at, path, GROWTH) ? -1 : real(at, path, flags, permissions);
}

#define OPEN(name, at, ...)                                                   \
    int name(__VA_ARGS__, int flags, ...) {                                   \
        va_list rest;                                                         \
        va_start(rest, flags);                                                \
        mode_t permissions = flags & O_CREAT ? va_arg(rest, mode_t) : 0;      \
        va_end(rest);                                                         \
        return open_at(at, path, flags, permissions);                         \
    }
OPEN(open, AT_FDCWD, const char *path)
OPEN(open64, AT_FDCWD, const char *path)
OPEN(openat, at, int at, const char *path)
OPEN(openat64, at, int at, const char *path)

int mkdir(const char *path, mode_t permissions) {
    REAL("mkdir", const char *, mode_t);
    return fails_at(AT_FDCWD, path, GROWTH) ? -1 : real(path, permissions);
}

int symlink(const char *target, const char *path) {
    REAL("symlink", const char *, const char *);
    return fails_at(AT_FDCWD, path, GROWTH) ? -1 : real(target, path);
}

int rename(const char *from, const char *to) {
    REAL("rename", const char *, const char *);
    return fails_at(AT_FDCWD, to, TIDYING) ? -1 : real(from, to);
}

int unlink(const char *path) {
    REAL("unlink", const char *);
    return fails_at(AT_FDCWD, path, TIDYING) ? -1 : real(path);
}

int rmdir(const char *path) {
    REAL("rmdir", const char *);
    return fails_at(AT_FDCWD, path, TIDYING) ? -1 : real(path);
}

int unlinkat(int at, const char *path, int flags) {
    REAL("unlinkat", int, const char *, int);
    return fails_at(at, path, TIDYING) ? -1 : real(at, path, flags);
}
