// The socket that hands a holding's descriptors to pods (commands.md, "Descriptor socket").
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
#include <string>
#include <thread>
#include <vector>

#include "agent/store_view.h"
#include "base/descriptor.h"

namespace weightline {

// Connections at once; at the cap the oldest silent one goes, of the process that has most of them.
inline constexpr size_t kMaxDescriptorConnections = 64;
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

struct DescriptorEvent {
  bool sent = false;
  pid_t pid = 0;
  uint32_t descriptors = 0;
  std::string reason;
};

class DescriptorServer {
 public:
  static constexpr const char* kName = "descriptor server";
  static constexpr napi_type_tag kTag = {0x57656967684c696e, 0x04};

  // Listens on `path`, replacing an old socket file; throws AlreadyExists when another kind of file is there. `onEvent` is
  // called on the server's thread.
  DescriptorServer(std::string path, std::shared_ptr<StoreView> view, std::function<void(const DescriptorEvent&)> onEvent);
  ~DescriptorServer();

  void grant(DescriptorGrant grant);
  void revoke(const std::string& holdingId);

 private:
  struct Client {
    Descriptor socket;
    pid_t pid = 0;
    std::chrono::steady_clock::time_point deadline;
    std::vector<Descriptor> files;  // to be sent
    size_t sent = 0;
    bool congested = false;  // too many descriptors are on their way: only time helps
  };
  using Clients = std::list<Client>;

  void listen();
  void run();
  void serve();
  // False when nobody waits.
  bool accept();
  // Tells a client that there is no descriptor left for its connection.
  void turnAway();
  void makeRoom();
  // False when the client is done with.
  bool receive(Client& client);
  bool send(Client& client);
  DescriptorGrant take(const Client& client, const uint8_t* message, size_t bytes);
  void refuse(Client& client, const std::exception& error);
  void report(const Client& client, bool sent, const std::string& reason);
  void expire();

  const std::string path_;
  const std::shared_ptr<StoreView> view_;
  const std::function<void(const DescriptorEvent&)> onEvent_;
  Descriptor listener_, wake_;
  Descriptor spare_;  // given up for a moment to turn a client away when no other is left
  ino_t inode_ = 0;   // of the socket file
  std::mutex mutex_;
  std::map<std::array<uint8_t, 16>, DescriptorGrant> grants_;
  Clients clients_;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace weightline
