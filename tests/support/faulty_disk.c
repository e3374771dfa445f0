/* A disk that fails on request, and that tells what would survive a power cut.

   Preloaded into a process, it stands before the calls with which SQLite writes files whose path
   begins with FAULTY_DIR. Beside each such file F it keeps

     F.durable   what an fsync has made safe
     F.written   what was written since: records of { int64 offset, int64 length } and the bytes;
                 a length of -1 means "make the file end at offset"
     F.named     that its name is safe, which it is once its folder was fsynced

   so that after a SIGKILL a test can put together what any power cut would have left: F.durable and
   whatever it likes of F.written.

   FAULTY_CONTROL is a file of int64s that a test may change at any time, see enum. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

enum { FSYNC_ERRNO, FSYNC_FAILURES, WRITE_ERRNO, WRITE_FAILURES, FSYNC_DELAY_MS, QUOTA_ON,
       FREE_BYTES, FSYNCS, KEEP, STAT_DELAY_MS, CONTROLS };

#define FILES 1024
static char *paths[FILES];        /* of watched descriptors */
static int is_folder[FILES];
static volatile int64_t *control;
static const char *watched;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static __thread int inside;       /* our own calls pass through */

#define REAL(name) ((__typeof__(&name))real(#name))
static void *real(const char *name) { return dlsym(RTLD_NEXT, name); }

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("FAULTY_CONTROL");
    watched = getenv("FAULTY_DIR");
    int fd = path ? REAL(open)(path, O_RDWR) : -1;
    if (fd < 0 || !watched) { watched = NULL; return; }
    control = mmap(NULL, CONTROLS * 8, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    REAL(close)(fd);
}

static int ends_with(const char *text, const char *end) {
    size_t a = strlen(text), b = strlen(end);
    return a >= b && strcmp(text + a - b, end) == 0;
}

static int is_watched(const char *path) {
    return watched && strncmp(path, watched, strlen(watched)) == 0
        && !ends_with(path, ".durable") && !ends_with(path, ".written") && !ends_with(path, ".named")
        && !ends_with(path, "-shm") && !ends_with(path, "lock");
}

static void sibling(char *to, const char *path, const char *end) {
    snprintf(to, PATH_MAX, "%s%s", path, end);
}

static const char *path_of(int fd) { return fd >= 0 && fd < FILES ? paths[fd] : NULL; }

static void log_write(const char *path, int64_t offset, int64_t length, const void *bytes) {
    if (!control[KEEP]) return;
    char name[PATH_MAX];
    sibling(name, path, ".written");
    int fd = REAL(open)(name, O_WRONLY | O_CREAT | O_APPEND, 0600);
    int64_t head[2] = { offset, length };
    REAL(write)(fd, head, sizeof head);
    if (length > 0) REAL(write)(fd, bytes, length);
    REAL(close)(fd);
}

/* Apply F.written to F.durable, and forget it. */
static void make_durable(const char *path) {
    if (!control[KEEP]) return;
    char durable[PATH_MAX], written[PATH_MAX];
    sibling(durable, path, ".durable");
    sibling(written, path, ".written");
    int to = REAL(open)(durable, O_WRONLY | O_CREAT, 0600);
    int from = REAL(open)(written, O_RDONLY);
    int64_t head[2];
    static char bytes[1 << 20];
    while (from >= 0 && read(from, head, sizeof head) == sizeof head) {
        if (head[1] < 0) { REAL(ftruncate)(to, head[0]); continue; }
        for (int64_t done = 0, n; done < head[1]; done += n) {
            int64_t want = head[1] - done < (int64_t)sizeof bytes ? head[1] - done : (int64_t)sizeof bytes;
            n = read(from, bytes, want);
            if (n <= 0) break;
            REAL(pwrite)(to, bytes, n, head[0] + done);
        }
    }
    if (from >= 0) { REAL(close)(from); REAL(unlink)(written); }
    REAL(close)(to);
}

static int fails(int which) {  /* which: FSYNC_ERRNO or WRITE_ERRNO; the count is behind it */
    if (!control[which] || control[which + 1] == 0) return 0;
    if (control[which + 1] > 0) control[which + 1]--;
    errno = (int)control[which];
    return 1;
}

static int lacks_room(int fd, int64_t end) {
    struct stat now;
    if (!control[QUOTA_ON] || fstat(fd, &now) != 0 || end <= now.st_size) return 0;
    if (end - now.st_size > control[FREE_BYTES]) { errno = ENOSPC; return 1; }
    control[FREE_BYTES] -= end - now.st_size;
    return 0;
}

/* --- names ---------------------------------------------------------------------------------- */

static void opened(int fd, const char *path, int is_new) {
    char full[PATH_MAX];
    if (fd < 0 || fd >= FILES || inside || !watched) return;
    if (!realpath(path, full)) return;
    struct stat what;
    if (fstat(fd, &what) != 0) return;
    int folder = S_ISDIR(what.st_mode);
    if (!folder && !is_watched(full)) return;
    if (folder && strncmp(full, watched, strlen(watched) < strlen(full) ? strlen(watched) : strlen(full))) return;
    pthread_mutex_lock(&lock);
    free(paths[fd]);
    paths[fd] = strdup(full);
    is_folder[fd] = folder;
    if (is_new) log_write(full, 0, -1, NULL);
    pthread_mutex_unlock(&lock);
}

static int open_it(int (*how)(const char *, int, ...), const char *path, int flags, mode_t mode) {
    int is_new = (flags & O_CREAT) && access(path, F_OK) != 0;
    int fd = how(path, flags, mode);
    opened(fd, path, is_new || (flags & O_TRUNC));
    return fd;
}

#define OPEN(name) int name(const char *path, int flags, ...) { \
    va_list rest; va_start(rest, flags); mode_t mode = va_arg(rest, mode_t); va_end(rest); \
    return open_it((int (*)(const char *, int, ...))real(#name), path, flags, mode); }
OPEN(open)
OPEN(open64)

static void closed(int fd) {
    if (!path_of(fd)) return;
    pthread_mutex_lock(&lock);
    free(paths[fd]);
    paths[fd] = NULL;
    pthread_mutex_unlock(&lock);
}

int close(int fd) { closed(fd); return REAL(close)(fd); }

int unlink(const char *path) {
    char full[PATH_MAX];
    struct stat gone;
    int ours = watched && realpath(path, full) && is_watched(full) && stat(full, &gone) == 0;
    int done = REAL(unlink)(path);
    if (ours && done == 0) {
        pthread_mutex_lock(&lock);
        if (control[QUOTA_ON]) control[FREE_BYTES] += gone.st_size;
        if (control[KEEP]) {  /* as if the folder had been written at once: SQLite does not care */
            char name[PATH_MAX];
            sibling(name, full, ".written"); REAL(unlink)(name);
            sibling(name, full, ".durable"); REAL(unlink)(name);
            sibling(name, full, ".named"); REAL(unlink)(name);
        }
        pthread_mutex_unlock(&lock);
    }
    return done;
}

/* --- bytes ---------------------------------------------------------------------------------- */

static ssize_t wrote(int fd, int64_t offset, const void *bytes, ssize_t done) {
    if (done > 0) log_write(path_of(fd), offset, done, bytes);
    pthread_mutex_unlock(&lock);
    return done;
}

#define REFUSED(fd, end) (fails(WRITE_ERRNO) || lacks_room(fd, end))

#define PWRITE(name) ssize_t name(int fd, const void *bytes, size_t count, off_t offset) { \
    if (!path_of(fd) || !control) return REAL(name)(fd, bytes, count, offset); \
    pthread_mutex_lock(&lock); \
    if (REFUSED(fd, (int64_t)(offset + count))) { pthread_mutex_unlock(&lock); return -1; } \
    return wrote(fd, offset, bytes, REAL(name)(fd, bytes, count, offset)); }
PWRITE(pwrite)
PWRITE(pwrite64)

ssize_t write(int fd, const void *bytes, size_t count) {
    if (!path_of(fd) || !control) return REAL(write)(fd, bytes, count);
    pthread_mutex_lock(&lock);
    off_t offset = lseek(fd, 0, SEEK_CUR);
    if (REFUSED(fd, (int64_t)(offset + count))) { pthread_mutex_unlock(&lock); return -1; }
    return wrote(fd, offset, bytes, REAL(write)(fd, bytes, count));
}

static int cut(int fd, off_t length, int (*how)(int, off_t)) {
    if (!path_of(fd) || !control) return how(fd, length);
    pthread_mutex_lock(&lock);
    struct stat before;
    fstat(fd, &before);
    int done = lacks_room(fd, length) ? -1 : how(fd, length);
    if (done == 0) {
        if (control[QUOTA_ON] && length < before.st_size) control[FREE_BYTES] += before.st_size - length;
        log_write(path_of(fd), length, -1, NULL);
    }
    pthread_mutex_unlock(&lock);
    return done;
}

int ftruncate(int fd, off_t length) { return cut(fd, length, REAL(ftruncate)); }
int ftruncate64(int fd, off_t length) { return cut(fd, length, REAL(ftruncate64)); }

static int allocate(int fd, off_t offset, off_t length, int (*how)(int, off_t, off_t)) {
    if (!path_of(fd) || !control) return how(fd, offset, length);
    pthread_mutex_lock(&lock);
    int done = lacks_room(fd, offset + length) ? ENOSPC : how(fd, offset, length);
    if (done == 0) log_write(path_of(fd), offset + length, -1, NULL);
    pthread_mutex_unlock(&lock);
    return done;
}

int posix_fallocate(int fd, off_t offset, off_t length) {
    return allocate(fd, offset, length, REAL(posix_fallocate));
}
int posix_fallocate64(int fd, off_t offset, off_t length) {
    return allocate(fd, offset, length, REAL(posix_fallocate64));
}

/* --- safety --------------------------------------------------------------------------------- */

static void wait_ms(int64_t ms) {
    struct timespec nap = { ms / 1000, ms % 1000 * 1000000 };
    if (ms) nanosleep(&nap, NULL);
}

static int sync_it(int fd, int (*how)(int)) {
    if (!path_of(fd) || !control) return how(fd);
    wait_ms(control[FSYNC_DELAY_MS]);
    pthread_mutex_lock(&lock);
    control[FSYNCS]++;
    int done = fails(FSYNC_ERRNO) ? -1 : how(fd);
    if (done == 0) make_durable(path_of(fd));
    pthread_mutex_unlock(&lock);
    return done;
}

#include <dirent.h>
static int sync_folder(int fd, int (*how)(int)) {
    int done = how(fd);
    pthread_mutex_lock(&lock);
    inside = 1;
    DIR *folder = control[KEEP] ? opendir(paths[fd]) : NULL;
    for (struct dirent *one; folder && (one = readdir(folder));) {
        char full[PATH_MAX], named[PATH_MAX];
        snprintf(full, sizeof full, "%s/%s", paths[fd], one->d_name);
        if (one->d_type != DT_REG || !is_watched(full)) continue;
        sibling(named, full, ".named");
        int mark = REAL(open)(named, O_WRONLY | O_CREAT, 0600);
        if (mark >= 0) REAL(close)(mark);
    }
    if (folder) closedir(folder);
    inside = 0;
    pthread_mutex_unlock(&lock);
    return done;
}

#define SYNC(name) int name(int fd) { \
    if (path_of(fd) && control && is_folder[fd]) return sync_folder(fd, REAL(name)); \
    return sync_it(fd, REAL(name)); }
SYNC(fsync)
SYNC(fdatasync)

/* --- what there is room for ----------------------------------------------------------------- */

#define STAT(name, kind) int name(const char *path, struct kind *what) { \
    if (control && !inside && is_watched(path)) wait_ms(control[STAT_DELAY_MS]); \
    return REAL(name)(path, what); }
STAT(stat, stat)
STAT(stat64, stat64)

#define STATVFS(name, kind) int name(const char *path, struct kind *disk) { \
    if (control && is_watched(path)) wait_ms(control[STAT_DELAY_MS]); \
    int done = REAL(name)(path, disk); \
    if (done == 0 && control && control[QUOTA_ON]) { \
        disk->f_frsize = disk->f_bsize = 1; disk->f_bavail = disk->f_bfree = control[FREE_BYTES]; } \
    return done; }
STATVFS(statvfs, statvfs)
STATVFS(statvfs64, statvfs64)
