// What each order does.
#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <thread>

#include "agent/given_memory.h"
#include "model/tensor_list.h"
#include "mover/mover.h"
#include "store/eviction.h"
#include "transport/disk_source.h"
#include "transport/memory_source.h"

namespace weightline {

namespace {

// How often a pending eviction asks whether the last user has gone.
constexpr std::chrono::milliseconds kFreeAgainPoll{100};
constexpr unsigned kMaxThreads = 16;

// Keeps a holding's name in a set while something fills it.
class FillGuard {
 public:
  FillGuard(std::mutex& mutex, std::set<std::string>& filling, const std::string& id) : mutex_(mutex), filling_(filling), id_(id) {
    std::lock_guard lock(mutex_);
    if (!filling_.insert(id).second) throw Fault(Code::kInUse, "holding " + id + " is being filled by another order").field("holdingId").value(id);
  }
  ~FillGuard() {
    std::lock_guard lock(mutex_);
    filling_.erase(id_);
  }

 private:
  std::mutex& mutex_;
  std::set<std::string>& filling_;
  const std::string id_;
};

// A memfd of the agent, by its descriptor there: the agent keeps it open until the order has ended.
Descriptor openGiven(const GivenMemory& memory, const std::string& what) {
  const std::string path = "/proc/" + std::to_string(memory.agent) + "/fd/" + std::to_string(memory.descriptor);
  Descriptor opened(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!opened.valid()) throw systemFault(errno, "opening the memory of " + what).field("memory");
  const int seals = ::fcntl(opened.get(), F_GET_SEALS);
  if (seals < 0 || (seals & kMemorySeals) != kMemorySeals || files::sizeOf(opened.get()) != memory.bytes) {
    throw Fault(Code::kInternal, "the memory of " + what + " is not sealed, or of another size").field("memory");
  }
  return opened;
}

}  // namespace

OrderResult Mover::scan(Running& running, const ScanOrder& order) {
  OrderResult result;
  result.scanned = scanModel(order.path, order.loadRoot, order.algorithm, running.cancel);
  const std::vector<uint8_t> layout = encodeLayout(result.scanned->layout);
  result.layoutDigest = digestOf(Algorithm::kSha256, layout);
  result.layoutBytes = layout.size();
  remember(running, table_.openOrCreate(running.order.holdingId, [&] { return layout; }));
  return result;
}

void Mover::fill(Running& running, const std::shared_ptr<Holding>& holding, Source& source, std::optional<uint32_t> segment) {
  const FillGuard guard(mutex_, filling_, running.order.holdingId);
  remember(running, holding);
  if (holding->whole() && holding->completedDigest()) return;
  holding->beginFill(segment);
  try {
    RunCursor cursor(*holding, segment);
    FillContext context{*holding, cursor, running.counters, running.cancel};
    source.fill(context);
    if (segment ? !holding->wholeSegment(*segment) : !holding->whole()) throw Fault(Code::kInternal, "a fill ended before every chunk was there");
  } catch (const Fault& fault) {
    holding->endFill(&fault);
    throw;
  }
  holding->endFill(nullptr);
}

OrderResult Mover::load(Running& running, const LoadOrder& order) {
  const auto holding = table_.open(running.order.holdingId);
  DiskSource source(order.files, std::clamp(order.threads, 1u, kMaxThreads));
  fill(running, holding, source);
  OrderResult result;
  result.objectDigest = holding->complete(nullptr);
  return result;
}

OrderResult Mover::arrange(Running& running, const ArrangeOrder& order) {
  const Descriptor list = openGiven(order.list, "the list of tensors");
  OrderResult result;
  result.scanned.emplace();
  result.scanned->layout = readTensorList(list.get(), order.list.bytes, order.algorithm);
  const std::vector<uint8_t> layout = encodeLayout(result.scanned->layout);
  result.layoutDigest = digestOf(Algorithm::kSha256, layout);
  result.layoutBytes = layout.size();
  remember(running, table_.openOrCreate(running.order.holdingId, [&] { return layout; }));
  return result;
}

OrderResult Mover::copy(Running& running, const CopyOrder& order) {
  const auto holding = table_.open(running.order.holdingId);
  if (order.segment >= holding->geometry().segmentCount()) {
    throw Fault(Code::kInvalidArgument, "holding " + holding->id() + " has no segment " + std::to_string(order.segment))
        .field("segment").value(std::to_string(order.segment)).limit(std::to_string(holding->geometry().segmentCount() - 1));
  }
  Descriptor memory = openGiven(order.memory, "segment " + std::to_string(order.segment));
  const Layout layout = decodeLayout(holding->readLayout());
  MemorySource source(std::move(memory), order.segment, gapsOf(layout, order.segment), std::clamp(order.threads, 1u, kMaxThreads));
  fill(running, holding, source, order.segment);
  return {};
}

OrderResult Mover::finish(Running& running) {
  const auto holding = table_.open(running.order.holdingId);
  const FillGuard guard(mutex_, filling_, running.order.holdingId);
  remember(running, holding);
  if (!holding->whole()) {
    throw Fault(Code::kInvalidArgument, "holding " + holding->id() + " has " + std::to_string(holding->verifiedBytes()) + " of " + std::to_string(holding->geometry().totalBytes()) + " bytes")
        .field("holdingId").value(holding->id());
  }
  OrderResult result;
  result.objectDigest = holding->complete(nullptr);
  return result;
}

OrderResult Mover::pull(Running& running, const PullOrder& order) {
  StreamSource source(order.peer);
  const auto holding = table_.openOrCreate(running.order.holdingId, [&] { return source.fetchLayout(running.counters, running.cancel); });
  if (holding->layoutDigest() != order.peer.layoutDigest) {
    throw Fault(Code::kInvalidArgument, "holding " + holding->id() + " has another layout than the peer's holding: two objects are never mixed")
        .field("layoutDigest").value(toHex(order.peer.layoutDigest)).limit(toHex(holding->layoutDigest()));
  }
  fill(running, holding, source);
  const DigestValue own = holding->objectDigest();
  const DigestValue theirs = order.objectDigest ? *order.objectDigest : source.fetchObjectDigest(running.counters, running.cancel);
  if (own != theirs) {
    // Every chunk had the digest that the peer gave with it, and yet the object is another: the peer lied.
    DistrustFault fault(Code::kCorrupt, "the object received from " + order.peer.endpoint + " is not the one that was announced");
    fault.field("object_digest").value(toHex(own)).limit(toHex(theirs));
    holding->retire(fault.what());
    throw fault;
  }
  OrderResult result;
  result.objectDigest = holding->complete(nullptr);
  return result;
}

std::vector<uint64_t> Mover::wrongChunks(Running& running, const Holding& holding, const std::vector<uint64_t>& chunks) {
  std::vector<uint64_t> subject = chunks;
  const uint64_t count = holding.geometry().chunkCount();
  if (subject.empty()) {
    for (uint64_t chunk = 0; chunk < count; chunk++) {
      if (holding.verified(chunk)) subject.push_back(chunk);
    }
  }
  std::vector<uint64_t> wrong;
  std::mutex mutex;
  std::atomic<size_t> next{0};
  const unsigned threads = std::clamp<unsigned>(std::thread::hardware_concurrency(), 1, 4);
  runThreads(subject.size() > 64 ? threads : 1, running.cancel, [&](unsigned) {
    std::vector<uint8_t> buffer;
    for (size_t i = next++; i < subject.size(); i = next++) {
      running.cancel.check();
      const uint64_t chunk = subject[i];
      if (!holding.verified(chunk)) continue;  // not there yet: nobody was promised it
      const bool right = holding.prove(chunk, buffer);
      running.counters.readBytes += holding.geometry().place(chunk).bytes;
      if (right) continue;
      std::lock_guard lock(mutex);
      wrong.push_back(chunk);
    }
  });
  std::sort(wrong.begin(), wrong.end());
  return wrong;
}

OrderResult Mover::check(Running& running, const CheckOrder& order) {
  const auto holding = table_.open(running.order.holdingId);
  remember(running, holding);
  for (const uint64_t chunk : order.chunks) {
    const uint64_t count = holding->geometry().chunkCount();
    if (chunk >= count) {
      throw Fault(Code::kInvalidArgument, "holding " + holding->id() + " has " + std::to_string(count) + " chunks; there is no chunk " + std::to_string(chunk))
          .field("chunks").value(std::to_string(chunk)).limit("below " + std::to_string(count));
    }
  }
  OrderResult result;
  const bool trusted = order.trustFlag && order.chunks.empty() && holding->whole() && holding->allFlagged();
  result.wrongChunks = trusted ? std::vector<uint64_t>{} : wrongChunks(running, *holding, order.chunks);
  if (!result.wrongChunks->empty()) {
    table_.retire(holding->id(), "holding " + holding->id() + " is damaged here");
    return result;
  }
  if (!holding->whole()) return result;
  result.objectDigest = holding->objectDigest();
  if (order.objectDigest && *order.objectDigest != *result.objectDigest) {
    throw Fault(Code::kCorrupt, "holding " + holding->id() + " has another object digest than its record")
        .field("object_digest").value(toHex(*result.objectDigest)).limit(toHex(*order.objectDigest));
  }
  if (!trusted && order.chunks.empty()) holding->setFlags(true);
  return result;
}

OrderResult Mover::repair(Running& running) {
  // The repair is what makes a damaged holding servable again.
  table_.unretire(running.order.holdingId);
  const auto holding = table_.open(running.order.holdingId);
  remember(running, holding);
  OrderResult result;
  result.wrongChunks = wrongChunks(running, *holding, {});
  holding->setFlags(false);
  for (const uint64_t chunk : *result.wrongChunks) holding->unmark(chunk);
  return result;
}

OrderResult Mover::evict(Running& running, const EvictOrder& order) {
  const std::string& id = running.order.holdingId;
  {
    std::lock_guard lock(mutex_);
    if (filling_.contains(id)) throw Fault(Code::kInUse, "holding " + id + " is being filled").field("holdingId").value(id).wayOut("cancel the fill first");
  }
  table_.retire(id, "holding " + id + " is being evicted");
  try {
    server_->revoke(id);
    OrderResult result;
    while (true) {
      result.freedBytes = deleteWhenFree(running, order);
      if (result.freedBytes) break;
      std::this_thread::sleep_for(kFreeAgainPoll);
    }
    table_.unretire(id);
    return result;
  } catch (...) {
    table_.unretire(id);
    throw;
  }
}

std::optional<uint64_t> Mover::deleteWhenFree(Running& running, const EvictOrder& order) {
  const std::string& id = running.order.holdingId;
  running.cancel.check();
  std::string who = "a stream of our own";
  if (!table_.inUse(id) && holdingIsFree(table_.store(), id, who)) return deleteHolding(table_.store(), id);
  if (order.onlyIfFree) {
    throw Fault(Code::kInUse, "holding " + id + " is mapped or open: " + who).field("holdingId").value(id).wayOut("it can go when its last user has gone");
  }
  return std::nullopt;
}

}  // namespace weightline
