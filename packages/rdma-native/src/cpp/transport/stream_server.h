// The parent's side of streams: listens, checks tickets, sends chunks as they are verified (PROTOCOL.md).
#pragma once

#include <atomic>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "store/holding.h"
#include "transport/handshake.h"
#include "transport/stream_source.h"

namespace weightline {

// Streams served at once, and tickets waiting: above these a stranger is turned away.
inline constexpr size_t kMaxServedStreams = 256;
inline constexpr size_t kMaxWaitingTickets = 4096;
// A child that takes nothing or asks for nothing for so long is let go.
inline constexpr int kChildStallMs = 30'000;
// How often a parent that must wait says so.
inline constexpr int kWaitingWordMs = 1000;
// Sooner when something was heard of the origin meanwhile, so that it passes a long chain in time; never more often than this.
inline constexpr std::chrono::milliseconds kOriginWordMin{100};

struct ServedCount {
  std::string holdingId, child;
  uint64_t bytes = 0, chunks = 0;
};

struct StreamServerOptions {
  std::vector<std::string> bind;  // tried in order
  uint16_t port = 0;              // 0: any
  // Opens a holding for serving; throws when it must not be served. Any thread.
  std::function<std::shared_ptr<Holding>(const std::string& id)> holding;
  // A child's refusal was right: these bytes are wrong here. Any thread.
  std::function<void(const std::string& id, uint64_t chunk)> onDamage;
};

class StreamServer {
 public:
  explicit StreamServer(StreamServerOptions options);
  ~StreamServer();  // ends all streams and joins

  // "[::]:6755".
  const std::string& address() const { return address_; }
  void grant(const StreamTicket& ticket, const std::string& holdingId, const std::string& child, std::chrono::milliseconds ttl);
  // Ends streams of a holding and forgets its tickets; returns when no stream has the holding any more.
  void revoke(const std::string& holdingId);
  // What was sent since the last call.
  std::vector<ServedCount> takeServed();

 private:
  struct Grant {
    Secret secret{};
    std::string holdingId, child;
    Clock::time_point expires;
  };
  struct Session {
    explicit Session(Connection c) : connection(std::move(c)) {}
    Connection connection;
    Cancel cancel;
    std::string holdingId;
    std::atomic<bool> done{false};
    std::thread thread;
  };

  void listen();
  void accept();
  void serve(Session& session);
  void serveHolding(Session& session, Holding& holding, const Grant& grant);
  void sendLayout(Session& session, const Holding& holding);
  bool sendChunks(Session& session, Holding& holding, const Grant& grant, Run& run);
  void refused(Session& session, Holding& holding, uint64_t chunk);
  void reap(bool all);

  const StreamServerOptions options_;
  Descriptor listener_;
  std::string address_;
  std::atomic<bool> stop_{false};
  std::mutex mutex_;
  std::map<TicketId, Grant> grants_;
  std::list<std::unique_ptr<Session>> sessions_;
  std::map<std::pair<std::string, std::string>, ServedCount> served_;
  std::thread acceptor_;
};

}  // namespace weightline
