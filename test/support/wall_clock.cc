// Preloaded into a program of a test: its wall clock is off by the milliseconds that the file WALL_CLOCK_FILE holds (a
// 64-bit number in this machine's byte order); its monotonic clocks are left alone. libfaketime does not start together
// with jemalloc, which redis-server has.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>

namespace {

volatile const int64_t* offset_ms = nullptr;

__attribute__((constructor)) void map_offset() {
  const char* path = getenv("WALL_CLOCK_FILE");
  const int file = path == nullptr ? -1 : open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0) return;
  void* page = mmap(nullptr, sizeof(int64_t), PROT_READ, MAP_SHARED, file, 0);
  close(file);
  if (page != MAP_FAILED) offset_ms = static_cast<volatile const int64_t*>(page);
}

void shift(int64_t& seconds, int64_t& parts, int64_t parts_per_ms) {
  const int64_t off = offset_ms == nullptr ? 0 : *offset_ms;
  const int64_t per_second = 1000 * parts_per_ms;
  int64_t total = parts + (off % 1000) * parts_per_ms;
  seconds += off / 1000;
  while (total < 0) total += per_second, seconds--;
  while (total >= per_second) total -= per_second, seconds++;
  parts = total;
}

}  // namespace

extern "C" {

int clock_gettime(clockid_t clock, struct timespec* now) {
  const long code = syscall(SYS_clock_gettime, clock, now);
  if (code == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
    int64_t seconds = now->tv_sec, parts = now->tv_nsec;
    shift(seconds, parts, 1000000);
    now->tv_sec = seconds, now->tv_nsec = parts;
  }
  return static_cast<int>(code);
}

int gettimeofday(struct timeval* now, void*) {
  struct timespec precise;
  const int code = clock_gettime(CLOCK_REALTIME, &precise);
  now->tv_sec = precise.tv_sec, now->tv_usec = precise.tv_nsec / 1000;
  return code;
}

time_t time(time_t* now) {
  struct timespec precise;
  clock_gettime(CLOCK_REALTIME, &precise);
  if (now != nullptr) *now = precise.tv_sec;
  return precise.tv_sec;
}

}  // extern "C"
