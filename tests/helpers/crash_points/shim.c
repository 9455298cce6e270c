/* Counts the calls that change a folder, and strikes at the n-th one; preloaded into a process and all that it starts.
 *
 * CRASH_STATE    file of a `struct state`, shared by every process and its counter therefore too.
 * CRASH_LOG      file that gets one line for each call: its name, and the path below the folder.
 * CRASH_FOLDERS  the folders that are watched, absolute, separated by colons.
 *
 * What is watched: what opens a file for writing or makes one, what writes, makes durable, cuts, renames, links and
 * deletes. Calls are told apart by path, or by the path of the descriptor that they are given.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum how { NOTHING, KILL_BEFORE, KILL_AFTER, TORN, REFUSE, FULL };
enum kind { OTHER, WRITE, TAKES_ROOM };

struct state {
    _Atomic uint64_t count; /* calls so far */
    uint64_t at;            /* the one to strike at; 0 for none */
    uint64_t how;           /* enum how */
    uint64_t session;       /* whose processes die together; 0: the process that calls, alone */
};

static struct state *state;
static int log_file = -1;
static char folders[8][PATH_MAX];
static int n_folders;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("CRASH_STATE"), *log = getenv("CRASH_LOG"), *watched = getenv("CRASH_FOLDERS");
    if (!path || !log || !watched) return;
    int file = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC, 0);
    if (file < 0) return;
    void *mapped = mmap(NULL, sizeof(struct state), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (mapped == MAP_FAILED) return;
    log_file = (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
    for (; n_folders < 8 && *watched; n_folders++) {
        size_t length = strcspn(watched, ":");
        if (length >= PATH_MAX) return;
        memcpy(folders[n_folders], watched, length);
        watched += length + (watched[length] == ':');
    }
    state = mapped;
}

/* Where a path is below a watched folder; NULL where it is elsewhere. */
static const char *below(const char *path) {
    for (int i = 0; i < n_folders; i++) {
        size_t length = strlen(folders[i]);
        if (!strncmp(path, folders[i], length) && (!path[length] || path[length] == '/'))
            return path[length] ? path + length + 1 : ".";
    }
    return NULL;
}

static const char *of_descriptor(int descriptor, char *buffer) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, buffer, PATH_MAX - 1);
    if (length < 0) return NULL;
    buffer[length] = 0;
    return buffer;
}

static const char *watched_descriptor(int descriptor, char *buffer) {
    if (!state) return NULL;
    int saved = errno;
    const char *path = of_descriptor(descriptor, buffer);
    errno = saved;
    return path ? below(path) : NULL;
}

static const char *watched_path(int folder, const char *path, char *buffer) {
    if (!state || !path) return NULL;
    if (path[0] == '/') return below(path);
    int saved = errno;
    const char *base = folder == AT_FDCWD ? getcwd(buffer, PATH_MAX) : of_descriptor(folder, buffer);
    errno = saved;
    if (!base || strlen(buffer) + strlen(path) + 2 > PATH_MAX) return NULL;
    strcat(strcat(buffer, "/"), path);
    return below(buffer);
}

/* Ends the process that calls, or every process of the session, this one last. */
static void strike(void) {
    DIR *all = state->session ? opendir("/proc") : NULL;
    for (struct dirent *entry; all && (entry = readdir(all));) {
        pid_t pid = atoi(entry->d_name);
        if (pid > 1 && pid != getpid() && getsid(pid) == (pid_t)state->session) kill(pid, SIGKILL);
    }
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

/* Counts a call: what shall become of it. */
static enum how counted(const char *name, const char *path, enum kind kind) {
    uint64_t number = atomic_fetch_add(&state->count, 1) + 1;
    char line[PATH_MAX + 64];
    int length = snprintf(line, sizeof line, "%s %s\n", name, path);
    if (log_file >= 0 && syscall(SYS_write, log_file, line, (size_t)length) < 0) return NOTHING;
    if (!state->at || number < state->at) return NOTHING;
    if (state->how == FULL) return kind == OTHER ? NOTHING : FULL; /* a disk that is full stays so */
    if (number > state->at) return NOTHING;
    if (state->how == KILL_BEFORE || (state->how == TORN && kind != WRITE)) strike();
    return state->how;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

/* Calls through, unless the call is not to happen; `result` is its value. */
#define THROUGH(type, label, where, kind, call)                                                                       \
    const char *where_ = (where);                                                                                     \
    enum how how_ = where_ ? counted(label, where_, kind) : NOTHING;                                                  \
    if (how_ == REFUSE || how_ == FULL) {                                                                             \
        errno = how_ == FULL ? ENOSPC : EIO;                                                                          \
        return (type)FAILED;                                                                                          \
    }                                                                                                                 \
    type result = (call);                                                                                             \
    if (how_ == KILL_AFTER) strike();                                                                                 \
    return result;

#define FAILED -1

static int writes(int flags) { return (flags & O_ACCMODE) != O_RDONLY || flags & (O_CREAT | O_TRUNC); }

/* Whether a call makes a file, which takes room; to open one that is there takes none. */
static enum kind making(int folder, const char *path) {
    int saved = errno, is_there = path && !faccessat(folder, path, F_OK, AT_SYMLINK_NOFOLLOW);
    errno = saved;
    return is_there ? OTHER : TAKES_ROOM;
}

#define OPEN(name, real)                                                                                              \
    int name(const char *path, int flags, ...) {                                                                      \
        char buffer[PATH_MAX];                                                                                        \
        va_list rest;                                                                                                 \
        va_start(rest, flags);                                                                                        \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;                                       \
        va_end(rest);                                                                                                 \
        THROUGH(int, "open", writes(flags) ? watched_path(AT_FDCWD, path, buffer) : NULL,                             \
                making(AT_FDCWD, path), REAL(real)(path, flags, mode))                                                                        \
    }
OPEN(open, open)
OPEN(open64, open64)

#define OPENAT(name)                                                                                                  \
    int name(int folder, const char *path, int flags, ...) {                                                          \
        char buffer[PATH_MAX];                                                                                        \
        va_list rest;                                                                                                 \
        va_start(rest, flags);                                                                                        \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;                                       \
        va_end(rest);                                                                                                 \
        THROUGH(int, "open", writes(flags) ? watched_path(folder, path, buffer) : NULL, making(folder, path),         \
                REAL(name)(folder, path, flags, mode))                                                                \
    }
OPENAT(openat)
OPENAT(openat64)


#define WRITE_CALL(name, parameters, arguments, torn)                                                                 \
    ssize_t name parameters {                                                                                         \
        char buffer[PATH_MAX];                                                                                        \
        const char *where = watched_descriptor(file, buffer);                                                         \
        enum how how = where ? counted("write", where, WRITE) : NOTHING;                                              \
        if (how == REFUSE || how == FULL) {                                                                           \
            errno = how == FULL ? ENOSPC : EIO;                                                                       \
            return -1;                                                                                                \
        }                                                                                                             \
        ssize_t result = how == TORN ? (torn) : REAL(name) arguments;                                                 \
        if (how == KILL_AFTER || how == TORN) strike();                                                               \
        return result;                                                                                                \
    }

/* The first half of what a vector of buffers holds. */
static ssize_t half(int file, const struct iovec *parts, int n, off_t at) {
    size_t left = 0;
    ssize_t done = 0;
    for (int i = 0; i < n; i++) left += parts[i].iov_len;
    left /= 2;
    for (int i = 0; i < n && left; i++) {
        size_t length = parts[i].iov_len < left ? parts[i].iov_len : left;
        ssize_t wrote = at < 0 ? syscall(SYS_write, file, parts[i].iov_base, length)
                               : syscall(SYS_pwrite64, file, parts[i].iov_base, length, at + done);
        if (wrote < 0) break;
        done += wrote;
        left -= (size_t)wrote;
    }
    return done;
}

WRITE_CALL(write, (int file, const void *data, size_t n), (file, data, n),
           half(file, &(struct iovec){(void *)data, n}, 1, -1))
WRITE_CALL(writev, (int file, const struct iovec *parts, int n), (file, parts, n), half(file, parts, n, -1))
WRITE_CALL(pwrite, (int file, const void *data, size_t n, off_t at), (file, data, n, at),
           half(file, &(struct iovec){(void *)data, n}, 1, at))
WRITE_CALL(pwrite64, (int file, const void *data, size_t n, off64_t at), (file, data, n, at),
           half(file, &(struct iovec){(void *)data, n}, 1, at))
WRITE_CALL(pwritev, (int file, const struct iovec *parts, int n, off_t at), (file, parts, n, at),
           half(file, parts, n, at))
WRITE_CALL(pwritev64, (int file, const struct iovec *parts, int n, off64_t at), (file, parts, n, at),
           half(file, parts, n, at))
WRITE_CALL(copy_file_range, (int from, off64_t *at, int file, off64_t *to, size_t n, unsigned flags),
           (from, at, file, to, n, flags), REAL(copy_file_range)(from, at, file, to, n / 2, flags))
WRITE_CALL(sendfile, (int file, int from, off_t *at, size_t n), (file, from, at, n),
           REAL(sendfile)(file, from, at, n / 2))
WRITE_CALL(sendfile64, (int file, int from, off64_t *at, size_t n), (file, from, at, n),
           REAL(sendfile64)(file, from, at, n / 2))

#define OF_FILE(name, label, kind, parameters, arguments)                                                             \
    int name parameters {                                                                                             \
        char buffer[PATH_MAX];                                                                                        \
        THROUGH(int, label, watched_descriptor(file, buffer), kind, REAL(name) arguments)                             \
    }
/* Not waited for: what a process has written outlives it, and only a machine that stops could lose it. */
#define SYNC(name)                                                                                                    \
    int name(int file) {                                                                                              \
        char buffer[PATH_MAX];                                                                                        \
        const char *where = watched_descriptor(file, buffer);                                                         \
        THROUGH(int, "fsync", where, TAKES_ROOM, where ? 0 : REAL(name)(file))                                        \
    }
SYNC(fsync)
SYNC(fdatasync)
OF_FILE(ftruncate, "cut", OTHER, (int file, off_t length), (file, length))
OF_FILE(ftruncate64, "cut", OTHER, (int file, off64_t length), (file, length))

#define OF_PATH(name, label, kind, parameters, folder, arguments)                                                     \
    int name parameters {                                                                                             \
        char buffer[PATH_MAX];                                                                                        \
        THROUGH(int, label, watched_path(folder, path, buffer), kind, REAL(name) arguments)                           \
    }
OF_PATH(creat, "open", TAKES_ROOM, (const char *path, mode_t mode), AT_FDCWD, (path, mode))
OF_PATH(creat64, "open", TAKES_ROOM, (const char *path, mode_t mode), AT_FDCWD, (path, mode))
OF_PATH(unlink, "unlink", OTHER, (const char *path), AT_FDCWD, (path))
OF_PATH(unlinkat, "unlink", OTHER, (int folder, const char *path, int flags), folder, (folder, path, flags))
OF_PATH(remove, "unlink", OTHER, (const char *path), AT_FDCWD, (path))
OF_PATH(rmdir, "rmdir", OTHER, (const char *path), AT_FDCWD, (path))
OF_PATH(mkdir, "mkdir", TAKES_ROOM, (const char *path, mode_t mode), AT_FDCWD, (path, mode))
OF_PATH(mkdirat, "mkdir", TAKES_ROOM, (int folder, const char *path, mode_t mode), folder, (folder, path, mode))
OF_PATH(truncate, "cut", OTHER, (const char *path, off_t length), AT_FDCWD, (path, length))
OF_PATH(truncate64, "cut", OTHER, (const char *path, off64_t length), AT_FDCWD, (path, length))
OF_PATH(rename, "rename", OTHER, (const char *old, const char *path), AT_FDCWD, (old, path))
OF_PATH(renameat, "rename", OTHER, (int from, const char *old, int folder, const char *path), folder,
        (from, old, folder, path))
OF_PATH(renameat2, "rename", OTHER, (int from, const char *old, int folder, const char *path, unsigned flags), folder,
        (from, old, folder, path, flags))
OF_PATH(link, "link", TAKES_ROOM, (const char *old, const char *path), AT_FDCWD, (old, path))
OF_PATH(linkat, "link", TAKES_ROOM, (int from, const char *old, int folder, const char *path, int flags), folder,
        (from, old, folder, path, flags))
OF_PATH(symlink, "link", TAKES_ROOM, (const char *old, const char *path), AT_FDCWD, (old, path))
OF_PATH(symlinkat, "link", TAKES_ROOM, (const char *old, int folder, const char *path), folder, (old, folder, path))

#undef FAILED
#define FAILED NULL
#define FOPEN(name)                                                                                                   \
    FILE *name(const char *path, const char *mode) {                                                                  \
        char buffer[PATH_MAX];                                                                                        \
        int changes = strpbrk(mode, "wa+") != NULL;                                                                   \
        THROUGH(FILE *, "open", changes ? watched_path(AT_FDCWD, path, buffer) : NULL, TAKES_ROOM,                    \
                REAL(name)(path, mode))                                                                               \
    }
FOPEN(fopen)
FOPEN(fopen64)
