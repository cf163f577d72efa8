// Accepts the local API's connections, fairly.
#pragma once

#include <node_api.h>
#include <sys/types.h>

#include <chrono>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>

#include "agent/socket_file.h"
#include "base/descriptor.h"

namespace weightline {

// Connections that wait to be taken: of one pod's container (outside pods: of one process), and of all. Above, those whose
// caller has left go first, then the oldest.
inline constexpr size_t kMaxWaitingPerCaller = 64;
inline constexpr size_t kMaxWaitingConnections = 512;
// Handed over and not taken yet: the event loop is given no more at a time than it can look at between other work.
inline constexpr size_t kMaxHandedConnections = 2;

// True when the other end has closed the connection.
bool hungUp(int socket);

// One thread that accepts faster than anybody connects, so that the kernel's queue is never full of one caller's
// connections. Those that wait are handed over in turn, caller by caller; one that was left meanwhile costs nothing more.
class LocalListener {
 public:
  static constexpr const char* kName = "local listener";
  static constexpr napi_type_tag kTag = {0x57656967684c696e, 0x07};

  // `onConnection` is called on the listener's thread.
  LocalListener(std::string path, std::function<void(Descriptor)> onConnection);
  ~LocalListener();

  // One that was handed over has been taken. From any thread.
  void taken();

 private:
  struct Caller {
    std::string key;
    std::chrono::steady_clock::time_point until;
  };

  void run();
  void handOver();
  // False when nobody connects now.
  bool accept();
  void turnAway();
  void add(Descriptor socket);
  // Closes the oldest of the caller that has most; false when none waits.
  bool dropOne();
  void forgetLeft(std::deque<Descriptor>& waiting);
  const std::string& callerOf(pid_t pid);

  const std::function<void(Descriptor)> onConnection_;
  SocketFile file_;
  Descriptor wake_;
  Descriptor spare_;  // given up for a moment to accept and close when no other is left
  std::map<std::string, std::deque<Descriptor>> waiting_;
  std::deque<std::string> turns_;  // callers that have some
  size_t count_ = 0;
  std::unordered_map<pid_t, Caller> callers_;
  std::mutex mutex_;
  size_t handed_ = 0;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace weightline
