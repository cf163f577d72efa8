#include "transport/connection.h"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>

#include "base/fault.h"

namespace weightline {

namespace {

int pollOne(int fd, short events, int waitMs) {
  pollfd entry{fd, events, 0};
  const int ready = ::poll(&entry, 1, waitMs);
  return ready < 0 && errno == EINTR ? 0 : ready;
}

// Polls in short steps until ready, cancelled or past `waitMs`.
bool waitReady(int fd, short events, int waitMs, const Cancel& cancel) {
  const auto deadline = Clock::now() + std::chrono::milliseconds(waitMs);
  while (true) {
    cancel.check();
    if (pollOne(fd, events, kPollMs) > 0) return true;
    if (Clock::now() >= deadline) return false;
  }
}

Descriptor connectTo(const addrinfo& address, std::chrono::milliseconds timeout, const Cancel& cancel, std::string& why) {
  Descriptor socket(::socket(address.ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket.valid()) {
    why = std::strerror(errno);
    return {};
  }
  if (::connect(socket.get(), address.ai_addr, address.ai_addrlen) != 0) {
    if (errno != EINPROGRESS) {
      why = std::strerror(errno);
      return {};
    }
    if (!waitReady(socket.get(), POLLOUT, static_cast<int>(timeout.count()), cancel)) {
      why = "no answer within " + std::to_string(timeout.count()) + " ms";
      return {};
    }
    int error = 0;
    socklen_t length = sizeof(error);
    ::getsockopt(socket.get(), SOL_SOCKET, SO_ERROR, &error, &length);
    if (error != 0) {
      why = std::strerror(error);
      return {};
    }
  }
  return socket;
}

}  // namespace

HostPort parseHostPort(const std::string& address) {
  const size_t colon = address.rfind(':');
  if (colon == std::string::npos || colon == 0) {
    throw Fault(Code::kInvalidArgument, "\"" + address + "\" is not host:port").field("endpoint").value(address).limit("host:port, IPv6 in brackets");
  }
  std::string host = address.substr(0, colon);
  if (host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
  return {host, address.substr(colon + 1)};
}

Connection::Connection(Descriptor socket, std::string peer) : socket_(std::move(socket)), peer_(std::move(peer)) {
  const int one = 1;
  ::setsockopt(socket_.get(), IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
  const int flags = ::fcntl(socket_.get(), F_GETFL);
  ::fcntl(socket_.get(), F_SETFL, flags | O_NONBLOCK);
}

Connection Connection::dial(const std::string& endpoint, std::chrono::milliseconds timeout, const Cancel& cancel) {
  const HostPort where = parseHostPort(endpoint);
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int rc = ::getaddrinfo(where.host.c_str(), where.port.c_str(), &hints, &found);
  std::unique_ptr<addrinfo, void (*)(addrinfo*)> addresses(found, ::freeaddrinfo);
  std::string why = rc != 0 ? ::gai_strerror(rc) : "no address";
  for (const addrinfo* address = found; rc == 0 && address != nullptr; address = address->ai_next) {
    Descriptor socket = connectTo(*address, timeout, cancel, why);
    if (socket.valid()) return Connection(std::move(socket), endpoint);
  }
  throw Fault(Code::kUnavailable, "the peer's data port " + endpoint + " cannot be reached: " + why)
      .field("endpoint").value(endpoint).wayOut("check the route and the firewall for --data-port");
}

void Connection::closed(int error) const {
  throw Fault(Code::kUnavailable, "the peer " + peer_ + (error == 0 ? " closed the stream" : std::string(": ") + std::strerror(error)))
      .field("peer").value(peer_);
}

void Connection::send(std::span<const iovec> pieces, int stallMs, const Cancel& cancel) {
  std::vector<iovec> left(pieces.begin(), pieces.end());
  size_t first = 0;
  while (first < left.size()) {
    msghdr message{};
    message.msg_iov = left.data() + first;
    message.msg_iovlen = left.size() - first;
    const ssize_t n = ::sendmsg(socket_.get(), &message, MSG_NOSIGNAL);
    if (n < 0) {
      if (errno == EINTR) continue;
      if (errno != EAGAIN) closed(errno);
      if (!waitReady(socket_.get(), POLLOUT, stallMs, cancel)) {
        throw Fault(Code::kUnavailable, "the peer " + peer_ + " took nothing for " + std::to_string(stallMs) + " ms").field("peer").value(peer_);
      }
      continue;
    }
    size_t sent = static_cast<size_t>(n);
    while (first < left.size() && sent >= left[first].iov_len) sent -= left[first++].iov_len;
    if (first < left.size()) {
      left[first].iov_base = static_cast<uint8_t*>(left[first].iov_base) + sent;
      left[first].iov_len -= sent;
    }
  }
}

void Connection::send(std::span<const uint8_t> bytes, int stallMs, const Cancel& cancel) {
  const iovec piece{const_cast<uint8_t*>(bytes.data()), bytes.size()};
  send(std::span(&piece, 1), stallMs, cancel);
}

void Connection::sendFrame(const FrameHeader& header, std::span<const uint8_t> payload, int stallMs, const Cancel& cancel) {
  FrameHeader filled = header;
  filled.payloadBytes = static_cast<uint32_t>(payload.size());
  FrameBytes bytes = encodeFrame(filled);
  const iovec pieces[2] = {{bytes.data(), bytes.size()}, {const_cast<uint8_t*>(payload.data()), payload.size()}};
  send(std::span(pieces, payload.empty() ? 1 : 2), stallMs, cancel);
}

bool Connection::readable(int waitMs) { return pollOne(socket_.get(), POLLIN, waitMs) > 0; }

size_t Connection::receiveSome(std::span<iovec> pieces, int waitMs) {
  while (true) {
    msghdr message{};
    message.msg_iov = pieces.data();
    message.msg_iovlen = pieces.size();
    const ssize_t n = ::recvmsg(socket_.get(), &message, 0);
    if (n > 0) return static_cast<size_t>(n);
    if (n == 0) closed(0);
    if (errno == EINTR) continue;
    if (errno != EAGAIN) closed(errno);
    if (!readable(waitMs)) return 0;
  }
}

void Connection::receive(std::span<uint8_t> bytes, int stallMs, const Cancel& cancel) {
  auto deadline = Clock::now() + std::chrono::milliseconds(stallMs);
  while (!bytes.empty()) {
    cancel.check();
    iovec piece{bytes.data(), bytes.size()};
    const size_t n = receiveSome(std::span(&piece, 1), kPollMs);
    if (n > 0) deadline = Clock::now() + std::chrono::milliseconds(stallMs);
    bytes = bytes.subspan(n);
    if (Clock::now() >= deadline) {
      throw Fault(Code::kUnavailable, "the peer " + peer_ + " said nothing for " + std::to_string(stallMs) + " ms").field("peer").value(peer_);
    }
  }
}

void Connection::shutdown() { ::shutdown(socket_.get(), SHUT_RDWR); }

}  // namespace weightline
