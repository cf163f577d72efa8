// A TCP connection whose every wait ends: by progress, by its deadline, or by a wish to stop.
#pragma once

#include <sys/uio.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "base/cancel.h"
#include "base/descriptor.h"
#include "transport/frame.h"

namespace weightline {

using Clock = std::chrono::steady_clock;

// How often a wait looks at its wish to stop: half of the promised 100 ms.
inline constexpr int kPollMs = 50;

// "host:port", IPv6 in brackets. Throws InvalidArgument.
struct HostPort {
  std::string host;
  std::string port;
};
HostPort parseHostPort(const std::string& address);

// Owns one connected socket. Used by one thread at a time, except shutdown().
class Connection {
 public:
  explicit Connection(Descriptor socket, std::string peer);

  // Dials; every address of the host is tried until one answers. Throws Unavailable naming the endpoint.
  static Connection dial(const std::string& endpoint, std::chrono::milliseconds timeout, const Cancel& cancel);

  const std::string& peer() const { return peer_; }
  int descriptor() const { return socket_.get(); }

  // Sends all of it. Throws Unavailable when the peer takes nothing for `stallMs`, or closed.
  void send(std::span<const iovec> pieces, int stallMs, const Cancel& cancel);
  void send(std::span<const uint8_t> bytes, int stallMs, const Cancel& cancel);
  void sendFrame(const FrameHeader& header, std::span<const uint8_t> payload, int stallMs, const Cancel& cancel);

  // Receives exactly `bytes`. Throws Unavailable as above.
  void receive(std::span<uint8_t> bytes, int stallMs, const Cancel& cancel);
  // Receives at least one byte into the pieces, at most all; 0 when nothing came within `waitMs`.
  size_t receiveSome(std::span<iovec> pieces, int waitMs);
  bool readable(int waitMs);
  // Makes every call on the connection fail soon. Any thread.
  void shutdown();

 private:
  [[noreturn]] void closed(int error) const;
  Descriptor socket_;
  std::string peer_;
};

}  // namespace weightline
