#include "agent/local_listener.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "agent/cgroup.h"
#include "agent/process.h"
#include "base/fault.h"
#include "base/ready.h"

namespace weightline {

namespace {

using SteadyClock = std::chrono::steady_clock;

// A crowd that connects at once must not fill it: a client whose connect does not wait would be refused.
constexpr int kBacklog = 4096;
constexpr size_t kBatch = 64;
// A process that changes its cgroup, or a number that goes to another process, is seen after this time. Only the turn
// depends on it.
constexpr std::chrono::seconds kCallerMemory{1};
constexpr size_t kMaxCallers = 4096;
constexpr std::chrono::milliseconds kNoDescriptorPause{10};
// What a connection that was left before it was taken costs its caller.
constexpr std::chrono::milliseconds kLeftHold{2};

// Whose turn a process shares: its container's in a pod, else its own.
std::string keyOf(pid_t pid) {
  const std::string cgroup = cgroupOf(pid);
  const bool pod = cgroup.starts_with("/..") || cgroup.find("kubepods") != std::string::npos;
  return pod ? cgroup : std::to_string(pid);
}

}  // namespace

bool hungUp(int socket) { return readyNow(socket, 0) != 0; }

LocalListener::LocalListener(std::string path, std::function<void(Descriptor)> onConnection)
    : onConnection_(std::move(onConnection)), file_(std::move(path), SOCK_STREAM, kBacklog), wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      spare_(::open("/dev/null", O_RDONLY | O_CLOEXEC)) {
  if (!wake_.valid() || !spare_.valid()) throw systemFault(errno, "starting to listen");
  thread_ = std::thread([this] { run(); });
}

LocalListener::~LocalListener() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  ::eventfd_write(wake_.get(), 1);
  thread_.join();
}

void LocalListener::taken(int socket) {
  if (hungUp(socket)) hold(connectedPid(socket), kLeftHold);
  std::lock_guard lock(mutex_);
  taken_++;
}

void LocalListener::turnEnded() {
  {
    std::lock_guard lock(mutex_);
    handed_ -= taken_;
    taken_ = 0;
  }
  ::eventfd_write(wake_.get(), 1);
}

void LocalListener::hold(pid_t pid, std::chrono::milliseconds time) {
  std::lock_guard lock(mutex_);
  // More than callers that are remembered were not handed over.
  if (holds_.size() < kMaxCallers) holds_.emplace_back(pid, SteadyClock::now() + time);
}

void LocalListener::run() {
  follower_.emplace("wl-listener");
  Time next = Time::max();
  while (true) {
    pollfd entries[] = {{wake_.get(), POLLIN, 0}, {file_.get(), POLLIN, 0}};
    ::poll(entries, 2, next == Time::max() ? -1 : static_cast<int>(std::max<int64_t>(0, std::chrono::ceil<std::chrono::milliseconds>(next - SteadyClock::now()).count())));
    eventfd_t ignored = 0;
    if (entries[0].revents != 0) ::eventfd_read(wake_.get(), &ignored);
    {
      std::lock_guard lock(mutex_);
      if (stop_) return;
    }
    try {
      for (size_t i = 0; i < kBatch && entries[1].revents != 0 && accept(); i++) {
      }
      takeHolds();
      next = handOver();
    } catch (const std::exception&) {
      // Out of memory: those who wait are let go, and the socket stays.
      waiting_.clear();
      turns_.clear();
      held_.clear();
      count_ = 0;
    }
  }
}

void LocalListener::takeHolds() {
  std::vector<std::pair<pid_t, Time>> holds;
  {
    std::lock_guard lock(mutex_);
    holds.swap(holds_);
  }
  for (const auto& [pid, until] : holds) {
    Time& held = held_[callerOf(pid)];
    held = std::max(held, until);
  }
  if (!holds.empty()) std::erase_if(held_, [now = SteadyClock::now()](const auto& entry) { return entry.second <= now; });
}

LocalListener::Time LocalListener::handOver() {
  const auto now = SteadyClock::now();
  auto next = Time::max();
  // Those who are held keep their place before those who come last.
  for (size_t heldCount = 0; heldCount < turns_.size();) {
    {
      std::lock_guard lock(mutex_);
      if (handed_ >= kMaxHandedConnections) return Time::max();
    }
    const auto turn = turns_.begin() + static_cast<std::ptrdiff_t>(heldCount);
    const auto held = held_.find(*turn);
    if (held != held_.end() && held->second > now) {
      next = std::min(next, held->second);
      heldCount++;
      continue;
    }
    const std::string key = std::move(*turn);
    turns_.erase(turn);
    if (handOverOne(key)) turns_.push_back(key);
  }
  return next;
}

bool LocalListener::handOverOne(const std::string& key) {
  auto& waiting = waiting_[key].sockets;
  while (!waiting.empty() && hungUp(waiting.front().get())) {
    waiting.pop_front();
    count_--;
  }
  if (!waiting.empty()) {
    Descriptor socket = std::move(waiting.front());
    waiting.pop_front();
    count_--;
    {
      std::lock_guard lock(mutex_);
      handed_++;
    }
    try {
      onConnection_(std::move(socket));
    } catch (...) {
      std::lock_guard lock(mutex_);
      handed_--;
      throw;
    }
  }
  if (!waiting.empty()) return true;
  waiting_.erase(key);
  return false;
}

bool LocalListener::accept() {
  Descriptor socket(::accept4(file_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (socket.valid()) {
    add(std::move(socket));
    return true;
  }
  if (errno != EMFILE && errno != ENFILE) return false;
  if (!dropOne()) turnAway();
  return true;
}

void LocalListener::turnAway() {
  spare_.reset();
  Descriptor(::accept4(file_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK)).reset();
  // The agent has none left: not at full speed again.
  std::this_thread::sleep_for(kNoDescriptorPause);
  spare_ = Descriptor(::open("/dev/null", O_RDONLY | O_CLOEXEC));
}

void LocalListener::add(Descriptor socket) {
  const pid_t pid = connectedPid(socket.get());
  follower_->connected(pid);
  const std::string& key = callerOf(pid);
  Queue& waiting = waiting_[key];
  if (waiting.sockets.size() >= kMaxWaitingPerCaller) forgetLeft(waiting);
  if (waiting.sockets.size() >= kMaxWaitingPerCaller) {
    waiting.sockets.pop_front();
    count_--;
  }
  // It is in the turns already when others of it wait, or waited until they were forgotten just now.
  if (std::find(turns_.begin(), turns_.end(), key) == turns_.end()) turns_.push_back(key);
  waiting.sockets.push_back(std::move(socket));
  waiting.added++;
  count_++;
  if (count_ > kMaxWaitingConnections) dropOne();
}

bool LocalListener::dropOne() {
  const auto most = std::max_element(waiting_.begin(), waiting_.end(), [](const auto& a, const auto& b) { return a.second.sockets.size() < b.second.sockets.size(); });
  if (most == waiting_.end() || most->second.sockets.empty()) return false;
  most->second.sockets.pop_front();
  count_--;
  return true;
}

void LocalListener::forgetLeft(Queue& waiting) {
  if (waiting.added < kMaxWaitingPerCaller) return;
  waiting.added = 0;
  count_ -= std::erase_if(waiting.sockets, [](const Descriptor& socket) { return hungUp(socket.get()); });
}

const std::string& LocalListener::callerOf(pid_t pid) {
  const auto now = SteadyClock::now();
  if (callers_.size() >= kMaxCallers) callers_.clear();
  Caller& caller = callers_[pid];
  if (caller.until <= now) caller = {keyOf(pid), now + kCallerMemory};
  return caller.key;
}

}  // namespace weightline
