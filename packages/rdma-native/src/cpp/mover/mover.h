// Takes orders, runs each on a thread of its own, serves peers, and reports.
#pragma once

#include <atomic>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>

#include "mover/holding_table.h"
#include "mover/order.h"
#include "transport/stream_server.h"

namespace weightline {

// Orders that run at once; more are refused. Each has a thread of its own, a pull or load some more.
inline constexpr size_t kMaxRunningOrders = 256;
inline constexpr int kReportMs = 50;

struct MoverOptions {
  std::string store;
  std::vector<std::string> bind;
  uint16_t port = 0;
};

class Mover {
 public:
  // Listens and starts. `sink` is called from the mover's threads until the destructor has returned.
  Mover(MoverOptions options, ReportSink sink);
  ~Mover();  // cancels what runs and joins

  const std::string& address() const { return server_->address(); }
  void order(Order order);

 private:
  struct Running {
    Order order;
    Cancel cancel;
    FillCounters counters;
    std::mutex mutex;
    std::shared_ptr<Holding> holding;  // once known
    uint64_t reported = 0;
    std::atomic<bool> done{false};
    std::thread thread;
  };

  void start(Order order);
  void run(Running& running);
  OrderResult execute(Running& running);
  OrderResult scan(Running& running, const ScanOrder& order);
  OrderResult load(Running& running, const LoadOrder& order);
  OrderResult arrange(Running& running, const ArrangeOrder& order);
  OrderResult copy(Running& running, const CopyOrder& order);
  OrderResult finish(Running& running);
  OrderResult pull(Running& running, const PullOrder& order);
  OrderResult check(Running& running, const CheckOrder& order);
  OrderResult repair(Running& running);
  OrderResult evict(Running& running, const EvictOrder& order);
  std::optional<uint64_t> deleteWhenFree(Running& running, const EvictOrder& order);
  // Fills all of the holding, or one segment.
  void fill(Running& running, const std::shared_ptr<Holding>& holding, Source& source, std::optional<uint32_t> segment = std::nullopt);
  std::vector<uint64_t> wrongChunks(Running& running, const Holding& holding, const std::vector<uint64_t>& chunks);
  void damaged(const std::string& holdingId, uint64_t chunk);
  void remember(Running& running, std::shared_ptr<Holding> holding);
  std::unique_ptr<Report> reportOf(Running& running, Report::Kind kind);
  void fail(uint32_t id, const std::string& holdingId, const Fault& fault);
  void tick();

  const MoverOptions options_;
  const ReportSink sink_;
  HoldingTable table_;
  std::mutex mutex_;
  std::list<std::shared_ptr<Running>> running_;
  std::set<std::string> filling_;
  std::atomic<bool> stop_{false};
  std::unique_ptr<StreamServer> server_;
  std::thread ticker_;
};

}  // namespace weightline
