// The store's lock and view, processes, and the descriptor socket.
#include <algorithm>
#include <map>
#include <set>
#include <thread>

#include "agent/descriptor_server.h"
#include "agent/given_memory.h"
#include "agent/parent_death.h"
#include "agent/process.h"
#include "agent/process_watcher.h"
#include "agent/store_lock.h"
#include "agent/store_view.h"
#include "binding/event_source.h"
#include "binding/support.h"

namespace weightline::binding {

namespace {

// Undelivered refusals above this are dropped: strangers must not fill the agent's memory while its thread is busy.
constexpr size_t kMaxWaitingRefusals = 256;

// The largest number that a process can have (PID_MAX_LIMIT).
constexpr uint32_t kMaxPid = 4194304;

pid_t pidArgument(const Napi::Value& value, const char* name) {
  const uint32_t pid = uint32Argument(value, name);
  if (pid == 0 || pid > kMaxPid) {
    throw Fault(Code::kInvalidArgument, std::to_string(pid) + " is no process id").field(name).value(std::to_string(pid)).limit("1 to " + std::to_string(kMaxPid));
  }
  return static_cast<pid_t>(pid);
}

class LockWait;

// What one environment has running here. The members are only touched on its JavaScript thread.
struct AgentState {
  std::unique_ptr<ProcessWatcher> watcher;
  std::shared_ptr<EventSource<uint64_t>> ends;
  std::map<uint64_t, Napi::FunctionReference> callbacks;  // by the watch's id
  std::unique_ptr<CleanupHook> hook;
  std::set<std::shared_ptr<LockWait>> locks;
};

AgentState& stateOf(Napi::Env env) { return *env.GetInstanceData<AgentState>(); }

Napi::Value callBack(const Napi::CallbackInfo& info) {
  auto& callbacks = stateOf(info.Env()).callbacks;
  const auto found = callbacks.find(static_cast<uint64_t>(info[0].As<Napi::Number>().Int64Value()));
  if (found == callbacks.end()) return info.Env().Undefined();  // closed meanwhile
  const Napi::FunctionReference callback = std::move(found->second);
  callbacks.erase(found);
  callback.Value().Call({});
  return info.Env().Undefined();
}

// The one thread that watches processes, with one thread-safe function for all of them.
ProcessWatcher& watcherOf(Napi::Env env) {
  AgentState& state = stateOf(env);
  if (state.watcher) return *state.watcher;
  state.ends = std::make_shared<EventSource<uint64_t>>(
      env, Napi::Function::New(env, callBack), "process ends", [](Napi::Env env, uint64_t& id) { return Napi::Number::New(env, static_cast<double>(id)); });
  state.watcher = std::make_unique<ProcessWatcher>([ends = state.ends](uint64_t id) { ends->post(std::make_unique<uint64_t>(id)); });
  state.hook = std::make_unique<CleanupHook>(env, [&state] {
    state.watcher.reset();
    state.ends->close();
    state.callbacks.clear();
  });
  return *state.watcher;
}

void stopWatching(Napi::Env env, Process& process) {
  AgentState& state = stateOf(env);
  for (const uint64_t id : process.watches) {
    if (state.watcher) state.watcher->remove(id);
    state.callbacks.erase(id);
  }
  process.watches.clear();
}

// Waits for a store's lock on a thread of its own: Node waits for libuv's pool when it ends, and must not wait for a lock.
class LockWait : public std::enable_shared_from_this<LockWait> {
 public:
  explicit LockWait(Napi::Env env) : deferred_(Napi::Promise::Deferred::New(env)) {}
  ~LockWait() { stop(); }

  Napi::Value start(Napi::Env env, const std::string& path, uint32_t waitMs) {
    outcome_ = std::make_unique<EventSource<Outcome>>(
        env, Napi::Function::New(env, [](const Napi::CallbackInfo&) {}), "store lock",
        [this](Napi::Env current, Outcome& outcome) {
          settle(current, outcome);
          return current.Undefined();
        },
        true);
    hook_ = std::make_unique<CleanupHook>(env, [this] { stop(); });
    stateOf(env).locks.insert(shared_from_this());
    thread_ = std::thread([this, path, waitMs] { run(path, waitMs); });
    return deferred_.Promise();
  }

 private:
  struct Outcome {
    std::shared_ptr<StoreLock> lock;
    std::unique_ptr<Fault> fault;
  };

  void run(const std::string& path, uint32_t waitMs) {
    auto outcome = std::make_unique<Outcome>();
    try {
      outcome->lock = std::make_shared<StoreLock>(lockStore(path, waitMs, stopped_));
    } catch (const Fault& fault) {
      outcome->fault = std::make_unique<Fault>(fault);
    } catch (const std::exception& error) {
      outcome->fault = std::make_unique<Fault>(Code::kInternal, error.what());
    }
    outcome_->post(std::move(outcome));
  }

  void settle(Napi::Env env, Outcome& outcome) {
    const auto self = shared_from_this();
    stateOf(env).locks.erase(self);
    hook_.reset();
    stop();
    if (outcome.fault) {
      deferred_.Reject(toError(env, *outcome.fault).Value());
    } else {
      deferred_.Resolve(makeHandle(env, std::move(outcome.lock)));
    }
  }

  void stop() {
    stopped_ = true;
    if (thread_.joinable()) thread_.join();
    if (outcome_) outcome_->close();
  }

  Napi::Promise::Deferred deferred_;
  std::atomic<bool> stopped_ = false;
  std::unique_ptr<EventSource<Outcome>> outcome_;
  std::unique_ptr<CleanupHook> hook_;
  std::thread thread_;
};

Napi::Value lockStoreCall(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const std::string path = stringArgument(info[0], "path");
    const uint32_t waitMs = uint32Argument(info[1], "waitMs");
    return std::make_shared<LockWait>(info.Env())->start(info.Env(), path, waitMs);
  });
}

Napi::Value storeLockDescriptor(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value { return Napi::Number::New(info.Env(), openHandle<StoreLock>(info[0])->descriptor.get()); });
}

Napi::Value unlockStore(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    handleArgument<StoreLock>(info[0]).reset();
    return info.Env().Undefined();
  });
}

Napi::Value openStoreView(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const std::string store = stringArgument(info[0], "store"), mount = stringArgument(info[1], "readOnlyMount");
    using Result = std::shared_ptr<StoreView>;
    return PromiseWork<Result>::start(
        info.Env(), [=] { return std::make_shared<StoreView>(store, mount); }, [](Napi::Env env, Result& view) { return makeHandle(env, view); });
  });
}

Napi::Value storeViewLevel(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    switch (openHandle<StoreView>(info[0])->level()) {
      case StoreView::Level::kReadOnlyMount: return Napi::String::New(info.Env(), "read-only mount");
      case StoreView::Level::kDetachedMount: return Napi::String::New(info.Env(), "detached read-only mount");
      case StoreView::Level::kPlain: break;
    }
    return Napi::String::New(info.Env(), "plain");
  });
}

Napi::Value closeStoreView(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    handleArgument<StoreView>(info[0]).reset();
    return info.Env().Undefined();
  });
}

Napi::Object toPeer(Napi::Env env, PeerProcess peer) {
  auto object = Napi::Object::New(env);
  object.Set("pid", peer.process->pid);
  object.Set("uid", peer.uid);
  object.Set("gid", peer.gid);
  object.Set("cgroup", peer.cgroup);
  object.Set("source", peer.fromSocket ? "SO_PEERPIDFD" : "pidfd_open");
  object.Set("process", makeHandle(env, std::move(peer.process)));
  return object;
}

Napi::Value peerProcess(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value { return toPeer(info.Env(), peerOf(static_cast<int>(uint32Argument(info[0], "descriptor")))); });
}

Napi::Value openProcess(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value { return toPeer(info.Env(), processOf(pidArgument(info[0], "pid"))); });
}

Napi::Value processAlive(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value { return Napi::Boolean::New(info.Env(), openHandle<Process>(info[0])->alive()); });
}

Napi::Value watchProcess(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const auto process = openHandle<Process>(info[0]);
    if (!info[1].IsFunction()) throw Fault(Code::kInvalidArgument, "onEnd must be a function").field("onEnd");
    const uint64_t id = watcherOf(info.Env()).add(process->pidfd.get());
    process->watches.push_back(id);
    stateOf(info.Env()).callbacks.emplace(id, Napi::Persistent(info[1].As<Napi::Function>()));
    return info.Env().Undefined();
  });
}

Napi::Value closeProcess(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    auto& process = handleArgument<Process>(info[0]);
    if (process) stopWatching(info.Env(), *process);
    process.reset();
    return info.Env().Undefined();
  });
}

// The server, its events, and what stops both when the environment ends.
struct DescriptorServerHandle {
  static constexpr const char* kName = DescriptorServer::kName;
  static constexpr napi_type_tag kTag = DescriptorServer::kTag;
  std::shared_ptr<EventSource<DescriptorEvent>> events;
  std::unique_ptr<DescriptorServer> server;
  std::unique_ptr<CleanupHook> hook;

  void stop() {
    server.reset();
    events->close();
  }
  ~DescriptorServerHandle() {
    hook.reset();
    stop();
  }
};

const char* kindName(DescriptorEvent::Kind kind) {
  switch (kind) {
    case DescriptorEvent::Kind::kSent: return "sent";
    case DescriptorEvent::Kind::kRefused: return "refused";
    case DescriptorEvent::Kind::kGiven: return "given";
  }
  return "";
}

Napi::Value toEvent(Napi::Env env, DescriptorEvent& event) {
  auto object = Napi::Object::New(env);
  object.Set("kind", kindName(event.kind));
  object.Set("pid", event.pid);
  object.Set("descriptors", event.descriptors);
  object.Set("reason", event.reason);
  if (event.kind == DescriptorEvent::Kind::kGiven) {
    Given& given = event.given;
    auto inner = Napi::Object::New(env);
    inner.Set("connection", static_cast<double>(given.connection));
    inner.Set("offer", given.offer);
    inner.Set("what", given.list ? "tensors" : "segment");
    inner.Set("segment", given.segment);
    inner.Set("bytes", Napi::BigInt::New(env, given.bytes));
    inner.Set("descriptor", given.memory.release());
    object.Set("given", inner);
  }
  return object;
}

Napi::Value createDescriptorServer(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const std::string path = stringArgument(info[0], "path");
    const auto view = openHandle<StoreView>(info[1]);
    if (!info[2].IsFunction()) throw Fault(Code::kInvalidArgument, "onEvent must be a function").field("onEvent");
    auto handle = std::make_shared<DescriptorServerHandle>();
    handle->events = std::make_shared<EventSource<DescriptorEvent>>(info.Env(), info[2].As<Napi::Function>(), "descriptor events", toEvent);
    handle->server = std::make_unique<DescriptorServer>(path, view, [events = handle->events](std::unique_ptr<DescriptorEvent> event) {
      if (event->kind != DescriptorEvent::Kind::kRefused || events->waiting() < kMaxWaitingRefusals) events->post(std::move(event));
    });
    handle->hook = std::make_unique<CleanupHook>(info.Env(), [raw = handle.get()] { raw->stop(); });
    return makeHandle(info.Env(), handle);
  });
}

template <size_t N>
void copyExactly(std::array<uint8_t, N>& into, const std::vector<uint8_t>& from, const char* name) {
  if (from.size() != N) throw Fault(Code::kInvalidArgument, std::string(name) + " has " + std::to_string(from.size()) + " bytes, not " + std::to_string(N)).field(name);
  std::copy(from.begin(), from.end(), into.begin());
}

DescriptorServer& serverOf(const Napi::Value& value) {
  const auto handle = openHandle<DescriptorServerHandle>(value);
  if (!handle->server) throw Fault(Code::kClosed, "this descriptor server is closed");
  return *handle->server;
}

Napi::Value grantDescriptors(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    DescriptorServer& server = serverOf(info[0]);
    if (!info[1].IsObject()) throw Fault(Code::kInvalidArgument, "grant must be an object").field("grant");
    const auto object = info[1].As<Napi::Object>();
    DescriptorGrant grant;
    copyExactly(grant.ticketId, bytesArgument(field(object, "ticketId"), "ticketId"), "ticketId");
    copyExactly(grant.secret, bytesArgument(field(object, "secret"), "secret"), "secret");
    grant.pid = pidArgument(field(object, "pid"), "pid");
    grant.expires = std::chrono::steady_clock::now() + std::chrono::milliseconds(uint32Argument(field(object, "ttlMs"), "ttlMs"));
    grant.holdingId = stringArgument(field(object, "holdingId"), "holdingId");
    if (!field(object, "paths").IsArray()) throw Fault(Code::kInvalidArgument, "paths must be an array of strings").field("paths");
    const auto paths = field(object, "paths").As<Napi::Array>();
    for (uint32_t i = 0; i < paths.Length(); i++) grant.paths.push_back(stringArgument(paths.Get(i), "paths"));
    server.grant(std::move(grant));
    return info.Env().Undefined();
  });
}

Napi::Value revokeDescriptors(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    serverOf(info[0]).revoke(stringArgument(info[1], "holdingId"));
    return info.Env().Undefined();
  });
}

Napi::Value grantOffer(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    DescriptorServer& server = serverOf(info[0]);
    if (!info[1].IsObject()) throw Fault(Code::kInvalidArgument, "grant must be an object").field("grant");
    const auto object = info[1].As<Napi::Object>();
    OfferGrant grant;
    copyExactly(grant.ticketId, bytesArgument(field(object, "ticketId"), "ticketId"), "ticketId");
    copyExactly(grant.secret, bytesArgument(field(object, "secret"), "secret"), "secret");
    grant.pid = pidArgument(field(object, "pid"), "pid");
    grant.offer = stringArgument(field(object, "offer"), "offer");
    server.grantOffer(std::move(grant));
    return info.Env().Undefined();
  });
}

Napi::Value revokeOffer(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    serverOf(info[0]).revokeOffer(stringArgument(info[1], "offer"));
    return info.Env().Undefined();
  });
}

Napi::Value answerGiven(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    DescriptorServer& server = serverOf(info[0]);
    const auto connection = static_cast<uint64_t>(info[1].As<Napi::Number>().Int64Value());
    server.answer(connection, stringArgument(info[2], "text"), stringArgument(info[3], "layoutOf"));
    return info.Env().Undefined();
  });
}

Napi::Value discardGiven(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    serverOf(info[0]).discard(Descriptor(static_cast<int>(uint32Argument(info[1], "descriptor"))));
    return info.Env().Undefined();
  });
}

Napi::Value sealMemoryCall(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    const auto descriptor = static_cast<int>(uint32Argument(info[0], "descriptor"));
    const uint64_t bytes = uint64Argument(info[1], "bytes");
    return PromiseWork<bool>::start(
        info.Env(),
        [=] {
          sealMemory(descriptor, bytes);
          return true;
        },
        [](Napi::Env env, bool&) { return env.Undefined(); });
  });
}

Napi::Value closeDescriptorServer(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    handleArgument<DescriptorServerHandle>(info[0]).reset();
    return info.Env().Undefined();
  });
}

Napi::Value dieWithParentCall(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    dieWithParent(pidArgument(info[0], "parentPid"));
    return info.Env().Undefined();
  });
}

}  // namespace

void registerAgent(Napi::Env env, Napi::Object exports) {
  env.SetInstanceData(new AgentState());
  exports.Set("lockStore", Napi::Function::New(env, lockStoreCall));
  exports.Set("storeLockDescriptor", Napi::Function::New(env, storeLockDescriptor));
  exports.Set("unlockStore", Napi::Function::New(env, unlockStore));
  exports.Set("openStoreView", Napi::Function::New(env, openStoreView));
  exports.Set("storeViewLevel", Napi::Function::New(env, storeViewLevel));
  exports.Set("closeStoreView", Napi::Function::New(env, closeStoreView));
  exports.Set("peerProcess", Napi::Function::New(env, peerProcess));
  exports.Set("openProcess", Napi::Function::New(env, openProcess));
  exports.Set("processAlive", Napi::Function::New(env, processAlive));
  exports.Set("watchProcess", Napi::Function::New(env, watchProcess));
  exports.Set("closeProcess", Napi::Function::New(env, closeProcess));
  exports.Set("createDescriptorServer", Napi::Function::New(env, createDescriptorServer));
  exports.Set("grantDescriptors", Napi::Function::New(env, grantDescriptors));
  exports.Set("revokeDescriptors", Napi::Function::New(env, revokeDescriptors));
  exports.Set("grantOffer", Napi::Function::New(env, grantOffer));
  exports.Set("revokeOffer", Napi::Function::New(env, revokeOffer));
  exports.Set("sealMemory", Napi::Function::New(env, sealMemoryCall));
  exports.Set("answerGiven", Napi::Function::New(env, answerGiven));
  exports.Set("discardGiven", Napi::Function::New(env, discardGiven));
  exports.Set("closeDescriptorServer", Napi::Function::New(env, closeDescriptorServer));
  exports.Set("dieWithParent", Napi::Function::New(env, dieWithParentCall));
}

}  // namespace weightline::binding
