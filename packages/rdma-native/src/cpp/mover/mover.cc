#include "mover/mover.h"

#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <system_error>

namespace weightline {

namespace {

// A holding has a descriptor for each of up to 4096 segments: the soft limit of 1024 is too low.
void raiseDescriptorLimit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
    limit.rlim_cur = limit.rlim_max;
    ::setrlimit(RLIMIT_NOFILE, &limit);
  }
}

}  // namespace

Mover::Mover(MoverOptions options, ReportSink sink) : options_(std::move(options)), sink_(std::move(sink)), table_(options_.store) {
  // Whoever opens a file while its lease is held for a moment sends SIGIO, which would end the process.
  std::signal(SIGIO, SIG_IGN);
  raiseDescriptorLimit();
  StreamServerOptions server;
  server.bind = options_.bind;
  server.port = options_.port;
  server.holding = [this](const std::string& id) { return table_.open(id); };
  server.onDamage = [this](const std::string& id, uint64_t chunk) { damaged(id, chunk); };
  server_ = std::make_unique<StreamServer>(std::move(server));
  ticker_ = std::thread([this] { tick(); });
}

Mover::~Mover() {
  {
    std::lock_guard lock(mutex_);
    for (const auto& running : running_) running->cancel.request();
  }
  stop_ = true;
  ticker_.join();
  // Orders use the server to the end: an eviction waits for its streams.
  for (const auto& running : running_) running->thread.join();
  server_.reset();
}

void Mover::order(Order order) {
  const uint32_t id = order.id;
  const std::string holdingId = order.holdingId;
  try {
    if (const auto* cancel = std::get_if<CancelOrder>(&order.what)) {
      std::lock_guard lock(mutex_);
      for (const auto& running : running_) {
        if (running->order.id == cancel->orderId) running->cancel.request();
      }
    } else if (const auto* grant = std::get_if<GrantOrder>(&order.what)) {
      holdingFolder(options_.store, holdingId);  // checks the id
      server_->grant(grant->ticket, holdingId, grant->child, std::chrono::milliseconds(grant->ttlMs));
    } else {
      holdingFolder(options_.store, holdingId);
      start(std::move(order));
      return;
    }
    auto report = std::make_unique<Report>();
    report->id = id;
    report->kind = Report::Kind::kDone;
    report->holdingId = holdingId;
    sink_(std::move(report));
  } catch (const Fault& fault) {
    fail(id, holdingId, fault);
  }
}

void Mover::start(Order order) {
  std::lock_guard lock(mutex_);
  // Those that have ended stay until the next tick, and do not count.
  size_t busy = 0;
  for (const auto& running : running_) {
    if (running->done) continue;
    busy++;
    if (running->order.id == order.id) {
      throw Fault(Code::kAlreadyExists, "an order with id " + std::to_string(order.id) + " is running").field("id").value(std::to_string(order.id));
    }
  }
  if (busy >= kMaxRunningOrders) {
    throw Fault(Code::kResourceExhausted, "the mover runs " + std::to_string(busy) + " orders already").field("orders").limit(std::to_string(kMaxRunningOrders));
  }
  auto running = std::make_shared<Running>();
  running->order = std::move(order);
  try {
    running->thread = std::thread([this, running] { run(*running); });
  } catch (const std::system_error& error) {
    throw Fault(Code::kResourceExhausted, std::string("no thread can be started for an order: ") + error.what()).field("threads").wayOut("raise the limit of processes (pids) of the agent");
  }
  running_.push_back(running);
}

void Mover::fail(uint32_t id, const std::string& holdingId, const Fault& fault) {
  auto report = std::make_unique<Report>();
  report->id = id;
  report->kind = Report::Kind::kFailed;
  report->holdingId = holdingId;
  report->fault = std::make_unique<Fault>(fault);
  sink_(std::move(report));
}

std::unique_ptr<Report> Mover::reportOf(Running& running, Report::Kind kind) {
  auto report = std::make_unique<Report>();
  report->id = running.order.id;
  report->kind = kind;
  report->holdingId = running.order.holdingId;
  {
    std::lock_guard lock(running.mutex);
    if (running.holding) {
      report->verifiedBytes = running.holding->verifiedBytes();
      report->totalBytes = running.holding->geometry().totalBytes();
    }
  }
  const FillCounters& counters = running.counters;
  report->networkBytes = counters.networkBytes;
  report->readBytes = counters.readBytes;
  report->verifiedChunks = counters.verifiedChunks;
  report->refusedChunks = counters.refusedChunks;
  report->parentSeconds = static_cast<double>(counters.parentNs) / 1e9;
  report->wireSeconds = static_cast<double>(counters.wireNs) / 1e9;
  report->verifySeconds = static_cast<double>(counters.verifyNs) / 1e9;
  report->storeSeconds = static_cast<double>(counters.storeNs) / 1e9;
  return report;
}

void Mover::run(Running& running) {
  std::unique_ptr<Report> report;
  try {
    OrderResult result = execute(running);
    report = reportOf(running, Report::Kind::kDone);
    report->result = std::move(result);
  } catch (const DistrustFault& fault) {
    report = reportOf(running, Report::Kind::kFailed);
    report->fault = std::make_unique<Fault>(fault);
    report->distrustPeer = true;
  } catch (const Fault& fault) {
    report = reportOf(running, Report::Kind::kFailed);
    report->fault = std::make_unique<Fault>(fault);
  } catch (const std::exception& e) {
    report = reportOf(running, Report::Kind::kFailed);
    report->fault = std::make_unique<Fault>(Code::kInternal, e.what());
  }
  {
    std::lock_guard lock(running.mutex);
    running.holding.reset();
  }
  sink_(std::move(report));
  running.done = true;
}

OrderResult Mover::execute(Running& running) {
  return std::visit(
      [&](const auto& what) -> OrderResult {
        using What = std::decay_t<decltype(what)>;
        if constexpr (std::is_same_v<What, ScanOrder>) return scan(running, what);
        if constexpr (std::is_same_v<What, LoadOrder>) return load(running, what);
        if constexpr (std::is_same_v<What, ArrangeOrder>) return arrange(running, what);
        if constexpr (std::is_same_v<What, CopyOrder>) return copy(running, what);
        if constexpr (std::is_same_v<What, FinishOrder>) return finish(running);
        if constexpr (std::is_same_v<What, PullOrder>) return pull(running, what);
        if constexpr (std::is_same_v<What, CheckOrder>) return check(running, what);
        if constexpr (std::is_same_v<What, RepairOrder>) return repair(running);
        if constexpr (std::is_same_v<What, EvictOrder>) return evict(running, what);
        if constexpr (std::is_same_v<What, RevokeOrder>) server_->revoke(running.order.holdingId);
        return {};
      },
      running.order.what);
}

void Mover::remember(Running& running, std::shared_ptr<Holding> holding) {
  std::lock_guard lock(running.mutex);
  running.holding = std::move(holding);
}

void Mover::damaged(const std::string& holdingId, uint64_t chunk) {
  table_.retire(holdingId, "chunk " + std::to_string(chunk) + " of holding " + holdingId + " is damaged here");
  auto report = std::make_unique<Report>();
  report->kind = Report::Kind::kDamage;
  report->holdingId = holdingId;
  report->result.wrongChunks = std::vector<uint64_t>{chunk};
  sink_(std::move(report));
}

void Mover::tick() {
  int ticks = 0;
  while (!stop_) {
    std::this_thread::sleep_for(std::chrono::milliseconds(kReportMs));
    std::list<std::shared_ptr<Running>> ended;
    std::vector<std::unique_ptr<Report>> reports;
    {
      std::lock_guard lock(mutex_);
      for (auto it = running_.begin(); it != running_.end();) {
        const auto next = std::next(it);
        Running& running = **it;
        if (running.done) {
          ended.splice(ended.end(), running_, it);
        } else {
          auto report = reportOf(running, Report::Kind::kProgress);
          const uint64_t progress = report->verifiedBytes + report->readBytes + report->networkBytes;
          if (progress != running.reported) {
            running.reported = progress;
            reports.push_back(std::move(report));
          }
        }
        it = next;
      }
    }
    for (const auto& running : ended) running->thread.join();
    for (auto& report : reports) sink_(std::move(report));
    if (++ticks % 4 != 0) continue;
    for (ServedCount& served : server_->takeServed()) {
      auto report = std::make_unique<Report>();
      report->kind = Report::Kind::kServed;
      report->holdingId = served.holdingId;
      report->child = served.child;
      report->sentBytes = served.bytes;
      report->sentChunks = served.chunks;
      sink_(std::move(report));
    }
  }
}

}  // namespace weightline
