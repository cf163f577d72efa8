// Accepts the local API's connections, fairly.
#pragma once

#include <node_api.h>
#include <sys/types.h>

#include <chrono>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "agent/core_follower.h"
#include "agent/socket_file.h"
#include "base/descriptor.h"

namespace weightline {

// Connections that wait to be taken: of one pod's container (outside pods: of one process), and of all. Above, those whose
// caller has left go first, then the oldest.
inline constexpr size_t kMaxWaitingPerCaller = 64;
inline constexpr size_t kMaxWaitingConnections = 512;
// Handed over at most in a turn of the event loop, which looks at others in between.
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

  // One that was handed over has been taken. Where it was left meanwhile its caller's next comes a moment later: one that
  // connects and leaves for ever costs no more than that. From any thread.
  void taken(int socket);
  // As many as were taken since the last time may be handed over. From any thread.
  void turnEnded();
  // No connection of the process's caller is handed over for so long from now. From any thread.
  void hold(pid_t pid, std::chrono::milliseconds time);

 private:
  using Time = std::chrono::steady_clock::time_point;
  struct Caller {
    std::string key;
    Time until;
  };

  struct Queue {
    std::deque<Descriptor> sockets;  // oldest first
    size_t added = kMaxWaitingPerCaller;  // since it was last looked through for those that were left
  };

  void run();
  void takeHolds();
  // Returns when the next of those who are held may come; Time::max() for none.
  Time handOver();
  // One of the caller's, and it is the last in turn; false when all have left.
  bool handOverOne(const std::string& key);
  // False when nobody connects now.
  bool accept();
  void turnAway();
  void add(Descriptor socket);
  // Closes the oldest of the caller that has most; false when none waits.
  bool dropOne();
  // Lets go of those that were left. At most once in as many as may wait: looking at all of them for each that comes would
  // keep all others waiting.
  void forgetLeft(Queue& waiting);
  const std::string& callerOf(pid_t pid);

  const std::function<void(Descriptor)> onConnection_;
  SocketFile file_;
  Descriptor wake_;
  Descriptor spare_;  // given up for a moment to accept and close when no other is left
  std::map<std::string, Queue> waiting_;
  std::deque<std::string> turns_;  // callers that have some
  size_t count_ = 0;
  std::unordered_map<pid_t, Caller> callers_;
  std::unordered_map<std::string, Time> held_;  // callers, and until when
  std::optional<CoreFollower> follower_;  // the thread's own
  std::mutex mutex_;
  std::vector<std::pair<pid_t, Time>> holds_;  // asked for and not looked at yet
  size_t handed_ = 0;  // less those that were taken in turns that have ended
  size_t taken_ = 0;   // of them, in the turn that has not
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace weightline
