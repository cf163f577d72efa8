// What runs on many threads, all at once, for the thread sanitizer: movers that load, pull from each other, are cancelled, checked,
// damaged, repaired and evicted; a holding that is filled and read; descriptor tickets; watched processes; and their ends while all
// that goes on.
//
// usage: threads FOLDER SECONDS     FOLDER: on tmpfs, empty. The last line tells what was done; exit 66 when the sanitizer saw a race.
//        threads --planted          a race on purpose, which must be seen
#include <fcntl.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <limits>
#include <fstream>
#include <random>
#include <thread>

#include "agent/descriptor_server.h"
#include "agent/process_watcher.h"
#include "mover/mover.h"

extern char** environ;
// Reports also where locks are taken in different orders; every report, not only the first.
extern "C" const char* __tsan_default_options() { return "halt_on_error=0:exitcode=66:second_deadlock_stack=1:report_signal_unsafe=0"; }
// An exception's copies share their message by a count in libstdc++, whose code is not instrumented.
extern "C" const char* __tsan_default_suppressions() { return "race:std::runtime_error::~runtime_error\n"; }

namespace weightline {

namespace {

using namespace std::chrono_literals;

constexpr uint64_t kModelBytes = 3 << 20;
constexpr auto kOrderTime = 60s;

struct Counts {
  std::atomic<uint64_t> pulls{0}, pulled{0}, cancelled{0}, refused{0}, damaged{0}, repaired{0}, evicted{0}, fills{0}, descriptors{0}, processes{0}, ends{0};
};
Counts counts;
std::atomic<bool> over{false};

[[noreturn]] void broken(const std::string& what) {
  std::fprintf(stderr, "threads: broken: %s\n", what.c_str());
  std::_Exit(1);
}

// Each thread has its own.
size_t below(size_t limit) {
  thread_local std::minstd_rand random{static_cast<unsigned>(std::hash<std::thread::id>{}(std::this_thread::get_id()))};
  return random() % limit;
}

void pause(size_t mostUs) { std::this_thread::sleep_for(std::chrono::microseconds(below(mostUs))); }

std::string newId() {
  std::array<uint8_t, 16> bytes{};
  randomBytes(bytes);
  return toHex(bytes);
}

StreamTicket newTicket() {
  StreamTicket ticket;
  randomBytes(ticket.id);
  randomBytes(ticket.secret);
  return ticket;
}

// A mover with who gives it orders and hears its reports.
class Node {
 public:
  explicit Node(std::string store) : store_(std::move(store)) {
    std::filesystem::create_directories(store_ + "/holdings");
    mover_ = std::make_unique<Mover>(MoverOptions{store_, {"127.0.0.1"}, 0}, [this](std::unique_ptr<Report> report) { take(std::move(report)); });
  }

  const std::string& store() const { return store_; }
  const std::string& address() const { return mover_->address(); }

  template <typename What>
  uint32_t give(const std::string& holdingId, What what) {
    Order order;
    order.id = ++nextId_;
    order.holdingId = holdingId;
    order.what = std::move(what);
    const uint32_t id = order.id;
    {
      std::lock_guard lock(mutex_);
      kinds_[id] = order.what.index();
    }
    mover_->order(std::move(order));
    return id;
  }

  std::unique_ptr<Report> wait(uint32_t id) {
    std::unique_lock lock(mutex_);
    if (!arrived_.wait_for(lock, kOrderTime, [&] { return ended_.contains(id); })) broken("order " + std::to_string(id) + " of kind " + std::to_string(kinds_[id]) + " does not end");
    auto report = std::move(ended_[id]);
    ended_.erase(id);
    kinds_.erase(id);
    return report;
  }

  template <typename What>
  std::unique_ptr<Report> run(const std::string& holdingId, What what) {
    return wait(give(holdingId, std::move(what)));
  }

  // Ends the mover whatever runs.
  void end() { mover_.reset(); }

 private:
  void take(std::unique_ptr<Report> report) {
    if (report->kind == Report::Kind::kDamage) counts.damaged++;
    if (report->kind != Report::Kind::kDone && report->kind != Report::Kind::kFailed) return;
    std::lock_guard lock(mutex_);
    ended_[report->id] = std::move(report);
    arrived_.notify_all();
  }

  const std::string store_;
  std::mutex mutex_;
  std::condition_variable arrived_;
  std::map<uint32_t, std::unique_ptr<Report>> ended_;
  std::map<uint32_t, size_t> kinds_;  // of orders that run: which of Order::what
  std::atomic<uint32_t> nextId_{0};
  std::unique_ptr<Mover> mover_;
};

struct Scanned {
  std::string id;
  std::vector<SourceFile> files;
  DigestValue layoutDigest{};
  uint64_t layoutBytes = 0, totalBytes = 0;
};

Scanned scan(Node& node, const std::string& model) {
  Scanned scanned;
  scanned.id = newId();
  const auto report = node.run(scanned.id, ScanOrder{model, "/", Algorithm::kXxh3});
  if (!report->result.scanned) broken(report->fault ? report->fault->what() : "no scan");
  scanned.files = report->result.scanned->files;
  scanned.layoutDigest = report->result.layoutDigest;
  scanned.layoutBytes = report->result.layoutBytes;
  scanned.totalBytes = report->result.scanned->layout.totalBytes();
  return scanned;
}

// Grants two tickets at the parent and gives the pull order.
uint32_t startPull(Node& child, const std::string& childId, Node& parent, const std::string& parentId, const Scanned& of) {
  PullOrder order;
  order.parentHoldingId = parentId;
  order.peer.endpoint = parent.address();
  order.peer.tickets = {newTicket(), newTicket()};
  order.peer.layoutDigest = of.layoutDigest;
  order.peer.layoutBytes = of.layoutBytes;
  order.peer.totalBytes = of.totalBytes;
  for (const StreamTicket& ticket : order.peer.tickets) parent.run(parentId, GrantOrder{ticket, 30'000, "child"});
  counts.pulls++;
  return child.give(childId, order);
}

// Pulls until it is whole, whatever was done to it before.
DigestValue pullWhole(Node& child, const std::string& childId, Node& parent, const Scanned& of) {
  for (int tries = 0; tries < 100; tries++) {
    const auto report = child.wait(startPull(child, childId, parent, of.id, of));
    if (report->kind == Report::Kind::kDone) {
      counts.pulled++;
      return *report->result.objectDigest;
    }
    counts.refused++;
  }
  broken("a pull never becomes whole");
}

void evict(Node& node, const std::string& id) {
  if (node.run(id, EvictOrder{})->kind == Report::Kind::kDone) counts.evicted++;
}

// A load with a child and the child's child behind it, any of which may be cancelled or revoked; at the end all have the object.
void transfers(Node& origin, Node& other, const std::string& model) {
  const Scanned scanned = scan(origin, model);
  const std::string relayId = newId(), lastId = newId();
  const uint32_t load = origin.give(scanned.id, LoadOrder{scanned.files, 2});
  const uint32_t relay = startPull(other, relayId, origin, scanned.id, scanned);
  pause(4000);
  const uint32_t last = startPull(origin, lastId, other, relayId, scanned);
  pause(4000);
  switch (below(5)) {
    case 0: other.run(relayId, CancelOrder{relay}); break;
    case 1: origin.run(scanned.id, RevokeOrder{}); break;
    case 2: origin.run(scanned.id, CancelOrder{load}); break;
    case 3: origin.run(lastId, CancelOrder{last}); break;
    default: break;
  }
  // A parent whose own fill has ended early waits for the next one, and its child with it, until their agents say otherwise.
  const bool loaded = origin.wait(load)->kind == Report::Kind::kDone;
  if (!loaded) other.run(relayId, CancelOrder{relay});
  const bool relayed = other.wait(relay)->kind == Report::Kind::kDone;
  if (!relayed) origin.run(lastId, CancelOrder{last});
  if (origin.wait(last)->kind == Report::Kind::kFailed || !relayed || !loaded) counts.cancelled++;
  DigestValue digest{};
  while (true) {
    const auto again = origin.run(scanned.id, LoadOrder{scanned.files, 2});
    if (again->kind == Report::Kind::kDone) {
      digest = *again->result.objectDigest;
      break;
    }
  }
  std::thread one([&] {
    if (pullWhole(other, relayId, origin, scanned) != digest) broken("another object came out");
  });
  std::thread two([&] {
    if (pullWhole(origin, lastId, origin, scanned) != digest) broken("another object came out");
  });
  std::thread three([&] {
    const auto checked = origin.run(scanned.id, CheckOrder{below(2) == 0, {}, digest});
    if (checked->kind != Report::Kind::kDone || !checked->result.wrongChunks->empty()) broken("a right holding is called wrong");
  });
  one.join();
  two.join();
  three.join();
  std::thread gone([&] { evict(origin, scanned.id); });
  evict(other, relayId);
  evict(origin, lastId);
  gone.join();
}

// A digest on disk turns wrong: a child refuses, the parent finds its damage, is repaired and loaded again.
void damage(Node& parent, Node& child, const std::string& model) {
  const Scanned scanned = scan(parent, model);
  parent.run(scanned.id, LoadOrder{scanned.files, 2});
  {
    const Descriptor digests(::open((holdingFolder(parent.store(), scanned.id) + "/digests").c_str(), O_RDWR | O_CLOEXEC));
    const uint8_t wrong = 0x5a;
    if (::pwrite(digests.get(), &wrong, 1, 16 * 7 + 3) != 1) broken("the digests cannot be written");
  }
  const std::string first = newId(), second = newId();
  const uint32_t one = startPull(child, first, parent, scanned.id, scanned), two = startPull(child, second, parent, scanned.id, scanned);
  for (const uint32_t pull : {one, two}) {
    if (child.wait(pull)->kind == Report::Kind::kDone) broken("damaged bytes made an object");
  }
  // Found by a child's word already, it is not served any more; by nobody's, the check finds it.
  const auto checked = parent.run(scanned.id, CheckOrder{false, {}, std::nullopt});
  if (checked->kind == Report::Kind::kDone && checked->result.wrongChunks->empty()) broken("the damage is not found");
  const auto repaired = parent.run(scanned.id, RepairOrder{});
  if (repaired->kind != Report::Kind::kDone || repaired->result.wrongChunks->empty()) broken("the damage is not repaired");
  const auto loaded = parent.run(scanned.id, LoadOrder{scanned.files, 2});
  if (loaded->kind != Report::Kind::kDone) broken(loaded->fault->what());
  if (pullWhole(child, first, parent, scanned) != *loaded->result.objectDigest) broken("another object came out");
  counts.repaired++;
  evict(child, first);
  evict(child, second);
  evict(parent, scanned.id);
}

// One holding: a filler, readers that wait for chunks, one who waits for the end, one who takes it away and gives it back.
void fillAndRead(const std::string& store) {
  Layout layout;
  layout.segments = {{kMinChunkBytes * 20 + 5, "a"}, {0, "b"}, {kMinChunkBytes * 3, "c"}};
  const std::string id = newId();
  const auto holding = Holding::create(store, id, encodeLayout(layout));
  const uint64_t chunks = holding->geometry().chunkCount();
  std::atomic<bool> filled{false};
  std::vector<std::thread> threads;
  threads.emplace_back([&] {
    holding->beginFill();
    RunCursor cursor(*holding);
    FillCounters counters;
    Cancel cancel;
    runThreads(2, cancel, [&](unsigned) {
      for (Run run = cursor.next(2); run.count > 0; run = cursor.next(2)) {
        for (uint64_t chunk = run.first; chunk < run.first + run.count; chunk++) {
          const std::vector<uint8_t> bytes(holding->geometry().place(chunk).bytes, static_cast<uint8_t>(chunk));
          const DigestValue digest = digestOf(Algorithm::kXxh3, bytes);
          holding->writeChunks(chunk, bytes, std::span(&digest, 1));
        }
      }
    });
    holding->endFill(nullptr);
    holding->markComplete(holding->objectDigest());
    filled = true;
  });
  for (int reader = 0; reader < 2; reader++) {
    threads.emplace_back([&] {
      std::vector<uint8_t> buffer;
      for (uint64_t chunk = 0; chunk < chunks;) {
        try {
          if (!holding->waitFor(chunk, 5)) continue;
          const auto bytes = holding->bytes(chunk);
          if (bytes.front() != static_cast<uint8_t>(chunk) || !holding->prove(chunk, buffer) || digestOf(Algorithm::kXxh3, bytes) != holding->digest(chunk)) broken("a marked chunk is not right");
          chunk++;
        } catch (const Fault&) {
          std::this_thread::sleep_for(100us);  // taken away for a moment
        }
      }
    });
  }
  threads.emplace_back([&] {
    while (true) {
      try {
        if (holding->waitComplete(5)) break;
      } catch (const Fault&) {
        std::this_thread::sleep_for(100us);
      }
    }
    if (holding->completedDigest() != holding->objectDigest()) broken("two object digests");
  });
  threads.emplace_back([&] {
    while (!filled) {
      holding->retire("for a moment");
      pause(300);
      holding->unretire();
      pause(1000);
      static_cast<void>(holding->whole());
    }
    holding->unretire();
  });
  for (std::thread& thread : threads) thread.join();
  std::filesystem::remove_all(holdingFolder(store, id));
  counts.fills++;
}

// Clients that come with tickets while others are granted and revoked.
void descriptors(DescriptorServer& server, const std::string& path, const std::string& holdingId, const std::string& file) {
  DescriptorGrant grant;
  randomBytes(grant.ticketId);
  randomBytes(grant.secret);
  grant.pid = ::getpid();
  grant.expires = std::chrono::steady_clock::now() + 10s;
  grant.holdingId = holdingId;
  grant.paths.assign(1 + below(4), file);
  std::array<uint8_t, 56> message{'W', 'L', 'F', 'D', 1};
  std::copy(grant.ticketId.begin(), grant.ticketId.end(), message.begin() + 8);
  std::copy(grant.secret.begin(), grant.secret.end(), message.begin() + 24);
  server.grant(grant);
  const bool revoked = below(4) == 0;
  if (revoked) server.revoke(holdingId);
  const Descriptor socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) broken("the descriptor socket takes nobody");
  ::send(socket.get(), message.data(), below(8) == 0 ? message.size() / 2 : message.size(), MSG_NOSIGNAL);
  std::array<uint8_t, 1024> answer{};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int) * 16)> control{};
  iovec piece{answer.data(), answer.size()};
  msghdr received{};
  received.msg_iov = &piece;
  received.msg_iovlen = 1;
  received.msg_control = control.data();
  received.msg_controllen = control.size();
  if (::recvmsg(socket.get(), &received, MSG_CMSG_CLOEXEC) < 0) return;
  for (cmsghdr* header = CMSG_FIRSTHDR(&received); header != nullptr; header = CMSG_NXTHDR(&received, header)) {
    for (size_t i = 0; i < (header->cmsg_len - CMSG_LEN(0)) / sizeof(int); i++) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(header) + i * sizeof(int), sizeof(int));
      ::close(fd);
      counts.descriptors++;
    }
  }
}

// A process that ends, watched by several, one of whom loses interest.
void processes(ProcessWatcher& watcher) {
  pid_t pid = 0;
  const char* words[] = {"true", nullptr};
  if (::posix_spawn(&pid, "/bin/true", nullptr, nullptr, const_cast<char**>(words), environ) != 0) broken("no process can be started");
  const Descriptor pidfd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  const uint64_t kept = watcher.add(pidfd.get()), dropped = watcher.add(pidfd.get());
  watcher.remove(dropped);
  ::waitpid(pid, nullptr, 0);
  pause(500);
  watcher.remove(kept);
  counts.processes++;
}

// Movers that end in the middle of loads, pulls and evictions.
void ends(const std::string& folder, const std::string& model) {
  Node origin(folder + "/ends-" + newId()), child(folder + "/ends-" + newId());
  const Scanned scanned = scan(origin, model);
  origin.give(scanned.id, LoadOrder{scanned.files, 2});
  for (int i = 0; i < 3; i++) startPull(child, newId(), origin, scanned.id, scanned);
  if (below(2) == 0) child.give(newId(), ScanOrder{model, "/", Algorithm::kXxh3});
  pause(20'000);
  // Streams that wait for bytes keep what takes the holding away waiting.
  if (below(2) == 0) origin.give(scanned.id, EvictOrder{});
  if (below(2) == 0) origin.give(scanned.id, RevokeOrder{});
  if (below(2) == 0) pause(2000);
  std::thread other([&] { child.end(); });
  origin.end();
  other.join();
  counts.ends++;
}

// Files may carry the immutable flag.
void removeStores(const std::string& folder) {
  for (const auto& store : std::filesystem::directory_iterator(folder)) {
    if (!std::filesystem::is_directory(store.path() / "holdings")) continue;
    for (const auto& entry : std::filesystem::directory_iterator(store.path() / "holdings")) {
      try {
        Holding::open(store.path(), entry.path().filename())->setFlags(false);
      } catch (const Fault&) {
        // Not whole enough to have flags.
      }
    }
  }
  for (const auto& entry : std::filesystem::directory_iterator(folder)) std::filesystem::remove_all(entry);
}

std::string writeModel(const std::string& folder) {
  const std::string header = R"({"w":{"dtype":"U8","shape":[)" + std::to_string(kModelBytes) + R"(],"data_offsets":[0,)" + std::to_string(kModelBytes) + "]}}";
  const uint64_t length = header.size();
  const std::string path = folder + "/m.safetensors";
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(&length), sizeof(length));
  file << header;
  for (uint64_t i = 0; i < kModelBytes; i++) file.put(static_cast<char>(i * 31 + i / 4099));
  return path;
}

int run(const std::string& folder, int seconds) {
  const std::string model = writeModel(folder);
  Node a(folder + "/a"), b(folder + "/b");
  const Scanned held = scan(a, model);
  if (a.run(held.id, LoadOrder{held.files, 1})->kind != Report::Kind::kDone) broken("the model cannot be loaded");
  std::filesystem::create_directories(folder + "/c/holdings");
  const std::string socket = folder + "/fd.sock";
  DescriptorServer server(socket, std::make_shared<StoreView>(folder + "/a", ""), [](std::unique_ptr<DescriptorEvent>) {}, RefusalGauge(std::numeric_limits<double>::infinity()));
  ProcessWatcher watcher([](uint64_t) {});

  std::vector<std::thread> threads;
  const auto keepDoing = [&](auto what) {
    threads.emplace_back([what] {
      while (!over) what();
    });
  };
  keepDoing([&] { transfers(a, b, model); });
  keepDoing([&] { transfers(b, a, model); });
  keepDoing([&] { damage(b, a, model); });
  keepDoing([&] { fillAndRead(folder + "/c"); });
  keepDoing([&] { descriptors(server, socket, held.id, "layout"); });
  keepDoing([&] { descriptors(server, socket, held.id, "files/m.safetensors"); });
  keepDoing([&] { processes(watcher); });
  keepDoing([&] { processes(watcher); });
  keepDoing([&] { ends(folder, model); });
  std::this_thread::sleep_for(std::chrono::seconds(seconds));
  over = true;
  for (std::thread& thread : threads) thread.join();
  a.end();
  b.end();
  removeStores(folder);
  std::printf(
      "{\"pulls\":%llu,\"pulled\":%llu,\"cancelled\":%llu,\"damaged\":%llu,\"repaired\":%llu,\"evicted\":%llu,\"fills\":%llu,\"descriptors\":%llu,\"processes\":%llu,\"ends\":%llu}\n",
      static_cast<unsigned long long>(counts.pulls), static_cast<unsigned long long>(counts.pulled), static_cast<unsigned long long>(counts.cancelled), static_cast<unsigned long long>(counts.damaged),
      static_cast<unsigned long long>(counts.repaired), static_cast<unsigned long long>(counts.evicted), static_cast<unsigned long long>(counts.fills),
      static_cast<unsigned long long>(counts.descriptors), static_cast<unsigned long long>(counts.processes), static_cast<unsigned long long>(counts.ends));
  return 0;
}

int plantedRace() {
  int shared = 0;
  std::thread other([&] { shared++; });
  shared++;
  other.join();
  return shared == 2 ? 0 : 1;
}

}  // namespace

}  // namespace weightline

int main(int count, char** words) {
  if (count == 2 && std::string_view(words[1]) == "--planted") return weightline::plantedRace();
  if (count != 3) {
    std::fprintf(stderr, "usage: %s FOLDER SECONDS | --planted\n", words[0]);
    return 2;
  }
  return weightline::run(words[1], std::atoi(words[2]));
}
