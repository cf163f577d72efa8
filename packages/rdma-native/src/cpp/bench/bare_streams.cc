// The bench's yardstick: plain TCP streams that check nothing, by the best recipe of design page native.md.
//   bare_streams serve FILE PORT            sends the ranges that connections ask for, until killed
//   bare_streams fetch HOST PORT BYTES STREAMS FILE     from an empty file; prints {"seconds","cpu_seconds"}
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

namespace {

constexpr size_t kCallBytes = 1 << 20;
constexpr uint64_t kWindowBytes = 256ull << 20;

[[noreturn]] void die(const char* what) {
  std::perror(what);
  std::exit(1);
}

void serveRange(int connection, const uint8_t* data) {
  uint64_t range[2];
  if (::recv(connection, range, sizeof(range), MSG_WAITALL) != sizeof(range)) die("recv range");
  for (uint64_t at = range[0], end = range[0] + range[1]; at < end;) {
    const ssize_t n = ::send(connection, data + at, std::min<uint64_t>(kCallBytes, end - at), MSG_NOSIGNAL);
    if (n <= 0) break;
    at += static_cast<uint64_t>(n);
  }
  ::close(connection);
}

int serve(const char* path, int port) {
  const int file = ::open(path, O_RDONLY);
  struct stat status {};
  if (file < 0 || ::fstat(file, &status) != 0) die(path);
  const auto* data = static_cast<const uint8_t*>(::mmap(nullptr, static_cast<size_t>(status.st_size), PROT_READ, MAP_SHARED, file, 0));
  const int listener = ::socket(AF_INET, SOCK_STREAM, 0);
  const int one = 1;
  ::setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  if (::bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0 || ::listen(listener, 16) != 0) die("listen");
  std::puts("ready");
  std::fflush(stdout);
  while (true) {
    const int connection = ::accept(listener, nullptr, nullptr);
    if (connection >= 0) std::thread(serveRange, connection, data).detach();
  }
}

void fetchRange(const char* host, int port, uint64_t from, uint64_t bytes, int file) {
  const int connection = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  ::inet_pton(AF_INET, host, &address.sin_addr);
  if (::connect(connection, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) die("connect");
  const uint64_t range[2] = {from, bytes};
  if (::send(connection, range, sizeof(range), 0) != sizeof(range)) die("send range");
  std::vector<uint8_t> buffer(kCallBytes);
  uint64_t allocated = from;
  for (uint64_t at = from, end = from + bytes; at < end;) {
    const ssize_t n = ::recv(connection, buffer.data(), std::min<uint64_t>(buffer.size(), end - at), MSG_WAITALL);
    if (n <= 0) die("recv");
    if (at + static_cast<uint64_t>(n) > allocated) {
      const uint64_t window = std::min(kWindowBytes, end - allocated);
      if (::fallocate(file, 0, static_cast<off_t>(allocated), static_cast<off_t>(window)) != 0) die("fallocate");
      allocated += window;
    }
    if (::pwrite(file, buffer.data(), static_cast<size_t>(n), static_cast<off_t>(at)) != n) die("pwrite");
    at += static_cast<uint64_t>(n);
  }
  ::close(connection);
}

double cpuSeconds() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) { return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) / 1e6; };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

int fetch(const char* host, int port, uint64_t bytes, int streams, const char* path) {
  const auto start = std::chrono::steady_clock::now();
  const int file = ::open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
  if (file < 0 || ::ftruncate(file, static_cast<off_t>(bytes)) != 0) die(path);
  std::vector<std::thread> threads;
  const uint64_t share = (bytes / static_cast<uint64_t>(streams)) & ~uint64_t{4095};
  for (int i = 0; i < streams; i++) {
    const uint64_t from = share * static_cast<uint64_t>(i);
    threads.emplace_back(fetchRange, host, port, from, i + 1 == streams ? bytes - from : share, file);
  }
  for (std::thread& thread : threads) thread.join();
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  std::printf("{\"seconds\":%.6f,\"cpu_seconds\":%.6f}\n", seconds, cpuSeconds());
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 4 && std::strcmp(argv[1], "serve") == 0) return serve(argv[2], std::atoi(argv[3]));
  if (argc == 7 && std::strcmp(argv[1], "fetch") == 0) return fetch(argv[2], std::atoi(argv[3]), std::strtoull(argv[4], nullptr, 10), std::atoi(argv[5]), argv[6]);
  std::fputs("bare_streams serve FILE PORT | fetch HOST PORT BYTES STREAMS FILE\n", stderr);
  return 2;
}
