/* Lets some calls fail below ODD_FOLDER, each with the error number of its variable: ODD_FLOCK, ODD_FOLDER_SYNC,
 * ODD_FILE_SYNC, ODD_ADVICE, ODD_MODE. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

/* The error of a call on a descriptor; 0 where it is to be done. */
static int failing(const char *variable, int descriptor) {
    const char *number = getenv(variable), *folder = getenv("ODD_FOLDER");
    if (!number || !folder) return 0;
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    size_t n = strlen(folder);
    return !strncmp(path, folder, n) && (!path[n] || path[n] == '/') ? atoi(number) : 0;
}

#define NEXT(name) ((typeof(&name))dlsym(RTLD_NEXT, #name))

int flock(int descriptor, int operation) {
    int error = failing("ODD_FLOCK", descriptor);
    if (!error) return NEXT(flock)(descriptor, operation);
    errno = error;
    return -1;
}

int fsync(int descriptor) {
    struct stat about;
    int is_folder = !fstat(descriptor, &about) && S_ISDIR(about.st_mode);
    int error = failing(is_folder ? "ODD_FOLDER_SYNC" : "ODD_FILE_SYNC", descriptor);
    if (!error) return NEXT(fsync)(descriptor);
    errno = error;
    return -1;
}

int posix_fadvise(int descriptor, off_t start, off_t length, int advice) {
    int error = failing("ODD_ADVICE", descriptor);
    return error ? error : NEXT(posix_fadvise)(descriptor, start, length, advice);
}

int posix_fadvise64(int descriptor, off64_t start, off64_t length, int advice) {
    int error = failing("ODD_ADVICE", descriptor);
    return error ? error : NEXT(posix_fadvise64)(descriptor, start, length, advice);
}

int fchmod(int descriptor, mode_t mode) {
    int error = failing("ODD_MODE", descriptor);
    if (!error) return NEXT(fchmod)(descriptor, mode);
    errno = error;
    return -1;
}
