// A wall clock that is ahead by the seconds in the file $WALL, for a program that is started with this in LD_PRELOAD; times of files
// stay the machine's. It asks the kernel itself and allocates nothing, so it may be called before anything else of the program is ready.
// Without that file the program ends: it would be tried with the machine's clock.
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long ahead(void) {
  const char *path = getenv("WALL");
  if (!path) abort();
  int fd = syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) abort();
  char text[32] = {0};
  if (syscall(SYS_read, fd, text, sizeof text - 1) <= 0) abort();
  syscall(SYS_close, fd);
  return strtol(text, NULL, 10);
}

int clock_gettime(clockid_t clock, struct timespec *at) {
  int failed = syscall(SYS_clock_gettime, clock, at);
  if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) at->tv_sec += ahead();
  return failed;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  at->tv_sec = now.tv_sec;
  at->tv_usec = now.tv_nsec / 1000;
  return 0;
}

time_t time(time_t *at) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (at) *at = now.tv_sec;
  return now.tv_sec;
}
