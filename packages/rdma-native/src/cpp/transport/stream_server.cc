#include "transport/stream_server.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <deque>
#include <system_error>

#include "base/utf8.h"

namespace weightline {

namespace {

// Chunks that go out in one call: about 1 MiB (native.md, "Moving bytes over TCP", 2).
constexpr uint64_t kSendBytes = 1 << 20;

std::string formatAddress(const sockaddr_storage& address, socklen_t length) {
  char host[NI_MAXHOST], port[NI_MAXSERV];
  if (::getnameinfo(reinterpret_cast<const sockaddr*>(&address), length, host, sizeof(host), port, sizeof(port), NI_NUMERICHOST | NI_NUMERICSERV) != 0) return "unknown";
  return address.ss_family == AF_INET6 ? "[" + std::string(host) + "]:" + port : std::string(host) + ":" + port;
}

// Listens on one address; an error number when the kernel has not got it or the port is taken.
int listenOn(const std::string& host, uint16_t port, Descriptor& listener) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICHOST;
  addrinfo* found = nullptr;
  if (::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found) != 0) return EADDRNOTAVAIL;
  std::unique_ptr<addrinfo, void (*)(addrinfo*)> addresses(found, ::freeaddrinfo);
  Descriptor socket(::socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket.valid()) return errno;
  const int one = 1, zero = 0;
  ::setsockopt(socket.get(), SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
  if (found->ai_family == AF_INET6) ::setsockopt(socket.get(), IPPROTO_IPV6, IPV6_V6ONLY, &zero, sizeof(zero));
  if (::bind(socket.get(), found->ai_addr, found->ai_addrlen) != 0 || ::listen(socket.get(), 128) != 0) return errno;
  listener = std::move(socket);
  return 0;
}

}  // namespace

StreamServer::StreamServer(StreamServerOptions options) : options_(std::move(options)) {
  listen();
  acceptor_ = std::thread([this] { accept(); });
}

StreamServer::~StreamServer() {
  stop_ = true;
  acceptor_.join();
  reap(true);
}

void StreamServer::listen() {
  int error = EADDRNOTAVAIL;
  std::string tried;
  for (const std::string& host : options_.bind) {
    error = listenOn(host, options_.port, listener_);
    tried = host;
    if (error == 0) break;
    if (error != EAFNOSUPPORT && error != EADDRNOTAVAIL) break;
  }
  if (error != 0) {
    throw Fault(error == EADDRINUSE ? Code::kInUse : Code::kInvalidArgument,
                "the data port " + tried + " " + std::to_string(options_.port) + " (--data-port) cannot be opened: " + std::strerror(error))
        .field("--data-port").value(std::to_string(options_.port)).wayOut("stop what has the port, or give another --data-port (0: any free one)");
  }
  sockaddr_storage bound{};
  socklen_t length = sizeof(bound);
  ::getsockname(listener_.get(), reinterpret_cast<sockaddr*>(&bound), &length);
  address_ = formatAddress(bound, length);
}

void StreamServer::accept() {
  while (!stop_) {
    pollfd entry{listener_.get(), POLLIN, 0};
    const int ready = ::poll(&entry, 1, kPollMs * 2);
    reap(false);
    if (ready <= 0) continue;
    sockaddr_storage from{};
    socklen_t length = sizeof(from);
    Descriptor socket(::accept4(listener_.get(), reinterpret_cast<sockaddr*>(&from), &length, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!socket.valid()) {
      // Out of descriptors: the waiting connection would make poll return at once, for ever.
      if (errno == EMFILE || errno == ENFILE) std::this_thread::sleep_for(std::chrono::milliseconds(kPollMs));
      continue;
    }
    std::lock_guard lock(mutex_);
    if (sessions_.size() >= kMaxServedStreams) continue;
    sessions_.push_back(std::make_unique<Session>(Connection(std::move(socket), formatAddress(from, length))));
    Session& session = *sessions_.back();
    try {
      session.thread = std::thread([this, &session] { serve(session); });
    } catch (const std::system_error&) {
      // No thread is to be had: this child is turned away, and the others are served.
      sessions_.pop_back();
    }
  }
}

void StreamServer::reap(bool all) {
  std::list<std::unique_ptr<Session>> ended;
  {
    std::lock_guard lock(mutex_);
    const auto now = Clock::now();
    std::erase_if(grants_, [&](const auto& entry) { return entry.second.expires <= now; });
    for (auto it = sessions_.begin(); it != sessions_.end();) {
      if (all) (*it)->cancel.request();
      const auto next = std::next(it);
      if (all || (*it)->done) ended.splice(ended.end(), sessions_, it);
      it = next;
    }
  }
  for (const auto& session : ended) session->thread.join();
}

void StreamServer::grant(const StreamTicket& ticket, const std::string& holdingId, const std::string& child, std::chrono::milliseconds ttl) {
  std::lock_guard lock(mutex_);
  if (grants_.size() >= kMaxWaitingTickets) {
    throw Fault(Code::kResourceExhausted, "more than " + std::to_string(kMaxWaitingTickets) + " tickets wait for their children").field("tickets").limit(std::to_string(kMaxWaitingTickets));
  }
  grants_[ticket.id] = Grant{ticket.secret, holdingId, child, Clock::now() + ttl};
}

void StreamServer::revoke(const std::string& holdingId) {
  while (true) {
    bool open = false;
    {
      std::lock_guard lock(mutex_);
      std::erase_if(grants_, [&](const auto& entry) { return entry.second.holdingId == holdingId; });
      for (const auto& session : sessions_) {
        if (session->holdingId != holdingId || session->done) continue;
        session->cancel.request();
        open = true;
      }
    }
    if (!open) return;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
}

std::vector<ServedCount> StreamServer::takeServed() {
  std::lock_guard lock(mutex_);
  std::vector<ServedCount> taken;
  for (auto& [key, count] : served_) taken.push_back(std::move(count));
  served_.clear();
  return taken;
}

void StreamServer::serve(Session& session) {
  try {
    Grant grant;
    const TicketOffice office{
        [&](const TicketId& id) -> std::optional<Secret> {
          std::lock_guard lock(mutex_);
          const auto found = grants_.find(id);
          if (found == grants_.end() || found->second.expires <= Clock::now()) return std::nullopt;
          return found->second.secret;
        },
        [&](const TicketId& id) {
          std::lock_guard lock(mutex_);
          const auto found = grants_.find(id);
          if (found == grants_.end()) return false;
          grant = found->second;
          session.holdingId = grant.holdingId;
          grants_.erase(found);
          return true;
        }};
    openAsParent(session.connection, office, session.cancel);
    const std::shared_ptr<Holding> holding = options_.holding(grant.holdingId);
    serveHolding(session, *holding, grant);
  } catch (const std::exception&) {
    // A child that leaves, a stranger, a holding that goes away: the stream ends, and nobody else notices.
  }
  session.connection.shutdown();
  session.done = true;
}

void StreamServer::serveHolding(Session& session, Holding& holding, const Grant& grant) {
  std::deque<Run> wanted;
  bool objectWanted = false;
  auto said = Clock::now();
  auto heard = said;
  try {
    while (true) {
      session.cancel.check();
      const bool idle = wanted.empty() && !objectWanted;
      while (session.connection.readable(idle && Clock::now() - heard < std::chrono::milliseconds(kChildStallMs) ? kPollMs : 0)) {
        FrameBytes bytes;
        session.connection.receive(bytes, kChildStallMs, session.cancel);
        heard = Clock::now();
        const FrameHeader header = decodeFrame(bytes);
        std::vector<uint8_t> payload(header.payloadBytes);
        session.connection.receive(payload, kChildStallMs, session.cancel);
        if (header.type == FrameType::kGetLayout) {
          sendLayout(session, holding);
        } else if (header.type == FrameType::kGetObject) {
          objectWanted = true;
        } else if (header.type == FrameType::kRefused && header.number < holding.geometry().chunkCount()) {
          refused(session, holding, header.number);
          return;
        } else if (header.type == FrameType::kGet && payload.size() == 4 && wanted.size() < kMaxOutstandingGets) {
          const Run run{header.number, getU32(payload.data())};
          const uint64_t chunks = holding.geometry().chunkCount();
          if (run.count == 0 || run.count > kMaxChunksPerGet || run.first >= chunks || run.count > chunks - run.first) return;
          wanted.push_back(run);
        } else {
          return;  // not in the protocol: the child is not to be believed
        }
        break;
      }
      if (!wanted.empty()) {
        if (sendChunks(session, holding, grant, wanted.front())) {
          said = heard = Clock::now();
          if (wanted.front().count == 0) wanted.pop_front();
          continue;
        }
      } else if (objectWanted && holding.waitComplete(kPollMs)) {
        const std::optional<DigestValue> digest = holding.completedDigest();
        if (!digest) continue;  // a repair began in between
        session.connection.sendFrame({FrameType::kObject, 0, 1, {}}, *digest, kChildStallMs, session.cancel);
        objectWanted = false;
        continue;
      } else if (!objectWanted) {
        if (Clock::now() - heard >= std::chrono::milliseconds(kChildStallMs)) return;
        continue;
      }
      const auto sinceSaid = Clock::now() - said;
      const bool news = sinceSaid >= kOriginWordMin && holding.sinceOrigin() < sinceSaid;
      if (sinceSaid >= std::chrono::milliseconds(kWaitingWordMs) || (holding.relay() && news)) {
        FrameHeader word{FrameType::kWaiting, 0, wanted.empty() ? holding.geometry().chunkCount() : wanted.front().first, {}};
        putU64(word.digest.data(), static_cast<uint64_t>(holding.sinceOrigin().count()));
        session.connection.sendFrame(word, {}, kChildStallMs, session.cancel);
        said = Clock::now();
      }
    }
  } catch (const Fault& fault) {
    std::string text = std::string(codeName(fault.code())) + "\n" + (session.cancel.requested() ? "the holding is being taken away" : fault.what());
    text.resize(std::min(text.size(), kMaxControlPayloadBytes));
    while (!validUtf8(text)) text.pop_back();  // cut inside a character
    const Cancel never;
    session.connection.sendFrame({FrameType::kFailed, 0, 0, {}}, {reinterpret_cast<const uint8_t*>(text.data()), text.size()}, kPollMs * 2, never);
  }
}

void StreamServer::sendLayout(Session& session, const Holding& holding) {
  const std::vector<uint8_t> layout = holding.readLayout();
  for (size_t at = 0; at < layout.size(); at += kMaxDataPayloadBytes) {
    const size_t bytes = std::min(kMaxDataPayloadBytes, layout.size() - at);
    session.connection.sendFrame({FrameType::kLayout, 0, layout.size(), {}}, {layout.data() + at, bytes}, kChildStallMs, session.cancel);
  }
}

// Sends the verified chunks at the front of the run, about 1 MiB in one call. False when the first is not there yet.
bool StreamServer::sendChunks(Session& session, Holding& holding, const Grant& grant, Run& run) {
  if (!holding.waitFor(run.first, kPollMs)) return false;
  const auto perSend = static_cast<uint32_t>(std::max<uint64_t>(1, kSendBytes / holding.geometry().chunkBytes()));
  std::array<FrameBytes, 16> headers;
  std::array<iovec, 32> pieces;
  const auto most = std::min<uint32_t>({run.count, perSend, static_cast<uint32_t>(headers.size())});
  uint32_t count = 0;
  uint64_t bytes = 0;
  for (; count < most && (count == 0 || holding.verified(run.first + count)); count++) {
    const uint64_t chunk = run.first + count;
    const std::span<const uint8_t> payload = holding.bytes(chunk);
    headers[count] = encodeFrame({FrameType::kChunk, static_cast<uint32_t>(payload.size()), chunk, holding.digest(chunk)});
    pieces[2 * count] = {headers[count].data(), kFrameHeaderBytes};
    pieces[2 * count + 1] = {const_cast<uint8_t*>(payload.data()), payload.size()};
    bytes += payload.size();
  }
  session.connection.send(std::span(pieces.data(), 2 * count), kChildStallMs, session.cancel);
  run.first += count;
  run.count -= count;
  std::lock_guard lock(mutex_);
  ServedCount& served = served_[{grant.holdingId, grant.child}];
  served.holdingId = grant.holdingId;
  served.child = grant.child;
  served.bytes += bytes;
  served.chunks += count;
  return true;
}

void StreamServer::refused(Session& session, Holding& holding, uint64_t chunk) {
  std::vector<uint8_t> buffer;
  if (holding.verified(chunk) && !holding.prove(chunk, buffer)) options_.onDamage(holding.id(), chunk);
  session.connection.shutdown();
}

}  // namespace weightline
