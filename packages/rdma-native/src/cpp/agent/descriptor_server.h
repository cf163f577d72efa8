// The socket that hands a holding's descriptors to pods, and takes those of an offer (commands.md, "Descriptor socket";
// docs/local-api.md).
#pragma once

#include <node_api.h>
#include <sys/types.h>

#include <array>
#include <chrono>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "agent/closer.h"
#include "agent/core_follower.h"
#include "agent/refusal_gauge.h"
#include "agent/store_view.h"
#include "base/descriptor.h"

namespace weightline {

// Connections at once; at the cap the oldest silent one goes, of the process that has most of them.
inline constexpr size_t kMaxDescriptorConnections = 64;
// Connections of a process that was refused too often and waits for its next look: more are closed unread.
inline constexpr size_t kMaxHeldConnections = 4;
// A client must say its ticket, and take each message, within this time.
inline constexpr std::chrono::milliseconds kDescriptorClientTime{2000};
// What the kernel passes with one message (SCM_MAX_FD).
inline constexpr size_t kMaxDescriptorsPerMessage = 253;
inline constexpr size_t kMaxDescriptorTickets = 4096;
// A layout and 4096 segments (promises.md).
inline constexpr size_t kMaxDescriptorsPerTicket = 4097;

struct DescriptorGrant {
  std::array<uint8_t, 16> ticketId{};
  std::array<uint8_t, 32> secret{};
  pid_t pid = 0;
  std::chrono::steady_clock::time_point expires;
  std::string holdingId;
  std::vector<std::string> paths;
};

// Lets one process give descriptors for one offer, one at a time, until it is revoked.
struct OfferGrant {
  std::array<uint8_t, 16> ticketId{};
  std::array<uint8_t, 32> secret{};
  pid_t pid = 0;
  std::string offer;
};

// What a process gave: a descriptor, and what it says that it is.
struct Given {
  uint64_t connection = 0;  // to answer
  std::string offer;
  bool list = false;  // the list of tensors; else a segment
  uint32_t segment = 0;
  uint64_t bytes = 0;
  Descriptor memory;
};

struct DescriptorEvent {
  enum class Kind { kSent, kRefused, kGiven };
  Kind kind = Kind::kRefused;
  pid_t pid = 0;
  uint32_t descriptors = 0;
  std::string reason;
  Given given;
};

class DescriptorServer {
 public:
  static constexpr const char* kName = "descriptor server";
  static constexpr napi_type_tag kTag = {0x57656967684c696e, 0x04};

  using OnEvent = std::function<void(std::unique_ptr<DescriptorEvent>)>;

  // Listens on `path`, replacing an old socket file; throws AlreadyExists when another kind of file is there. `onEvent` is
  // called on the server's thread. `gauge` says how often one process may be refused.
  DescriptorServer(std::string path, std::shared_ptr<StoreView> view, OnEvent onEvent, RefusalGauge gauge = RefusalGauge());
  ~DescriptorServer();

  void grant(DescriptorGrant grant);
  void revoke(const std::string& holdingId);
  void grantOffer(OfferGrant grant);
  void revokeOffer(const std::string& offer);
  // Answers what was given on a connection with one message, with the layout of a holding when its id is not empty, and
  // lets the connection go. Nothing happens when that has gone already.
  void answer(uint64_t connection, std::string text, std::string layoutOf);
  // Closes a descriptor that was given and refused, on a thread that may wait for it.
  void discard(Descriptor memory) { closer_.close(std::move(memory)); }

 private:
  struct Client {
    Descriptor socket;
    pid_t pid = 0;
    std::chrono::steady_clock::time_point deadline;
    std::vector<Descriptor> files;  // to be sent
    size_t sent = 0;
    bool congested = false;  // too many descriptors are on their way: only time helps
    uint64_t number = 0;     // of a connection whose giving is being worked on; else 0

    // Has said nothing that is being worked on.
    bool silent() const { return files.empty() && number == 0; }
  };
  using Clients = std::list<Client>;
  struct Answer {
    uint64_t connection = 0;
    std::string text, layoutOf;
  };

  void listen();
  void run();
  void serve();
  // Takes the client's message, or goes on sending to it, as `events` of poll(2) allow. False when it is done with.
  bool serve(Client& client, short events, bool held);
  // False when nobody waits.
  bool accept();
  // Tells a client that there is no descriptor left for its connection.
  void turnAway();
  void makeRoom();
  // False when the client is done with.
  bool receive(Client& client);
  bool send(Client& client);
  DescriptorGrant take(const Client& client, const uint8_t* message, size_t bytes);
  // Takes what was given; true while it is being worked on.
  bool takeGiven(Client& client, const uint8_t* message, size_t bytes);
  void sendAnswers();
  void sendAnswer(Client& client, const Answer& answer);
  void sendText(Client& client, const std::string& text, int descriptor);
  void refuse(Client& client, const std::exception& error);
  void report(const Client& client, bool sent, const std::string& reason);
  void expire();

  const std::string path_;
  const std::shared_ptr<StoreView> view_;
  const OnEvent onEvent_;
  Closer closer_;
  Descriptor listener_, wake_;
  Descriptor spare_;  // given up for a moment to turn a client away when no other is left
  ino_t inode_ = 0;   // of the socket file
  std::mutex mutex_;
  std::map<std::array<uint8_t, 16>, DescriptorGrant> grants_;
  struct Offering {
    OfferGrant grant;
    uint64_t working = 0;  // the connection whose giving is being worked on; else 0
  };
  std::map<std::array<uint8_t, 16>, Offering> offers_;
  std::vector<Answer> answers_;
  Clients clients_;
  RefusalGauge gauge_;
  std::optional<CoreFollower> follower_;  // the thread's own
  uint64_t nextNumber_ = 1;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace weightline
