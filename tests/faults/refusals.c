/* File operations that REFUSED names fail, as on file systems that do not have them. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static int refused(const char *name) {
    const char *list = getenv("REFUSED");
    return list != NULL && strstr(list, name) != NULL;
}

static int fail(int number) {
    errno = number;
    return -1;
}

#define REAL(name, type) ((type)dlsym(RTLD_NEXT, name))

int flock(int file, int operation) {
    if (refused("lock")) return fail(ENOLCK);
    return REAL("flock", int (*)(int, int))(file, operation);
}

static int control(const char *name, int file, int command, void *argument) {
    if (refused("lock") && (command == F_SETLK || command == F_SETLKW)) return fail(ENOLCK);
    return REAL(name, int (*)(int, int, void *))(file, command, argument);
}

int fcntl(int file, int command, ...) {
    va_list list;
    va_start(list, command);
    void *argument = va_arg(list, void *);
    va_end(list);
    return control("fcntl", file, command, argument);
}

int fcntl64(int file, int command, ...) {
    va_list list;
    va_start(list, command);
    void *argument = va_arg(list, void *);
    va_end(list);
    return control("fcntl64", file, command, argument);
}

int fsync(int file) {
    struct stat state;
    int folder = fstat(file, &state) == 0 && S_ISDIR(state.st_mode);
    if (refused("sync") || (folder && refused("folders"))) return fail(EINVAL);
    return REAL("fsync", int (*)(int))(file);
}

int chmod(const char *path, mode_t mode) {
    if (refused("chmod")) return fail(EPERM);
    return REAL("chmod", int (*)(const char *, mode_t))(path, mode);
}

int fchmod(int file, mode_t mode) {
    if (refused("chmod")) return fail(EPERM);
    return REAL("fchmod", int (*)(int, mode_t))(file, mode);
}

int rename(const char *old, const char *new) {
    if (refused("rename")) return fail(EPERM);
    return REAL("rename", int (*)(const char *, const char *))(old, new);
}
