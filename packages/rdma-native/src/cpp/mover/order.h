// Orders to the mover and its reports, as native.ts declares them.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "model/scan.h"
#include "transport/stream_source.h"

namespace weightline {

struct ScanOrder {
  std::string path, loadRoot;
  Algorithm algorithm = Algorithm::kXxh3;
};

struct LoadOrder {
  std::vector<SourceFile> files;
  uint32_t threads = 1;
};

// A sealed memfd, open in the agent's process as `descriptor`.
struct GivenMemory {
  pid_t agent = 0;
  uint32_t descriptor = 0;
  uint64_t bytes = 0;
};

struct ArrangeOrder {
  GivenMemory list;
  Algorithm algorithm = Algorithm::kXxh3;
};

struct CopyOrder {
  uint32_t segment = 0;
  GivenMemory memory;
  uint32_t threads = 1;
};

struct FinishOrder {};

struct PullOrder {
  std::string parentHoldingId;
  StreamPeer peer;
  std::optional<DigestValue> objectDigest;
};

struct CheckOrder {
  bool trustFlag = false;
  std::vector<uint64_t> chunks;
  std::optional<DigestValue> objectDigest;
};

struct RepairOrder {};

struct EvictOrder {
  bool onlyIfFree = false;
};

struct GrantOrder {
  StreamTicket ticket;
  uint32_t ttlMs = 0;
  std::string child;
};

struct RevokeOrder {};

struct CancelOrder {
  uint32_t orderId = 0;
};

struct Order {
  uint32_t id = 0;
  std::string holdingId;
  std::variant<ScanOrder, LoadOrder, ArrangeOrder, CopyOrder, FinishOrder, PullOrder, CheckOrder, RepairOrder, EvictOrder, GrantOrder, RevokeOrder, CancelOrder> what;
};

// Part of a report of "done".
struct OrderResult {
  std::optional<ScanResult> scanned;
  DigestValue layoutDigest{};
  uint64_t layoutBytes = 0;
  std::optional<DigestValue> objectDigest;
  std::optional<std::vector<uint64_t>> wrongChunks;
  std::optional<uint64_t> freedBytes;
};

struct Report {
  enum class Kind { kProgress, kDone, kFailed, kServed, kDamage };
  uint32_t id = 0;
  Kind kind = Kind::kProgress;
  std::string holdingId;
  uint64_t verifiedBytes = 0, totalBytes = 0, networkBytes = 0, readBytes = 0, verifiedChunks = 0, refusedChunks = 0;
  double parentSeconds = 0, wireSeconds = 0, verifySeconds = 0, storeSeconds = 0;
  OrderResult result;
  std::string child;
  uint64_t sentBytes = 0, sentChunks = 0;
  std::unique_ptr<Fault> fault;
  bool distrustPeer = false;
};

// Takes reports; called from the mover's threads.
using ReportSink = std::function<void(std::unique_ptr<Report>)>;

}  // namespace weightline
